"""Whether two answers are one: structure against structure, values by `evaluate`.

Strict: ordered things (tuples, matrices, ratios, the ends of an interval, the digits of a numeral)
  keep their order; sets and lists of solutions do not, and must hold all members and none more.
  `same` is symmetric.
"""

import collections
from fractions import Fraction

from jaxmath.verify import answers, evaluate, exact, expression, normalize, regions, units, words
from jaxmath.verify.answers import (
    Approximate,
    Assignment,
    Based,
    Clock,
    Collection,
    Equation,
    Inequality,
    Interval,
    Matrix,
    Ratio,
    Solved,
    System,
    Tuple,
    Union,
    Value,
    Words,
)

INFINITE = regions.INFINITE


def same(first: answers.Answer, second: answers.Answer) -> str | None:
    """The name of the rule by which two answers are one, or None if they are not."""
    for a, b in ((first, second), (second, first)):
        rule = COMPARISONS.get((type(a), type(b)))
        if rule:
            return rule(a, b)
    for a, b in ((first, second), (second, first)):
        if isinstance(a, Assignment):
            return same_named(a, b)
        if isinstance(a, Approximate):
            return same(a.exact, b) or same(a.rounded, b)
        if isinstance(a, (Solved, Interval, Union)):
            where = answers.region(a), answers.region(b)
            return same_region(*where) if None not in where else None
    return None


def same_values(a: Value, b: Value) -> str | None:
    if a.is_percent != b.is_percent:
        return None
    if {a.unit, b.unit} == {"degree", "radian"}:
        nodes = (("deg", v.node) if v.unit == "degree" else v.node for v in (a, b))
        return "degrees as radians" if evaluate.same_value(*nodes) else None
    if not units.agree(a.unit, b.unit):
        return None
    if a.node in INFINITE or b.node in INFINITE:
        return "infinity" if INFINITE.get(a.node) == INFINITE.get(b.node) else None
    if evaluate.same_value(a.node, b.node):
        return "same value"
    # 30° is π/6, but a bare 30 is not.
    for degrees, other in ((a, b), (b, a)):
        if (
            degrees.unit == "degree"
            and not other.unit
            and evaluate.same_value(("deg", degrees.node), other.node)
        ):
            return "degrees as radians"
    return None


def same_words(a: Words, b: Words) -> str | None:
    prose = words.in_words(a.text)
    if prose and prose == words.in_words(b.text):
        return "same words"
    return "same text" if normalize.squeezed(a.text) == normalize.squeezed(b.text) else None


def same_sequence(first: tuple, second: tuple) -> bool:
    return len(first) == len(second) and all(same(a, b) for a, b in zip(first, second, strict=True))


def same_tuples(a: Tuple, b: Tuple) -> str | None:
    return "same tuple" if a.brackets == b.brackets and same_sequence(a.items, b.items) else None


MAX_UNKEYED = 60  # members of a list that are compared each with each


def same_members(first: tuple, second: tuple) -> bool:
    """Whether two unordered collections match one to one. Plain numbers are matched by value, so
    that only what is left is compared each with each."""
    if len(first) != len(second):
        return False
    common = counted(first) & counted(second)
    unmatched, left = leftover(first, common), leftover(second, common)
    are_plain = all(isinstance(key_of(item), Fraction) for item in unmatched + left)
    if len(left) > MAX_UNKEYED or (left and are_plain):
        return False
    for item in unmatched:
        match = next((index for index, other in enumerate(left) if same(item, other)), None)
        if match is None:
            return False
        del left[match]
    return True


def counted(items: tuple) -> collections.Counter:
    return collections.Counter(key for key in map(key_of, items) if key is not None)


def leftover(items: tuple, common: collections.Counter) -> list:
    """The items but for the plain numbers that are common to both sides."""
    common, left = common.copy(), []
    for item in items:
        key = key_of(item)
        if key is not None and common[key]:
            common[key] -= 1
        else:
            left.append(item)
    return left


def key_of(item: answers.Answer) -> object:
    """Something that is equal only for equal items: a plain number's value, the form of a formula,
    the keys of a tuple. None where there is no such thing."""
    if isinstance(item, Tuple):
        keys = tuple(map(key_of, item.items))
        return None if None in keys else (item.brackets, keys)
    if not isinstance(item, Value) or item.unit or item.is_percent:
        return None
    if item.node[0] in EXACT_NODES and not expression.symbols(item.node):
        try:
            return exact.value(item.node, {})
        except (exact.NotExact, exact.TooLarge, exact.Undefined):
            pass
    return expression.canon(item.node)


