"""From the shards of a synthesis to a set of records: filters, counts, card, hub.

    output/
      sft.jsonl, sft.parquet   the kept responses: id, messages, ground_truth
      summary.json             counts by fate, pass rates
      README.md                the data card
      collected.json           digests of these, and of what they were made from
      pushed.json              what was sent to the hub

Rows stream from the shards to the files, a question at a time. One worker does this while the
others wait; equal shards and equal settings give equal bytes.
"""

from __future__ import annotations

import collections
import contextlib
import dataclasses
import hashlib
import importlib.metadata
import itertools
import json
import pathlib
import time
from collections.abc import Callable, Iterable, Iterator
from typing import Any

from jaxmath import config as config_lib
from jaxmath.data import card, claims, durable, prompts, selection, shards
from jaxmath.runs import hub, questions, session
from jaxmath.runs.progress import Progress
from jaxmath.verify import pool, verdict

FILES = ("sft.jsonl", "sft.parquet", "summary.json", "README.md")
BATCH_ROWS, BATCH_BYTES = 4096, 8 * 2**20  # of a Parquet row group, whichever is reached first


@dataclasses.dataclass(frozen=True)
class Job:
    """What is collected, and how. style: prompt style of the records."""

    folder: pathlib.Path
    shards: shards.Shards
    choice: questions.Choice
    filters: selection.FilterConfig
    style: str
    num_samples: int
    seed: int
    card: card.CardConfig
    about: dict[str, Any]  # the fields of card.CardFacts that do not come from the rows
    hub: hub.HubConfig | None
    regrade: pool.VerifyConfig | None = None  # grade every response again, so


def collect(job: Job, claims_: claims.Claims, poll_s: float = 1.0) -> dict[str, Any]:
    """The summary. Whoever has the claim writes the files; the others wait for it."""
    done = False
    while not done:
        with claims_.hold("collect") as ours:
            if ours:
                _collect(job, claims_)
                claims_.clear("collect")
                done = True
        if not done:
            time.sleep(poll_s)
    return json.loads((job.folder / "summary.json").read_bytes())


def _collect(job: Job, claims_: claims.Claims) -> None:
    records = job.shards.records()
    key = _key(job, records)
    if not _is_collected(job.folder, key):
        (job.folder / "collected.json").unlink(missing_ok=True)
        job.shards.tidy(claims_)
        job.shards.write_manifest()
        digests = _write(job, records)
        text = json.dumps({"key": key, "files": digests}, indent=1) + "\n"
        session.write_atomic(job.folder / "collected.json", text)
    if job.hub is not None:
        _push(job, job.hub, key)


def _key(job: Job, records: list[shards.Record]) -> str:
    """Changes when anything does that the files are made from, this code included."""
    return config_lib.fingerprint(
        [
            [record.sha256 for record in records],
            config_lib.to_dict(job.filters),
            [job.style, job.num_samples, job.seed, config_lib.to_dict(job.card), job.about],
            sorted(job.choice.left_out.items()),
            [job.choice.counts, job.choice.matches, job.choice.benchmarks],
            None if job.regrade is None else session.code_digest("verify"),
            session.code_digest("data"),
            hashlib.sha256(pathlib.Path(__file__).read_bytes()).hexdigest(),
        ]
    )


def _is_collected(folder: pathlib.Path, key: str) -> bool:
    try:
        found = json.loads((folder / "collected.json").read_bytes())
        if found["key"] != key:
            return False
        return all(_digest(folder / name) == digest for name, digest in found["files"].items())
    except (OSError, ValueError, KeyError):
        return False


