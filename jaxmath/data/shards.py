"""A job's rows in shards that several workers fill: every (question, sample) once, come what may.

    shards/
      samples-00003-1f0c….jsonl   the rows of a shard; the name carries the digest of the bytes
      samples-00003.json          its record: which file counts, with digest, size and counts
      manifest.json               all records, and their sums
      journals/00003-….journal    rows of a shard that is being made, as they come
      claims/                     who is making which shard (`data/claims.py`)

A shard is there when its record is, and a record is created in one step by whoever is first; what
a slower worker then brings is dropped. So no row is lost or doubled whichever workers are killed,
suspended or started, and whenever. What a worker made of a shard before it died is in its journal
and is not made again: a line there counts if it is whole, which its checksum says.

A file that is not what its record says (cut off, or rotten) is named, removed and made again.
"""

from __future__ import annotations

import collections
import dataclasses
import hashlib
import json
import os
import pathlib
import secrets
import time
import zlib
from collections.abc import Callable, Iterable, Iterator
from typing import Any, NamedTuple

from jaxmath.data import claims as claims_lib
from jaxmath.data import durable

Row = dict[str, Any]
Name = tuple[int, int]  # question, sample

SYNC_S = 20.0  # between two visits of a journal to the disk: what a power cut can cost
DIGEST_CHARS = 16  # of a digest in a file's name; the record has all 64


class Work(NamedTuple):
    """What is to be done for one shard.

    names: every (question, sample) of it. rows: those not yet done, in any order, each with its
    `problem_id`, `sample` and `outcome`. facts: for the record.
    """

    names: set[Name]
    rows: Iterable[Row]
    facts: Row


@dataclasses.dataclass(frozen=True)
class Record:
    """What stands for a finished shard.

    file: name of its rows. sha256, bytes: of that file. outcomes: rows by outcome. facts: whatever
    its maker noted.
    """

    shard: int
    file: str
    sha256: str
    bytes: int
    rows: int
    outcomes: dict[str, int]
    facts: Row


def name_of(row: Row) -> Name:
    return row["problem_id"], row["sample"]


def line_of(row: Row) -> bytes:
    return json.dumps(row, ensure_ascii=False).encode() + b"\n"


