"""Spellings that mean the same become the same text, and others do not."""

import pytest

from jaxmath.verify import normalize


@pytest.mark.parametrize(
    ("spelling", "canonical"),
    [
        ("２５", "25"),
        ("5\u202e\u200b\x00", "5"),
        ("x²", "x^{2}"),
        ("1112₃", "1112_{3}"),
        ("½", r"\frac{1}{2}"),
        ("−3", "-3"),
        ("（1，2）", "(1,2)"),
        (r"\dfrac{1}{2}", r"\frac {1}{2}"),
        (r"\left( 1 \right)", "( 1 )"),
        (r"\$5", r"\$5"),
        (r"$\displaystyle 5$", "5"),
        (r"12{,}345", "12345"),
        (r"12,\!345", "12345"),
        (r"32,\! 349", "32349"),
        (r"10\,000", "10000"),
        (r"90^{\circ}", r"90\degree"),
        ("90°", r"90\degree"),
        (r"\textbf{(D)}", "(D)"),
        (r"\text{e}", "e"),
        (r"6 \text{ and } 8", r"6 \and 8"),
        ("x >= 2", r"x \ge 2"),
        ("x**2", "x^2"),
        ("5.", "5"),
        ("**7**", "7"),
        (r"\cotx", r"\cot x"),
        ("12\N{NARROW NO-BREAK SPACE}345", "12345"),
        ("1 234 567.5", "1234567.5"),
        ("1'000'000", "1000000"),
        ("1.000.000", "1000000"),
        ("1 00", "1 00"),
        ("{3 \\over 4}", r"\frac{3 }{ 4}"),
        (r"\color{blue}{12}", "{12}"),
        (r"\mathbf{x^{2}-11=0}", "x^{2}-11=0"),
        (r"5\mathrm{xy}", "5xy"),
        (r"\text{Total: }12", "12"),
        ("the answer is $12$.", "12"),
        ("= 12", "12"),
        (r"12 \\", "12"),
        ('"12"', "12"),
        ("- - - 5", "-5"),
        (r"36^{\prime\prime}", "36''"),
        ("90^o", r"90\degree"),
        ("٣٤", "34"),
        ("1\x002", "1 2"),
    ],
)
def test_canonical(spelling, canonical):
    squeezed = normalize.squeezed(normalize.canonical(spelling))
    assert squeezed == normalize.squeezed(normalize.trimmed(canonical))


@pytest.mark.parametrize("text", ["12,345", r"\frac{1}{2}", "3! = 6", r"a \\ b", "(1,234)"])
def test_canonical_is_idempotent(text):
    once = normalize.canonical(text)
    assert normalize.canonical(once) == once


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("12,345", "12345"),
        ("1,234,567.8", "1234567.8"),
        ("(12,345)", "(12,345)"),
        ("[1,234)", "[1,234)"),
        (r"\{1,234\}", r"\{1,234\}"),
        ("1,2,3", "1,2,3"),
        ("1,23,456", "1,23,456"),
        (r"\frac{2469}{20,000}", r"\frac{2469}{20000}"),
    ],
)
def test_plain_thousands_commas_count_only_outside_brackets(text, expected):
    assert normalize.thousands_outside_brackets(text) == expected


def test_squeezing_does_not_join_numbers():
    assert normalize.squeezed("1 1/2") != normalize.squeezed("11/2")
