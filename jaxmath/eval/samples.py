"""samples.jsonl: one row per sampled and graded response, written as an evaluation goes along.

A run appends rows in whatever order responses finish. Killed and started again, it reads what is
done, cuts off a line that was being written at that moment, and samples only the rest; a sample
depends on (seed, question, sample index) alone, so the resumed file holds the same rows.
"""

from __future__ import annotations

import dataclasses
import json
import math
import os
import pathlib
from collections.abc import Iterable
from typing import Any

from jaxmath.verify.verdict import Outcome

# "skipped": the prompt was too long for the model; nothing was sampled, yet the row counts
FINISH_REASONS = ("stop", "length", "skipped")


@dataclasses.dataclass(frozen=True)
class Sample:
    """One response to one question, and what the verifier said of it."""

    benchmark: str
    id: str  # of the question, unique inside its benchmark
    sample: int  # 0 … k-1
    prompt: str  # as the model saw it, chat template included
    response: str
    num_tokens: int  # of the response, its stop token included
    finish_reason: str  # one of FINISH_REASONS; "length": cut at the token limit
    outcome: str  # one of verify.verdict.Outcome
    rule: str  # the verifier's rule that decided
    pred: str | None  # the extracted answer, None where there was none
    gold: str
    logprob: float  # natural log, summed over the response's tokens

    def __post_init__(self):
        for field in dataclasses.fields(self):
            value, kinds = getattr(self, field.name), _KINDS[str(field.type)]
            if not isinstance(value, kinds) or isinstance(value, bool):
                raise ValueError(f"field {field.name}: got {value!r}, expected {field.type}")
        for name, allowed in (("finish_reason", FINISH_REASONS), ("outcome", tuple(Outcome))):
            if (value := getattr(self, name)) not in allowed:
                raise ValueError(f"field {name}: got {value!r}, expected {', '.join(allowed)}")
        if self.sample < 0 or self.num_tokens < 0:
            raise ValueError(f"sample {self.sample}, num_tokens {self.num_tokens}: expected >= 0")
        if not math.isfinite(self.logprob):
            raise ValueError(f"field logprob: got {self.logprob}, expected a finite number")

    @property
    def key(self) -> tuple[str, str, int]:
        """What names a sample: (benchmark, question id, sample index)."""
        return self.benchmark, self.id, self.sample


_KINDS = {"str": str, "int": int, "float": (int, float), "str | None": (str, type(None))}


def append(path: str | pathlib.Path, samples: Iterable[Sample]) -> None:
    """Adds rows to the end of the file and waits until they are on the disk."""
    with open(path, "ab") as file:
        file.write(b"".join(map(_line, samples)))
        file.flush()
        os.fsync(file.fileno())


def write(path: str | pathlib.Path, samples: Iterable[Sample]) -> None:
    """Replaces the file in one step by these rows, sorted by key: equal runs give equal bytes."""
    _replace(pathlib.Path(path), b"".join(map(_line, sorted(samples, key=lambda s: s.key))))


def read(path: str | pathlib.Path) -> list[Sample]:
    """Every row, in file order.

    Raises:
      ValueError: a line that is no sample (file and line number are named), or a key seen twice.
    """
    path = pathlib.Path(path)
    return _parse(path, path.read_bytes())


def read_done(path: str | pathlib.Path) -> tuple[list[Sample], int]:
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
    samples = _parse(path, kept)
    if len(kept) < len(data):
        _replace(path, kept)
    return samples, len(data) - len(kept)


def _line(sample: Sample) -> bytes:
    text = json.dumps(dataclasses.asdict(sample), ensure_ascii=False, allow_nan=False)
    # a lone surrogate has no UTF-8; backslashreplace writes it as \udXXX, which JSON reads back
    return text.encode("utf-8", "backslashreplace") + b"\n"


def _is_json(line: bytes) -> bool:
    try:
        json.loads(line)
    except ValueError:
        return False
    return True


def _parse(path: pathlib.Path, data: bytes) -> list[Sample]:
    samples, lines = [], {}
    for number, line in enumerate(data.split(b"\n"), 1):
        if not line.strip():
            continue
        where = f"{path}:{number}"
        try:
            sample = Sample(**_mapping(json.loads(line)))
        except (TypeError, ValueError) as error:
            raise ValueError(f"{where}: not a row of samples ({error}); remove it") from None
        if sample.key in lines:
            raise ValueError(
                f"{where}: sample {sample.sample} of {sample.benchmark} {sample.id} stands already"
                f" on line {lines[sample.key]}; were two runs given one folder? remove one of them"
            )
        lines[sample.key] = number
        samples.append(sample)
    return samples


def _mapping(row: Any) -> dict[str, Any]:
    if not isinstance(row, dict):
        raise ValueError(f"expected an object, got {type(row).__name__}")
    return row


def _replace(path: pathlib.Path, data: bytes) -> None:
    part = path.with_name(path.name + ".part")
    with open(part, "wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
    os.replace(part, path)
