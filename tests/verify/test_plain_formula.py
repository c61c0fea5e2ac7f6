"""Formulas in programmers' syntax: expected are the trees that sympy 1.13 gave for these texts."""

import time

import pytest

from jaxmath.verify import evaluate, expression, plain_formula


@pytest.mark.parametrize(
    ("text", "same_as"),
    [
        ("1e5", "100000"),
        ("3!/2", "3"),
        ("2**-1", "1/2"),
        ("2**3**2", "512"),
        ("-2**2", "-4"),
        ("log(8,2)", "3"),
        ("sqrt(2)*sqrt(8)", "4"),
        (".5 + 1.", "3/2"),
        ("abs(-3)", "3"),
        ("exp(log(x))", "x"),
        ("cos(pi)", "-1"),
    ],
)
def test_values(text, same_as):
    assert evaluate.same_value(plain_formula.read(text), plain_formula.read(same_as))


@pytest.mark.parametrize(
    ("text", "same_as"),
    [
        ("2x", "2*x"),
        ("2(3)", "6"),
        ("x(x+1)", "x*(x+1)"),
        ("xy", "x*y"),
        ("sqrt(2)3", "3*sqrt(2)"),
        ("2 sqrt 3", "2*sqrt(3)"),
        ("sqrt2", "s*q*r*t*2"),
        ("2pi", "2*pi"),
        ("x**2y", "x**2*y"),
        ("1 2", "2"),
        ("x2", "2*x"),
        ("2e", "2*e"),
        ("3e2", "300"),
    ],
)
def test_implicit_multiplication(text, same_as):
    trees = plain_formula.read(text, implicit=True), plain_formula.read(same_as)
    assert evaluate.same_value(*trees)


def test_a_list_is_readable_but_no_formula():
    assert plain_formula.read_or_list("1, x+2") is True
    assert plain_formula.read_or_list("log(8, 2)") == plain_formula.read("log(8,2)")
    with pytest.raises(expression.Unreadable):
        plain_formula.read_or_list("1, 5 cm")


@pytest.mark.parametrize(
    "text",
    [
        "",
        "5 cm",
        "08",
        "1 2",
        "2.5.1",
        "x-",
        "and",
        "2x",
        "x=5",
        "{2}",
        "sin",
        "N",
        "x.real",
        "'a'",
    ],
)
def test_what_it_cannot_read(text):
    with pytest.raises(expression.Unreadable):
        plain_formula.read(text)


@pytest.mark.parametrize("text", ["(" * 1900, "-" * 1900 + "1", "2**" * 600 + "2", "9" * 1999])
def test_hostile_texts_are_unreadable_or_small_and_soon(text):
    start = time.process_time()
    for implicit in (False, True):
        try:
            plain_formula.read(text, implicit=implicit)
        except expression.Unreadable:
            continue
    assert time.process_time() - start < 1.0