EXACT_NODES = frozenset({"num", "neg", "div"})


def same_collections(a: Collection, b: Collection) -> str | None:
    first, second = a.items, b.items
    if (a.is_ordered or b.is_ordered) and not (a.is_set or b.is_set):
        return "same blanks" if same_sequence(first, second) else None
    if a.is_set or b.is_set or all(isinstance(item, Tuple) for item in first + second):
        first, second = distinct(first), distinct(second)
    return "same members" if same_members(first, second) else None


def distinct(items: tuple) -> tuple:
    members: list = []
    others: list = []  # those that something with another key may equal
    keys: set = set()
    for item in items:
        key = key_of(item)
        if key is not None and key in keys:
            continue
        rivals = others if isinstance(key, Fraction) else members
        if len(rivals) <= MAX_UNKEYED and any(same(item, member) for member in rivals):
            continue
        keys.add(key)
        members.append(item)
        if not isinstance(key, Fraction):
            others.append(item)
    return tuple(members)


def same_single(a: Collection, b: answers.Answer) -> str | None:
    """A set of one solution, and that solution."""
    return same(a.items[0], b) if len(a.items) == 1 else None


def same_region(a, b) -> str | None:
    if isinstance(a, Interval) and isinstance(b, Interval):
        closed = (a.has_low, a.has_high) == (b.has_low, b.has_high)
        return "same interval" if closed and same(a.low, b.low) and same(a.high, b.high) else None
    if isinstance(a, Union) and isinstance(b, Union):
        return "same union" if same_members(a.parts, b.parts) else None
    return None


def same_solved(a: Solved, b: Solved) -> str | None:
    return same_region(a.region, b.region) if a.name == b.name else None


def same_matrices(a: Matrix, b: Matrix) -> str | None:
    same_shape = len(a.rows) == len(b.rows) and a.is_determinant == b.is_determinant
    if same_shape and all(same_sequence(*rows) for rows in zip(a.rows, b.rows, strict=True)):
        return "same matrix"
    return None


def same_equations(a: Equation, b: Equation) -> str | None:
    if evaluate.proportional(difference(a.left, a.right), difference(b.left, b.right)):
        return "same equation"
    return None


def difference(left: expression.Node, right: expression.Node) -> expression.Node:
    return ("add", left, ("neg", right))


def same_inequalities(a: Inequality, b: Inequality) -> str | None:
    """The same sides with the same sign, or both turned round."""
    for left, sign, right in (
        (b.left, b.sign, b.right),
        (b.right, answers.FLIPPED[b.sign], b.left),
    ):
        if (
            a.sign == sign
            and evaluate.same_value(a.left, left)
            and evaluate.same_value(a.right, right)
        ):
            return "same inequality"
    return None


def is_function_name(name: str) -> bool:
    """`y` or `f(x)`: names that a problem gives a function, and an answer may exchange."""
    return name == "y" or name.endswith(")") and "(" in name[1:]


def same_assignments(a: Assignment, b: Assignment) -> str | None:
    if a.name == b.name or (is_function_name(a.name) and is_function_name(b.name)):
        return same(a.value, b.value)
    return same_equation_of(a, b)


def same_equation_of(a: Assignment, b: Assignment | Equation) -> str | None:
    """An explicit equation such as `y = 2x + 3` against the same one arranged otherwise.

    A value is not an equation: to `x = 5`, `2x = 10` only restates the problem."""
    nodes = []
    for answer in (a, b):
        if isinstance(answer, Equation):
            nodes.append(difference(answer.left, answer.right))
            continue
        if not isinstance(answer.value, Value) or not expression.symbols(answer.value.node):
            return None
        try:
            nodes.append(difference(expression.parse(answer.name), answer.value.node))
        except expression.Unreadable:
            return None
    return "same equation" if evaluate.proportional(*nodes) else None


def same_named(a: Assignment, b: answers.Answer) -> str | None:
    """`name = value` and the bare value."""
    if isinstance(b, (Equation, Inequality, System, Solved)):
        return None
    return same(a.value, b)


