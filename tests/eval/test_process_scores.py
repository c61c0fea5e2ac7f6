"""Steps and the scores of responses, by hand."""

import dataclasses

import numpy as np
import pytest

from jaxmath.eval import journal, process_scores
from jaxmath.eval.process_scores import ScoringRule, StepLogprobs
from jaxmath.rl import process_rewards

TEXT = "Well.\nStep 1: a\nb\n\nStep 2: c Step by step.\n \n\nStep 10: d\n\n"


def steps_of(split, text):
    """The pieces, each character being a token."""
    firsts = process_scores.first_tokens(split, text, range(len(text)))
    return [text[a:b] for a, b in zip(firsts, [*firsts[1:], len(text)], strict=True)]


@pytest.mark.parametrize(
    ("split", "expected"),
    [
        (
            "step",
            [
                "Well.\nStep 1: a\nb\n\n",  # what stands before the first step is part of it
                "Step 2: c Step by step.\n \n\n",
                "Step 10: d\n\n",
            ],
        ),
        (
            "line",
            ["Well.\n", "Step 1: a\n", "b\n\n", "Step 2: c Step by step.\n \n\n", "Step 10: d\n\n"],
        ),
        (
            "paragraph",
            ["Well.\nStep 1: a\nb\n\n", "Step 2: c Step by step.\n \n\n", "Step 10: d\n\n"],
        ),
        ("response", [TEXT]),
        ("token", list(TEXT)),
    ],
)
def test_where_steps_begin(split, expected):
    assert steps_of(split, TEXT) == expected


@pytest.mark.parametrize("split", ["line", "paragraph"])
def test_white_space_in_front_makes_no_step(split):
    assert steps_of(split, "\n\n  \na\n\nb") == ["\n\n  \na\n\n", "b"]


def test_a_text_without_marks_is_one_step():
    assert steps_of("step", "a\n\nb") == ["a\n\nb"]


def test_a_step_begins_with_the_first_token_that_begins_in_it():
    # tokens "a", ".\n\nb" (across the border), "c", and the stop token
    assert process_scores.first_tokens("paragraph", "a.\n\nbc", [0, 1, 5, 6]) == [0, 2]
    # "\n\n" and "b" are tokens of their own
    assert process_scores.first_tokens("paragraph", "a.\n\nbc", [0, 1, 2, 4, 6]) == [0, 3]


def test_the_stop_token_belongs_to_the_last_step():
    assert process_scores.first_tokens("line", "a\nb", [0, 1, 2, 3]) == [0, 2]
    assert process_scores.first_tokens("token", "ab", [0, 1, 2]) == [0, 1, 2]
    assert process_scores.first_tokens("line", "", [0]) == [0]  # only a stop token
    assert process_scores.first_tokens("line", "", []) == []


@pytest.mark.parametrize("split", list(process_scores.SPLITS))
def test_endless_white_space_is_cut_in_no_time(split):
    text = "a\n" + "\n \n" * 200_000
    assert len(process_scores.first_tokens(split, text, [0, 1])) <= 2


def steps(prm, ref=None):
    return StepLogprobs("b", "q", 0, prm, ref)


# rewards 0.5, -1, 1 (nats); q: 0.5, -0.5, 0.5
RATIOS = steps((-1.0, -3.0, -1.0), (-1.5, -2.0, -2.0))


@pytest.mark.parametrize(
    ("value", "aggregate", "with_ref", "expected"),
    [
        ("difference", "min", True, -1.0),
        ("difference", "sum", True, 0.5),
        ("cumulative", "min", True, -0.5),
        ("cumulative", "sum", True, 0.5),
        ("difference", "min", False, -3.0),
        ("difference", "sum", False, -5.0),
        ("cumulative", "min", False, -5.0),
        ("cumulative", "sum", False, -10.0),
    ],
)
def test_scores_by_hand(value, aggregate, with_ref, expected):
    rule = ScoringRule(beta=0.05, value=value, aggregate=aggregate)
    found = process_scores.response_score(RATIOS, rule, with_ref=with_ref)
    assert found == pytest.approx(0.05 * expected)


def test_the_sum_over_tokens_is_the_reward_that_prime_trains():
    rng = np.random.default_rng(0)
    prm_BT, ref_BT = rng.normal(size=(2, 1, 7)).astype(np.float32)
    ours = process_scores.response_score(
        steps(tuple(prm_BT[0]), tuple(ref_BT[0])),
        ScoringRule(beta=0.05, aggregate="sum"),
        with_ref=True,
    )
    score_BT = process_rewards.token_scores(prm_BT, ref_BT, np.ones((1, 7), np.float32))
    assert ours == pytest.approx(0.05 * float(process_rewards.response_scores(score_BT)[0]), 1e-5)


def test_a_response_without_tokens_has_no_score():
    assert process_scores.response_score(steps(()), ScoringRule(), with_ref=True) is None


def test_rows_come_back_from_the_file(tmp_path):
    rows = [RATIOS, steps(()), dataclasses.replace(RATIOS, ref=None)]
    rows = [dataclasses.replace(row, sample=i) for i, row in enumerate(rows)]
    journal.append(tmp_path / "prm.jsonl", rows)
    assert journal.read(StepLogprobs, tmp_path / "prm.jsonl") == rows


@pytest.mark.parametrize(
    ("prm", "ref", "reason"),
    [
        ((float("nan"),), None, "field prm: expected finite numbers"),
        ((1.0,), (1.0, 2.0), "1 steps of prm, 2 of ref"),
    ],
)
def test_rows_that_make_no_score_are_refused(prm, ref, reason):
    with pytest.raises(ValueError, match=reason):
        steps(prm, ref)


def test_a_scale_of_nothing_is_refused():
    with pytest.raises(ValueError, match=r"beta is 0.0; expected a positive number"):
        ScoringRule(beta=0.0)
