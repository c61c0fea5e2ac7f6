"""How far a score may be off: intervals and tests over questions. NumPy only.

A score says how a model would do on questions *like* these, so the questions count as drawn from a
wider set and the k samples of one question as a cluster (Miller 2024, "Adding Error Bars to Evals",
arXiv:2411.00640): what is resampled is questions, never single responses. Seeds are fixed, so the
same samples always give the same interval.
"""

from __future__ import annotations

import dataclasses
import math

import numpy as np

Z95 = 1.959964  # 97.5 % quantile of the standard normal
NUM_RESAMPLES = 10_000
BLOCK = 250  # resamples at a time: 250 x 2,818 counts are 6 MB
MAX_EXACT_FLIPS = 14  # 2^14 sign patterns are enumerated, beyond that they are sampled
NUM_RANDOM_FLIPS = 20_000
SEED = 0


@dataclasses.dataclass(frozen=True)
class Estimate:
    """A mean over questions with its 95 % interval."""

    value: float
    low: float
    high: float


def wilson(share: float, num: float) -> tuple[float, float]:
    """95 % interval of a share of `num` independent yes-or-no results, by Wilson (1927).

    It stays inside [0, 1], and has a width where all are right or none is.
    """
    p, n = share, num
    center = (p + Z95**2 / (2 * n)) / (1 + Z95**2 / n)
    half = Z95 * math.sqrt(p * (1 - p) / n + Z95**2 / (4 * n**2)) / (1 + Z95**2 / n)
    low, high = max(0.0, center - half), min(1.0, center + half)
    return (0.0 if p == 0.0 else low), (1.0 if p == 1.0 else high)  # there rounding leaves 1e-18


def shares(values_PM: np.ndarray, num_resamples: int = NUM_RESAMPLES) -> list[Estimate]:
    """Means of M shares in [0, 1] over P questions, with bootstrap intervals.

    Where all questions have one value a bootstrap has no width: those get Wilson's interval of P
    results, which is the wider one.
    """
    num_questions, values_PM = len(values_PM), np.asarray(values_PM, np.float64)
    estimates = []
    for (low, high), value_P in zip(
        bootstrap(values_PM, num_resamples, bounds=(0.0, 1.0)), values_PM.T, strict=True
    ):
        mean = float(value_P.mean())
        if np.ptp(value_P) == 0.0:
            low, high = wilson(mean, num_questions)
        estimates.append(Estimate(mean, low, high))
    return estimates


def bootstrap(
    values_PM: np.ndarray,
    num_resamples: int = NUM_RESAMPLES,
    *,
    bounds: tuple[float, float] = (-math.inf, math.inf),
) -> list[tuple[float, float]]:
    """95 % percentile intervals of the means over questions, the same draws for all M columns.

    P questions are drawn with replacement `num_resamples` times. The spread of such means is too
    small by sqrt((P-1)/P), the biased variance of a sample of P; the quantiles are moved away from
    the mean by its inverse (after Hesterberg 2015, The American Statistician 69(4), section 4).
    """
    num_questions, num_values = values_PM.shape
    rng = np.random.default_rng(SEED)
    means = []
    for start in range(0, num_resamples, BLOCK):
        rows = min(BLOCK, num_resamples - start)
        drawn = rng.integers(0, num_questions, (rows, num_questions))
        drawn += np.arange(rows)[:, None] * num_questions
        counts = np.bincount(drawn.ravel(), minlength=rows * num_questions)
        means.append(counts.reshape(rows, num_questions) @ values_PM / num_questions)
    quantiles = np.quantile(np.concatenate(means), (0.025, 0.975), axis=0)
    mean_M = values_PM.mean(axis=0)
    wider = math.sqrt(num_questions / (num_questions - 1)) if num_questions > 1 else 1.0
    low_M, high_M = np.clip(mean_M + wider * (quantiles - mean_M), *bounds)
    return [(float(low_M[m]), float(high_M[m])) for m in range(num_values)]


def difference(difference_P: np.ndarray, num_resamples: int = NUM_RESAMPLES) -> Estimate:
    """Mean of the per-question differences of two runs, with its paired bootstrap interval.

    Where all questions differ alike (most often: not at all) the interval is Bonett & Price's
    (2012, J. Educational and Behavioral Statistics 37(4)), which adds one question that each run
    wins.
    """
    mean = float(difference_P.mean())
    if np.ptp(difference_P) > 0.0:
        values = np.asarray(difference_P, np.float64)[:, None]
        ((low, high),) = bootstrap(values, num_resamples, bounds=(-1.0, 1.0))
    else:
        padded = np.concatenate([difference_P, [1.0, -1.0]])
        half = Z95 * math.sqrt(float(np.var(padded)) / len(padded))
        center = float(padded.mean())
        low, high = max(-1.0, center - half), min(1.0, center + half)
    return Estimate(mean, low, high)


def mean_of(estimates: list[Estimate]) -> Estimate:
    """Plain mean of independent estimates; limits by the method of variance estimates recovery:

        low = mean - sqrt(Σ (value - low)²) / n, and likewise high

    Zou & Donner 2008, Statistics in Medicine 27(10): right for limits that are not symmetric.
    """
    n = len(estimates)
    mean = sum(e.value for e in estimates) / n
    below = math.sqrt(sum((e.value - e.low) ** 2 for e in estimates)) / n
    above = math.sqrt(sum((e.high - e.value) ** 2 for e in estimates)) / n
    return Estimate(mean, mean - below, mean + above)


def mcnemar_p_value(num_only_a: int, num_only_b: int) -> float:
    """Two-sided exact McNemar test (McNemar 1947): of the questions that one of two single runs got
    right and the other did not, each is won by either with equal odds."""
    num, least = num_only_a + num_only_b, min(num_only_a, num_only_b)
    tail = sum(math.comb(num, i) for i in range(least + 1))
    return min(1.0, 2 * tail / 2**num)


def sign_flip_p_value(difference_P: np.ndarray) -> float:
    """Two-sided chance of a sum this large if each difference had either sign with equal odds.

    Every pattern of signs when at most 14 differ, 20,000 drawn otherwise.
    """
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
