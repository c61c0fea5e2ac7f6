"""`jaxmath verify`: grade a file of answers.

Each line is a JSON object with `gold` and `response` (a model's whole text) or `gold` and `pred` (a
bare answer;
`response` wins where both are there). The rows come back in order with `outcome` and `rule` added.
"""

import collections
import json
import os
import pathlib
from collections.abc import Iterable, Iterator

from jaxmath.verify import pool, verdict

CHUNK_ROWS = 4096  # held in memory at once


def run(
    in_path: str | os.PathLike,
    out_path: str | os.PathLike,
    num_workers: int = 2,
    timeout_s: float = 5.0,
) -> dict[str, int]:
    """Grades every row of a file, and returns the number of rows per outcome, with their sum as
    `rows`.

    No row is lost: one that cannot be graded is kept, with outcome `error` and a rule that names
    its line and what is wrong with it; what is not a JSON object is kept under `raw`. The output
    appears whole or not at all.

    Raises:
      ValueError: the input file is not there, or a setting is out of range.
    """
    in_path, out_path = pathlib.Path(in_path), pathlib.Path(out_path)
    if not in_path.is_file():
        raise ValueError(
            f"{in_path}: no such file; give a JSONL file with gold and response, or gold and pred"
        )
    config = pool.VerifyConfig(num_workers=num_workers, timeout_s=timeout_s)
    counts: collections.Counter[str] = collections.Counter()
    unfinished = out_path.with_name(out_path.name + ".tmp")
    out_path.parent.mkdir(parents=True, exist_ok=True)
    try:
        with (
            in_path.open("rb") as source,
            unfinished.open("w", encoding="ascii") as sink,
            pool.VerifierPool(config) as workers,
        ):
            for rows in chunks(read_rows(source)):
                for row in graded(rows, workers):
                    counts[row["outcome"]] += 1
                    sink.write(json.dumps(row) + "\n")
            sink.flush()
            os.fsync(sink.fileno())
        os.replace(unfinished, out_path)
    finally:
        unfinished.unlink(missing_ok=True)
    return {"rows": counts.total()} | {
        outcome.value: counts[outcome.value] for outcome in verdict.Outcome
    }


def read_rows(lines: Iterable[bytes]) -> Iterator[dict]:
    """Rows of a JSONL file; a row that cannot be graded already carries its outcome and rule."""
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except (ValueError, RecursionError) as error:
            row, fault = None, f"not JSON ({error})"
        else:
            fault = fault_of(row)
        if not isinstance(row, dict):
            row = {"raw": line.decode("utf-8", errors="replace").rstrip("\r\n")}
        if fault:
            row |= {"outcome": verdict.Outcome.ERROR.value, "rule": f"line {number}: {fault}"}
        else:
            row = {key: value for key, value in row.items() if key not in ("outcome", "rule")}
        yield row


def fault_of(row: object) -> str | None:
    """Why a row cannot be graded, or None."""
    if not isinstance(row, dict):
        return f"expected a JSON object, got {type(row).__name__}"
    text = "response" if "response" in row else "pred"
    for field in ("gold", text):
        if field not in row:
            wanted = "'response' or 'pred'" if field == "pred" else f"'{field}'"
            return f"field {wanted} is missing"
        if not isinstance(row[field], str):
            return f"field '{field}' must be a string, got {type(row[field]).__name__}"
    return None


def chunks(rows: Iterator[dict]) -> Iterator[list[dict]]:
    """Lists of up to `CHUNK_ROWS` rows."""
    chunk = []
    for row in rows:
        chunk.append(row)
        if len(chunk) == CHUNK_ROWS:
            yield chunk
            chunk = []
    if chunk:
        yield chunk


def graded(rows: list[dict], workers: pool.VerifierPool) -> list[dict]:
    """The rows with `outcome` and `rule`."""
    for field, grade in (("response", workers.grade), ("pred", workers.grade_answers)):
        todo = [row for row in rows if "outcome" not in row and field in row]
        for row, result in zip(todo, grade((row["gold"], row[field]) for row in todo), strict=True):
            row |= {"outcome": result.outcome.value, "rule": result.rule}
    return rows
