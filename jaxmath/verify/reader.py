"""Reading an answer from its canonical text.

`read` takes the text apart from the outside: lists, then relations, then brackets; what is left are
formulas for `expression`, or words.
"""

import re
from fractions import Fraction

from jaxmath.verify import (
    answers,
    brackets,
    equivalence,
    evaluate,
    expression,
    leaves,
    names,
    normalize,
    regions,
    sets,
    tokens,
)

MAX_ITEMS = 200  # of a list
MAX_DEPTH = 12
OR_AND = re.compile(r"\\(?:or|and)(?![A-Za-z])|;")
COMMA = re.compile(r",")
RELATION = re.compile(
    r"<|>|=|\\(?:le|ge|ne|in|approx|equiv|sim|to|implies|Rightarrow|iff)(?![A-Za-z])"
)


def read(text: str, depth: int = 0) -> answers.Answer:
    """The answer written in a canonical text; `Words` where it is not mathematics we know."""
    text = normalize.trimmed(text)
    if depth > MAX_DEPTH or len(text) > tokens.MAX_CHARS:
        return answers.Words(text)
    try:
        return read_list(text, depth)
    except expression.Unreadable:
        return answers.Words(text)


TUPLES_SIDE_BY_SIDE = re.compile(r"\) ?\(")


def read_list(text: str, depth: int) -> answers.Answer:
    groups, separators = brackets.split(text, OR_AND)
    if len(groups) > 1:
        if "" in groups:
            raise expression.Unreadable("empty item")
        return join([read(group, depth + 1) for group in groups], set(separators))
    parts, _ = brackets.split(text, COMMA)
    if len(parts) == 1 and text[:1] == "(" and TUPLES_SIDE_BY_SIDE.search(text):
        side_by_side, _ = brackets.split(TUPLES_SIDE_BY_SIDE.sub("),(", text), COMMA)
        if all(len(brackets.split(part[1:-1], COMMA)[0]) > 1 for part in side_by_side):
            parts = side_by_side
    if len(parts) > 1:
        if "" in parts:
            raise expression.Unreadable("empty item")
        return collect([read(part, depth + 1) for part in parts])
    return read_item(text, depth)


def join(items: list[answers.Answer], separators: set[str]) -> answers.Answer:
    """Answers with "or", "and" or semicolons between them: a union, what several inequalities
    leave, or a list."""
    where = [answers.region(item) for item in items]
    if None not in where:
        is_solved = any(isinstance(i, (answers.Solved, answers.Union)) for i in items)
        is_solved |= any(bounds & regions.INFINITE.keys() for bounds in map(ends, where))
        if separators == {"\\or"} and (is_solved or isinstance(items[0], answers.Interval)):
            return answers.Union(tuple(where))
        variables = {item.name if isinstance(item, answers.Solved) else "" for item in items}
        if separators == {"\\and"} and len(variables) == 1 and "" not in variables:
            common = where[0]
            for other in where[1:]:
                common = common and regions.intersection(common, other)
            if common:
                return answers.Solved(variables.pop(), common)
    if separators == {";"} and all(isinstance(i, answers.Value) for i in items):
        return answers.Collection(tuple(items), is_ordered=True)
    return collect(items)


def ends(region: answers.Interval | answers.Union) -> set:
    return {bound.node for part in regions.parts(region) for bound in part[:2]}


