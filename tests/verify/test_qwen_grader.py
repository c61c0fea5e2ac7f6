"""The Qwen2.5-Math evaluation's order of extraction, chain of string rules, and equality."""

import pytest

from jaxmath.verify import qwen_grader, verdict


@pytest.mark.parametrize(
    ("response", "answer", "how"),
    [
        (
            r"\boxed{7} Final Answer: The final answer is $8$. I hope it is correct.",
            "8",
            "Minerva phrase",
        ),
        (r"first \boxed{1}, then \boxed{\frac{1}{2}} done", r"\frac{1}{2}", "box"),
        (r"cut off: \boxed{12", "12", "box"),
        (r"\boxed 7$ and more", "7", "box"),
        ("The answer is 3. No: the answer is 4.", "4", "'he answer is'"),
        ("So the final answer is: 5.", " 5", "'final answer is'"),
        ("My final answer is\n  17/", "17", "'final answer is'"),
        ("所以答案是 42\n\n谢谢 答案是 7", "42", "'答案是'"),
        ("1,234 apples and then -.5", "-.5", "last number"),
        ("first 1,234,567", "1234567", "last number"),
        ("no numbers here", "", "no number"),
    ],
)
def test_the_order_of_extraction(response, answer, how):
    assert qwen_grader.extract(response) == (answer, how)


@pytest.mark.parametrize(
    ("text", "stripped"),
    [
        (r"\dfrac12", r"\frac{1}{2}"),
        ("3/4", r"\frac{3}{4}"),
        (r"\sqrt3/2", r"\frac{\sqrt{3}}{2}"),
        (r"5 \text{ miles}", "5"),
        (r"30^\circ", "30"),
        (r"50\%", "50"),
        ("12 apples", "12"),
        (r"x=5", "5"),
        (r"x\in[1,2]", "[1,2]"),
        ("k = 9", "9"),
        ("3.000", "3"),
        (".5", "0.5"),
        ("forty-two", "42"),
        ("3 + 2j", "3+2i"),
        (r"(-\infty,\infty)", r"\mathbb{R}"),
        (r"\left[\begin{array}{cc}1&2\end{array}\right]", r"[\begin{pmatrix}1&2\end{pmatrix}]"),
        (r"\frac", r"\frac"),
    ],
)
def test_the_chain_of_string_rules(text, stripped):
    assert qwen_grader.stripped(text) == stripped


RIGHT = [
    ("1/3", "0.33333", "same formula"),
    ("0.3333", "0.33333", "number within 1e-4"),
    ("50", "0.5", "number within 1e-4"),  # a hundred times more or less
    ("0.5", "50", "number within 1e-4"),
    ("B", "(B) a dozen", "last letter"),
    ("(1,2)", "[1,2]", "item by item"),
    ("(3)", "3", "same text but for brackets"),
    (r"(\frac{3}{5},\frac{8}{3}]", "(0.6,2.6667]", "item by item"),
    (
        r"\begin{pmatrix}1\\ 2\end{pmatrix}",
        r"\begin{bmatrix}1.00001\\2\end{bmatrix}",
        "cell by cell",
    ),
    ("2a+b=3", "b-3=-2a", "same equation"),
    ("pq =7", "7", "value of an equation"),
    (r"\frac{x+2}{7}", r"\frac{x}{7}+\frac{2}{7}", "same formula"),
    ("x<1", "-x>-1", "same formula"),  # the signs are not looked at
    ("x>1", "x<1", "same formula"),
    ("x", "x, 7", "same formula"),  # what follows the first formula is not read
    ("{1,2}", "{2,1}", "same formula"),
]
WRONG = [
    ("2", "3"),
    ("B", "(B) twelve"),  # 12
    ("2x+y=3", "y-3=-2x"),  # "y=" is gone before anything is compared
    ("5", "5, 7"),  # 57
    (r"\pi", "3.14159"),  # a letter, there
    ("1,2,3", "1.5,2,3"),
    ("x^2", "x^3"),
    (r"\sqrt{17}", "4.2"),
    (r"\sqrt{1/n}", r"\frac{1}{\sqrt{n}}"),
    (r"\begin{pmatrix}1\\2\end{pmatrix}", r"\begin{pmatrix}1\\3\end{pmatrix}"),
    ("[0,1)", "[0,2)"),
    ("", "x"),
]


@pytest.mark.parametrize(("gold", "pred", "rule"), RIGHT)
def test_answers_that_are_equal_there(gold, pred, rule):
    result = qwen_grader.grade_answer(gold, pred)
    assert (result.outcome, result.rule) == (verdict.Outcome.RIGHT, f"answer: {rule}")


@pytest.mark.parametrize(("gold", "pred"), WRONG)
def test_answers_that_are_not(gold, pred):
    assert not qwen_grader.grade_answer(gold, pred).is_right


def test_nothing_found_is_no_answer_and_an_empty_reference_a_fault():
    outcomes = [
        qwen_grader.grade_response("1", "who knows").outcome,
        qwen_grader.grade_answer("1", " ").outcome,
        qwen_grader.grade_answer(" ", "1").outcome,
    ]
    expected = (
        verdict.Outcome.NO_ANSWER,
        verdict.Outcome.NO_ANSWER,
        verdict.Outcome.UNPARSEABLE_GOLD,
    )
    assert outcomes == list(expected)


def test_collected_cases(grader_cases):
    """The originals were run on these rows: 924 of the 1,025 are right there."""
    right = sum(
        qwen_grader.grade_response(gold, text).is_right == expected
        for gold, text, expected in grader_cases
    )
    assert right == 924
