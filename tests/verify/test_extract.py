"""The final answer of a response: the last box, or without any box what a sentence announces."""

import pytest

from jaxmath.verify import extract


@pytest.mark.parametrize(
    ("response", "answer"),
    [
        (r"so \boxed{42}.", "42"),
        (r"\boxed{\frac{1}{2}}", r"\frac{1}{2}"),
        (r"\boxed{\left\{1, \frac{2}{3}\right\}} done", r"\left\{1, \frac{2}{3}\right\}"),
        (r"first \boxed{1}, no: it is \boxed{2}", "2"),
        (r"\fbox{7}", "7"),
        (r"\boxed{3} and later \fbox{4}, surely", "4"),
        (r"\boxed {5}", "5"),
        (r"\boxed 6", "6"),
        (r"\boxed{\boxed{8}}", "8"),
        (r"\boxed{\boxed{\boxed 8}}", "8"),
        (r"\boxed{3 \text{ or } \boxed{8}}", r"3 \text{ or } \boxed{8}"),
        (r"\boxed{9 and then \boxed{8}", "8"),
        (r"a) \boxed{7} b) \boxed{8}", "8"),
        (r"\boxed{5}{6}", "5"),
        ("\\boxed{\n9\n}", "9"),
    ],
)
def test_the_last_box_is_the_answer(response, answer):
    assert extract.extract(response) == (answer, "box")


@pytest.mark.parametrize(
    ("response", "rule"),
    [
        (r"\boxed{5} and then \boxed{}", "last box is empty"),
        (r"\boxed{5} and then \boxed{ \text{ } }", "last box is empty"),
        (r"\boxed{5}, so the answer is \boxed{\frac{1}{2", "last box never closes"),
        (r"\boxed{", "last box never closes"),
        (r"\boxed{\}", "last box never closes"),
        (r"\boxed{1} or \boxed{2}", "several boxes side by side"),
        (r"$\boxed{1}$ \text{ and } $\boxed{2}$", "several boxes side by side"),
        (r"\boxed{1}, \boxed{2}, \boxed{3}", "several boxes side by side"),
        (r"\boxed{1} 或 \boxed{2}", "several boxes side by side"),
        (r"$x = \boxed{1}$ or $x = \boxed{2}$", "several boxes side by side"),
        (r"\boxed{1} \boxed{2} \boxed{2}", "several boxes side by side"),
        ("I do not know 42", "no box and no announced answer"),
    ],
)
def test_what_stood_before_does_not_rescue_a_bad_last_box(response, rule):
    assert extract.extract(response) == (None, rule)


def test_a_repeated_box_is_one_answer():
    assert extract.extract(r"\boxed{4} and \boxed{4}").answer == "4"


@pytest.mark.parametrize(
    ("response", "answer"),
    [
        ("The answer is 42.", "42"),
        ("the answer is: $\\frac{1}{2}$. I hope it is correct.", r"\frac{1}{2}"),
        ("Final Answer: The final answer is $(2, 3)$. I hope", "(2, 3)"),
        ("**Final Answer:** 3.14", "3.14"),
        ("所以答案是 12。", "12"),
        ("答案：\\(x+1\\)", "x+1"),
        ("work\n#### 1,234", "1,234"),
        ("<think>7</think><answer>8</answer>", "8"),
        ("The answer is 3. Wait: the answer is 5.", "5"),
    ],
)
def test_without_a_box_an_announcement_counts(response, answer):
    assert extract.extract(response).answer == answer


def test_the_last_number_is_read_only_by_the_lenient_reader():
    response = "so we get 1,250 in all"
    assert extract.extract(response).answer is None
    assert extract.last_number(response) == ("1,250", "last number")
    assert extract.last_number("none").answer is None


def test_an_announcement_does_not_overrule_a_box():
    assert extract.extract(r"\boxed{4}. The answer is 5.").answer == "4"