def _digest(path: pathlib.Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _write(job: Job, records: list[shards.Record]) -> dict[str, str]:
    """Writes all files; their digests."""
    tally = Tally(job.num_samples)
    with (
        _grader(job) as graded,
        durable.replacing(job.folder / "sft.jsonl") as lines,
        durable.replacing(job.folder / "sft.parquet") as table_file,
        Table(table_file, with_correct=not job.filters.right) as table,
        Progress("collect", sum(record.rows for record in records), "rows") as progress,
    ):
        for record in records:
            for rows in _by_question(graded(job.shards.rows(record))):
                progress.update(len(rows))
                for row in _kept(job, rows, tally):
                    data = shards.line_of(row)
                    lines.write(data)
                    table.add(row, len(data))
    too_long = [place for record in records for place in record.facts["prompts_too_long"]]
    counts = dict(job.choice.counts)
    counts["prompt_too_long"] = sum(place not in job.choice.left_out for place in too_long)
    counts["sampled"] = tally.questions
    summary = tally.summary() | {"questions": counts}
    session.write_atomic(job.folder / "summary.json", json.dumps(summary, indent=2) + "\n")
    session.write_atomic(job.folder / "README.md", _card(job, records, summary, "sft.parquet"))
    return {name: _digest(job.folder / name) for name in FILES}


@contextlib.contextmanager
def _grader(job: Job) -> Iterator[Callable[[Iterator[shards.Row]], Iterable[shards.Row]]]:
    """What rows pass through: nothing, or the verifier of today."""
    if job.regrade is None:
        yield lambda rows: rows
        return
    with pool.VerifierPool(job.regrade) as verifier:

        def grade(rows: Iterator[shards.Row]) -> Iterable[shards.Row]:
            there = list(rows)  # of one shard
            found = verifier.grade([(row["ground_truth"], row["response"]) for row in there])
            return [row | grades(each) for row, each in zip(there, found, strict=True)]

        yield grade


def grades(found: verdict.Verdict) -> shards.Row:
    """The fields of a row that come from the verifier."""
    return {"correct": found.is_right, "outcome": str(found.outcome), "rule": found.rule}


def _by_question(rows: Iterable[shards.Row]) -> Iterator[list[shards.Row]]:
    for _, group in itertools.groupby(rows, key=lambda row: row["problem_id"]):
        yield list(group)


def _kept(job: Job, rows: list[shards.Row], tally: Tally) -> Iterator[shards.Row]:
    """The records of one question."""
    place, question = rows[0]["problem_id"], rows[0]["prompt"]
    if place in job.choice.left_out:
        tally.fates["question_left_out"] += len(rows)
        return
    fates = selection.fates(rows, question, job.filters, job.seed)
    tally.add(rows, fates)
    for row, fate in zip(rows, fates, strict=True):
        if fate != selection.KEPT:
            continue
        answer = {"role": "assistant", "content": row["response"]}
        record = {
            "id": f"math_problem_{place * job.num_samples + row['sample']}",
            "messages": [*prompts.prompt_messages(job.style, question), answer],
            "ground_truth": row["ground_truth"],
        }
        yield record if job.filters.right else record | {"correct": row["correct"]}


class Tally:
    """Counts over the rows of a synthesis."""

    def __init__(self, num_samples: int):
        self.num_samples = num_samples
        self.fates: collections.Counter[str] = collections.Counter()
        self.right: collections.Counter[int] = collections.Counter()  # answers → questions
        self.judged = self.questions = self.kept_tokens = 0

    def add(self, rows: list[shards.Row], fates: list[str]) -> None:
        self.questions += 1
        self.fates.update(fates)
        self.right[selection.num_right(rows)] += 1
        self.judged += sum(row["outcome"] in selection.JUDGED for row in rows)
        kept = zip(rows, fates, strict=True)
        self.kept_tokens += sum(row["num_tokens"] for row, fate in kept if fate == selection.KEPT)

    def summary(self) -> dict[str, Any]:
        """responses: all of them; then how many met each fate. accuracy: of those judged."""
        num_right = sum(times * count for times, count in self.right.items())
        return {
            "responses": self.fates.total(),
            **{fate: self.fates[fate] for fate in selection.FATES},
            "kept_tokens": self.kept_tokens,
            "accuracy": num_right / max(self.judged, 1),
            "questions_by_right_answers": {
                str(times): self.right[times] for times in range(self.num_samples + 1)
            },
        }


class Table:
    """Records as Parquet, in row groups of bounded size; a context manager."""

    def __init__(self, file: Any, *, with_correct: bool):
        import pyarrow
        import pyarrow.parquet

        text = pyarrow.string()
        message = pyarrow.struct([("role", text), ("content", text)])
        fields = [("id", text), ("messages", pyarrow.list_(message)), ("ground_truth", text)]
        if with_correct:
            fields.append(("correct", pyarrow.bool_()))
        self._schema = pyarrow.schema(fields)
        self._table = pyarrow.Table
        self._writer = pyarrow.parquet.ParquetWriter(file, self._schema, compression="zstd")
        self._rows: list[shards.Row] = []
        self._bytes = 0

    def __enter__(self) -> Table:
        return self

    def __exit__(self, *exc) -> None:
        if exc[0] is None:
            self._flush()
        self._writer.close()

    def add(self, row: shards.Row, num_bytes: int) -> None:
        self._rows.append(row)
        self._bytes += num_bytes
        if len(self._rows) == BATCH_ROWS or self._bytes >= BATCH_BYTES:
            self._flush()

    def _flush(self) -> None:
        if self._rows:
            self._writer.write_table(self._table.from_pylist(self._rows, self._schema))
        self._rows, self._bytes = [], 0


def _card(job: Job, records: list[shards.Record], summary: dict[str, Any], data_files: str) -> str:
    """The data card of records that lie at `data_files`."""
    verifiers = sorted({record.facts["verifier"] for record in records})
    if job.regrade is not None:
        verifiers = [verifier_name()]
    fates = {fate: summary[fate] for fate in selection.FATES if summary[fate]}
    facts = card.CardFacts(
        num_records=summary[selection.KEPT],
        verifier="Graded by " + "; ".join(verifiers) + ".",
        filters=config_lib.to_dict(job.filters),
        responses={"sampled": summary["responses"]} | fates,
        questions=summary["questions"],
        benchmarks=job.choice.benchmarks,
        **job.about,
    )
    return card.render(job.card, facts, data_files)


def verifier_name() -> str:
    """What gives the verdicts: equal names, equal rules."""
    parts = [f"jaxmath.verify {session.code_digest('verify')}"]
    for package in ("sympy", "mpmath", "math-verify"):
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            parts.append(f"{package} {importlib.metadata.version(package)}")
    return ", ".join(parts)


def _push(job: Job, config: hub.HubConfig, key: str) -> None:
    path = job.folder / "pushed.json"
    sent = {"key": key, "repo": config.repo}
    if path.exists() and json.loads(path.read_bytes()) == sent:
        return
    summary = json.loads((job.folder / "summary.json").read_bytes())
    text = _card(job, job.shards.records(), summary, "data/train-*")
    session.say(f"pushed to {hub.push(config, job.folder / 'sft.parquet', text)}")
    session.write_atomic(path, json.dumps(sent) + "\n")
