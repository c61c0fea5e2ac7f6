"""Votes and best of k, each by hand."""

import math

import pytest

from jaxmath.eval import votes

from .rows import same_number, same_text, sample
from .rows import votes as ballot


def preds(classes):
    return [[row.pred for row in members] for members in classes]


def test_answers_are_sorted_by_what_they_are():
    rows = ballot(("7", "wrong"), ("0.5", "right"), (".50", "right"), (None, "no_answer"))
    (classes,) = votes.answer_classes([rows], same_number)
    assert preds(classes) == [["7"], ["0.5", ".50"]]


def test_an_answer_joins_the_first_class_that_takes_it():
    near = lambda pairs: [abs(float(a) - float(b)) <= 1 for a, b in pairs]  # noqa: E731
    rows = ballot(("1", "wrong"), ("3", "wrong"), ("2", "wrong"))
    assert preds(votes.answer_classes([rows], near)[0]) == [["1", "2"], ["3"]]


def test_questions_are_compared_together_and_equal_texts_not_at_all():
    asked = []

    def same(pairs):
        asked.append(pairs)
        return same_number(pairs)

    questions = [
        ballot(("1", "wrong"), ("1", "wrong"), ("1.0", "wrong"), ("2", "wrong")),
        ballot(("3", "wrong"), ("03", "wrong")),
        ballot((None, "no_answer")),
    ]
    found = votes.answer_classes(questions, same)
    assert [preds(classes) for classes in found] == [[["1", "1", "1.0"], ["2"]], [["3", "03"]], []]
    assert asked == [[("1", "1.0"), ("3", "03")], [("1", "2")]]


@pytest.mark.parametrize(
    ("rows", "same", "right"),
    [
        # three spellings of 1/2 outvote two of 7, and lose as texts
        ("7w .5r 7w 0.5r 5e-1r", same_number, True),
        ("7w .5r 7w 0.5r 5e-1r", same_text, False),
        ("1r 2w 2w 1r", same_text, True),  # equal counts: the first seen
        ("2w 2w 1r 1r", same_text, False),
        ("-n -n 1r", same_text, True),  # no answer, no vote
        ("-n -n", same_text, False),
        ("1t 1r 2w", same_text, True),  # a fault of the verifier's does not decide for its class
        ("1t 1e", same_text, False),
    ],
)
def test_the_majority_by_hand(rows, same, right):
    outcomes = {"r": "right", "w": "wrong", "n": "no_answer", "t": "timeout", "e": "error"}
    cells = [(None if cell[:-1] == "-" else cell[:-1], outcomes[cell[-1]]) for cell in rows.split()]
    (classes,) = votes.answer_classes([ballot(*cells)], same)
    assert votes.majority_is_right(classes) is right


def scores_of(rows, *values):
    return {row.key: value for row, value in zip(rows, values, strict=True)}


def test_the_weighted_vote_by_hand():
    rows = ballot(("1", "wrong"), ("2", "right"), ("1", "wrong"))
    (classes,) = votes.answer_classes([rows], same_text)
    # σ(0) + σ(0) = 1 beats σ(4) = 0.98, and loses to it with σ(-1) = 0.27 in the place of one 0.5
    assert not votes.weighted_is_right(classes, scores_of(rows, 0.0, 4.0, 0.0))
    assert votes.weighted_is_right(classes, scores_of(rows, 0.0, 4.0, -1.0))


def test_of_equal_weights_the_first_seen_wins():
    rows = ballot(("1", "wrong"), ("2", "right"), ("2", "right"), ("1", "wrong"))
    (classes,) = votes.answer_classes([rows], same_text)
    assert not votes.weighted_is_right(classes, scores_of(rows, 0.0, 0.0, 0.0, 0.0))
    (turned,) = votes.answer_classes([rows[1:]], same_text)
    assert votes.weighted_is_right(turned, scores_of(rows, 0.0, 0.0, -0.0, 0.0))


def test_what_has_no_score_has_no_weight():
    rows = ballot(("1", "wrong"), ("1", "wrong"), ("2", "right"))
    (classes,) = votes.answer_classes([rows], same_text)
    assert votes.weighted_is_right(classes, scores_of(rows, None, None, -9.0))
    assert not votes.weighted_is_right([], {})


def test_the_best_of_k_by_hand():
    rows = ballot(("1", "wrong"), ("2", "right"), ("3", "wrong"), ("2", "right"))
    assert votes.best_is_right(rows, scores_of(rows, -1.0, 0.5, 0.4, -9.0))
    assert not votes.best_is_right(rows, scores_of(rows, -1.0, 0.5, 0.6, -9.0))
    assert not votes.best_is_right(rows, scores_of(rows, 0.5, 0.5, 0.1, 0.5))  # the first seen


def test_a_response_that_was_never_sampled_is_not_the_best():
    rows = [sample("q0", 0, "no_answer", finish_reason="skipped"), sample("q0", 1, "right")]
    assert votes.best_is_right(rows, scores_of(rows, None, -50.0))
    assert not votes.best_is_right(rows, scores_of(rows, None, None))


@pytest.mark.parametrize("x", [-1000.0, -2.0, 0.0, 2.0, 1000.0])
def test_the_sigmoid_does_not_overflow(x):
    assert votes.sigmoid(x) == pytest.approx(0.5 * (1 + math.tanh(x / 2)))
