"""Scores by hand, against brute force, and their intervals against simulated truth."""

import itertools
import math

import numpy as np
import pytest

from jaxmath.eval import scores
from jaxmath.eval.samples import Sample


def _sample(id, sample, outcome, *, pred="x", finish_reason="stop", gold="g", benchmark="b"):
    return Sample(
        benchmark=benchmark,
        id=id,
        sample=sample,
        prompt="p",
        response="r",
        num_tokens=10 + sample,
        finish_reason=finish_reason,
        outcome=outcome,
        rule="exact",
        pred=pred,
        gold=gold,
        logprob=-1.0,
    )


def _run(*patterns):
    """One string per question: 1 right, 0 wrong."""
    return [
        _sample(f"q{i}", j, "right" if mark == "1" else "wrong")
        for i, pattern in enumerate(patterns)
        for j, mark in enumerate(pattern)
    ]


# --- one run ------------------------------------------------------------------------------------


def test_avg_at_k_and_pass_at_k_by_hand():
    row = scores.score("b", _run("1100", "1111", "0000"))
    assert (row.num_questions, row.num_samples) == (3, 4)
    assert row.accuracy == pytest.approx(0.5)
    # 2 of 4 right: pass@2 = 1 - C(2,2)/C(4,2) = 5/6
    assert row.pass_at == pytest.approx({1: 0.5, 2: (5 / 6 + 1 + 0) / 3, 4: 2 / 3})
    assert row.mean_tokens == pytest.approx(11.5)
    assert row.majority is None


def test_pass_at_k_stops_at_k_when_k_is_no_power_of_two():
    assert list(scores.score("b", _run("110", "100")).pass_at) == [1, 2, 3]


@pytest.mark.parametrize("n", range(1, 7))
def test_pass_at_k_is_the_share_of_subsets_with_a_right_sample(n):
    for num_right, k in itertools.product(range(n + 1), range(1, n + 1)):
        marks = [1] * num_right + [0] * (n - num_right)
        subsets = list(itertools.combinations(marks, k))
        expected = sum(any(subset) for subset in subsets) / len(subsets)
        assert scores.pass_at_k(n, num_right, k) == pytest.approx(expected, abs=1e-12)


def test_pass_at_k_of_many_samples_does_not_overflow():
    expected = 1 - math.comb(9900, 1000) / math.comb(10000, 1000)
    assert scores.pass_at_k(10000, 100, 1000) == pytest.approx(expected, rel=1e-9)


@pytest.mark.parametrize("n, c, k", [(4, 2, 5), (4, 5, 1), (4, 2, 0), (4, -1, 1)])
def test_pass_at_k_refuses_impossible_counts(n, c, k):
    with pytest.raises(ValueError, match="expected 1 <= k <= samples"):
        scores.pass_at_k(n, c, k)


def test_what_could_not_be_graded_counts_against_the_score_and_is_shown():
    samples = [
        _sample("q0", 0, "right"),
        _sample("q1", 0, "timeout"),
        _sample("q2", 0, "error"),
        _sample("q3", 0, "unparseable_gold"),
        _sample("q4", 0, "no_answer", pred=None, finish_reason="length"),
        _sample("q5", 0, "no_answer", pred=None, finish_reason="skipped"),
        _sample("q6", 0, "wrong", finish_reason="length"),
        _sample("q7", 0, "right"),
    ]
    row = scores.score("b", samples)
    assert row.accuracy == pytest.approx(2 / 8)
    assert (row.num_faults, row.num_unparseable_gold, row.num_skipped) == (2, 1, 1)
    assert (row.truncated, row.no_answer) == (2 / 8, 2 / 8)


def test_the_order_of_the_rows_does_not_matter():
    samples = _run("1100", "1000", "0111")
    assert scores.score("b", samples[::-1]) == scores.score("b", samples)


@pytest.mark.parametrize(
    "samples, reason",
    [
        ([], "got no samples"),
        (_run("11", "1"), r"question q1 has samples \[0\], expected 0 to 1 once each; finish"),
        (_run("11") + _run("11"), r"question q0 has samples \[0, 0, 1, 1\]"),
        (
            [_sample("q0", 0, "right"), _sample("q0", 0, "right", benchmark="c")],
            "samples of b, c together",
        ),
    ],
)
def test_rows_that_make_no_score_are_refused(samples, reason):
    with pytest.raises(ValueError, match=reason):
        scores.score("b", samples)


def test_samples_are_grouped_by_benchmark():
    a, b = _sample("q0", 0, "right"), _sample("q0", 0, "wrong", benchmark="c")
    assert scores.by_benchmark([a, b]) == {"b": [a], "c": [b]}


# --- majority -----------------------------------------------------------------------------------


def _votes(*rows):
    return [_sample("q0", j, outcome, pred=pred) for j, (pred, outcome) in enumerate(rows)]