def collect(items: list[answers.Answer]) -> answers.Answer:
    """A list as what it says: solutions, named values, or several systems of them."""
    if len(items) > MAX_ITEMS:
        raise expression.Unreadable(f"{len(items)} items")
    first, *rest = items
    if isinstance(items[-1], answers.Assignment) and items[-1].value == INTEGERS:
        variable = items[-1].name
        items = [with_integer(item, variable) for item in items[:-1]] + [ANY_INTEGER]
        first, *rest = items
    if isinstance(first, answers.Solved) and regions.excludes(first.region):
        return except_points(first, rest) or answers.Collection(answers.flat(items))
    if isinstance(first, answers.Assignment) and not any(
        isinstance(i, (answers.Assignment, answers.System)) for i in rest
    ):
        return answers.Assignment(
            first.name, answers.Collection(answers.flat([first.value, *rest]))
        )
    if all(isinstance(item, answers.Assignment) for item in items):
        variables = [item.name for item in items]
        if len(set(variables)) == 1:
            return answers.Assignment(
                variables[0], answers.Collection(answers.flat([item.value for item in items]))
            )
        period = len(set(variables))
        if variables == variables[:period] * (len(variables) // period):
            systems = [
                answers.System(tuple(items[i : i + period])) for i in range(0, len(items), period)
            ]
            return systems[0] if len(systems) == 1 else answers.Collection(tuple(systems))
        return answers.System(tuple(items))
    return answers.Collection(answers.flat(items))


INTEGERS = answers.Words("\\mathbb{Z}")
ANY_INTEGER = answers.Assignment("\\integer", INTEGERS)


def with_integer(item: answers.Answer, variable: str) -> answers.Answer:
    """An item that holds for every integer `variable`, with one name for all such variables."""
    if isinstance(item, answers.Value):
        return item._replace(node=expression.renamed(item.node, variable, ANY_INTEGER.name))
    if isinstance(item, answers.Assignment):
        return item._replace(value=with_integer(item.value, variable))
    return item


def except_points(first: answers.Solved, rest: list[answers.Answer]) -> answers.Solved | None:
    """`x ≠ 1, x ≠ 2` or `x ≠ 1, 2`."""
    region: answers.Interval | answers.Union | None = first.region
    for item in rest:
        if isinstance(item, answers.Value):
            other = answers.half_line(item, "\\ne")
        elif isinstance(item, answers.Solved) and item.name == first.name:
            other = item.region
        else:
            return None
        region = region and regions.intersection(region, other)
    return region and answers.Solved(first.name, region)


# ── relations ──


def read_item(text: str, depth: int) -> answers.Answer:
    sides, signs = brackets.split(text, RELATION)
    if not signs:
        return read_side(text, depth)
    if "" in sides:
        raise expression.Unreadable("empty side")
    if signs[0] in ("\\in", "\\to") and len(signs) == 1 and names.name_of(sides[0]):
        inner = read(sides[1], depth + 1)
        where = answers.region(inner)
        return (
            answers.Solved(names.name_of(sides[0]), where)
            if where
            else answers.Assignment(names.name_of(sides[0]), inner)
        )
    if signs == ["\\approx"]:
        return approximate(read_side(sides[0], depth), read_side(sides[1], depth))
    if signs[-1] == "\\approx" and set(signs[:-1]) == {"="}:
        whole = read(" = ".join(sides[:-1]), depth + 1)
        rounded = read(sides[-1], depth + 1)
        if isinstance(whole, answers.Assignment):
            return answers.Assignment(whole.name, approximate(whole.value, rounded))
        return approximate(whole, rounded)
    if set(signs) == {"="}:
        return read_equation(sides, depth)
    if set(signs) <= {"<", "\\le"} or set(signs) <= {">", "\\ge"} or signs == ["\\ne"]:
        return read_inequality(sides, signs, depth)
    raise expression.Unreadable("relation")


def approximate(exact: answers.Answer, rounded: answers.Answer) -> answers.Answer:
    """`exact ≈ rounded`, provided that it is true."""
    if (
        isinstance(exact, answers.Value)
        and isinstance(rounded, answers.Value)
        and rounded.node[0] == "num"
    ):
        step = Fraction(1)
        while (rounded.node[1] / step).denominator != 1 and step > Fraction(1, 10**30):
            step /= 10
        if evaluate.within(exact.node, rounded.node[1], step):
            return answers.Approximate(exact, rounded)
    raise expression.Unreadable("not a rounding")


def read_equation(sides: list[str], depth: int) -> answers.Answer:
    name = names.name_of(sides[0])
    if len(sides) == 2:
        if name and not (sides[1] != sides[0] and names.mentions(sides[1], sides[0])):
            return named(name, read_side(sides[1], depth))
        other = names.name_of(sides[1])
        if (
            other
            and not names.mentions(sides[0], sides[1])
            and not re.search(r"[A-Za-z]{4,}", other)
        ):
            return answers.Assignment(other, read_side(sides[0], depth))
        left, right = expression.parse(sides[0]), expression.parse(sides[1])
        if expression.symbols(left) | expression.symbols(right):
            return answers.Equation(left, right)
    if len(sides) > 2 and all(names.name_of(side) for side in sides[:-1]):  # x = y = 4
        sides = [sides[0], sides[-1]]
    # A calculation such as S = 2·3 = 6 is its last value, if all of it is true.
    values = [read_side(side, depth) for side in (sides[1:] if name else sides)]
    if len(values) == 2 and all(isinstance(value, answers.Value) for value in values):
        whole, percent = sorted(values, key=lambda value: value.is_percent)
        hundredth = ("div", percent.node, ("num", Fraction(100)))
        if percent.is_percent > whole.is_percent and evaluate.same_value(whole.node, hundredth):
            either = answers.Approximate(whole, percent)  # 0.56 = 56 %
            return answers.Assignment(name, either) if name else either
    constant = all(
        isinstance(value, answers.Value) and not expression.symbols(value.node) for value in values
    )
    if constant and all(equivalence.same(value, values[-1]) for value in values[:-1]):
        return answers.Assignment(name, values[-1]) if name else values[-1]
    raise expression.Unreadable("chain of equations")


def named(name: str, value: answers.Answer) -> answers.Assignment | answers.System:
    """`name = value`; of a tuple of names and one of values, each with its own."""
    variables = name[1:-1].split(",") if name[0] == "(" else []
    if isinstance(value, answers.Tuple) and len(variables) == len(value.items):
        return answers.System(tuple(map(answers.Assignment, variables, value.items)))
    return answers.Assignment(name, value)


def read_inequality(sides: list[str], signs: list[str], depth: int) -> answers.Answer:
    if signs == ["\\ne"] and leaves.PLUS_MINUS.search(sides[1]):
        points = read(sides[1], depth + 1)
        region = isinstance(points, answers.Collection) and regions.without(list(points.items))
        if region and names.name_of(sides[0]):
            return answers.Solved(names.name_of(sides[0]), region)
    nodes = [expression.parse(side) for side in sides]
    if len(signs) == 2 and nodes[1][0] == "sym":
        if signs[0] in (">", "\\ge"):
            nodes, signs = nodes[::-1], [answers.FLIPPED[sign] for sign in signs[::-1]]
        low, high = answers.Value(nodes[0]), answers.Value(nodes[2])
        return answers.Solved(
            nodes[1][1], answers.Interval(low, high, signs[0] == "\\le", signs[1] == "\\le")
        )
    if len(signs) != 1:
        raise expression.Unreadable("chain of inequalities")
    (left, right), sign = nodes, signs[0]
    for variable, bound, direction in ((left, right, sign), (right, left, answers.FLIPPED[sign])):
        if variable[0] == "neg" and variable[1][0] == "sym":
            variable, bound, direction = variable[1], ("neg", bound), answers.FLIPPED[direction]
        if variable[0] == "sym" and not expression.symbols(bound) & {variable[1]}:
            return answers.Solved(variable[1], answers.half_line(answers.Value(bound), direction))
    return answers.Inequality(left, sign, right)


def read_side(text: str, depth: int) -> answers.Answer:
    """What stands on one side of a relation."""

    def read_deeper(part: str) -> answers.Answer:
        return read(part, depth + 1)

    text = normalize.trimmed(text)
    return sets.read_sum(text, read_deeper) or leaves.read_leaf(text, read_deeper)
