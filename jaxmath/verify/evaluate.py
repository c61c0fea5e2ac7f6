"""Whether two expression trees have one value: exactly where the value is rational, else by high
precision.

Constants: rational values are compared as fractions. Others are evaluated with more digits than the
formulas contain, so that two different values which they can write down would differ in them.
Formulas with variables are compared at several points, chosen by a fixed seed; a rational function
that agrees at random rational points of this height agrees everywhere but with negligible
probability (Schwartz 1980). Where a side is not real at a point with negative coordinates, that
point says nothing: `\\sqrt{1/n}` and `1/\\sqrt{n}` are one answer, `\\sqrt{x^2}` and `x` are two.

Everything is bounded: numbers, exponents and factorials beyond the limits are `TooLarge`, before
they are computed.
"""

import functools
import random
import threading
from collections.abc import Mapping
from fractions import Fraction

from jaxmath.verify import exact, expression

Node = expression.Node

MAX_MAGNITUDE = 2000  # bits; binary order of magnitude of any number met in floating point
MAX_GAMMA = 60
GUARD_BITS = 256
MAX_WORK = 2_000_000  # bits of precision times operations of a comparison
MAX_GAMMA_BITS = 4000  # of precision, between the integers
NUM_POINTS = 3  # of each kind: positive, and of mixed signs


def same_value(first: Node, second: Node) -> bool:
    """Whether two trees are equal wherever both are defined; False where that cannot be told within
    the limits."""
    if expression.canon(first) == expression.canon(second):
        return True
    names = sorted(expression.symbols(first) | expression.symbols(second))
    if not names:
        return bool(agree_at(first, second, {}))
    # A variable that stands on one side only can cancel, but a long list of them is another answer.
    if len(names) > 20:
        return False
    positive = [agree_at(first, second, point) for point in points(tuple(names), positive=True)]
    if False in positive or True not in positive:
        return False
    mixed = [
        agree_at(first, second, point, real_only=True)
        for point in points(tuple(names), positive=False)
    ]
    return False not in mixed


@functools.lru_cache(maxsize=256)
def points(names: tuple[str, ...], *, positive: bool) -> tuple[dict[str, Fraction], ...]:
    """Points of random rationals: one inside the unit cube (for arcsines and the like), the others
    further out."""
    generator = random.Random(20250117 + positive)
    drawn = []
    for index in range(NUM_POINTS):
        size = (1, 4, 25)[index % 3]
        point = {}
        for name in names:
            value = Fraction(generator.randrange(1, 2**30), 2**30 + 3) * size
            point[name] = value if positive or generator.random() < 0.3 else -value
        drawn.append(point)
    return tuple(drawn)


def agree_at(
    first: Node, second: Node, point: Mapping[str, Fraction], *, real_only: bool = False
) -> bool | None:
    """Whether two trees agree at a point; None where one of them has no value there (or no real
    one)."""
    try:
        return exact.value(first, point) == exact.value(second, point)
    except exact.NotExact:
        pass
    except exact.TooLarge:
        if not point:
            return False
    except exact.Undefined:
        return None
    try:
        return close(first, second, point, real_only)
    except exact.TooLarge:
        return None if point else False
    except exact.Undefined:
        return None


# ── high precision ──


def close(first: Node, second: Node, point: Mapping[str, Fraction], real_only: bool) -> bool | None:
    """Whether two trees agree in floating point. The precision grows with the digits written and
    with the largest and smallest numbers on the way, so that neither rounding nor a tiny difference
    can decide wrongly."""
    magnitude = 0
    written = digits_in(first) + digits_in(second)
    size = node_count(first) + node_count(second)
    while True:
        precision = GUARD_BITS + 6 * magnitude + 2 * written
        if precision * size > MAX_WORK:
            raise exact.TooLarge("long formula of long numbers")
        reader = Approximation(point, precision, real_only)
        a, b = reader(first), reader(second)
        if reader.magnitude <= magnitude + 8:
            break
        magnitude = reader.magnitude
    both_real = reader.is_real(a) and reader.is_real(b)
    if real_only and not both_real:
        return None
    if point and reader.is_real(a) != reader.is_real(b):
        return None  # the principal branch on one side, the real one on the other
    largest = max(
        reader.context.mag(a) if a else -(10**6), reader.context.mag(b) if b else -(10**6)
    )
    difference = a - b
    tolerance = 128 + 2 * magnitude + written
    return not difference or reader.context.mag(difference) - max(largest, -magnitude) < -tolerance


