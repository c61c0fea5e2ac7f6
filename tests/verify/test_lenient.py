"""Lenient rules: what each accepts, what it does not, and that the rule says so."""

import pytest

from jaxmath.verify import grade, lenient, verdict

RIGHT = [
    ("1/3", "0.33", "rounding of the reference"),
    (r"\frac{100}{3}", "33.3", "rounding of the reference"),
    (r"16.\overline{6}", "16.67", "rounding of the reference"),
    ("-2/3", "-0.667", "rounding of the reference"),
    (r"\sqrt{2}", "x = 1.414", "rounding of the reference"),
    (r"\frac{1}{432}", r"2.31 \times 10^{-3}", "rounding of the reference"),
    (r"(\frac{3}{5},\frac{8}{3}]", "(0.6,2.6667]", "rounding of the reference"),
    ("4.1231", r"\sqrt{17}", "reference is a rounding"),
    (r"50\%", "50", "percent sign missing"),
    ("50", r"50\%", "percent sign missing"),
    ("0.5", r"50\%", "percent as number"),
    (r"50\%", r"\frac12", "percent as number"),
    (r"(1, 50\%)", "(1, 0.5)", "percent as number"),
]
WRONG = [
    ("1/3", "0.3"),  # one place says too little
    ("1/3", "0.34"),
    ("2/3", "0.66"),  # cut, not rounded
    ("326.5", "326.53"),  # two decimals, two numbers
    ("1/3", "0.33x"),
    ("0.5", "0.33"),
    (r"5\%", "50"),
    ("(1, 1/3)", "(0.33, 1)"),
    ("(1,2)", "[1,2]"),
    ("3 cm", "3.00 s"),
]


@pytest.mark.parametrize(("gold", "pred", "rule"), RIGHT)
def test_a_lenient_rule_accepts_and_says_so(gold, pred, rule):
    assert not grade.grade_answer(gold, pred).is_right
    result = lenient.grade_answer(gold, pred)
    assert (result.outcome, result.rule) == (verdict.Outcome.RIGHT, rule)
    assert lenient.grade_response(gold, rf"\boxed{{{pred}}}").rule == rule


@pytest.mark.parametrize(("gold", "pred"), WRONG)
def test_what_no_lenient_rule_accepts(gold, pred):
    strict = grade.grade_answer(gold, pred)
    assert strict.outcome is verdict.Outcome.WRONG
    assert lenient.grade_answer(gold, pred) == strict


def test_what_is_strictly_right_keeps_its_rule():
    assert lenient.grade_response("1/2", r"\boxed{0.5}") == grade.grade_response(
        "1/2", r"\boxed{0.5}"
    )


def test_the_last_number_where_nothing_else_is_found():
    result = lenient.grade_response("66", "11 times 6, so 66 apples, I think")
    assert result.is_right and result.rule == "last number: same text"
    result = lenient.grade_response("66", "11 times 6, or 67")
    assert result.outcome is verdict.Outcome.WRONG and result.rule.startswith("last number: ")
    assert lenient.grade_response("66", "no idea").outcome is verdict.Outcome.NO_ANSWER
    # a box that never closes is an answer given badly
    assert lenient.grade_response("66", r"66 \boxed{66").outcome is verdict.Outcome.NO_ANSWER


def test_faults_pass_through():
    assert lenient.grade_answer("{", "1").outcome is verdict.Outcome.UNPARSEABLE_GOLD


def test_lenient_accepts_all_that_strict_does(grader_cases):
    for gold, text, _ in grader_cases:
        strict = grade.grade_response(gold, text)
        if strict.is_right:
            assert lenient.grade_response(gold, text) == strict
