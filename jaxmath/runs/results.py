"""What is made of graded samples: scores, comparisons, and the report beside published numbers.

output/
  summary.json, table.txt     the scores of one run
"""

from __future__ import annotations

import dataclasses
import json
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import yaml

from jaxmath.eval import comparisons, intervals, journal, published, scores, tables, votes
from jaxmath.eval.samples import Sample
from jaxmath.runs import session
from jaxmath.verify import pool


def same_answers(verifier: pool.VerifierPool, grader: str) -> votes.Same:
    """Votes are over equivalent answers: the verifier decides, in its workers."""

    def same(pairs: list[tuple[str, str]]) -> list[bool]:
        return [verdict.is_right for verdict in verifier.grade_answers(pairs, grader)]

    return same


def score(
    rows: Mapping[str, Sequence[Sample]],
    verifier: pool.VerifierPool,
    process_scores: Mapping[str, Mapping[votes.Key, float | None]],
    bad_golds: Mapping[str, Sequence[Mapping[str, Any]]],
    graders: Mapping[str, str],
) -> list[scores.Score]:
    """One score per benchmark; its votes are counted by the grader of its verdicts."""
    return [
        scores.score(
            name,
            samples,
            same_answers(verifier, graders[name]),
            process_scores.get(name),
            grader=graders[name],
            bad_golds=[row["id"] for row in bad_golds[name]],
        )
        for name, samples in rows.items()
    ]


def write(
    folder: pathlib.Path,
    results: Sequence[scores.Score],
    bad_golds: Mapping[str, Sequence[Mapping[str, Any]]],
) -> session.Report:
    """Prints the table, and keeps it with every number."""
    table = tables.scores(results)
    if jax.process_index() == 0:
        print(table)
        session.write_atomic(folder / "table.txt", table + "\n")
        rows = [
            dataclasses.asdict(result) | {"bad_golds": bad_golds[result.name]} for result in results
        ]
        text = json.dumps(rows, indent=2, ensure_ascii=False)
        session.write_atomic(folder / "summary.json", text + "\n")
    summary = {
        result.name: {
            "accuracy": result.accuracy.value,
            "low": result.accuracy.low,
            "high": result.accuracy.high,
            "rows": result.num_questions * result.num_samples,
        }
        for result in results
    }
    return session.Report(summary, (str(folder / "samples"), str(folder / "summary.json")))


def compare(run_a: str, run_b: str, num_flips: int = 10, out: str | None = None) -> str:
    """The paired difference of two finished runs on the benchmarks they share, as a table.

    Where two graders gave the verdicts, a line says so: such a difference is not the models' alone.

    Args:
      num_flips: questions named per benchmark.
      out: JSON file for all numbers and every flipped question, with both runs' verdicts.
    """
    found = []
    for run in (run_a, run_b):
        paths = sorted((pathlib.Path(run) / "samples").glob("*.jsonl"))
        if not paths:
            raise ValueError(f"{run}: no samples/*.jsonl; expected the output folder of an eval")
        found.append({path.stem: path for path in paths})
    shared = sorted(found[0].keys() & found[1].keys())
    if not shared:
        raise ValueError(f"{run_a} and {run_b} have no benchmark in common")
    rows = {
        name: comparisons.compare(*(journal.read(Sample, paths[name]) for paths in found))
        for name in shared
    }
    if out is not None:
        facts = {"a": run_a, "b": run_b}
        facts["benchmarks"] = {name: dataclasses.asdict(row) for name, row in rows.items()}
        text = json.dumps(facts, indent=2, ensure_ascii=False)
        session.write_atomic(pathlib.Path(out), text + "\n")
    table = tables.comparisons(rows, num_flips)
    graders = [_graders(pathlib.Path(run)) for run in (run_a, run_b)]
    for name in shared:
        by_a, by_b = (found.get(name) for found in graders)
        if by_a != by_b:
            names = [by or "an unnamed grader" for by in (by_a, by_b)]
            table += f"\n{name}: a was graded by {names[0]}, b by {names[1]}"
    return table


def report(runs: Sequence[str], out: str | None = None) -> str:
    """The table of the runs beside the published models, as plain text.

    Args:
      out: a file for it: Markdown where it ends in .md, else plain text.
    """
    ours = {run: _measured(pathlib.Path(run)) for run in runs}
    for run, found in ours.items():
        if not found.keys() & published.BENCHMARKS.keys():
            raise ValueError(
                f"{run}: has none of {', '.join(published.BENCHMARKS)}, the published benchmarks"
            )
    cells = published.rows(ours)
    table = tables.text(cells)
    if out is not None:
        is_markdown = pathlib.Path(out).suffix == ".md"
        text = tables.markdown(cells) if is_markdown else table
        session.write_atomic(pathlib.Path(out), text + "\n")
    return table


def _graders(folder: pathlib.Path) -> dict[str, str]:
    """Benchmark → grader of its verdicts, as far as the run has come to its scores."""
    path = folder / "summary.json"
    rows = json.loads(path.read_text(encoding="utf-8")) if path.exists() else []
    return {row["name"]: row["grader"] for row in rows}


def _measured(folder: pathlib.Path) -> dict[str, tuple[str, intervals.Estimate]]:
    """Benchmark → (how it was measured, accuracy) of a finished run."""
    try:
        summary = json.loads((folder / "summary.json").read_text(encoding="utf-8"))
        config = yaml.safe_load((folder / "config.yaml").read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise ValueError(
            f"{error.filename}: no such file; expected the output folder of a finished eval"
        ) from None
    temperature = config["sampling"]["temperature"]
    found = {}
    for row in summary:
        kind = "single run" if row["num_samples"] == 1 else f"avg@{row['num_samples']}"
        how = f"{'greedy' if temperature == 0 else f'T={temperature:g}'}, {kind}"
        found[row["name"]] = f"ours, {how}, {row['grader']}", intervals.Estimate(**row["accuracy"])
    return found
