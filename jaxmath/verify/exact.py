"""The rational value of an expression tree, as a fraction; what has none is `NotExact`.

Sizes are checked before a number is computed: a power tower costs nothing but an exception.
"""

import functools
from collections.abc import Mapping
from fractions import Fraction

from jaxmath.verify import expression

Node = expression.Node

MAX_BITS = 100_000  # of a number, numerator and denominator together
MAX_FACTORIAL = 3000


class TooLarge(ValueError):
    """A number on the way is beyond the limits."""


class NotExact(ValueError):
    """The value is not rational, or the exact reader cannot tell."""


class Undefined(ValueError):
    """Division by zero, a pole, or infinity where a number is needed."""


def value(node: Node, point: Mapping[str, Fraction]) -> Fraction:
    """The rational value of a tree.

    Raises:
      NotExact, TooLarge, Undefined.
    """
    operator, *arguments = node
    if operator == "num":
        return arguments[0]
    if operator == "sym":
        return point[arguments[0]]
    if operator not in EXACT:
        raise NotExact(operator)
    if operator == "call":
        if arguments[0] not in EXACT_CALLS:
            raise NotExact(arguments[0])
        return EXACT_CALLS[arguments[0]](value(arguments[1], point))
    return checked(EXACT[operator](*(value(a, point) for a in arguments)))


def bits(value: Fraction) -> int:
    return value.numerator.bit_length() + value.denominator.bit_length()


def checked(value: Fraction) -> Fraction:
    if bits(value) > MAX_BITS:
        raise TooLarge(f"{bits(value)} bits")
    return value


def product(*factors: Fraction) -> Fraction:
    product = Fraction(1)
    for factor in factors:
        product = checked(product * factor)
    return product


def quotient(numerator: Fraction, denominator: Fraction) -> Fraction:
    if denominator == 0:
        raise Undefined("division by zero")
    return numerator / denominator


def power(base: Fraction, exponent: Fraction) -> Fraction:
    if exponent.denominator != 1:
        return power(root(base, Fraction(exponent.denominator)), Fraction(exponent.numerator))
    if base == 0 and exponent <= 0:
        raise Undefined("power of zero")
    if abs(base) == 1:
        return base if exponent % 2 else Fraction(1)
    if abs(exponent) * bits(base) > MAX_BITS and base != 0:
        raise TooLarge("power")
    return base ** int(exponent)


def root(value: Fraction, index: Fraction) -> Fraction:
    """The real root, if rational; an odd root of a negative number is negative."""
    if index.denominator != 1 or not 2 <= index <= 64 or (value < 0 and index % 2 == 0):
        raise NotExact("root")
    parts = [integer_root(abs(part), int(index)) for part in (value.numerator, value.denominator)]
    return Fraction(*parts) * (-1 if value < 0 else 1)


def integer_root(value: int, index: int) -> int:
    if value.bit_length() > 20_000:
        raise NotExact("root of a long number")
    low, high = 0, 1 << (value.bit_length() // index + 1)
    while low < high:
        middle = (low + high + 1) // 2
        low, high = (middle, high) if middle**index <= value else (low, middle - 1)
    if low**index != value:
        raise NotExact("irrational root")
    return low


def integer_factorial(value: Fraction) -> Fraction:
    if value.denominator != 1 or value < 0:
        raise NotExact("factorial of a non-integer")
    if value > MAX_FACTORIAL:
        raise TooLarge("factorial")
    return Fraction(factorial(int(value)))


@functools.lru_cache(maxsize=64)
def factorial(value: int) -> int:
    product = 1
    for factor in range(2, value + 1):
        product *= factor
    return product


def binomial(n: Fraction, k: Fraction) -> Fraction:
    if n.denominator != 1 or k.denominator != 1 or n < 0:
        raise NotExact("binomial of non-integers")
    if n > MAX_FACTORIAL:
        raise TooLarge("binomial")
    if not 0 <= k <= n:
        return Fraction(0)
    return Fraction(factorial(int(n)), factorial(int(k)) * factorial(int(n - k)))


EXACT = {
    "add": lambda *terms: sum(terms),
    "mul": product,
    "neg": lambda a: -a,
    "div": quotient,
    "pow": power,
    "root": root,
    "fact": integer_factorial,
    "binom": binomial,
    "call": None,
}
EXACT_CALLS = {
    "abs": abs,
    "floor": lambda a: Fraction(a.numerator // a.denominator),
    "ceil": lambda a: Fraction(-(-a.numerator // a.denominator)),
}
