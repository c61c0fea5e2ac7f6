"""`eval --regrade RUN`: kept samples under another grader, or another version of it.

RUN/regraded/<grader>/
  samples/<benchmark>.jsonl   the same responses with the new verdicts
  changes.json                every verdict that differs, old and new
  summary.json, table.txt, config.yaml, environment.json   as of an evaluation

Nothing is sampled, and the old verdicts stay where they are. The folder is that of an evaluation:
`--compare` and `--report` take it.
"""

from __future__ import annotations

import collections
import dataclasses
import json
import pathlib
from typing import Any

from jaxmath import config as config_lib
from jaxmath.eval import benchmarks, journal
from jaxmath.eval.samples import Sample
from jaxmath.runs import benchmark_tasks, evaluate, process_scores, results, session
from jaxmath.verify import pool

PUBLISHED = "published"  # each benchmark by the grader of its published score, see `Benchmark`


def run(folder: str, grader: str | None = None, gold: str | None = None) -> session.Report:
    """Grades every sample of a finished run again.

    Args:
      grader: a name in `verify.graders.GRADERS`, or "published": each benchmark by its own, against
        `eval_answer`. None: the one of the run.
      gold: "answer" or "eval_answer", see `benchmark_tasks.gold_of`. None: as in the run.
    Raises:
      ConfigError: no such grader.
      ValueError: the folder holds no finished evaluation.
    """
    source = pathlib.Path(folder)
    paths = sorted((source / "samples").glob("*.jsonl"))
    if not paths or not (source / "config.yaml").exists():
        raise ValueError(
            f"{source}: no samples/*.jsonl with a config.yaml; expected the folder of an eval"
        )
    config = config_lib.load(evaluate.EvalRun, source / "config.yaml")
    if grader == PUBLISHED:
        gold = gold or "eval_answer"
    gold = gold or config.gold
    label = grader or config.verify.grader
    target = source / "regraded" / (label if gold == "answer" else f"{label}-{gold}")
    graders = {path.stem: _grader_of(path.stem, grader, config) for path in paths}
    verify = _verify_config(config, next(iter(graders.values())))
    (target / "samples").mkdir(parents=True, exist_ok=True)
    with pool.VerifierPool(verify) as verifier:
        rows, prm, bad_golds, changes = {}, {}, {}, []
        for path in paths:
            name, by = path.stem, graders[path.stem]
            old = journal.read(Sample, path)
            problems = benchmark_tasks.read_questions(source, name)
            golds = {id: benchmark_tasks.gold_of(p, gold) for id, p in problems.items()}
            bad_golds[name] = benchmark_tasks.bad_golds(name, golds, verifier, by)
            rows[name] = _graded(old, golds, verifier, by)
            journal.write(target / "samples" / path.name, rows[name])
            changes += _changes(old, rows[name])
            if config.prm is not None:
                prm[name] = process_scores.kept(source, name, config.prm)
        regraded = results.score(rows, verifier, prm, bad_golds, graders)
    changed = dataclasses.replace(config, output=str(target), gold=gold, verify=verify)
    session.record(target, changed, "eval")
    text = json.dumps(changes, indent=2, ensure_ascii=False)
    session.write_atomic(target / "changes.json", text + "\n")
    report = results.write(target, regraded, bad_golds)
    counts = collections.Counter(f"{c['old']['outcome']} → {c['new']['outcome']}" for c in changes)
    print(f"{len(changes)} verdicts changed" + "".join(f"; {k}: {n}" for k, n in counts.items()))
    return session.Report(report.summary, (*report.artefacts, str(target / "changes.json")))


def _grader_of(benchmark: str, grader: str | None, config: evaluate.EvalRun) -> str:
    if grader != PUBLISHED:
        return grader or config.verify.grader
    known = benchmarks.BENCHMARKS.get(benchmark)
    return known.published_grader if known else config.verify.grader


def _verify_config(config: evaluate.EvalRun, grader: str) -> pool.VerifyConfig:
    try:
        return dataclasses.replace(config.verify, grader=grader)
    except ValueError as error:
        raise config_lib.ConfigError(str(error)) from None


def _graded(
    rows: list[Sample], golds: dict[str, str], verifier: pool.VerifierPool, grader: str
) -> list[Sample]:
    """The rows with new verdicts; what was never sampled stays as it is."""
    asked = [row for row in rows if row.finish_reason != "skipped"]
    verdicts = verifier.grade(((golds[row.id], row.response) for row in asked), grader)
    new = {
        row.key: dataclasses.replace(
            row,
            outcome=str(verdict.outcome),
            rule=verdict.rule,
            pred=verdict.pred,
            gold=golds[row.id],
        )
        for row, verdict in zip(asked, verdicts, strict=True)
    }
    return [new.get(row.key, row) for row in rows]


def _changes(old: list[Sample], new: list[Sample]) -> list[dict[str, Any]]:
    """Both verdicts of the samples whose outcome differs."""
    verdict = lambda row: {name: getattr(row, name) for name in ("outcome", "pred", "rule", "gold")}  # noqa: E731
    return [
        {
            "benchmark": a.benchmark,
            "id": a.id,
            "sample": a.sample,
            "old": verdict(a),
            "new": verdict(b),
        }
        for a, b in zip(old, new, strict=True)
        if a.outcome != b.outcome
    ]
