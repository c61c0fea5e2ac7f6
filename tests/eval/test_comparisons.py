"""Two runs on the same questions, by hand."""

import math

import numpy as np
import pytest

from jaxmath.eval import comparisons, intervals

from .rows import run, sample


def test_a_run_compared_with_itself_is_no_difference():
    rows = run("1100", "1111", "0000")
    row = comparisons.compare(rows, rows)
    assert (row.difference.value, row.p_value, row.num_better, row.num_worse) == (0, 1, 0, 0)
    assert row.difference.low < 0 < row.difference.high
    assert row.flips == ()


def test_compare_by_hand():
    row = comparisons.compare(run("00", "10", "11"), run("11", "11", "11"))
    assert (row.accuracy_a, row.accuracy_b) == pytest.approx((0.5, 1))
    assert row.difference == intervals.difference(np.array([1, 0.5, 0]))
    assert row.difference.value == pytest.approx(0.5)
    assert (row.num_better, row.num_worse) == (2, 0)
    assert row.p_value == pytest.approx(2 / 4)  # of ++ +- -+ --, the first and the last
    assert row.mcnemar is None  # which is for single runs


def test_single_runs_have_mcnemars_test():
    # 9 questions better, 1 worse: 2 (C(10,0) + C(10,1)) / 2^10
    a, b = run(*"0000000001" + "11"), run(*"1111111110" + "11")
    row = comparisons.compare(a, b)
    assert row.mcnemar == pytest.approx(22 / 1024)
    assert row.p_value == pytest.approx(row.mcnemar)  # all differences are of one size


def test_many_differences():
    a, b = run(*"0" * 15 + "1" * 5), run(*"1" * 15 + "0" * 5)
    exact = 2 * sum(math.comb(20, i) for i in range(6)) / 2**20
    row = comparisons.compare(a, b)
    assert row.mcnemar == pytest.approx(exact)
    assert row.p_value == pytest.approx(exact, abs=0.005)


def test_flips_name_the_question_and_both_verdicts():
    a = [sample("q0", 0, "right", pred="1"), sample("q1", 0, "wrong", pred="2")]
    b = [sample("q0", 0, "no_answer", pred=None), sample("q1", 0, "wrong", pred="3")]
    (flip,) = comparisons.compare(a, b).flips
    assert (flip.id, flip.gold) == ("q0", "g")
    assert (flip.a.right, flip.a.outcomes, flip.a.preds) == (1.0, ("right",), ("1",))
    assert (flip.b.right, flip.b.outcomes, flip.b.preds) == (0.0, ("no_answer",), (None,))


def test_the_largest_flips_come_first():
    flips = comparisons.compare(run("10", "11", "01", "00"), run("11", "00", "11", "00")).flips
    assert [(flip.id, flip.b.right - flip.a.right) for flip in flips] == [
        ("q1", -1),
        ("q0", 0.5),
        ("q2", 0.5),
    ]


def test_swapping_the_runs_swaps_the_sign():
    a, b = run("110", "000", "101", "111"), run("111", "100", "001", "111")
    one, two = comparisons.compare(a, b), comparisons.compare(b, a)
    assert one.difference.value == pytest.approx(-two.difference.value)
    assert one.p_value == two.p_value


def test_a_greedy_run_compares_with_a_sampled_one():
    row = comparisons.compare(run("1", "0"), run("10", "10"))
    assert row.difference.value == 0 and row.mcnemar is None


def test_runs_over_different_questions_are_refused():
    with pytest.raises(ValueError, match=r"2 in common, 1 only in a \['q2'\], 0 only in b \[\]"):
        comparisons.compare(run("1", "1", "1"), run("1", "1"))


def test_runs_with_different_reference_answers_are_refused():
    a, b = [sample("q0", 0, "right", gold="1")], [sample("q0", 0, "right", gold="2")]
    with pytest.raises(
        ValueError, match="question q0: the reference answer is '1' in a and '2' in b"
    ):
        comparisons.compare(a, b)
