"""LaTeX as sympy reads it: expected trees are those that sympy 1.13 gave for the same text."""

import contextlib
import time

import pytest

from jaxmath.verify import expression, latex_prefix


@pytest.mark.parametrize(
    ("text", "same_as"),
    [
        ("2+", "2"),
        (r"2+\sqrt(2)", "2"),
        ("3(2,1)", "3"),
        ("5, 7", "5"),
        ("1,234", "1234"),
        ("1,00", "1"),
        ("1.5.2", "1.5"),
        ("7.78.", "7.7"),
        ("3 4", "34"),
        (r"\frac12", r"\frac{1}{2}"),
        ("2^10", "2^{10}"),
        ("2^-1", "2"),
        ("x^y^z", "{x^y}^z"),
        ("x^2!", "(x^2)!"),
        ("2:3", "2/3"),
        (r"\{1\}", "1"),
        (r"\sin x y", r"\sin(x y)"),
        (r"\sin x\cos x", r"\sin(x)\cos(x)"),
        (r"\log_2 8", r"\log_{2}(8)"),
        ("3x4", r"3\cdot4"),
        (r"x^{2}_{3}", "x^2"),
        ("3+3=2", "1=2"),
    ],
)
def test_two_texts_with_one_tree(text, same_as):
    assert canon(latex_prefix.read(text)) == canon(latex_prefix.read(same_as))


def canon(tree):
    return tree if isinstance(tree, bool) else expression.canon(tree)


@pytest.mark.parametrize(
    ("text", "symbols"),
    [
        ("dx", {"dx"}),
        ("adb", {"a", "db"}),
        (r"\text{a}", {"text", "a"}),
        (r"90^\circ", {"circ"}),
        (r"\pi i e", {"pi", "i", "e"}),
        ("x'", {"x'"}),
        ("A_1", {"A_{num(1)}"}),
        ("f(x)", {"f(sym(x))"}),
        ("x^2(x+1)", {"x"}),
    ],
)
def test_names(text, symbols):
    assert expression.symbols(latex_prefix.read(text)) == symbols


@pytest.mark.parametrize(
    "text",
    [
        "",
        "x=",
        "x_",
        r"\frac{1}{",
        "5%",
        "7.",
        ".5",
        "x<y<z",
        r"\sqrt2",
        "12°",
        "x;y",
        "08",
        "(1,2)",
    ],
)
def test_what_it_cannot_read(text):
    with pytest.raises(expression.Unreadable):
        latex_prefix.read(text)


@pytest.mark.parametrize(
    "text",
    ["f(" * 60, "(" * 3000, "f(" * 25 + "1", "^" * 3000, "x^{" * 1000, "-" * 3900, "9" * 3999],
)
def test_hostile_texts_end_soon(text):
    start = time.process_time()
    with contextlib.suppress(expression.Unreadable):
        latex_prefix.read(text)
    assert time.process_time() - start < 2.0
