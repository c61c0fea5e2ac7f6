"""The formula grammar: what it reads, what it refuses, and the values it gives."""

from fractions import Fraction

import pytest

from jaxmath.verify import evaluate, exact, expression, normalize


def value(text: str) -> Fraction:
    return exact.value(expression.parse(normalize.canonical(text)), {"x": Fraction(3)})


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("2+3*4", 14),
        ("2-3-4", -5),
        ("-2^2", -4),
        ("2^3^2", 512),
        ("2^10", 1024),
        ("2^{-1}", Fraction(1, 2)),
        ("1/2/2", Fraction(1, 4)),
        (r"\frac12", Fraction(1, 2)),
        (r"\frac1{72}", Fraction(1, 72)),
        (r"\frac{270}7", Fraction(270, 7)),
        (r"1\frac{4}{5}", Fraction(9, 5)),
        (r"-1\frac12", Fraction(-3, 2)),
        (r"0.1\overline{6}", Fraction(1, 6)),
        (r"2.\overline{3}", Fraction(7, 3)),
        ("1.5e3", 1500),
        (r"3.54\times10^{-7}", Fraction(354, 10**9)),
        ("2x", 6),
        ("2(x+1)", 8),
        ("5!", 120),
        (r"\binom{5}{2}", 10),
        (r"\sqrt{16}", 4),
        (r"\sqrt[3]{-8}", -2),
        ("√9", 3),
        ("8^{1/3}", 2),
        ("|2-x|", 1),
        (r"\lfloor 3.7 \rfloor + \lceil 3.2 \rceil", 7),
        ("4/3-7x/6", Fraction(-13, 6)),
    ],
)
def test_exact_values(text, expected):
    assert value(text) == expected


@pytest.mark.parametrize(
    "text",
    [
        "",
        "2 3",
        "1+",
        "(1",
        "1)",
        "word",
        "3!!",
        "x:y",
        r"\unknown{2}",
        "((" * 50 + "1" + "))" * 50,
    ],
)
def test_what_is_not_a_formula_is_refused(text):
    with pytest.raises(expression.Unreadable):
        expression.parse(text)


@pytest.mark.parametrize(
    ("first", "second"),
    [
        ("1/4", "0.25"),
        (r"\frac{1}{\sqrt{2}}", r"\frac{\sqrt{2}}{2}"),
        (r"\sqrt{3-2\sqrt{2}}", r"\sqrt{2}-1"),
        (r"\tan^2(y)+1", r"\sec^2(y)"),
        (r"\sin 2x", r"2\sin x\cos x"),
        (r"\cos(x)", r"\sin(90^\circ-x)"),
        (r"\sqrt{1/n}", r"\frac{1}{\sqrt{n}}"),
        (r"\frac{(n-1)!}{k!}\frac{n}{(n-k)!}", r"\binom{n}{k}"),
        (r"e^{i\pi}", "-1"),
        (r"\ln(e^2)", "2"),
        (r"\log_2 8", "3"),
        ("exp(16)-1", "-1+e^{16}"),
        (r"\sum_{k=0}^{n-1} a_k b", r"\sum_{k=0}^{n-1} b a_k"),
        ("f(x+1)+1", "1+f(1+x)"),
    ],
)
def test_equal_values(first, second):
    nodes = [expression.parse(normalize.canonical(text)) for text in (first, second)]
    assert evaluate.same_value(*nodes) and evaluate.same_value(*nodes[::-1])


@pytest.mark.parametrize(
    ("first", "second"),
    [
        ("1/3", "0.333333333333333333"),
        (r"\pi", "3.14159265358979"),
        (r"\sqrt{2}+10^{-80}", r"\sqrt{2}"),
        ("10^{-300}", "0"),
        ("9007199254740993", "9007199254740992"),
        ("100!", "100!+1"),
        (r"\sqrt{x^2}", "x"),
        ("|x|", "x"),
        ("x", "y"),
        ("f(2)+f(3)", "f(5)"),
        (r"\frac13", r"\int_0^1 x^2 dx"),
        ("10^{10^{10^{10}}}", "10^{10}"),
        (r"\frac{1}{\sqrt{2}-\sqrt{2}}", "0"),
    ],
)
def test_different_values(first, second):
    nodes = [expression.parse(normalize.canonical(text)) for text in (first, second)]
    assert not evaluate.same_value(*nodes) and not evaluate.same_value(*nodes[::-1])


@pytest.mark.parametrize(
    "text",
    ["9^9^9^9", "(10^{10})!", "((((3!)!)!)!)", r"\binom{10^9}{5}", "2^{2^{40}}", "1.5^{999999999}"],
)
def test_bombs_are_refused_before_they_are_computed(text):
    with pytest.raises(exact.TooLarge):
        value(text)


def test_an_equation_is_the_same_up_to_a_factor():
    line, same, other = (expression.parse(t) for t in ("2x+4y-3", "y+x/2-3/4", "2x+4y-4"))
    assert evaluate.proportional(line, same)
    assert not evaluate.proportional(line, other)
    assert not evaluate.proportional(line, expression.parse("(2x+4y-3)x"))
