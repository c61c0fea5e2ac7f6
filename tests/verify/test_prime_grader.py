"""PRIME's reward, with its habits: the goldens of the spec, section 5, and more."""

import pytest

from jaxmath.verify import prime_grader, verdict


@pytest.mark.parametrize(
    ("response", "answer"),
    [
        (r"so the final answer is: $\boxed{42}$. I hope it is correct.", "42"),
        (r"\boxed{x=5}", "5"),
        (r"\boxed{1. 5}", "1"),
        (r"so \boxed{42}. The answer is correct", "correct"),
        (r"\boxed{1} is the answer", "1"),
        (r"7 is the answer, or \boxed{8}", "7"),
        (r"\boxed{3} \fbox{4}", "3"),
        (r"\fbox{4}", "4"),
        (r"\boxed{}", r"\boxed{}"),
        (r"\boxed{12", r"\boxed{12"),
        (r"\boxed 7 {8}", "8"),
        ("we get 12", "12"),
        ("Answer: the sum is 3 so it must be 9", "9"),
        ("nothing", "nothing"),
    ],
)
def test_extraction(response, answer):
    assert prime_grader.extract(response)[0] == answer


@pytest.mark.parametrize(
    ("text", "form"),
    [
        (r"\dfrac12", r"\frac{1}{2}"),
        ("0.5", r"\frac{1}{2}"),
        (r"\sqrt3", r"\sqrt{3}"),
        (r"5\text{ cm}", "5"),
        (r"k=7", "7"),
        (r"\text{yes}", "yes"),
        (r"1\frac", r"1\frac"),
    ],
)
def test_hendrycks_form(text, form):
    assert prime_grader.hendrycks_form(text) == form


@pytest.mark.parametrize(
    ("text", "form"),
    [
        ("5 million", "5 *10^6"),
        ("12 inches", "12"),
        (r"7\frac{3}{4}", "7+3/4"),
        ("1,234", "1234"),
        (r"\sqrt[3]{2}", "sqrt(2)"),  # the index is lost there
        (r"2\cdot\pi", "2*pi"),
        ("YES", "yes"),
        (r"90^\circ", "90"),
        (r"\begin{pmatrix}1&2\\30&4\end{pmatrix}", "[  1+2; 30+4 ]"),
    ],
)
def test_prm800k_form(text, form):
    assert prime_grader.normalized(text).strip() == form


RIGHT = [
    ("1/2", "0.5", "Hendrycks' text"),
    (r"1\text{ or }2", "1", "Hendrycks' text"),  # cut off as a unit
    ("12", "12 inches", "PRM800K's text"),
    ("2x+2", "2(x+1)", "item by item"),
    ("(1,2*3)", "(1,3*2)", "item by item"),
    ("50", "0.5", "within 1e-4"),  # a hundred times more or less
    ("0.33333", "0.33334", "within 1e-4"),
    (r"2\pi", "6.28", "within 1e-4"),  # π is also 3.14
    (r"\frac{x+2}{7}", r"\frac{x}{7}+\frac{2}{7}", "within 1e-4"),
    ("101_2", "101", "within 1e-4"),  # the base is lost
    ("[1,2]", "(1,2)", None),
    ("4/23", "8/46", "within 1e-4"),  # unreduced fractions come through in the end
]
WRONG = [
    ("2", "3"),
    ("5120", "10 * 2^9"),  # an exclusive or, in Python
    ("x^2", "x^3"),
    ("1,2", "2,1"),
    ("x=1", "1_a"),
    ("-2,2", "-2,2,97"),
]


@pytest.mark.parametrize(("gold", "pred", "rule"), RIGHT)
def test_answers_that_are_equal_there(gold, pred, rule):
    result = prime_grader.grade_answer(gold, pred)
    if rule is None:
        assert result.outcome is verdict.Outcome.WRONG
    else:
        assert (result.outcome, result.rule) == (verdict.Outcome.RIGHT, f"answer: {rule}")


@pytest.mark.parametrize(("gold", "pred"), WRONG)
def test_answers_that_are_not(gold, pred):
    assert not prime_grader.grade_answer(gold, pred).is_right


def test_faults_are_kept_apart():
    assert prime_grader.grade_response("", "5").outcome is verdict.Outcome.UNPARSEABLE_GOLD
    assert prime_grader.grade_response("5", "").outcome is verdict.Outcome.NO_ANSWER


def test_collected_cases(grader_cases):
    """The originals were run on these rows: 931 of the 1,025 are right there."""
    right = sum(
        prime_grader.grade_response(gold, text).is_right == expected
        for gold, text, expected in grader_cases
    )
    assert right == 931
