"""Graded samples → scores with their uncertainty. NumPy only; every formula names its source.

A score says how a model would do on questions *like* these, so its interval treats the questions
as drawn from a wider set and the k samples of one question as a cluster (Miller 2024, "Adding
Error Bars to Evals", arXiv:2411.00640). Every row counts: an answer that could not be graded is
not right, and the number of such rows stands in the table beside the score.
"""

from __future__ import annotations

import collections
import dataclasses
from collections.abc import Callable, Iterable, Sequence

import numpy as np

from jaxmath.eval.samples import Sample
from jaxmath.verify.verdict import Outcome

FAULTS = (Outcome.TIMEOUT, Outcome.ERROR)  # of the verifier's machinery, not of the model
Z95 = 1.959964  # 97.5 % quantile of the standard normal
MAX_EXACT_FLIPS = 14  # 2^14 sign patterns are enumerated, beyond that they are sampled
NUM_RANDOM_FLIPS = 20_000
SEED = 0  # of the sampled sign patterns: the same two runs always give the same p-value

Equivalent = Callable[[str, str], bool]


@dataclasses.dataclass(frozen=True)
class Score:
    """What k samples per question say of one model on one benchmark; rates are shares of rows."""

    name: str
    num_questions: int
    num_samples: int  # k per question; 1 for a greedy run
    accuracy: float  # mean over questions of the share of right samples: avg@k, or greedy accuracy
    low: float  # 95 % interval of `accuracy`
    high: float
    pass_at: dict[int, float]  # k' → unbiased pass@k', for k' = 1, 2, 4, … and k
    majority: float | None  # maj@k, None where no way to compare answers was given
    truncated: float  # responses cut at the token limit
    no_answer: float  # responses without an answer that could be found
    num_faults: int  # timeouts and errors of the verifier, scored as not right
    num_unparseable_gold: int  # rows whose reference answer the verifier cannot read, not right
    num_skipped: int  # rows never sampled, their prompt being too long, not right
    mean_tokens: float  # of a response


@dataclasses.dataclass(frozen=True)
class Comparison:
    """Run b minus run a on the same questions."""

    num_questions: int
    accuracy_a: float
    accuracy_b: float
    difference: float  # mean over questions of b's share of right samples minus a's
    low: float  # 95 % interval of `difference`
    high: float
    p_value: float  # two-sided, of "no difference": sign-flip test over questions
    num_better: int  # questions where b's share is higher
    num_worse: int


def by_benchmark(samples: Iterable[Sample]) -> dict[str, list[Sample]]:
    """The samples of each benchmark, in order of first appearance."""
    groups: dict[str, list[Sample]] = collections.defaultdict(list)
    for sample in samples:
        groups[sample.benchmark].append(sample)
    return dict(groups)


def score(name: str, samples: Sequence[Sample], equivalent: Equivalent | None = None) -> Score:
    """Scores one benchmark; `equivalent` says whether two answers are the same, for maj@k.

    Raises:
      ValueError: no samples, or questions with unequal numbers of samples.
    """
    questions = _questions(samples)
    right_PR = np.array([[s.outcome == Outcome.RIGHT for s in rows] for rows in questions.values()])
    num_questions, k = right_PR.shape
    low, high = interval(right_PR)
    outcomes = collections.Counter(s.outcome for s in samples)
    finished = collections.Counter(s.finish_reason for s in samples)
    majority = None
    if equivalent is not None:
        votes = [majority_is_right(rows, equivalent) for rows in questions.values()]
        majority = float(np.mean(votes))
    ks = sorted({1 << i for i in range(k.bit_length())} | {k})
    num_right_P = right_PR.sum(axis=1)
    return Score(
        name=name,
        num_questions=num_questions,
        num_samples=k,
        accuracy=float(right_PR.mean()),
        low=low,
        high=high,
        pass_at={j: float(np.mean([pass_at_k(k, int(c), j) for c in num_right_P])) for j in ks},
        majority=majority,
        truncated=finished["length"] / len(samples),
        no_answer=outcomes[Outcome.NO_ANSWER] / len(samples),
        num_faults=sum(outcomes[outcome] for outcome in FAULTS),
        num_unparseable_gold=outcomes[Outcome.UNPARSEABLE_GOLD],
        num_skipped=finished["skipped"],
        mean_tokens=float(np.mean([s.num_tokens for s in samples])),
    )


