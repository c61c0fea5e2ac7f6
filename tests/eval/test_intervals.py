"""Intervals and tests by hand, and against simulated truth."""

import math

import numpy as np
import pytest

from jaxmath.eval import intervals
from jaxmath.eval.intervals import Estimate


def test_wilsons_interval_by_hand():
    # 5 of 10, z = 1.96: (0.5 + 0.19207) / 1.38415 -+ 0.36539 / 1.38415
    assert intervals.wilson(0.5, 10) == pytest.approx((0.23659, 0.76341), abs=1e-5)


def test_none_right_still_has_a_width():
    # Wilson at 0 of 10: [0, z²/(n + z²)] = [0, 3.84146 / 13.84146]
    assert intervals.wilson(0.0, 10) == pytest.approx((0, 0.27753), abs=1e-5)
    assert intervals.wilson(1.0, 10) == pytest.approx((0.72247, 1), abs=1e-5)


def test_wilson_covers_the_truth_95_times_in_100():
    rng, truth = np.random.default_rng(7), 0.3
    shares = rng.binomial(50, truth, 4000) / 50
    covered = [low <= truth <= high for low, high in (intervals.wilson(p, 50) for p in shares)]
    assert 0.93 <= np.mean(covered) <= 0.97


def test_the_bootstrap_of_two_questions_by_hand():
    # means of two draws from {0, 1}: 0, 1/2, 1 with odds 1, 2, 1; quantiles 0 and 1, and twice the
    # variance of such means is what an unbiased estimate has
    wide = 0.5 * math.sqrt(2)
    (found,) = intervals.bootstrap(np.array([[0.0], [1.0]]))
    assert found == pytest.approx((0.5 - wide, 0.5 + wide))
    (clipped,) = intervals.bootstrap(np.array([[0.0], [1.0]]), bounds=(0.0, 1.0))
    assert clipped == (0.0, 1.0)


def test_the_bootstrap_agrees_with_the_normal_interval_of_many_questions():
    values_PM = np.random.default_rng(3).beta(2, 3, (400, 2))
    for (low, high), column in zip(intervals.bootstrap(values_PM), values_PM.T, strict=True):
        half = 1.96 * column.std(ddof=1) / 20
        assert low == pytest.approx(column.mean() - half, abs=0.1 * half)
        assert high == pytest.approx(column.mean() + half, abs=0.1 * half)


def test_equal_inputs_give_equal_intervals_and_columns_share_their_draws():
    values_P = np.random.default_rng(4).random(30)
    one, two = intervals.bootstrap(np.stack([values_P, values_P], axis=1))
    assert one == two == intervals.bootstrap(values_P[:, None])[0]


def test_where_all_questions_are_alike_wilson_gives_the_width():
    values_PM = np.stack([np.zeros(10), np.full(10, 0.5)], axis=1)
    none, half = intervals.shares(values_PM)
    assert (none.value, none.low, none.high) == pytest.approx((0, 0, 0.27753), abs=1e-5)
    assert (half.low, half.high) == pytest.approx((0.23659, 0.76341), abs=1e-5)


def test_a_single_question_is_enough_to_be_very_unsure():
    (found,) = intervals.shares(np.array([[0.75]]))
    assert 0 <= found.low < 0.2 and 0.9 < found.high <= 1


@pytest.mark.parametrize(
    "num_questions, k, shape", [(30, 4, (2, 2)), (60, 8, (0.5, 0.5)), (100, 4, (1, 3))]
)
def test_the_bootstrap_covers_the_truth_95_times_in_100(num_questions, k, shape):
    rng = np.random.default_rng(7)
    truth, covered, num_runs = shape[0] / sum(shape), 0, 400
    for _ in range(num_runs):
        chance_P = rng.beta(*shape, num_questions)
        value_PM = rng.binomial(k, chance_P)[:, None] / k
        (found,) = intervals.shares(value_PM, num_resamples=1000)
        assert 0 <= found.low < found.high <= 1
        covered += found.low <= truth <= found.high
    assert 0.92 <= covered / num_runs <= 0.98


def test_the_paired_interval_covers_the_truth_95_times_in_100():
    rng = np.random.default_rng(11)
    covered, num_runs = 0, 400
    for _ in range(num_runs):
        chance_P = rng.beta(1, 1, 60)
        better_P = chance_P + 0.2 * (1 - chance_P)  # mean difference 0.1
        difference_P = (rng.binomial(4, better_P) - rng.binomial(4, chance_P)) / 4
        found = intervals.difference(difference_P, num_resamples=1000)
        covered += found.low <= 0.1 <= found.high
    assert 0.92 <= covered / num_runs <= 0.98


def test_no_difference_at_all_keeps_bonett_and_prices_width():
    found = intervals.difference(np.zeros(3))
    # 0, 0, 0 with +1 and -1 added: mean 0, variance 2/5
    half = 1.959964 * math.sqrt(0.4 / 5)
    assert (found.value, found.low, found.high) == pytest.approx((0, -half, half))


def test_the_mean_of_estimates_by_hand():
    found = intervals.mean_of([Estimate(0.5, 0.2, 0.6), Estimate(0.7, 0.3, 0.9)])
    # below: sqrt(0.3² + 0.4²) / 2 = 0.25; above: sqrt(0.1² + 0.2²) / 2
    assert (found.value, found.low) == pytest.approx((0.6, 0.35))
    assert found.high == pytest.approx(0.6 + math.sqrt(0.05) / 2)


@pytest.mark.parametrize(
    "only_a, only_b, expected",
    [
        (0, 0, 1.0),
        (1, 0, 1.0),
        (5, 5, 1.0),
        (1, 9, 22 / 1024),  # 2 (C(10,0) + C(10,1)) / 2^10
        (9, 1, 22 / 1024),
        (0, 6, 2 / 64),
    ],
)
def test_mcnemar_by_hand(only_a, only_b, expected):
    assert intervals.mcnemar_p_value(only_a, only_b) == pytest.approx(expected)


def test_sign_flips_by_hand():
    # of ++ +- -+ -- over (1, 1/2), the first and the last sum to 3/2 or more
    assert intervals.sign_flip_p_value(np.array([1.0, 0.0, 0.5])) == pytest.approx(2 / 4)


def test_many_sign_flips_are_sampled_near_the_exact_test():
    difference_P = np.array([1.0] * 15 + [-1.0] * 5)
    found = intervals.sign_flip_p_value(difference_P)
    assert found == pytest.approx(intervals.mcnemar_p_value(5, 15), abs=0.005)
    assert found == intervals.sign_flip_p_value(difference_P)


def test_a_sampled_p_value_is_never_zero():
    assert intervals.sign_flip_p_value(np.ones(40)) == pytest.approx(1 / 20_001)
