"""Units come off the end of an answer; a different unit is a different answer."""

from fractions import Fraction

import pytest

from jaxmath.verify import normalize, units


@pytest.mark.parametrize(
    ("text", "value", "unit"),
    [
        (r"8\text{ cm}", "8", "cm"),
        ("10 meters", "10", "m"),
        (r"15\mbox{ cm}^2", "15", "cm^2"),
        ("64 square feet", "64", "ft^2"),
        ("10 cm^2", "10", "cm^2"),
        (r"5 \mathrm{~km} / \mathrm{h}", "5", "km·h^-1"),
        (r"16\text{ daps}", "16", "daps"),
        (r"30^\circ", "30", "degree"),
        ("12 厘米", "12", "cm"),
        ("7个", "7", "piece"),
        ("5 m", "5", "m"),
        ("5m", "5m", ""),
        ("5x", "5x", ""),
        ("5 or more", r"5 \or more", ""),
        (r"2\text{ or }3", r"2 \or 3", ""),
        ("x", "x", ""),
        ("€5", "5", ""),
        (r"\$5", "5", "dollar"),
        (r"-\$5", "-5", "dollar"),
        (r"\text{\$}5", "5", "dollar"),
        ("5 x y", "5 x y", ""),
        ("2 ln x", "2 ln x", ""),
        ("5 theta", "5 theta", ""),
        (r"5\mathrm{x}", "5x", ""),
        ("5 tenths", "5 tenths", ""),
        ("5 squared", "5 squared", ""),
        ("12 miles per hour", "12", "mi·h^-1"),
        (r"12\text{ m/s}^2", "12", "m·s^-2"),
        (r"12\text{ meters per second squared}", "12", "m·s^-2"),
        (r"12 \frac{\text{m}}{\text{s}}", "12", "m·s^-1"),
        ("6π cm³", r"6\pi", "cm^3"),
        (r"\sin 30^\circ", r"\sin 30\degree", ""),
        (r"25^\circ\text{C}", "25", "degreeC"),
    ],
)
def test_split(text, value, unit):
    measured = units.split(normalize.canonical(text))
    assert (measured.value.strip(), measured.unit) == (value, unit)


@pytest.mark.parametrize("text", [r"28\%", "28 %", "28 percent", "28 pct", r"28\text{ percent}"])
def test_percent_is_kept_apart_from_units(text):
    measured = units.split(normalize.canonical(text))
    assert (measured.value, measured.is_percent, measured.unit) == ("28", True, "")


def test_million_scales_the_value():
    assert units.split("5 hundred thousand").scale == 10**5
    assert units.split(r"5 \text{million dollars}") == ("5", "dollar", Fraction(10**6), False)


@pytest.mark.parametrize(
    ("first", "second", "agree"),
    [
        ("cm", "", True),
        ("cm", "cm", True),
        ("cm", "m", False),
        ("cm", "cm^2", False),
        ("unit", "cm", True),
        ("boxes", "blue boxes", True),
        ("a.m.", "p.m.", False),
        ("km·h^-1", "m·s^-1", False),
        ("mi·h^-1", "km·h^-1", False),
        ("dollar", "cent", False),
        ("degreeC", "degree", True),
        ("degreeC", "degreeF", False),
    ],
)
def test_agree(first, second, agree):
    assert units.agree(first, second) == units.agree(second, first) == agree
