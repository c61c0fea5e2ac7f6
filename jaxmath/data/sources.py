"""The rows of JSONL files, Parquet files and hub data sets, each with the place it came from."""

import glob
import hashlib
import json
import pathlib
import re
from collections.abc import Iterator
from typing import NamedTuple

SUFFIXES = (".jsonl", ".parquet")
SPLIT_NAMES = ("train", "test", "validation", "val", "dev")
HUB_ID = re.compile(r"[\w.-]+/[\w.-]+")
MAX_LINE_BYTES = 32 * 2**20  # a longer line is no training row; read whole it could fill memory


class Where(NamedTuple):
    """A row's place: file and line, or data set and row, counted from 1."""

    file: str
    line: int

    @property
    def stem(self) -> str:
        return pathlib.PurePath(self.file).stem

    def __str__(self) -> str:
        return f"{self.file}:{self.line}"


class BadRow(NamedTuple):
    """What stands in for a row that cannot be read."""

    reason: str


def rows(path: str, split: str, name: str | None) -> Iterator[tuple[Where, dict | BadRow]]:
    """Every row of a file, folder, glob or hub data set, in a fixed order.

    Raises:
      ValueError: nothing is there, or a file is neither JSONL nor Parquet.
    """
    paths = files(path, split)
    if paths is None:
        yield from _hub_rows(path, split, name)
        return
    for file in paths:
        yield from _jsonl_rows(file) if file.suffix == ".jsonl" else _parquet_rows(file)


def files(path: str, split: str) -> list[pathlib.Path] | None:
    """The local files that `path` means, sorted; None if it can only be a hub id.

    In a folder whose files are named by split (train.jsonl, test-00000-of-00001.parquet) only
    those of `split` count.
    """
    root = pathlib.Path(path)
    if root.is_file():
        found = [root]
    elif root.is_dir():
        found = sorted(f for f in root.rglob("*") if f.suffix in SUFFIXES and f.is_file())
        named = [f for f in found if _split_of(f) is not None]
        if named:
            found = [f for f in named if _split_of(f) == split]
            if not found:
                raise ValueError(
                    f"{path}: no file of split {split!r} among {[f.name for f in named]}; "
                    "set split, or name one file"
                )
    elif glob.has_magic(path):
        found = sorted(pathlib.Path(f) for f in glob.glob(path, recursive=True))
    elif HUB_ID.fullmatch(path) and root.suffix not in SUFFIXES:
        return None
    else:
        raise ValueError(f"{path}: no such file or folder")
    if not found:
        raise ValueError(f"{path}: no file there ends in {' or '.join(SUFFIXES)}")
    for file in found:
        if file.suffix not in SUFFIXES:
            raise ValueError(f"{file}: ends in {file.suffix!r}, expected one of {SUFFIXES}")
    return found


def digests(path: str, split: str, name: str | None) -> list[tuple[str, str]]:
    """(file name, SHA-256 of its content) of every file that `rows` reads, in its order.

    Of a hub data set those are the files of `datasets`' own cache, which a revision determines.

    Raises:
      ValueError: as `rows`.
    """
    found = files(path, split)
    if found is None:
        found = [pathlib.Path(f["filename"]) for f in _hub_table(path, split, name).cache_files]
    out = []
    for file in found:
        with file.open("rb") as content:
            out.append((file.name, hashlib.file_digest(content, "sha256").hexdigest()))
    return out


def _split_of(file: pathlib.Path) -> str | None:
    head = re.split(r"[^a-z]", file.stem.lower(), maxsplit=1)[0]
    return head if head in SPLIT_NAMES else None


def _jsonl_rows(file: pathlib.Path) -> Iterator[tuple[Where, dict | BadRow]]:
    # Bytes, split at b"\n" only: a text file would also break lines at U+2028 inside strings.
    with file.open("rb") as lines:
        number = 0
        while line := lines.readline(MAX_LINE_BYTES + 1):
            number += 1
            if len(line) > MAX_LINE_BYTES:
                while line and not line.endswith(b"\n"):
                    line = lines.readline(MAX_LINE_BYTES)
                yield Where(str(file), number), BadRow(f"line is over {MAX_LINE_BYTES} bytes")
                continue
            if number == 1:
                line = line.removeprefix(b"\xef\xbb\xbf")
            if line.strip():
                yield Where(str(file), number), _json_row(line)


def _json_row(line: bytes) -> dict | BadRow:
    try:
        row = json.loads(line.decode("utf-8"), parse_constant=_refuse_constant)
    except UnicodeDecodeError as error:
        return BadRow(f"not UTF-8: {error.reason} at byte {error.start}")
    except (ValueError, RecursionError) as error:
        return BadRow(f"not JSON: {error}")
    if not isinstance(row, dict):
        return BadRow(f"a JSON {type(row).__name__}, expected an object")
    return row


def _refuse_constant(name: str):
    raise ValueError(f"{name} is not JSON")


def _parquet_rows(file: pathlib.Path) -> Iterator[tuple[Where, dict]]:
    import pyarrow
    import pyarrow.parquet

    number = 0
    try:
        for batch in pyarrow.parquet.ParquetFile(file).iter_batches(batch_size=1024):
            for row in batch.to_pylist():
                number += 1
                yield Where(str(file), number), row
    except (pyarrow.ArrowException, OSError) as error:
        raise ValueError(
            f"{file}: not a readable Parquet file after row {number}: {error}"
        ) from error


def _hub_rows(path: str, split: str, name: str | None) -> Iterator[tuple[Where, dict]]:
    for number, row in enumerate(_hub_table(path, split, name), start=1):
        yield Where(f"{path}/{split}", number), row


def _hub_table(path: str, split: str, name: str | None):
    try:
        import datasets
    except ImportError as error:
        raise ValueError(
            f"{path}: no such file or folder, and reading it as a hub id needs the package "
            "`datasets`, which is not installed; pip install datasets"
        ) from error
    try:
        return datasets.load_dataset(path, name, split=split)
    except Exception as error:  # the hub client raises kinds of many libraries; all mean the same
        raise ValueError(
            f"{path}: no such file or folder, and the hub gave no split {split!r} of it "
            f"({type(error).__name__}: {error}); check the id, name and split, and the network"
        ) from error
