"""Answers in words, numbers written out, and the letters of a multiple choice."""

import pytest

from jaxmath.verify import grade, words


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (r"\text{No solution}", "no solution"),
        ("NO SOLUTION", "no solution"),
        ("Evelyn", "evelyn"),
        ("YES", "yes"),
        ("AB", "AB"),
        ("ab", "ab"),
        (r"\text{June} 20", "june 20"),
        ("x+1", None),
        ("5 cm", None),
    ],
)
def test_in_words(text, expected):
    assert words.in_words(text) == expected


@pytest.mark.parametrize(
    ("text", "is_prose"),
    [
        ("no", True),
        ("Tom", True),
        ("all even", True),
        ("xyz", False),
        ("AB", False),
        ("5 cm", False),
    ],
)
def test_prose_is_no_product_of_variables(text, is_prose):
    assert words.is_prose(text) == is_prose


@pytest.mark.parametrize(
    ("text", "letter"),
    [
        ("B", "B"),
        ("(B)", "B"),
        ("B.", "B"),
        (r"\text{Option B}", "B"),
        ("选项B", "B"),
        ("(B) twelve", "B"),
        (r"B: \frac12", "B"),
        (r"(B)\frac12", "B"),
        ("B.5", "B"),
        ("B:5", None),
        ("(A) or (B)", None),
        ("(A) and (B)", None),
        ("(A), (B)", None),
        ("(A) B", None),
        ("B + C", None),
        ("Bob", None),
    ],
)
def test_choice(text, letter):
    assert words.choice(text) == letter


@pytest.mark.parametrize(
    ("first", "second", "same"),
    [
        ("ABD", "A, B, D", True),
        ("ABD", "D, A, B", True),
        ("ABD", "(A)(B)(D)", True),
        ("CBAD", "C, B, A, D", True),
        ("CBAD", "A, B, C, D", False),
        ("ABD", "A, B", False),
        ("ABD", "A, B, C, D", False),
        ("AB", "BA", False),
    ],
)
def test_letters_of_one_choice_or_of_one_order(first, second, same):
    assert words.same_letters(first, second) == words.same_letters(second, first) == same


@pytest.mark.parametrize(
    ("gold", "pred", "right"),
    [
        (r"\text{twelve}", "12", True),
        (r"\mbox{four}", "4", True),
        ("twenty-one", "21", True),
        ("zero", "0", True),
        (r"\text{twelve}", "13", False),
        ("five", "five hundred", False),
        ("no", "on", False),
        ("yes", "yse", False),
        (r"\text{June 20}", r"\text{June } 20", True),
        (r"\text{June 20}", "June 21", False),
        (r"\text{1:03 PM}", r"1:03 \text{ p.m.}", True),
        (r"\text{1:03 PM}", r"1:03 \text{ a.m.}", False),
        (r"\text{12 students}", "12", True),
        (r"\text{5 or 9}", "9, 5", True),
        (r"\text{Tom}", r"\text{Tim}", False),
        (r"\text{Monday}", r"\text{Monday or Tuesday}", False),
        ("①③", r"\textcircled{1}\textcircled{3}", True),
        ("①③", "13", False),
    ],
)
def test_answers_in_words(gold, pred, right):
    assert grade.grade_answer(gold, pred).is_right == right
    assert grade.grade_answer(pred, gold).is_right == right
