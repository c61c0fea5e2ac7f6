"""Which questions a synthesis asks: difficulty rules, and no question of a benchmark.

    output/
      contamination.jsonl     what was found in a benchmark: question_id, benchmark, benchmark_id,
                              rule, ngram, common, left_out
      shards/left_out.json    the questions that were not asked, by their place in the data

What is asked is settled by the first start. A later, stricter choice (one more benchmark) needs no
new samples: its questions are left out when the rows are collected. A laxer one is refused.
"""

from __future__ import annotations

import collections
import dataclasses
import json
import pathlib

from jaxmath import config as config_lib
from jaxmath.data import decontaminate, difficulty, durable, records
from jaxmath.runs.progress import Progress

CONTAMINATED = "contaminated"


@dataclasses.dataclass(frozen=True)
class Choice:
    """left_out: place of a question in the data → the rule that leaves it out.

    asked: places of the questions that are sampled; some of them may be in `left_out`.
    counts: questions by rule. matches: lines of contamination.jsonl. benchmarks: their sizes.
    """

    left_out: dict[int, str]
    asked: frozenset[int]
    counts: dict[str, int]
    matches: int
    benchmarks: dict[str, int]


def choose(
    rules: str,
    overlap: decontaminate.DecontaminateConfig,
    found: records.Questions,
    folder: pathlib.Path,
) -> Choice:
    """Applies both filters, in this order, writes their results into `folder`.

    Args:
      rules: "none" or "s1", a difficulty filter.
    Raises:
      ConfigError: questions that were not asked before would be now.
    """
    problems = found.problems
    left_out: dict[int, str] = {}
    counts = collections.Counter(rows=len(problems) + found.num_unanswered)
    counts["without_answer"] = found.num_unanswered
    if rules == "s1":
        counts.update(dict.fromkeys((*difficulty.DROPPED, difficulty.CHOICE), 0))
        for place, problem in enumerate(problems):
            rule = difficulty.s1(problem.problem, problem.answer)
            counts[rule] += rule != difficulty.KEEP
            if rule in difficulty.DROPPED:
                left_out[place] = rule
        del counts[difficulty.KEEP]
    matches, benchmarks = 0, {}
    if overlap.benchmarks:
        index = decontaminate.Benchmarks(decontaminate.read(overlap), overlap)
        benchmarks = index.counts()
        contaminated, matches = _compare(index, problems, left_out, folder)
        left_out.update(dict.fromkeys(contaminated, CONTAMINATED))
        counts[CONTAMINATED] = len(contaminated)
    else:
        (folder / "contamination.jsonl").unlink(missing_ok=True)
    asked = _settle(len(problems), left_out, problems, folder / "shards" / "left_out.json")
    return Choice(left_out, asked, dict(counts), matches, benchmarks)


def _compare(
    index: decontaminate.Benchmarks,
    problems: list[records.Problem],
    left_out: dict[int, str],
    folder: pathlib.Path,
) -> tuple[list[int], int]:
    """Places of the contaminated questions, and how many matches were listed."""
    contaminated, listed = [], 0
    with (
        durable.replacing(folder / "contamination.jsonl") as out,
        Progress("decontaminate", len(problems), "questions") as progress,
    ):
        for place, problem in enumerate(problems):
            progress.update()
            if place in left_out:
                continue
            matches = index.matches(problem.problem)
            for match in matches:
                text = json.dumps(match.to_row(problem.id), ensure_ascii=False)
                out.write(text.encode() + b"\n")
            listed += len(matches)
            if any(match.left_out for match in matches):
                contaminated.append(place)
    return contaminated, listed


def _settle(
    num_problems: int,
    left_out: dict[int, str],
    problems: list[records.Problem],
    path: pathlib.Path,
) -> frozenset[int]:
    """The places that are asked: as the first start had it."""
    durable.publish(path, json.dumps(sorted(left_out)).encode() + b"\n")
    before = set(json.loads(path.read_bytes()))
    if newly := sorted(before - left_out.keys()):
        raise config_lib.ConfigError(
            f"{path.parent.parent} was begun without {len(newly)} questions that this difficulty "
            f"and decontaminate would ask (first: {problems[newly[0]].id}); use filters that "
            "leave out at least those, or another output folder"
        )
    return frozenset(range(num_problems)) - before