def same_systems(a: System, b: System) -> str | None:
    if len(a.items) != len(b.items):
        return None
    values = {item.name: item.value for item in b.items}
    named = len(values) == len(b.items) and {item.name for item in a.items} == values.keys()
    if named and all(same(item.value, values[item.name]) for item in a.items):
        return "same named values"
    return None


def values_in_order(system: System) -> tuple:
    """The values of a system as an unnamed tuple would list them: by the alphabet where the names
    are neighbours in it, such as x and y, else as they were written."""
    items = system.items
    names = sorted(item.name for item in items)
    if all(len(name) == 1 for name in names) and ord(names[-1]) - ord(names[0]) < len(names):
        items = sorted(items, key=lambda item: item.name)
    return tuple(item.value for item in items)


def system_and_tuple(a: System, b: Tuple) -> str | None:
    values = values_in_order(a)
    return "named values in order" if same_sequence(values, b.items) else None


NUMBERED_ROOTS = [{f"{x}_{n}" for n in range(1, last + 1)} for x in "xyzt" for last in (2, 3, 4)]


def system_and_list(a: System, b: Collection) -> str | None:
    values = values_in_order(a)
    if {item.name for item in a.items} in NUMBERED_ROOTS:
        return "same members" if same_members(values, b.items) else None
    return "named values in order" if not b.is_set and same_sequence(values, b.items) else None


def same_numerals(a: Based, b: Based) -> str | None:
    return (
        "same numeral"
        if a.base == b.base and a.digits.lstrip("0") == b.digits.lstrip("0")
        else None
    )


def numeral_and_value(a: Based, b: Value) -> str | None:
    """Base ten may be left out; any other base may not."""
    if a.base != "10" or b.is_percent or not a.digits.lstrip("-").replace(".", "", 1).isdigit():
        return None
    return "base ten" if evaluate.same_value(("num", Fraction(a.digits)), b.node) else None


def same_ratios(a: Ratio, b: Ratio) -> str | None:
    if len(a.parts) != len(b.parts):
        return None
    products = (
        (("mul", x.node, b.parts[0].node), ("mul", y.node, a.parts[0].node))
        for x, y in zip(a.parts, b.parts, strict=True)
    )
    return "same ratio" if all(evaluate.same_value(*pair) for pair in products) else None


def ratio_and_value(a: Ratio, b: Value) -> str | None:
    """`3:4` and 3/4."""
    if len(a.parts) != 2 or b.is_percent or b.unit:
        return None
    quotient = ("div", a.parts[0].node, a.parts[1].node)
    return "ratio as a fraction" if evaluate.same_value(quotient, b.node) else None


def same_clocks(a: Clock, b: Clock) -> str | None:
    if not units.agree(a.unit, b.unit):
        return None
    return "same time" if a.text.lstrip("0") == b.text.lstrip("0") else None


def ratio_of(clock: Clock) -> Ratio:
    return Ratio(tuple(Value(("num", Fraction(part))) for part in clock.text.split(":")))


def clock_and_ratio(a: Clock, b: Ratio) -> str | None:
    return same_ratios(ratio_of(a), b)


def clock_and_value(a: Clock, b: Value) -> str | None:
    return None if a.unit else ratio_and_value(ratio_of(a), b)


COMPARISONS = {
    (Value, Value): same_values,
    (Words, Words): same_words,
    (Tuple, Tuple): same_tuples,
    (Collection, Collection): same_collections,
    (Collection, Value): same_single,
    (Collection, Tuple): same_single,
    (Solved, Solved): same_solved,
    (Matrix, Matrix): same_matrices,
    (Equation, Equation): same_equations,
    (Inequality, Inequality): same_inequalities,
    (Assignment, Assignment): same_assignments,
    (Assignment, Equation): same_equation_of,
    (System, System): same_systems,
    (System, Tuple): system_and_tuple,
    (System, Collection): system_and_list,
    (Based, Based): same_numerals,
    (Based, Value): numeral_and_value,
    (Ratio, Ratio): same_ratios,
    (Clock, Clock): same_clocks,
    (Clock, Ratio): clock_and_ratio,
    (Clock, Value): clock_and_value,
    (Ratio, Value): ratio_and_value,
}
