"""Graded samples → scores with their uncertainty.

Every row counts: an answer that could not be graded is not right, and the number of such rows
stands in the table beside the score.
"""

from __future__ import annotations

import collections
import dataclasses
from collections.abc import Mapping, Sequence

import numpy as np

from jaxmath.eval import intervals, votes
from jaxmath.eval.intervals import Estimate
from jaxmath.eval.samples import Sample
from jaxmath.verify.verdict import Outcome

FAULTS = (Outcome.TIMEOUT, Outcome.ERROR)  # of the verifier's machinery, not of the model


@dataclasses.dataclass(frozen=True)
class Score:
    """What k samples per question say of one model on one benchmark; rates are shares of rows.

    Votes need k > 1 and a way to compare answers, best of k needs process scores: None without.
    """

    name: str
    grader: str  # that gave the verdicts
    num_questions: int
    num_samples: int  # k per question; 1 for a greedy run
    accuracy: Estimate  # mean over questions of the share of right samples: avg@k, or greedy
    pass_at: dict[int, Estimate]  # k' → unbiased pass@k', for k' = 1, 2, 4, … and k
    majority: Estimate | None  # maj@k: the answer most samples agree on
    best_of: Estimate | None  # prm@k: the response with the highest process score
    weighted_vote: Estimate | None  # the vote weighted by process scores
    truncated: float  # responses cut at the token limit
    no_answer: float  # responses without an answer that could be found
    num_faults: int  # timeouts and errors of the verifier, scored as not right
    num_unparseable_gold: int  # rows whose reference answer the verifier cannot read, not right
    bad_golds: tuple[str, ...]  # questions whose reference answer does not even equal itself
    num_skipped: int  # rows never sampled, their prompt being too long, not right
    mean_tokens: float  # of a response that was sampled, its stop token included
    median_tokens: float
    p95_tokens: float


def score(
    name: str,
    samples: Sequence[Sample],
    same: votes.Same | None = None,
    process_scores: Mapping[votes.Key, float | None] | None = None,
    *,
    grader: str = "strict",
    bad_golds: Sequence[str] = (),
) -> Score:
    """Scores one benchmark.

    A single run has Wilson's interval; more samples per question have bootstrap intervals over
    questions, all scores from the same draws.

    Args:
      same: which pairs of answers are one, for the votes.
      process_scores: of each response; None for one that could not be scored.
      grader: whose verdicts these are. bad_golds: ids of questions to name beside the score.
    Raises:
      ValueError: no samples, or questions with unequal numbers of samples.
    """
    questions = list(by_question(samples).values())
    right_PR = np.array([[s.outcome == Outcome.RIGHT for s in rows] for rows in questions])
    num_questions, k = right_PR.shape
    columns = {"accuracy": right_PR.mean(axis=1)}
    num_right_P = right_PR.sum(axis=1)
    ks = sorted({1 << i for i in range(k.bit_length())} | {k})
    columns |= {f"pass@{j}": [pass_at_k(k, int(c), j) for c in num_right_P] for j in ks}
    if k > 1:
        columns |= _votes(questions, same, process_scores)
    values_PM = np.array(list(columns.values()), np.float64).T
    estimates = dict(zip(columns, intervals.shares(values_PM), strict=True))
    if k == 1:
        low, high = intervals.wilson(float(right_PR.mean()), num_questions)
        estimates = {what: Estimate(e.value, low, high) for what, e in estimates.items()}
    outcomes = collections.Counter(s.outcome for s in samples)
    finished = collections.Counter(s.finish_reason for s in samples)
    lengths = [s.num_tokens for s in samples if s.finish_reason != "skipped"] or [0]
    return Score(
        name=name,
        grader=grader,
        num_questions=num_questions,
        num_samples=k,
        accuracy=estimates["accuracy"],
        pass_at={j: estimates[f"pass@{j}"] for j in ks},
        majority=estimates.get("majority"),
        best_of=estimates.get("best_of"),
        weighted_vote=estimates.get("weighted_vote"),
        truncated=finished["length"] / len(samples),
        no_answer=outcomes[Outcome.NO_ANSWER] / len(samples),
        num_faults=sum(outcomes[outcome] for outcome in FAULTS),
        num_unparseable_gold=outcomes[Outcome.UNPARSEABLE_GOLD],
        bad_golds=tuple(bad_golds),
        num_skipped=finished["skipped"],
        mean_tokens=float(np.mean(lengths)),
        median_tokens=float(np.median(lengths)),
        p95_tokens=float(np.percentile(lengths, 95)),
    )


def _votes(
    questions: Sequence[Sequence[Sample]],
    same: votes.Same | None,
    process_scores: Mapping[votes.Key, float | None] | None,
) -> dict[str, list[bool]]:
    """Per question whether each way to choose among its responses chose a right one."""
    columns = {}
    if process_scores is not None:
        columns["best_of"] = [votes.best_is_right(rows, process_scores) for rows in questions]
    if same is not None:
        classes = votes.answer_classes(questions, same)
        columns["majority"] = [votes.majority_is_right(c) for c in classes]
        if process_scores is not None:
            columns["weighted_vote"] = [votes.weighted_is_right(c, process_scores) for c in classes]
    return columns


def pass_at_k(num_samples: int, num_right: int, k: int) -> float:
    """Unbiased estimate of the chance that k samples hold a right one, from n >= k samples:

        1 - C(n-c, k) / C(n, k) = 1 - Π_{i=n-c+1..n} (1 - k/i)

    n samples, c of them right. Chen et al. 2021 (arXiv:2107.03374), equation 1, product form.
    """
    if not 1 <= k <= num_samples or not 0 <= num_right <= num_samples:
        raise ValueError(
            f"pass@{k} from {num_samples} samples with {num_right} right:"
            " expected 1 <= k <= samples and 0 <= right <= samples"
        )
    if num_samples - num_right < k:
        return 1.0
    i = np.arange(num_samples - num_right + 1, num_samples + 1)
    return float(1.0 - np.prod(1.0 - k / i))


def by_question(samples: Sequence[Sample]) -> dict[str, list[Sample]]:
    """Question id → its samples by index, the same number for each.

    Raises:
      ValueError: no samples, samples of several benchmarks, or one that is missing or doubled.
    """
    if not samples:
        raise ValueError("got no samples, expected at least one; was the run cut off at its start?")
    benchmarks = sorted({s.benchmark for s in samples})
    if len(benchmarks) > 1:
        raise ValueError(f"samples of {', '.join(benchmarks)} together; score one benchmark a time")
    questions: dict[str, list[Sample]] = collections.defaultdict(list)
    for sample in sorted(samples, key=lambda s: s.key):
        questions[sample.id].append(sample)
    k = max(len(rows) for rows in questions.values())
    for question, rows in questions.items():
        if [s.sample for s in rows] != list(range(k)):
            raise ValueError(
                f"{benchmarks[0]}: question {question} has samples {[s.sample for s in rows]},"
                f" expected 0 to {k - 1} once each; finish the run before scoring it"
            )
    return dict(questions)


def share_right(rows: Sequence[Sample]) -> float:
    """Of the samples of one question."""
    return sum(s.outcome == Outcome.RIGHT for s in rows) / len(rows)
