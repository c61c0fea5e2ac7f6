"""`jaxmath verify`: grade a file of answers, by one grader or by several that are then compared.

Each line is a JSON object with `gold` and `response` (a model's whole text) or `gold` and `pred` (a
bare answer; `response` wins where both are there). The rows come back in order with `outcome`,
`rule` and `grader` added. An audit adds `verdicts`, one for each grader, instead.
"""

import collections
import contextlib
import io
import json
import os
import pathlib
from collections.abc import Iterable, Iterator, Sequence
from typing import IO, Any, NamedTuple

from jaxmath.data import durable
from jaxmath.runs import audit as audit_lib
from jaxmath.verify import graders, pool, verdict

CHUNK_ROWS = 4096  # held in memory at once
ADDED = ("outcome", "rule", "grader", "verdicts")


class Row(NamedTuple):
    """One line of the file; `fault` says why it cannot be graded."""

    number: int
    fields: dict[str, Any]
    fault: str | None


def run(
    in_path: str | os.PathLike,
    out_path: str | os.PathLike | None = None,
    config: pool.VerifyConfig | None = None,
) -> dict[str, int]:
    """Grades every row of a file, and returns the number of rows per outcome, with their sum as
    `rows`.

    No row is lost: one that cannot be graded is kept, with outcome `error` and a rule that names
    its line and what is wrong with it; what is not a JSON object is kept under `raw`. The output,
    if one is asked for, appears whole or not at all.

    Raises:
      ValueError: the input file is not there.
    """
    config = config or pool.VerifyConfig()
    counts: collections.Counter[str] = collections.Counter()
    with opened(in_path, out_path) as (source, sink), pool.VerifierPool(config) as workers:
        for rows in chunks(read_rows(source)):
            for row, result in zip(rows, verdicts_of(rows, workers), strict=True):
                counts[result.outcome.value] += 1
                if sink:
                    added = {"outcome": result.outcome.value, "rule": result.rule}
                    sink.write(json.dumps(row.fields | added | {"grader": config.grader}) + "\n")
    return {"rows": counts.total()} | {
        outcome.value: counts[outcome.value] for outcome in verdict.Outcome
    }


def audit(
    in_path: str | os.PathLike,
    names: Sequence[str] = tuple(graders.GRADERS),
    out_path: str | os.PathLike | None = None,
    config: pool.VerifyConfig | None = None,
    max_shown: int = 20,
) -> audit_lib.Audit:
    """Grades every row of a file by several graders, and compares.

    With `out_path` the rows are kept with all their verdicts, and the counts beside them as
    `<out_path>.summary.json`.

    Args:
      max_shown: rows on which the graders disagree, kept with their verdicts for `Audit.text`.
    Raises:
      ValueError: the input file is not there, or a grader is not known or named twice.
    """
    audit_lib.check_names(names)
    found = audit_lib.Audit(tuple(names), max_shown)
    with (
        opened(in_path, out_path) as (source, sink),
        pool.VerifierPool(config or pool.VerifyConfig()) as workers,
    ):
        for rows in chunks(read_rows(source)):
            columns = [verdicts_of(rows, workers, name) for name in names]
            for row, *results in zip(rows, *columns, strict=True):
                verdicts = dict(zip(names, results, strict=True))
                found.add(row.number, verdicts)
                if sink:
                    added = {"verdicts": {k: audit_lib.fields(v) for k, v in verdicts.items()}}
                    sink.write(json.dumps(row.fields | added) + "\n")
    if out_path is not None:
        summary = pathlib.Path(f"{out_path}.summary.json")
        summary.write_text(json.dumps(found.summary(), indent=2) + "\n")
    return found


@contextlib.contextmanager
def opened(
    in_path: str | os.PathLike, out_path: str | os.PathLike | None
) -> Iterator[tuple[IO[bytes], IO[str] | None]]:
    """The file to read, and the one to write, which takes its name when all went well."""
    in_path = pathlib.Path(in_path)
    if not in_path.is_file():
        raise ValueError(
            f"{in_path}: no such file; give a JSONL file with gold and response, or gold and pred"
        )
    with in_path.open("rb") as source:
        if out_path is None:
            yield source, None
            return
        out_path = pathlib.Path(out_path)
        out_path.parent.mkdir(parents=True, exist_ok=True)
        with durable.replacing(out_path) as file:
            sink = io.TextIOWrapper(file, "ascii")
            yield source, sink
            sink.detach()  # all is handed on; who opened the file closes it


def read_rows(lines: Iterable[bytes]) -> Iterator[Row]:
    """The rows of a JSONL file, without what an earlier run has added to them."""
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except (ValueError, RecursionError) as error:
            yield Row(number, {"raw": raw(line)}, f"not JSON ({error})")
            continue
        fields = row if isinstance(row, dict) else {"raw": raw(line)}
        kept = {key: value for key, value in fields.items() if key not in ADDED}
        yield Row(number, kept, fault_of(row))


def raw(line: bytes) -> str:
    return line.decode("utf-8", errors="replace").rstrip("\r\n")


def text_field(row: dict) -> str:
    return "response" if "response" in row else "pred"


def fault_of(row: object) -> str | None:
    """Why a row cannot be graded, or None."""
    if not isinstance(row, dict):
        return f"expected a JSON object, got {type(row).__name__}"
    text = text_field(row)
    for field in ("gold", text):
        if field not in row:
            wanted = "'response' or 'pred'" if field == "pred" else f"'{field}'"
            return f"field {wanted} is missing"
        if not isinstance(row[field], str):
            return f"field '{field}' must be a string, got {type(row[field]).__name__}"
    return None


def chunks(rows: Iterator[Row]) -> Iterator[list[Row]]:
    """Lists of up to `CHUNK_ROWS` rows."""
    chunk = []
    for row in rows:
        chunk.append(row)
        if len(chunk) == CHUNK_ROWS:
            yield chunk
            chunk = []
    if chunk:
        yield chunk


def verdicts_of(
    rows: list[Row], workers: pool.VerifierPool, grader: str | None = None
) -> list[verdict.Verdict]:
    """The verdict of every row; an `error` that names its line where it cannot be graded."""
    found: dict[int, verdict.Verdict] = {}
    for row in rows:
        if row.fault:
            rule = f"line {row.number}: {row.fault}"
            found[row.number] = verdict.Verdict(verdict.Outcome.ERROR, rule)
    for field, grade in (("response", workers.grade), ("pred", workers.grade_answers)):
        todo = [row for row in rows if not row.fault and text_field(row.fields) == field]
        results = grade([(row.fields["gold"], row.fields[field]) for row in todo], grader)
        found |= {row.number: result for row, result in zip(todo, results, strict=True)}
    return [found[row.number] for row in rows]