class Shards:
    """The shards 0 … num_shards - 1 in `folder`, made here and by others."""

    def __init__(self, folder: pathlib.Path, num_shards: int):
        self.folder, self.num_shards = folder, num_shards
        self.journals = folder / "journals"
        self._verified: dict[int, tuple] = {}
        folder.mkdir(parents=True, exist_ok=True)

    def record(self, shard: int) -> Record | None:
        """The record of a shard whose file is there in full size; None if it is to be made."""
        record = self._read_record(shard)
        if record is None:
            return None
        try:
            size = (self.folder / record.file).stat().st_size
        except FileNotFoundError:
            return None
        return record if size == record.bytes else None

    def records(self) -> list[Record]:
        """Of the shards that are there."""
        found = (self.record(shard) for shard in range(self.num_shards))
        return [record for record in found if record is not None]

    def missing(self) -> list[int]:
        return [shard for shard in range(self.num_shards) if self.record(shard) is None]

    def verify(self) -> list[str]:
        """Reads every shard again that has not been since it was written; removes the damaged.

        Returns:
          What is wrong with each of those, for people.
        """
        faults = []
        for shard in range(self.num_shards):
            record = self._read_record(shard)
            if record is None:
                if self._record_path(shard).exists():
                    faults.append(f"{self._record_path(shard)}: cannot be read")
                continue
            path = self.folder / record.file
            fault = self._fault(record, path)
            if fault is not None:
                faults.append(f"{path}: {fault}")
                path.unlink(missing_ok=True)
        return faults

    def rows(self, record: Record) -> Iterator[Row]:
        """The rows of a shard, question by question, one at a time."""
        with (self.folder / record.file).open("rb") as file:
            for line in file:
                yield json.loads(line)

    def commit(self, shard: int, rows: dict[Name, Row], facts: Row) -> bool:
        """Puts a shard into place; False, and nothing is changed, if another was first."""
        data = b"".join(line_of(rows[name]) for name in sorted(rows))
        digest = hashlib.sha256(data).hexdigest()
        outcomes = collections.Counter(row["outcome"] for row in rows.values())
        record = Record(
            shard,
            f"samples-{shard:05d}-{digest[:DIGEST_CHARS]}.jsonl",
            digest,
            len(data),
            len(rows),
            dict(sorted(outcomes.items())),
            facts,
        )
        path, record_path = self.folder / record.file, self._record_path(shard)
        durable.replace(path, data)
        text = _json(dataclasses.asdict(record))
        if durable.publish(record_path, text):
            return True
        there = self.record(shard)
        if there is None:  # a record whose file was damaged, or that is damaged itself
            durable.replace(record_path, text)
        elif there.file != record.file:
            path.unlink(missing_ok=True)
        return there is None or there == record

    def write_manifest(self) -> None:
        """Brings the manifest up to date with the records, from which it can always be made."""
        found = self.records()
        outcomes: collections.Counter[str] = collections.Counter()
        for record in found:
            outcomes.update(record.outcomes)
        manifest = {
            "num_shards": self.num_shards,
            "num_done": len(found),
            "rows": sum(record.rows for record in found),
            "bytes": sum(record.bytes for record in found),
            "outcomes": dict(sorted(outcomes.items())),
            "shards": [dataclasses.asdict(record) for record in found],
        }
        durable.replace(self.folder / "manifest.json", _json(manifest))

    def tidy(self, claims: claims_lib.Claims) -> None:
        """Removes what dead workers left, once every shard is there."""
        counted = {record.file for record in self.records()}
        for path in self.folder.glob("samples-*.jsonl"):
            if path.name not in counted:
                path.unlink(missing_ok=True)
        for shard in range(self.num_shards):
            self.remove_journals(shard)
            claims.clear(_claim(shard))
        if self.journals.is_dir():
            durable.remove_scratch(self.journals)
            if not any(self.journals.iterdir()):
                self.journals.rmdir()
        durable.remove_scratch(self.folder)

    # --- journals -------------------------------------------------------------------------------

    def journaled(self, shard: int) -> dict[Name, Row]:
        """Rows of a shard that workers had finished before they died."""
        rows: dict[Name, Row] = {}
        for path in sorted(self.journals.glob(f"{shard:05d}-*.journal")):
            with path.open("rb") as file:
                for line in file:
                    checksum, _, text = line.partition(b" ")
                    if checksum == _checksum(text):
                        row = json.loads(text)
                        rows.setdefault(name_of(row), row)
        return rows

    def remove_journals(self, shard: int) -> None:
        for path in self.journals.glob(f"{shard:05d}-*.journal"):
            path.unlink(missing_ok=True)

    # --- inside -----------------------------------------------------------------------------------

    def _record_path(self, shard: int) -> pathlib.Path:
        return self.folder / f"samples-{shard:05d}.json"

    def _read_record(self, shard: int) -> Record | None:
        try:
            record = Record(**json.loads(self._record_path(shard).read_bytes()))
        except FileNotFoundError:
            return None
        except (ValueError, TypeError):  # damaged
            return None
        return record

    def _fault(self, record: Record, path: pathlib.Path) -> str | None:
        try:
            stat = path.stat()
        except FileNotFoundError:
            return "is not there"
        seen = (record.sha256, stat.st_ino, stat.st_size, stat.st_mtime_ns)
        if self._verified.get(record.shard) == seen:
            return None
        if stat.st_size != record.bytes:
            return f"has {stat.st_size} bytes, expected {record.bytes}"
        with path.open("rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
        if digest != record.sha256:
            return f"has the digest {digest[:12]}…, expected {record.sha256[:12]}…"
        self._verified[record.shard] = seen
        return None


class Journal:
    """The rows of one shard as one worker makes them; only ever appended to."""

    def __init__(self, folder: pathlib.Path, shard: int):
        folder.mkdir(exist_ok=True)
        path = folder / f"{shard:05d}-{os.getpid()}-{secrets.token_hex(4)}.journal"
        self._handle = os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY | os.O_APPEND, 0o644)
        self._synced = time.monotonic()

    def add(self, row: Row) -> None:
        """Safe from a kill when this returns; from a power cut within `SYNC_S`."""
        text = line_of(row)
        data = _checksum(text) + b" " + text
        while data:
            data = data[os.write(self._handle, data) :]
        if time.monotonic() - self._synced > SYNC_S:
            os.fsync(self._handle)
            self._synced = time.monotonic()

    def close(self) -> None:
        os.close(self._handle)


def fill(
    shards: Shards,
    claims: claims_lib.Claims,
    work: Callable[[int, dict[Name, Row]], Work],
    on_wait: Callable[[int, str | None], None] = lambda shard, owner: None,
    poll_s: float = 1.0,
) -> None:
    """Returns once every shard is there, made here or by other workers.

    Args:
      work: (shard, rows of it that are done) → what is to be done.
      on_wait: told now and then of a shard that another worker (the second argument) is making
        while there is nothing else to do.
    """
    missing = shards.missing()
    while missing:
        made = 0
        for shard in missing:
            if shards.record(shard) is not None:
                continue
            with claims.hold(_claim(shard)) as ours:
                if ours and shards.record(shard) is None:
                    _make(shards, shard, work)
                    claims.clear(_claim(shard))
                    made += 1
        missing = [shard for shard in missing if shards.record(shard) is None]
        if missing and not made:
            on_wait(missing[0], claims.owner(_claim(missing[0])))
            time.sleep(poll_s)


def _make(shards: Shards, shard: int, work: Callable[[int, dict[Name, Row]], Work]) -> None:
    rows = shards.journaled(shard)
    todo = work(shard, rows)
    if todo.names - rows.keys():
        journal = Journal(shards.journals, shard)
        try:
            for row in todo.rows:
                journal.add(row)
                assert name_of(row) in todo.names, f"{name_of(row)} is not of shard {shard}"
                rows.setdefault(name_of(row), row)
        finally:
            journal.close()
    assert rows.keys() == todo.names, f"shard {shard}: {len(rows)} of {len(todo.names)} rows"
    shards.commit(shard, rows, todo.facts)
    shards.remove_journals(shard)
    shards.write_manifest()


def _claim(shard: int) -> str:
    return f"{shard:05d}"


def _json(value: Any) -> bytes:
    return json.dumps(value, ensure_ascii=False, indent=1).encode() + b"\n"


def _checksum(text: bytes) -> bytes:
    return b"%08x" % zlib.crc32(text)
