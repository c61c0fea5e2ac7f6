import pytest

from jaxmath.data import selection
from jaxmath.data.selection import FilterConfig
from jaxmath.verify import verdict


def rows(*outcomes, response="A long enough answer.", num_tokens=10, **fields):
    row = {"response": response, "num_tokens": num_tokens, "finish_reason": "stop", **fields}
    return [row | {"problem_id": 7, "sample": i, "outcome": o} for i, o in enumerate(outcomes)]


def fate(question="What is 1+1?", config=None, **fields):
    """What becomes of one right answer."""
    (found,) = selection.fates(rows("right", **fields), question, FilterConfig(**(config or {})))
    return found


def test_every_outcome_of_the_verifier_is_a_fate():
    assert {str(outcome) for outcome in verdict.Outcome} - {"right"} <= set(selection.FATES)


def test_right_answers_are_kept_and_the_others_have_their_outcome():
    outcomes = ["right", "wrong", "no_answer", "timeout", "error", "unparseable_gold"]
    found = selection.fates(rows(*outcomes), "?", FilterConfig())
    assert found == ["kept", *outcomes[1:]]
    assert selection.fates(rows(*outcomes), "?", FilterConfig(right=False)) == ["kept"] * 6


def test_an_answer_that_was_cut_off_is_never_kept():
    assert fate(finish_reason="length") == "cut_off"
    assert fate(finish_reason="length", config={"right": False}) == "cut_off"


@pytest.mark.parametrize(
    ("tokens", "expected"), [(4, "too_short"), (5, "kept"), (9, "kept"), (10, "too_long")]
)
def test_both_limits_of_length_are_inclusive(tokens, expected):
    assert fate(num_tokens=tokens, config={"min_tokens": 5, "max_tokens": 9}) == expected


def test_repetition_is_the_share_of_word_sequences_seen_before():
    assert selection.repeated_ngrams("a b c d", 2) == 0
    assert selection.repeated_ngrams("a b a b a", 2) == 0.5  # ab ba (ab) (ba)
    assert selection.repeated_ngrams("a b", 3) == 0
    looping = "first we try this and then that. " * 30
    assert fate(response=looping, config={"max_repeated_ngrams": 0.5}) == "repetitive"
    assert fate(response=looping) == "kept"
    different = " ".join(f"step {i} gives {i * i}" for i in range(60))
    assert fate(response=different, config={"max_repeated_ngrams": 0.1, "ngram_words": 4}) == "kept"


def test_long_lines_may_not_return_too_often():
    again = "Wait, let me check that once more.\n" * 4 + "So\n" * 50
    assert selection.line_repeats(again) == 4
    assert fate(response=again, config={"max_line_repeats": 3}) == "repetitive"
    assert fate(response=again, config={"max_line_repeats": 4}) == "kept"


@pytest.mark.parametrize(
    ("response", "question", "share"),
    [
        ("The answer is 2.", "1+1?", 0),
        ("α + β = γ, naïve café", "1+1?", 0),
        ("答案是 ab", "What is it?", 3 / 5),
        ("答案是 ab", "这是什么？", 0),
        ("答案は ab", "这是什么？", 1 / 5),  # kana in an answer to a Chinese question
        ("итак, x", "What is it?", 4 / 5),
        ("123 ÷ 4 → ∞", "What is it?", 0),
        ("정답은", "What is it?", 1),
    ],
)
def test_foreign_letters_are_those_of_scripts_the_question_has_not(response, question, share):
    assert selection.foreign_letters(response, question) == pytest.approx(share)


def test_a_mixture_of_languages_is_left_out():
    mixed = "So we have 因此答案是 two and that is the end of it"
    assert fate(response=mixed, config={"max_foreign_letters": 0.1}) == "foreign"
    assert fate(response=mixed, config={"max_foreign_letters": 0.5}) == "kept"


def test_of_equal_responses_the_first_is_kept():
    same = rows("wrong", "right", "right", "right")
    same[2] = same[2] | {"response": "A long\n enough  answer."}
    same[3] = same[3] | {"response": "Another."}
    found = selection.fates(same, "?", FilterConfig(distinct=True))
    assert found == ["wrong", "kept", "duplicate", "kept"]


@pytest.mark.parametrize(
    ("band", "outcomes", "inside"),
    [
        ((0.25, 0.75), "rrrw", True),
        ((0.25, 0.75), "rrrr", False),
        ((0.26, 0.75), "rwww", False),
        ((0.0, 0.5), "rwee", True),  # one of two: what could not be judged counts neither way
        ((0.0, 0.4), "rwee", False),
        ((0.0, 1.0), "eeee", False),
    ],
)
def test_the_pass_rate_of_the_question_is_within_the_band(band, outcomes, inside):
    words = {"r": "right", "w": "wrong", "e": "error"}
    config = FilterConfig(pass_rate=band, right=False)
    found = selection.fates(rows(*(words[o] for o in outcomes)), "?", config)
    assert found == ["kept" if inside else "pass_rate"] * 4


def test_at_most_so_many_are_kept_in_the_order_asked_for():
    four = [
        row | {"num_tokens": n} for row, n in zip(rows(*["right"] * 4), (9, 4, 9, 3), strict=True)
    ]

    def kept(choose, seed=0):
        config = FilterConfig(max_per_question=2, choose=choose)
        found = selection.fates(four, "?", config, seed)
        assert found.count("over_limit") == 2
        return [i for i in range(4) if found[i] == "kept"]

    assert kept("first") == [0, 1] and kept("shortest") == [1, 3]
    assert kept("random", 1) == kept("random", 1)
    assert len({tuple(kept("random", seed)) for seed in range(30)}) == 6


def test_what_fails_otherwise_takes_no_place_among_the_chosen():
    some = rows("wrong", "right", "right", "right")
    found = selection.fates(some, "?", FilterConfig(max_per_question=2))
    assert found == ["wrong", "kept", "kept", "over_limit"]


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"min_tokens": 0}, "min_tokens is 0"),
        ({"min_tokens": 9, "max_tokens": 8}, "no response has such a length"),
        ({"max_foreign_letters": 2.0}, "a share from 0 to 1"),
        ({"pass_rate": (0.5, 0.2)}, "low <= high"),
        ({"max_per_question": -1}, "at least 1"),
    ],
)
def test_a_filter_that_cannot_be_meant_is_refused(fields, said):
    with pytest.raises(ValueError, match=said):
        FilterConfig(**fields)