def _same_number(a, b):
    return float(a) == float(b)


def test_the_vote_is_over_equivalent_answers():
    rows = _votes(
        ("7", "wrong"), ("0.5", "right"), ("7", "wrong"), (".50", "right"), ("5e-1", "right")
    )
    assert scores.majority_is_right(rows, _same_number)
    assert not scores.majority_is_right(rows, lambda a, b: a == b)  # three spellings lose to 7


def test_of_equal_votes_the_first_seen_wins():
    rows = _votes(("1", "right"), ("2", "wrong"), ("2", "wrong"), ("1", "right"))
    assert scores.majority_is_right(rows, _same_number)
    assert not scores.majority_is_right(rows[1:3] + rows[:1] + rows[3:], _same_number)


def test_samples_without_an_answer_do_not_vote():
    rows = _votes((None, "no_answer"), (None, "no_answer"), ("1", "right"))
    assert scores.majority_is_right(rows, _same_number)
    assert not scores.majority_is_right(rows[:2], _same_number)


def test_a_verifier_fault_does_not_decide_for_its_class():
    rows = _votes(("1", "timeout"), ("1", "right"), ("2", "wrong"))
    assert scores.majority_is_right(rows, _same_number)
    assert not scores.majority_is_right(_votes(("1", "timeout"), ("1", "error")), _same_number)


def test_maj_at_k_is_the_share_of_questions_won():
    run = _run("110", "100", "111", "000")
    by_mark = [
        _sample(s.id, s.sample, s.outcome, pred="1" if s.outcome == "right" else "0") for s in run
    ]
    assert scores.score("b", by_mark, _same_number).majority == pytest.approx(2 / 4)


# --- intervals ----------------------------------------------------------------------------------


def test_one_sample_per_question_gives_wilsons_interval():
    # Wilson 1927 at 5 of 10, z = 1.96: (0.5 + 0.19207) / 1.38415 -+ 0.36539 / 1.38415 …
    low, high = scores.interval(np.array([[True]] * 5 + [[False]] * 5))
    assert (low, high) == pytest.approx((0.23659, 0.76341), abs=1e-5)


def test_none_right_still_has_a_width():
    # Wilson at 0 of 10: [0, z²/(n + z²)] = [0, 3.84146 / 13.84146]
    assert scores.interval(np.zeros((10, 1), bool)) == pytest.approx((0, 0.27753), abs=1e-5)
    assert scores.interval(np.ones((10, 8), bool)) == pytest.approx((0.72247, 1), abs=1e-5)


def test_the_effective_number_of_samples_by_hand():
    # means 1, 1/2, 1/2, 0: s² = (1/4 + 0 + 0 + 1/4) / 3, v = s² / 4 = 1/24, n_eff = (1/4) / v = 6
    right_PR = np.array([[1, 1], [1, 0], [0, 1], [0, 0]], bool)
    z = 1.959964
    half = z * math.sqrt(0.25 / 6 + z**2 / (4 * 36)) / (1 + z**2 / 6)
    assert scores.interval(right_PR) == pytest.approx((0.5 - half, 0.5 + half))


def test_samples_that_repeat_each_other_add_no_certainty():
    right_P1 = np.arange(20)[:, None] % 3 == 0
    assert scores.interval(np.repeat(right_P1, 8, axis=1)) == scores.interval(right_P1)


def test_samples_that_differ_do():
    repeated = scores.interval(np.repeat(np.arange(20)[:, None] % 2 == 0, 8, axis=1))
    independent = scores.interval(np.tile(np.arange(8) % 2 == 0, (20, 1)))
    assert independent[1] - independent[0] < 0.5 * (repeated[1] - repeated[0])


def test_a_single_question_is_enough_to_be_very_unsure():
    low, high = scores.interval(np.array([[True, False, True, True]]))
    assert 0 <= low < 0.2 and 0.9 < high <= 1


@pytest.mark.parametrize(
    "num_questions, k, shape", [(30, 1, (2, 2)), (40, 8, (0.5, 0.5)), (100, 4, (1, 3))]
)
def test_the_interval_covers_the_truth_95_times_in_100(num_questions, k, shape):
    rng = np.random.default_rng(7)
    truth, covered, num_runs = shape[0] / sum(shape), 0, 2000
    for _ in range(num_runs):
        chance_P1 = rng.beta(*shape, (num_questions, 1))
        low, high = scores.interval(rng.random((num_questions, k)) < chance_P1)
        assert 0 <= low < high <= 1
        covered += low <= truth <= high
    assert 0.93 <= covered / num_runs <= 0.97


# --- two runs -----------------------------------------------------------------------------------


def test_a_run_compared_with_itself_is_no_difference():
    run = _run("1100", "1111", "0000")
    row = scores.compare(run, run)
    assert (row.difference, row.p_value, row.num_better, row.num_worse) == (0, 1, 0, 0)
    assert row.low < 0 < row.high
    assert row.low == pytest.approx(-row.high)


