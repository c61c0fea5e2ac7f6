"""Answers too long for the formula reader: the right verdict, in linear time."""

import random

import pytest

from jaxmath.verify import grade, plain

DIGITS = "7" + "1234567890" * 10_000
NUMBERS = list(range(10_000))
SHUFFLED = random.Random(0).sample(NUMBERS, len(NUMBERS))


def listed(numbers) -> str:
    return ", ".join(map(str, numbers))


@pytest.mark.parametrize(
    ("gold", "pred", "right"),
    [
        (DIGITS, DIGITS, True),
        (DIGITS, "+" + DIGITS + ".0", True),
        (DIGITS, "00" + DIGITS, True),
        ("7" + "123" * 30_000, "7" + "{,}123" * 30_000, True),
        ("7" + "123" * 30_000, "7" + ",123" * 30_000, True),
        (DIGITS, DIGITS[:-1] + "1", False),
        (DIGITS, "-" + DIGITS, False),
        (DIGITS, DIGITS[:-1], False),
        ("5", DIGITS, False),
        ("5", "0" * 100_000 + "5", True),
        ("5", "5." + "0" * 100_000, True),
        ("5", "5." + "0" * 100_000 + "1", False),
        ("5", "(" * 10_000 + "5" + ")" * 10_000, True),
        ("5", "(" * 10_000 + "5" + ")" * 9_999, False),
        ("6", "{" * 10_000 + "5" + "}" * 10_000, False),
        ("5", "(" * 30 + "5" + ")" * 30, True),
        ("5", "-" * 10_000 + "5", True),
        ("5", "-" * 10_001 + "5", False),
        (listed(NUMBERS), listed(SHUFFLED), True),
        (listed(NUMBERS), r"\{" + listed(SHUFFLED) + r"\}", True),
        (listed(NUMBERS), listed(SHUFFLED[:-1]), False),
        (listed(NUMBERS), listed([*SHUFFLED[:-1], SHUFFLED[0]]), False),
        ("(1,234)", "1234", False),
    ],
)
def test_long_plain_answers(gold, pred, right):
    assert grade.grade_answer(gold, pred).is_right == right


def test_what_is_not_plain_is_left_to_other_rules():
    assert plain.same("x" * 5000, "5") is None
    assert plain.same(r"\frac{1}{2}", "0.5") is None
    assert plain.same("１" * 50_000, "1" * 50_000) is None
