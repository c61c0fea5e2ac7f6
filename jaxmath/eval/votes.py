"""Which of k responses to one question is taken: votes over equivalent answers, best of k.

Ties go to the answer, or the response, that was seen first.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence

from jaxmath.eval.samples import Sample
from jaxmath.verify.verdict import Outcome

Key = tuple[str, str, int]
Classes = list[
    list[Sample]
]  # of one question: samples whose answers are the same, first seen first
Same = Callable[[list[tuple[str, str]]], Sequence[bool]]  # pairs of answers → whether they are one


def answer_classes(questions: Sequence[Sequence[Sample]], same: Same) -> list[Classes]:
    """The samples of each question by answer; samples without an answer are in no class.

    An answer joins the first class whose first answer is the same. All questions go forward
    together, one answer each a round, so that a pool of workers has something to do.
    """
    classes: list[Classes] = [[] for _ in questions]
    waiting = [[sample for sample in rows if sample.pred is not None] for rows in questions]
    while any(waiting):
        asked: list[tuple[int, list[int]]] = []  # (question, classes its next answer may join)
        pairs: list[tuple[str, str]] = []
        for question, rows in enumerate(waiting):
            while rows and (known := _by_text(classes[question], rows[0])) is not None:
                classes[question][known].append(rows.pop(0))
            if rows:
                candidates = list(range(len(classes[question])))
                asked.append((question, candidates))
                pairs += [(classes[question][c][0].pred, rows[0].pred) for c in candidates]
        verdicts = iter(same(pairs) if pairs else ())
        for question, candidates in asked:
            joined = [c for c in candidates if next(verdicts)]
            sample = waiting[question].pop(0)
            if joined:
                classes[question][joined[0]].append(sample)
            else:
                classes[question].append([sample])
    return classes


def _by_text(classes: Classes, sample: Sample) -> int | None:
    """The class that already holds this answer letter by letter."""
    for number, members in enumerate(classes):
        if any(member.pred == sample.pred for member in members):
            return number
    return None


def majority_is_right(classes: Classes) -> bool:
    """Whether the answer that most samples agree on is right (Wang et al., arXiv:2203.11171)."""
    return bool(classes) and _class_is_right(max(classes, key=len))  # max keeps the first of equals


def weighted_is_right(classes: Classes, scores: Mapping[Key, float | None]) -> bool:
    """The vote with weights: of an answer, Σ σ(score) over its samples. As in arXiv:2412.01981.

    A response without a score has no weight.
    """
    weights = [
        sum(sigmoid(s) for member in members if (s := scores[member.key]) is not None)
        for members in classes
    ]
    return bool(classes) and _class_is_right(classes[weights.index(max(weights))])


def best_is_right(rows: Sequence[Sample], scores: Mapping[Key, float | None]) -> bool:
    """Best of k: whether the response with the highest score is right."""
    scored = [(s, row) for row in rows if (s := scores[row.key]) is not None]
    return bool(scored) and max(scored, key=lambda pair: pair[0])[1].outcome == Outcome.RIGHT


def sigmoid(x: float) -> float:
    """1 / (1 + e^-x), without overflow."""
    return 1 / (1 + math.exp(-x)) if x >= 0 else math.exp(x) / (1 + math.exp(x))


def _class_is_right(members: Sequence[Sample]) -> bool:
    """The verdict of the first member that has one: a fault of the verifier's decides nothing."""
    judged = (Outcome.RIGHT, Outcome.WRONG)
    verdicts = [s.outcome == Outcome.RIGHT for s in members if s.outcome in judged]
    return bool(verdicts) and verdicts[0]
