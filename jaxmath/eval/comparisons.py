"""Two runs on the same questions: the difference, how sure it is, and where it comes from."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np

from jaxmath.eval import intervals, scores
from jaxmath.eval.intervals import Estimate
from jaxmath.eval.samples import Sample


@dataclasses.dataclass(frozen=True)
class Side:
    """One run's verdicts on a question, by sample index."""

    right: float  # share of its samples
    outcomes: tuple[str, ...]
    preds: tuple[str | None, ...]
    rules: tuple[str, ...]


@dataclasses.dataclass(frozen=True)
class Flip:
    """A question on which two runs differ in their share of right samples."""

    id: str
    gold: str
    a: Side
    b: Side


@dataclasses.dataclass(frozen=True)
class Comparison:
    """Run b minus run a on the same questions."""

    num_questions: int
    accuracy_a: float
    accuracy_b: float
    difference: Estimate  # mean over questions of b's share of right samples minus a's
    p_value: float  # two-sided, of "no difference": sign-flip test over questions
    mcnemar: float | None  # two-sided exact McNemar test; None unless both runs have one sample
    num_better: int  # questions where b's share is higher
    num_worse: int
    flips: tuple[Flip, ...]  # the largest differences first, then by question id


def compare(a: Sequence[Sample], b: Sequence[Sample]) -> Comparison:
    """Paired difference b - a over the questions of one benchmark; k may differ between the runs.

    Raises:
      ValueError: the runs do not hold the same questions, or a question's reference answer differs.
    """
    questions_a, questions_b = scores.by_question(a), scores.by_question(b)
    _check_same_questions(questions_a, questions_b)
    mean_a_P = np.array([scores.share_right(rows) for rows in questions_a.values()])
    mean_b_P = np.array([scores.share_right(questions_b[question]) for question in questions_a])
    difference_P = mean_b_P - mean_a_P
    num_better, num_worse = int((difference_P > 0).sum()), int((difference_P < 0).sum())
    single = all(len(next(iter(run.values()))) == 1 for run in (questions_a, questions_b))
    flips = [
        Flip(question, rows[0].gold, _side(rows), _side(questions_b[question]))
        for question, rows in questions_a.items()
        if scores.share_right(rows) != scores.share_right(questions_b[question])
    ]
    return Comparison(
        num_questions=len(difference_P),
        accuracy_a=float(mean_a_P.mean()),
        accuracy_b=float(mean_b_P.mean()),
        difference=intervals.difference(difference_P),
        p_value=intervals.sign_flip_p_value(difference_P),
        mcnemar=intervals.mcnemar_p_value(num_worse, num_better) if single else None,
        num_better=num_better,
        num_worse=num_worse,
        flips=tuple(sorted(flips, key=lambda f: (-abs(f.b.right - f.a.right), f.id))),
    )


def _side(rows: Sequence[Sample]) -> Side:
    columns = zip(*((row.outcome, row.pred, row.rule) for row in rows), strict=True)
    outcomes, preds, rules = columns
    return Side(scores.share_right(rows), outcomes, preds, rules)


def _check_same_questions(a: dict[str, list[Sample]], b: dict[str, list[Sample]]) -> None:
    only_a, only_b = sorted(a.keys() - b.keys()), sorted(b.keys() - a.keys())
    if only_a or only_b:
        raise ValueError(
            f"the runs answer different questions: {len(a.keys() & b.keys())} in common,"
            f" {len(only_a)} only in a {only_a[:3]}, {len(only_b)} only in b {only_b[:3]};"
            " compare runs of the same benchmark with the same limit"
        )
    for question, rows in a.items():
        gold_a, gold_b = rows[0].gold, b[question][0].gold
        if gold_a != gold_b:
            raise ValueError(
                f"question {question}: the reference answer is {gold_a!r} in a and {gold_b!r} in b;"
                " grade both runs against one version of the benchmark"
            )
