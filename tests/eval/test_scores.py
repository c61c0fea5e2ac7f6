"""Scores by hand and against brute force."""

import itertools
import math

import pytest

from jaxmath.eval import intervals, scores

from .rows import run, same_number, same_text, sample


def test_avg_at_k_and_pass_at_k_by_hand():
    row = scores.score("b", run("1100", "1111", "0000"))
    assert (row.num_questions, row.num_samples) == (3, 4)
    assert row.accuracy.value == pytest.approx(0.5)
    # 2 of 4 right: pass@2 = 1 - C(2,2)/C(4,2) = 5/6
    values = {j: estimate.value for j, estimate in row.pass_at.items()}
    assert values == pytest.approx({1: 0.5, 2: (5 / 6 + 1 + 0) / 3, 4: 2 / 3})
    assert (row.majority, row.best_of, row.weighted_vote) == (None, None, None)


def test_lengths_by_hand():
    lengths = scores.score("b", run("1100", "1111", "0000"))  # 10, 11, 12, 13, three times
    assert (lengths.mean_tokens, lengths.median_tokens) == (11.5, 11.5)
    assert lengths.p95_tokens == 13
    rows = [sample("q0", 0, "right"), sample("q1", 0, "no_answer", finish_reason="skipped")]
    assert scores.score("b", rows).mean_tokens == 10  # what was never sampled has no length


def test_a_single_run_has_wilsons_interval():
    row = scores.score("b", run(*"1111100000"))
    expected = pytest.approx(intervals.wilson(0.5, 10))
    assert (row.accuracy.low, row.accuracy.high) == expected
    assert (row.pass_at[1].low, row.pass_at[1].high) == expected


def test_every_score_of_several_samples_has_an_interval():
    rows = run("1100", "1111", "0000", "1000", "1110", "0001")
    process_scores = {row.key: float(row.outcome == "right") for row in rows}
    row = scores.score("b", rows, same_text, process_scores)
    estimates = [row.accuracy, *row.pass_at.values(), row.majority, row.best_of, row.weighted_vote]
    for estimate in estimates:
        assert 0 <= estimate.low < estimate.value < estimate.high <= 1
    assert row.best_of.value == pytest.approx(5 / 6)  # the PRM knows: as good as pass@4
    assert row.best_of == row.pass_at[4]


def test_pass_at_k_stops_at_k_when_k_is_no_power_of_two():
    assert list(scores.score("b", run("110", "100")).pass_at) == [1, 2, 3]


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


def test_maj_at_k_is_the_share_of_questions_won():
    assert scores.score("b", run("110", "100", "111", "000"), same_number).majority.value == 0.5


def test_the_weighted_vote_and_the_best_are_shares_of_questions():
    rows = run("100", "010", "110")
    process_scores = dict.fromkeys((row.key for row in rows), -2.0)
    process_scores["b", "q0", 0] = 9.0  # σ(9) beats 2 σ(-2)
    process_scores["b", "q2", 2] = 9.0
    row = scores.score("b", rows, same_text, process_scores)
    assert row.majority.value == pytest.approx(1 / 3)
    assert row.weighted_vote.value == pytest.approx(1 / 3)  # q0 instead of q2
    assert row.best_of.value == pytest.approx(1 / 3)


def test_what_could_not_be_graded_counts_against_the_score_and_is_shown():
    samples = [
        sample("q0", 0, "right"),
        sample("q1", 0, "timeout"),
        sample("q2", 0, "error"),
        sample("q3", 0, "unparseable_gold"),
        sample("q4", 0, "no_answer", pred=None, finish_reason="length"),
        sample("q5", 0, "no_answer", pred=None, finish_reason="skipped"),
        sample("q6", 0, "wrong", finish_reason="length"),
        sample("q7", 0, "right"),
    ]
    row = scores.score("b", samples, grader="qwen", bad_golds=["q3"])
    assert row.accuracy.value == pytest.approx(2 / 8)
    assert (row.num_faults, row.num_unparseable_gold, row.num_skipped) == (2, 1, 1)
    assert (row.truncated, row.no_answer) == (2 / 8, 2 / 8)
    assert (row.grader, row.bad_golds) == ("qwen", ("q3",))


def test_the_order_of_the_rows_does_not_matter():
    samples = run("1100", "1000", "0111")
    assert scores.score("b", samples[::-1], same_text) == scores.score("b", samples, same_text)


@pytest.mark.parametrize(
    "samples, reason",
    [
        ([], "got no samples"),
        (run("11", "1"), r"question q1 has samples \[0\], expected 0 to 1 once each; finish"),
        (run("11") + run("11"), r"question q0 has samples \[0, 0, 1, 1\]"),
        (
            [sample("q0", 0, "right"), sample("q0", 0, "right", benchmark="c")],
            "samples of b, c together",
        ),
    ],
)
def test_rows_that_make_no_score_are_refused(samples, reason):
    with pytest.raises(ValueError, match=reason):
        scores.score("b", samples)