def node_count(node: Node) -> int:
    return 1 + sum(node_count(part) for part in node[1:] if isinstance(part, tuple))


def digits_in(node: Node) -> int:
    """The bits of the longest number written in a tree."""
    if node[0] == "num":
        return exact.bits(node[1])
    return max((digits_in(part) for part in node[1:] if isinstance(part, tuple)), default=0)


def order(first: Node, second: Node) -> int | None:
    """-1, 0 or 1 as one constant is less than, equal to or greater than another; None if that
    cannot be told."""
    if expression.symbols(first) or expression.symbols(second):
        return None
    if same_value(first, second):
        return 0
    reader = Approximation({}, GUARD_BITS)
    try:
        difference = reader(("add", first, ("neg", second)))
    except (exact.TooLarge, exact.Undefined):
        return None
    return (1 if difference.real > 0 else -1) if reader.is_real(difference) else None


LOCAL = threading.local()


def context():
    """This thread's own arithmetic: a precision set here changes nobody else's."""
    if not hasattr(LOCAL, "context"):
        import mpmath

        LOCAL.context = mpmath.mp.clone()
    return LOCAL.context


class Approximation:
    """Evaluates trees at a point with `precision` bits; `magnitude` is the largest |log2| of the
    numbers met.

    With `real_only`, a root, a power or a logarithm of real numbers that is not real is undefined.

    Raises (when called):
      TooLarge, Undefined.
    """

    def __init__(self, point: Mapping[str, Fraction], precision: int, real_only: bool = False):
        self.real_only = real_only
        self.context = context()
        self.context.prec = precision
        self.point = point
        self.precision = precision
        self.magnitude = 0

    def __call__(self, node: Node):
        operator, *arguments = node
        if operator == "num":
            value = self.rational(arguments[0])
        elif operator == "sym":
            value = self.rational(self.point[arguments[0]])
        elif operator == "const":
            value = self.constant(arguments[0])
        elif operator == "call":
            value = self.call(arguments[0], self(arguments[1]))
        else:
            values = [self(argument) for argument in arguments]
            value = getattr(self, "op_" + operator)(*values)
            branched = self.real_only and operator in BRANCHED and not self.is_real(value)
            if branched and all(map(self.is_real, values)):
                raise exact.Undefined("not real")
        return self.noted(value)

    def noted(self, value):
        """Records the size of a number, and refuses what is beyond the limits."""
        if not self.context.isfinite(value):
            raise exact.Undefined("not finite")
        if value:
            size = abs(int(self.context.mag(value)))
            self.magnitude = max(self.magnitude, size)
            if size > MAX_MAGNITUDE and self.context.mag(value) > 0:
                raise exact.TooLarge("magnitude")
        return value

    def without_noise(self, value, size):
        """A number that has cancelled to rounding error, compared with the `size` it came from, as
        the zero it is."""
        if value and self.context.mag(value) < self.context.mag(size) - self.precision // 2:
            return self.context.mpf(0)
        return value

    def is_real(self, value) -> bool:
        return not value.imag or self.context.mag(value.imag) < -(self.precision // 2)

    def rational(self, value: Fraction):
        if exact.bits(value) > exact.MAX_BITS:
            raise exact.TooLarge("number")
        return self.context.mpf(value.numerator) / value.denominator

    def constant(self, name: str):
        if name == "inf":
            raise exact.Undefined("infinity")
        return {"pi": +self.context.pi, "e": +self.context.e, "i": self.context.mpc(0, 1)}[name]

    def op_add(self, *terms):
        largest = max(abs(term) for term in terms)
        return self.without_noise(self.context.fsum(terms), largest) if largest else largest

    def op_mul(self, *factors):
        product = self.context.mpf(1)
        for factor in factors:
            product = self.noted(product * factor)
        return product

    def op_neg(self, a):
        return -a

    def op_div(self, a, b):
        if not b:
            raise exact.Undefined("division by zero")
        return a / b

    def op_deg(self, a):
        return a * self.context.pi / 180

    def op_pow(self, base, exponent):
        if not base:
            if self.is_real(exponent) and exponent.real > 0:
                return self.context.mpf(0)
            raise exact.Undefined("power of zero")
        if exponent and int(self.context.mag(exponent)) > 24:
            raise exact.TooLarge("exponent")
        if abs(exponent) * (abs(int(self.context.mag(base))) + 1) > 2 * MAX_MAGNITUDE:
            raise exact.TooLarge("power")
        return self.context.power(base, exponent)

    def op_root(self, value, index):
        if not index:
            raise exact.Undefined("root of index 0")
        if not value:
            return self.context.mpf(0)
        if self.is_real(value) and value.real < 0 and self.context.isint(index) and int(index) % 2:
            return -self.op_pow(-value.real, 1 / index)
        return self.context.sqrt(value) if index == 2 else self.op_pow(value, 1 / index)

    def op_log(self, value, base):
        if not value or not base or base == 1:
            raise exact.Undefined("logarithm")
        return self.context.log(value) / self.context.log(base)

    def op_fact(self, value):
        return self.gamma(value + 1)

    def gamma(self, value):
        # between the integers Γ is slow to compute, and such a point is only a test of an identity
        if abs(value) > (exact.MAX_FACTORIAL if self.context.isint(value) else MAX_GAMMA):
            raise exact.TooLarge("factorial")
        if self.precision > MAX_GAMMA_BITS and not self.context.isint(value):
            raise exact.TooLarge("factorial to many digits")
        if self.context.isint(value) and value.real <= 0:
            raise exact.Undefined("pole")
        return self.context.gamma(value)

    def op_binom(self, n, k):
        return self.gamma(n + 1) / (self.gamma(k + 1) * self.gamma(n - k + 1))

    def call(self, name: str, value):
        if value and int(self.context.mag(value)) > (10 if name in HYPERBOLIC else 40):
            raise exact.TooLarge("argument")
        context = self.context
        if name == "exp":
            return self.op_pow(+context.e, value)
        if name in ("floor", "ceil") and not self.is_real(value):
            raise exact.Undefined(name)
        if name in RECIPROCALS:
            return self.op_div(context.mpf(1), self.call(RECIPROCALS[name], value))
        if name in HYPERBOLIC:  # tanh 100 is 1 but for e^-200
            self.magnitude = max(self.magnitude, 3 * int(abs(value)))
        function = getattr(context, MPMATH_NAMES.get(name, name))
        try:
            return self.without_noise(context.convert(function(value)), context.mpf(1))
        except (ZeroDivisionError, ValueError) as error:
            raise exact.Undefined(name) from error


BRANCHED = frozenset({"pow", "root", "log"})
HYPERBOLIC = frozenset({"sinh", "cosh", "tanh"})
RECIPROCALS = {"cot": "tan", "sec": "cos", "csc": "sin", "coth": "tanh"}
MPMATH_NAMES = {
    "arc" + name: "a" + name for name in ("sin", "cos", "tan", "cot", "sinh", "cosh", "tanh")
}
MPMATH_NAMES |= {"abs": "fabs"}


# ── equations ──


def proportional(first: Node, second: Node) -> bool:
    """Whether one tree is a constant multiple, not 0, of the other: then `first = 0` and `second =
    0` are one equation."""
    names = tuple(sorted(expression.symbols(first) | expression.symbols(second)))
    anchor, *others = points(names, positive=True)
    others += points(names, positive=False)
    a, b = at(first, anchor), at(second, anchor)
    zero = ("num", Fraction(0))
    if agree_at(a, zero, {}) is not False or agree_at(b, zero, {}) is not False:
        return False
    agreed = [agree_at(("mul", first, b), ("mul", second, a), point) for point in others]
    return False not in agreed and agreed.count(True) >= 2


def within(node: Node, value: Fraction, tolerance: Fraction) -> bool:
    """Whether a constant tree lies within `tolerance` of a value."""
    if expression.symbols(node):
        return False
    try:
        return abs(exact.value(node, {}) - value) <= tolerance
    except (exact.TooLarge, exact.Undefined):
        return False
    except exact.NotExact:
        reader = Approximation({}, GUARD_BITS)
    try:
        return bool(abs(reader(node) - reader.rational(value)) <= reader.rational(tolerance))
    except (exact.TooLarge, exact.Undefined):
        return False


def at(node: Node, point: Mapping[str, Fraction]) -> Node:
    """The tree with numbers in place of its variables."""
    if node[0] == "sym":
        return ("num", point[node[1]])
    return tuple(at(part, point) if isinstance(part, tuple) else part for part in node)
