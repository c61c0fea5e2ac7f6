"""What the graders behind published numbers have in common: numbers within 1e-4, also a hundred
times more or less, and formulas compared as sympy would, by their trees.

Trees are compared exactly where they are rational, else by high precision at chosen points, as in
`evaluate`; sympy simplifies. The two differ where sympy gives up (it then says unequal) and where
only its assumptions on signs decide.
"""

import math
from collections.abc import Callable

from jaxmath.verify import evaluate, exact, expression, latex_prefix

Node = expression.Node
Tree = Node | latex_prefix.Relation | bool

RELATIVE = 1e-4
PRECISION_BITS = 128


def close(a: float, b: float) -> bool:
    """Whether two numbers agree to one part in ten thousand."""
    return math.isclose(a, b, rel_tol=RELATIVE)


def close_or_percent(prediction: float, reference: float) -> bool:
    """As `close`, or to a hundredth of the reference, or to a hundred times it."""
    return any(close(prediction, item) for item in (reference / 100, reference, reference * 100))


def same_value(first: Node, second: Node) -> bool:
    """Whether two trees have one value at every point, whatever the signs of their variables."""
    if expression.canon(first) == expression.canon(second):
        return True
    names = tuple(sorted(expression.symbols(first) | expression.symbols(second)))
    if len(names) > 20:
        return False
    points = [{}]
    if names:
        points = [p for sign in (True, False) for p in evaluate.points(names, positive=sign)]
    agreed = [evaluate.agree_at(first, second, point) for point in points]
    return False not in agreed and True in agreed


def number_of(node: Node) -> float | None:
    """The real value of a tree without variables."""
    if expression.symbols(node):
        return None
    try:
        try:
            return float(exact.value(node, {}))
        except exact.NotExact:
            reader = evaluate.Approximation({}, PRECISION_BITS)
            value = reader(node)
            return float(value.real) if reader.is_real(value) else None
    except (exact.TooLarge, exact.Undefined, OverflowError):
        return None


def close_trees(first: Node, second: Node) -> bool:
    """Whether two trees without variables have values that are `close`."""
    a, b = number_of(first), number_of(second)
    return a is not None and b is not None and close(a, b)


def difference(first: Node, second: Node) -> Node:
    return ("add", first, ("neg", second))


def same_relation(first: latex_prefix.Relation, second: latex_prefix.Relation) -> bool:
    """Whether |left - right| is the same in both, whichever their signs."""
    a, b = (("call", "abs", difference(left, right)) for _, left, right in (first, second))
    return same_value(a, b)


def read_first(text: str, readers: tuple[Callable[[str], Tree], ...]) -> Tree | None:
    """What the first reader that can read a text makes of it."""
    for reader in readers:
        try:
            return reader(text)
        except expression.Unreadable:
            continue
    return None


def as_float(text: str) -> float | None:
    """A text that is a number and nothing else."""
    try:
        return float(text)
    except (ValueError, OverflowError):
        return None