def interval(right_PR: np.ndarray) -> tuple[float, float]:
    """95 % interval of the mean of `right_PR`, bool [questions, samples of one question].

    Wilson's score interval with the *effective* number of independent samples in place of n (for
    clustered data: Dean & Pagano 2015, J. Survey Statistics and Methodology 3(4)):

        n_eff = p(1-p) / v,   v = s² / P

    p is the mean, P the number of questions and s² the unbiased variance of the questions' means,
    so v is the cluster-robust variance of p. n_eff is held in [P, P·R]: samples of one question may
    repeat each other but tell no less than one sample, and no more than independent ones. With
    R = 1, or with all samples alike, n_eff = P and this is Wilson's interval itself. It stays
    inside [0, 1], and has a width where every answer is right or none is. In simulations with 10 to
    500 questions of spread difficulty it held the truth 92 to 96 times in 100.
    """
    num_questions, num_samples = right_PR.shape
    p = float(right_PR.mean())
    n = float(num_questions)
    if num_questions > 1 and 0.0 < p < 1.0:
        variance = float(np.var(right_PR.mean(axis=1), ddof=1)) / num_questions
        most = float(num_questions * num_samples)
        n = min(max(p * (1 - p) / variance, n), most) if variance > 0 else most
    center = (p + Z95**2 / (2 * n)) / (1 + Z95**2 / n)
    half = Z95 * np.sqrt(p * (1 - p) / n + Z95**2 / (4 * n**2)) / (1 + Z95**2 / n)
    low, high = max(0.0, float(center - half)), min(1.0, float(center + half))
    return (0.0 if p == 0.0 else low), (1.0 if p == 1.0 else high)  # there rounding leaves 1e-18


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


def majority_is_right(rows: Sequence[Sample], equivalent: Equivalent) -> bool:
    """Whether the answer most samples agree on is right; of equal counts the first seen wins.

    Answers are sorted into classes, each compared with the first answer of a class; samples without
    an answer do not vote. A class is right if its first member with a verdict (right or wrong) is.
    """
    classes: list[list[Sample]] = []
    for sample in rows:
        if sample.pred is None:
            continue
        for members in classes:
            if sample.pred == members[0].pred or equivalent(members[0].pred, sample.pred):
                members.append(sample)
                break
        else:
            classes.append([sample])
    if not classes:
        return False
    winner = max(classes, key=len)  # max keeps the first of equals
    verdicts = [
        s.outcome == Outcome.RIGHT for s in winner if s.outcome in (Outcome.RIGHT, Outcome.WRONG)
    ]
    return bool(verdicts) and verdicts[0]


def compare(a: Sequence[Sample], b: Sequence[Sample]) -> Comparison:
    """Paired difference b - a over the questions of one benchmark; k may differ between the runs.

    The interval is Bonett & Price's (2012, J. Educational and Behavioral Statistics 37(4)): an
    ordinary normal interval over the per-question differences after adding one question that b wins
    and one that a wins, which keeps its width honest where few questions differ. The p-value flips
    the signs of the per-question differences: every pattern when at most 14 differ, 20,000 drawn
    with a fixed seed otherwise. For k = 1 that is the exact sign (McNemar) test.

    Raises:
      ValueError: the runs do not hold the same questions, or a question's reference answer differs.
    """
    questions_a, questions_b = _questions(a), _questions(b)
    _check_same_questions(questions_a, questions_b)
    mean_a_P = np.array([_share_right(rows) for rows in questions_a.values()])
    mean_b_P = np.array([_share_right(questions_b[question]) for question in questions_a])
    difference_P = mean_b_P - mean_a_P
    padded = np.concatenate([difference_P, [1.0, -1.0]])
    half = Z95 * np.sqrt(np.var(padded) / len(padded))
    return Comparison(
        num_questions=len(difference_P),
        accuracy_a=float(mean_a_P.mean()),
        accuracy_b=float(mean_b_P.mean()),
        difference=float(difference_P.mean()),
        low=max(-1.0, float(padded.mean() - half)),
        high=min(1.0, float(padded.mean() + half)),
        p_value=sign_flip_p_value(difference_P),
        num_better=int((difference_P > 0).sum()),
        num_worse=int((difference_P < 0).sum()),
    )


