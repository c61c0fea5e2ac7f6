"""What an answer may be: a value, words, a tuple, a set, an interval, a matrix, an equation …

These records are what `reader` makes of a text and what `equivalence` compares.
"""

from typing import NamedTuple

from jaxmath.verify import expression


class Value(NamedTuple):
    """A formula with its unit ("" if none)."""

    node: expression.Node
    unit: str = ""
    is_percent: bool = False


class Words(NamedTuple):
    text: str


class Tuple(NamedTuple):
    """Ordered; a pair in round brackets may also be an open interval."""

    items: tuple
    brackets: str = "()"


class Collection(NamedTuple):
    """Unordered: a set, or a list of solutions. `is_set` where braces said so. Values between
    semicolons fill one blank each: they are ordered."""

    items: tuple
    is_set: bool = False
    is_ordered: bool = False


class Interval(NamedTuple):
    low: "Value"
    high: "Value"
    has_low: bool
    has_high: bool


class Union(NamedTuple):
    parts: tuple


class Matrix(NamedTuple):
    rows: tuple
    is_determinant: bool = False


class Equation(NamedTuple):
    left: expression.Node
    right: expression.Node


class Assignment(NamedTuple):
    """`name = value`: a solved answer, with its name."""

    name: str
    value: "Answer"


class System(NamedTuple):
    """Several named values, such as `x = 1, y = 2`."""

    items: tuple[Assignment, ...]


class Inequality(NamedTuple):
    """`left ≠ right`, or an inequality that is not solved for a variable."""

    left: expression.Node
    sign: str
    right: expression.Node


class Solved(NamedTuple):
    """A solved inequality: where `name` lies."""

    name: str
    region: Interval | Union


class Based(NamedTuple):
    digits: str
    base: str


class Ratio(NamedTuple):
    parts: tuple


class Clock(NamedTuple):
    text: str
    unit: str


class Approximate(NamedTuple):
    """`exact ≈ rounded`, the second a rounding of the first."""

    exact: Value
    rounded: Value


Answer = tuple

INFINITY = Value(("const", "inf"))
MINUS_INFINITY = Value(("neg", ("const", "inf")))
ALL_REALS = Interval(MINUS_INFINITY, INFINITY, False, False)
FLIPPED = {"<": ">", ">": "<", "\\le": "\\ge", "\\ge": "\\le", "\\ne": "\\ne"}


def half_line(bound: Value, sign: str) -> Interval | Union:
    """The region of `x < bound` and its kin."""
    if sign == "\\ne":
        return Union((half_line(bound, "<"), half_line(bound, ">")))
    if sign in ("<", "\\le"):
        return Interval(MINUS_INFINITY, bound, False, sign == "\\le")
    return Interval(bound, INFINITY, sign == "\\ge", False)


def region(answer: Answer) -> Interval | Union | None:
    """The set of reals that an answer describes, if it does so by intervals."""
    if isinstance(answer, Solved):
        return answer.region
    if isinstance(answer, (Interval, Union)):
        return answer
    if isinstance(answer, Tuple) and len(answer.items) == 2 and answer.brackets == "()":
        low, high = answer.items
        if isinstance(low, Value) and isinstance(high, Value):
            return Interval(low, high, False, False)
    return None


def flat(items: list[Answer]) -> tuple:
    """Items, with the two values of a ± and the members of inner lists in place."""
    members = []
    for item in items:
        inner = isinstance(item, Collection) and not item.is_set
        members.extend(item.items if inner else [item])
    return tuple(members)