def test_compare_by_hand():
    row = scores.compare(_run("00", "10", "11"), _run("11", "11", "11"))
    assert (row.accuracy_a, row.accuracy_b) == pytest.approx((0.5, 1))
    assert row.difference == pytest.approx(0.5)
    # differences 1, 0.5, 0; with +1 and -1 added: mean 0.3, variance 3.25/5 - 0.09 = 0.56
    half = 1.959964 * math.sqrt(0.56 / 5)
    assert (row.low, row.high) == pytest.approx((0.3 - half, 0.3 + half))
    assert (row.num_better, row.num_worse) == (2, 0)
    assert row.p_value == pytest.approx(2 / 4)  # of ++ +- -+ --, the first and the last


def test_one_sample_each_is_the_exact_sign_test():
    # 9 questions better, 1 worse: 2 (C(10,0) + C(10,1)) / 2^10
    a, b = _run(*"0000000001" + "11"), _run(*"1111111110" + "11")
    assert scores.compare(a, b).p_value == pytest.approx(22 / 1024)


def test_many_differences_are_sampled_near_the_exact_test():
    # 15 better, 5 worse: two-sided binomial 2 * sum_{i<=5} C(20, i) / 2^20
    a, b = _run(*"0" * 15 + "1" * 5), _run(*"1" * 15 + "0" * 5)
    exact = 2 * sum(math.comb(20, i) for i in range(6)) / 2**20
    assert scores.compare(a, b).p_value == pytest.approx(exact, abs=0.005)
    assert scores.compare(a, b).p_value == scores.compare(a, b).p_value


def test_a_sampled_p_value_is_never_zero():
    row = scores.compare(_run(*"0" * 40), _run(*"1" * 40))
    assert row.p_value == pytest.approx(1 / 20_001)
    assert "<0.001" in scores.comparison_table({"b": row})


def test_swapping_the_runs_swaps_the_sign():
    a, b = _run("110", "000", "101", "111"), _run("111", "100", "001", "111")
    one, two = scores.compare(a, b), scores.compare(b, a)
    assert one.difference == pytest.approx(-two.difference)
    assert (one.low, one.high) == pytest.approx((-two.high, -two.low))
    assert one.p_value == two.p_value


def test_a_greedy_run_compares_with_a_sampled_one():
    assert scores.compare(_run("1", "0"), _run("10", "10")).difference == 0


def test_the_paired_interval_covers_the_truth_95_times_in_100():
    rng = np.random.default_rng(11)
    covered, num_runs = 0, 400
    for _ in range(num_runs):
        chance_P = rng.beta(1, 1, 60)
        better_P = np.minimum(chance_P + 0.2 * (1 - chance_P), 1)  # mean difference 0.1
        marks = [
            ["".join("01"[int(x < p)] for x in rng.random(4)) for p in chance]
            for chance in (chance_P, better_P)
        ]
        row = scores.compare(_run(*marks[0]), _run(*marks[1]))
        covered += row.low <= 0.1 <= row.high
    assert 0.92 <= covered / num_runs <= 0.99


def test_runs_over_different_questions_are_refused():
    with pytest.raises(ValueError, match=r"2 in common, 1 only in a \['q2'\], 0 only in b \[\]"):
        scores.compare(_run("1", "1", "1"), _run("1", "1"))


def test_runs_with_different_reference_answers_are_refused():
    a, b = [_sample("q0", 0, "right", gold="1")], [_sample("q0", 0, "right", gold="2")]
    with pytest.raises(
        ValueError, match="question q0: the reference answer is '1' in a and '2' in b"
    ):
        scores.compare(a, b)


# --- tables -------------------------------------------------------------------------------------


def test_the_table_shows_every_count_and_lines_up():
    rows = [
        scores.score("math500", _run("1100", "1111", "0000"), lambda a, b: False),
        scores.score("gsm8k", [_sample("q0", 0, "timeout", finish_reason="length")]),
    ]
    header, first, second = scores.table(rows).split("\n")
    assert len(header) == len(first) == len(second)
    assert header.split("  ")[0] == "benchmark"
    assert first.split()[:4] == ["math500", "3", "4", "50.0"]
    assert f"{100 * rows[0].low:.1f} to {100 * rows[0].high:.1f}" in first
    assert second.split()[-6:] == ["100.0", "0.0", "1", "0", "0", "10"]
    assert " - " in second  # no maj@k without a way to compare answers


def test_the_comparison_table_is_in_points():
    row = scores.compare(_run("00", "10", "11"), _run("11", "11", "11"))
    header, line = scores.comparison_table({"math500": row}).split("\n")
    assert len(header) == len(line)
    assert line.split()[:5] == ["math500", "3", "50.0", "100.0", "+50.0"]
    assert line.split()[-3:] == ["0.500", "2", "0"]