def sign_flip_p_value(difference_P: np.ndarray) -> float:
    """Two-sided chance of a sum this large if each difference had either sign with equal odds."""
    values = difference_P[difference_P != 0]
    num_values = len(values)
    if num_values <= MAX_EXACT_FLIPS:
        blocks = [np.arange(2**num_values)[:, None] >> np.arange(num_values) & 1]
        num_patterns, num_extreme = 2**num_values, 0
    else:
        rng, size = np.random.default_rng(SEED), 1000  # in blocks: 20,000 x 1,319 f64 is 211 MB
        blocks = (
            rng.integers(0, 2, (size, num_values), np.int8) for _ in range(NUM_RANDOM_FLIPS // size)
        )
        # the pattern that was seen is one of them: a sampled p-value is never 0
        num_patterns, num_extreme = NUM_RANDOM_FLIPS + 1, 1
    # sums of the same numbers in another order may differ in the last bits
    least = abs(values.sum()) - 1e-9
    num_extreme += sum(int((np.abs((1 - 2 * flips) @ values) >= least).sum()) for flips in blocks)
    return num_extreme / num_patterns


def table(rows: Sequence[Score]) -> str:
    """Plain text, one line per score; rates in percent, rows that could not be graded as counts."""
    header = ["benchmark", "n", "k", "avg@k", "95 % interval", "pass@k", "maj@k"]
    header += ["cut", "no answer", "faults", "bad gold", "skipped", "tokens"]
    lines = [header]
    for row in rows:
        interval_text = f"{100 * row.low:.1f} to {100 * row.high:.1f}"
        majority = "-" if row.majority is None else f"{100 * row.majority:.1f}"
        cells = [row.name, row.num_questions, row.num_samples, f"{100 * row.accuracy:.1f}"]
        cells += [interval_text, f"{100 * row.pass_at[row.num_samples]:.1f}", majority]
        cells += [f"{100 * row.truncated:.1f}", f"{100 * row.no_answer:.1f}", row.num_faults]
        cells += [row.num_unparseable_gold, row.num_skipped, f"{row.mean_tokens:.0f}"]
        lines.append([str(cell) for cell in cells])
    return _align(lines)


def comparison_table(rows: dict[str, Comparison]) -> str:
    """Plain text, one line per benchmark: both accuracies, and b minus a in points."""
    lines = [["benchmark", "n", "a", "b", "b - a", "95 % interval", "p", "better", "worse"]]
    for name, row in rows.items():
        accuracies = [f"{100 * row.accuracy_a:.1f}", f"{100 * row.accuracy_b:.1f}"]
        interval_text = f"{100 * row.low:+.1f} to {100 * row.high:+.1f}"
        cells = [name, row.num_questions, *accuracies, f"{100 * row.difference:+.1f}"]
        p_value = f"{row.p_value:.3f}" if row.p_value >= 0.001 else "<0.001"
        cells += [interval_text, p_value, row.num_better, row.num_worse]
        lines.append([str(cell) for cell in cells])
    return _align(lines)


def _align(lines: list[list[str]]) -> str:
    widths = [max(len(line[i]) for line in lines) for i in range(len(lines[0]))]
    first = [line[0].ljust(widths[0]) for line in lines]
    rest = [
        "".join(f"  {cell:>{width}}" for cell, width in zip(line[1:], widths[1:], strict=True))
        for line in lines
    ]
    return "\n".join(a + b for a, b in zip(first, rest, strict=True))


def _questions(samples: Sequence[Sample]) -> dict[str, list[Sample]]:
    """Question id → its samples by index, the same number for each."""
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


def _share_right(rows: Sequence[Sample]) -> float:
    return sum(s.outcome == Outcome.RIGHT for s in rows) / len(rows)


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
