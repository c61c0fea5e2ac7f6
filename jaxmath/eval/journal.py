"""JSONL files that a run appends to as it goes along, and that outlive its death.

Killed and started again, a run reads what is done, cuts off a line that was being written at that
moment, and does only the rest. A row is a frozen dataclass with a `key` that names it.
"""

from __future__ import annotations

import dataclasses
import json
import os
import pathlib
from collections.abc import Iterable
from typing import Any, Protocol, TypeVar

from jaxmath.data import durable


class Row(Protocol):
    """What a journal holds."""

    @property
    def key(self) -> tuple[str, str, int]: ...  # benchmark, question id, sample


R = TypeVar("R", bound=Row)


def append(path: str | pathlib.Path, rows: Iterable[Row]) -> None:
    """Adds rows to the end of the file and waits until they are on the disk."""
    with open(path, "ab") as file:
        file.write(b"".join(map(_line, rows)))
        file.flush()
        os.fsync(file.fileno())


def write(path: str | pathlib.Path, rows: Iterable[Row]) -> None:
    """Replaces the file in one step by these rows, sorted by key: equal runs give equal bytes."""
    durable.replace(pathlib.Path(path), b"".join(map(_line, sorted(rows, key=lambda row: row.key))))


def read(kind: type[R], path: str | pathlib.Path) -> list[R]:
    """Every row, in file order.

    Raises:
      ValueError: a line that is no row of this kind (file and line number are named), or a key seen
        twice.
    """
    path = pathlib.Path(path)
    return _parse(kind, path, path.read_bytes())


def read_done(kind: type[R], path: str | pathlib.Path) -> tuple[list[R], int]:
    """The rows of an unfinished run, and how many bytes of a torn last line were cut off.

    No file counts as no rows. A last line that does not end in a newline, or is not JSON, was being
    written when the run stopped: the file is replaced by one without it. Damage anywhere else is no
    interrupted write, and raises as in `read`.
    """
    path = pathlib.Path(path)
    if not path.exists():
        return [], 0
    data = path.read_bytes()
    kept = data[: data.rfind(b"\n") + 1]
    last = kept[kept.rfind(b"\n", 0, -1) + 1 :]
    if kept == data and last and not _is_json(last):
        kept = data[: len(data) - len(last)]
    rows = _parse(kind, path, kept)
    if len(kept) < len(data):
        durable.replace(path, kept)
    return rows, len(data) - len(kept)


def _line(row: Any) -> bytes:
    text = json.dumps(dataclasses.asdict(row), ensure_ascii=False, allow_nan=False)
    # a lone surrogate has no UTF-8; backslashreplace writes it as \udXXX, which JSON reads back
    return text.encode("utf-8", "backslashreplace") + b"\n"


def _is_json(line: bytes) -> bool:
    try:
        json.loads(line)
    except ValueError:
        return False
    return True


def _parse(kind: type[R], path: pathlib.Path, data: bytes) -> list[R]:
    rows, lines = [], {}
    for number, line in enumerate(data.split(b"\n"), 1):
        if not line.strip():
            continue
        where = f"{path}:{number}"
        try:
            row = kind(**_mapping(json.loads(line)))
        except (TypeError, ValueError) as error:
            raise ValueError(f"{where}: not a row of samples ({error}); remove it") from None
        if row.key in lines:
            benchmark, id, sample = row.key
            raise ValueError(
                f"{where}: sample {sample} of {benchmark} {id} stands already"
                f" on line {lines[row.key]}; were two runs given one folder? remove one of them"
            )
        lines[row.key] = number
        rows.append(row)
    return rows


def _mapping(row: Any) -> dict[str, Any]:
    if not isinstance(row, dict):
        raise ValueError(f"expected an object, got {type(row).__name__}")
    return row
