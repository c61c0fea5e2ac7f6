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
    normalize,
    regions,
    tokens,
    units,
    words,
)

MAX_ITEMS = 200  # of a list, a tuple, a matrix
MAX_DEPTH = 12
OR_AND = re.compile(r"\\(?:or|and)(?![A-Za-z])|;")
COMMA = re.compile(r",")
CUP = re.compile(r"\\cup(?![A-Za-z])|\\or(?![A-Za-z])|\bU\b")
RELATION = re.compile(
    r"<|>|=|\\(?:le|ge|ne|in|approx|equiv|sim|to|implies|Rightarrow|iff)(?![A-Za-z])"
)
COLON = re.compile(r":|\\text\{to\}|(?<![A-Za-z\\])to(?![A-Za-z])")
SUCH_THAT = re.compile(r"\||:")
WORD = re.compile(r"(?<![\\A-Za-z])[A-Za-z]{4,}")


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
        names = {item.name if isinstance(item, answers.Solved) else "" for item in items}
        if separators == {"\\and"} and len(names) == 1 and "" not in names:
            common = where[0]
            for other in where[1:]:
                common = common and regions.intersection(common, other)
            if common:
                return answers.Solved(names.pop(), common)
    return collect(items)


def ends(region: answers.Interval | answers.Union) -> set:
    return {bound.node for part in regions.parts(region) for bound in part[:2]}


def collect(items: list[answers.Answer]) -> answers.Answer:
    """A list as what it says: solutions, named values, or several systems of them."""
    if len(items) > MAX_ITEMS:
        raise expression.Unreadable(f"{len(items)} items")
    first, *rest = items
    if isinstance(first, answers.Solved) and regions.excludes(first.region):
        return except_points(first, rest) or answers.Collection(flat(items))
    if isinstance(first, answers.Assignment) and not any(
        isinstance(i, (answers.Assignment, answers.System)) for i in rest
    ):
        return answers.Assignment(first.name, answers.Collection(flat([first.value, *rest])))
    if all(isinstance(item, answers.Assignment) for item in items):
        names = [item.name for item in items]
        if len(set(names)) == 1:
            return answers.Assignment(
                names[0], answers.Collection(flat([item.value for item in items]))
            )
        period = len(set(names))
        if names == names[:period] * (len(names) // period):
            systems = [
                answers.System(tuple(items[i : i + period])) for i in range(0, len(items), period)
            ]
            return systems[0] if len(systems) == 1 else answers.Collection(tuple(systems))
        return answers.System(tuple(items))
    return answers.Collection(flat(items))


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


def flat(items: list[answers.Answer]) -> tuple:
    """Items, with the two values of a ± and the members of inner lists in place."""
    members = []
    for item in items:
        inner = isinstance(item, answers.Collection) and not item.is_set
        members.extend(item.items if inner else [item])
    return tuple(members)


# ── relations ──

GREEK = "|".join(sorted(tokens.GREEK))
LETTER = rf"(?:[A-Za-z]|\\(?:{GREEK})(?![A-Za-z]))"
INDEX = r"(?:\s*_\s*(?:\{[^{}]*\}|[A-Za-z0-9]))?"
NAME = re.compile(
    rf"(?:m?\s*\\(?:angle|triangle)\s*)?(?:{LETTER}{INDEX}'*|[A-Z]{{2,4}}'*|\\(?:overline|vec|hat|bar)\s*\{{[A-Za-z]+\}}"
    rf"|\\text\{{[^{{}}]*\}}{INDEX}|(?:sum|ans|[A-Za-z]{{4,}})(?: [A-Za-z]+)*{INDEX}"
    rf"|P\s*\([^()]*\))"
    rf"(?:\s*\^\s*\{{\s*-1\s*\}})?(?:\s*\(\s*{LETTER}{INDEX}(?:\s*,\s*{LETTER}{INDEX})*\s*\)|\s*\(-?\d+\))?"
)
TUPLE_NAME = re.compile(rf"\(\s*{LETTER}{INDEX}(?:\s*,\s*{LETTER}{INDEX})+\s*\)")
RATIO_NAME = re.compile(
    rf"(?:{LETTER}|[A-Z]{{2}}){INDEX}(?:\s*:\s*(?:{LETTER}|[A-Z]{{2}}){INDEX})+"
)
BARS_NAME = re.compile(r"\|\s?[A-Z]{1,3}\s?\||\[\s?[A-Z]{3,8}\s?\]")


def name_of(text: str) -> str | None:
    """The name, if the left-hand side of an equation is nothing but one: `x`, `a_3`, `f(x)`, `AB`,
    `(p,q)`, a phrase."""
    if re.match(r"\\?(?:(?:arc)?(?:sin|cos|tan|cot|sec|csc)|ln|log|lg|exp|sqrt)(?![a-z])", text):
        return None
    for pattern in (NAME, TUPLE_NAME, RATIO_NAME, BARS_NAME):
        if pattern.fullmatch(text):
            return re.sub(r"[\s{}]", "", text)
    return None


def read_item(text: str, depth: int) -> answers.Answer:
    sides, signs = brackets.split(text, RELATION)
    if not signs:
        return read_sum_of_sets(text, depth)
    if "" in sides:
        raise expression.Unreadable("empty side")
    if signs[0] in ("\\in", "\\to") and len(signs) == 1 and name_of(sides[0]):
        inner = read(sides[1], depth + 1)
        where = answers.region(inner)
        return (
            answers.Solved(name_of(sides[0]), where)
            if where
            else answers.Assignment(name_of(sides[0]), inner)
        )
    if signs == ["\\approx"]:
        return approximate(read_sum_of_sets(sides[0], depth), read_sum_of_sets(sides[1], depth))
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
    name = name_of(sides[0])
    if len(sides) == 2:
        if name and not (sides[1] != sides[0] and mentions(sides[1], sides[0])):
            return named(name, read_sum_of_sets(sides[1], depth))
        other = name_of(sides[1])
        if other and not mentions(sides[0], sides[1]) and not re.search(r"[A-Za-z]{4,}", other):
            return answers.Assignment(other, read_sum_of_sets(sides[0], depth))
        left, right = expression.parse(sides[0]), expression.parse(sides[1])
        if expression.symbols(left) | expression.symbols(right):
            return answers.Equation(left, right)
    if len(sides) > 2 and all(name_of(side) for side in sides[:-1]):  # x = y = 4
        sides = [sides[0], sides[-1]]
    # A calculation such as S = 2·3 = 6 is its last value, if all of it is true.
    values = [read_sum_of_sets(side, depth) for side in (sides[1:] if name else sides)]
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
    names = name[1:-1].split(",") if name[0] == "(" else []
    if isinstance(value, answers.Tuple) and len(names) == len(value.items):
        return answers.System(tuple(map(answers.Assignment, names, value.items)))
    return answers.Assignment(name, value)


def mentions(text: str, name: str) -> bool:
    """Whether a formula uses the name it would define."""
    return bool(re.search(rf"(?<![\\A-Za-z]){re.escape(name)}(?![A-Za-z_])", text))


def read_inequality(sides: list[str], signs: list[str], depth: int) -> answers.Answer:
    if signs == ["\\ne"] and PLUS_MINUS.search(sides[1]):
        points = read(sides[1], depth + 1)
        region = isinstance(points, answers.Collection) and regions.without(list(points.items))
        if region and name_of(sides[0]):
            return answers.Solved(name_of(sides[0]), region)
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


# ── brackets ──


SETMINUS = re.compile(r"\\setminus(?![A-Za-z])")
REALS = ("\\mathbb{R}", "\\text{all real numbers}", "all real numbers", "\\text{all reals}")
TURNED_BRACKETS = re.compile(r"([\[\]])([^\[\](){},]+),([^\[\](){},]+)([\[\]])")


def read_sum_of_sets(text: str, depth: int) -> answers.Answer:
    text = normalize.trimmed(text)
    if text[:1] == "]" or text[-1:] == "[":  # ]0, 1[ is open
        text = TURNED_BRACKETS.sub(
            lambda m: "[("[m[1] == "]"] + m[2] + "," + m[3] + "])"[m[4] == "["], text
        )
    without = brackets.split(text, SETMINUS)[0]
    if len(without) == 2 and read_bracketed(without[0], depth) == answers.ALL_REALS:
        points = read(without[1], depth + 1)
        items = points.items if isinstance(points, answers.Collection) else (points,)
        region = all(isinstance(i, answers.Value) for i in items) and regions.without(list(items))
        if region:
            return region
    parts, _ = brackets.split(text, CUP)
    if len(parts) > 1:
        return union([read(part, depth + 1) for part in parts])
    return read_bracketed(text, depth) or read_leaf(text, depth)


def union(items: list[answers.Answer]) -> answers.Answer:
    """Intervals and sets together; sets alone are one set."""
    sets = [i for i in items if isinstance(i, answers.Collection) and i.is_set]
    if len(sets) == len(items):
        return answers.Collection(sum((i.items for i in sets), ()), is_set=True)
    members = []
    for item in items:
        where = answers.region(item) or (item if item in sets else None)
        if where is None:
            raise expression.Unreadable("union")
        members.extend(where.parts if isinstance(where, answers.Union) else [where])
    return answers.Union(tuple(members))


MATRIX = re.compile(
    r"([^&]{0,200}?)(?:[\[(] ?)?\\begin ?\{([bBpvV]?matrix|smallmatrix|array)\}(?: ?\{[lcr|\s]*\})?(.*)"
    r"\\end ?\{\2\}(?: ?[\])])?",
    re.DOTALL,
)
CASES = re.compile(
    r"(?:\\\{ ?\\begin ?\{(array|aligned)\}(?: ?\{[lcr|\s]*\})?|\\begin ?\{cases\})(.*)"
    r"\\end ?\{(?:array|aligned|cases)\}",
    re.DOTALL,
)
CONDITION = re.compile(r"^\\text\{(?:if|for|when)\}|^(?:if|for|when)\b|,$")
ROW = re.compile(r"\\\\(?:\s*\[[^\]]*\])?")
CELL = re.compile(r"&")


def read_bracketed(text: str, depth: int) -> answers.Answer | None:
    """A matrix, or what a pair of brackets around the whole text means; None if there is no such
    pair."""
    if "\\begin" in text:
        cases = CASES.fullmatch(text)
        if cases:
            return read_cases(cases[2], depth)
        matrix = MATRIX.fullmatch(text)
        if matrix and matrix[3].count("\\begin") == matrix[3].count("\\end"):
            return read_matrix(matrix[2], matrix[3], depth, matrix[1].strip())
    if text in ("\\emptyset", "\\{\\}"):
        return answers.Collection((), is_set=True)
    if text in REALS or text.lower() in REALS:
        return answers.ALL_REALS
    inner = brackets.inside(text)
    if inner is None:
        return None
    opener, content, closer = inner
    parts, _ = brackets.split(content, COMMA)
    if opener in ("{", "\\{"):
        if opener == "\\{" and ("|" in content or ":" in content):
            return read_set_builder(content, depth)
        if len(parts) == 1 and opener == "{":
            return read(content, depth + 1)
        if "" in parts:
            raise expression.Unreadable("empty item")
        return answers.Collection(flat([read(part, depth + 1) for part in parts]), is_set=True)
    if len(parts) == 1:
        return (
            read(content, depth + 1)
            if (opener, closer) == ("(", ")") and depth < MAX_DEPTH
            else None
        )
    if "" in parts or len(parts) > MAX_ITEMS:
        raise expression.Unreadable("empty item")
    items = tuple(read(part, depth + 1) for part in parts)
    if (
        len(items) == 2
        and opener + closer != "()"
        and all(isinstance(item, answers.Value) for item in items)
    ):
        return answers.Interval(*items, opener == "[", closer == "]")
    if opener + closer not in ("()", "[]"):
        raise expression.Unreadable("brackets do not match")
    return answers.Tuple(items, opener + closer)


MEMBER_OF_REALS = re.compile(r" ?\\in ?\\mathbb\{R\} ?$")


def read_set_builder(content: str, depth: int) -> answers.Interval | answers.Union:
    """`\\{x | condition\\}`, where the condition says by inequalities where x lies."""
    parts, _ = brackets.split(content, SUCH_THAT)
    name = MEMBER_OF_REALS.sub("", parts[0])
    if len(parts) == 2 and name_of(name):
        condition = read(parts[1], depth + 1)
        where = answers.region(condition)
        if where and (not isinstance(condition, answers.Solved) or condition.name == name):
            return where
    raise expression.Unreadable("set builder")


def rows_of(body: str) -> list[list[str]]:
    """The cells of an array, row by row."""
    lines = [line for line in brackets.split(body, ROW)[0] if line.replace("\\hline", "").strip()]
    return [brackets.split(line, CELL)[0] for line in lines]


def read_matrix(environment: str, body: str, depth: int, factor: str) -> answers.Matrix:
    """A matrix; a number in front multiplies all of it."""
    rows = tuple(tuple(read(cell, depth + 1) for cell in row) for row in rows_of(body))
    if not rows or len({len(row) for row in rows}) != 1 or len(rows) * len(rows[0]) > MAX_ITEMS:
        raise expression.Unreadable("matrix")
    if factor:
        node = expression.parse(TIMES_AT_END.sub("", factor))
        if environment in ("vmatrix", "Vmatrix") or not all(
            isinstance(cell, answers.Value) for row in rows for cell in row
        ):
            raise expression.Unreadable("factor of a matrix")
        rows = tuple(
            tuple(cell._replace(node=("mul", node, cell.node)) for cell in row) for row in rows
        )
    return answers.Matrix(rows, environment in ("vmatrix", "Vmatrix"))


TIMES_AT_END = re.compile(r"(?:\\cdot|\\times|\*) ?$")


def read_cases(body: str, depth: int) -> answers.Answer:
    """Equations that hold together, or the pieces of a function with their conditions."""
    rows = [[CONDITION.sub("", cell.strip()).strip() for cell in row] for row in rows_of(body)]
    rows = [[cell for cell in row if cell] for row in rows]
    if all(len(row) == 1 for row in rows) and rows:
        return collect([read(row[0], depth + 1) for row in rows])
    pieces = [answers.Tuple(tuple(read(cell, depth + 1) for cell in row)) for row in rows]
    return answers.Collection(tuple(pieces), is_set=True)


# ── leaves ──

BASED = re.compile(
    r"\(?(-?\d[0-9A-Fa-f]*+(?:\.[0-9A-Fa-f]+)?)\)?\s?_\s?(?:\{\s?\(?\s?(\w+)\s?\)?\s?\}|(\w{1,2})"
    r"|\\text\{([a-z]+)\}|\{\s?\\text\{([a-z]+)\}\s?\})"
)
CAPITALS = re.compile(r"[A-Z]{3,}")
CLOCK = re.compile(r"\d{1,2}\s*:\s*[0-5]\d(?:\s*:\s*[0-5]\d)?")
MIXED = re.compile(r"(-?)\s?(\d+) (\d+)\s?/\s?(\d+)")
PLUS_MINUS = re.compile(r"\\pm(?![A-Za-z])|\\mp(?![A-Za-z])")


def read_leaf(text: str, depth: int) -> answers.Answer:
    """A value, a numeral in a base, a ratio, a time of day; `Unreadable` for anything else."""
    based = BASED.fullmatch(text)
    if based:
        base = based[2] or based[3] or based[4] or based[5]
        return answers.Based(based[1].upper(), words.numeral(base) or base)
    if CAPITALS.fullmatch(text) or words.is_prose(text):
        return answers.Words(text)  # a triangle is not a product, nor is "no"
    measured = units.split(text)
    text = measured.value
    if CLOCK.fullmatch(text):
        return answers.Clock(re.sub(r"\s", "", text), measured.unit)
    parts, _ = brackets.split(text, COLON)
    if len(parts) > 1:
        if "" in parts:
            raise expression.Unreadable("ratio")
        return answers.Ratio(tuple(value_of(part, depth) for part in parts))
    if PLUS_MINUS.search(text):
        return plus_minus(text, measured, depth)
    bracketed = read_bracketed(text, depth) if measured.unit or measured.is_percent else None
    if isinstance(bracketed, (answers.Tuple, answers.Interval, answers.Collection)):
        return bracketed  # a unit after brackets belongs to all inside
    return measured_value(text, measured)


def value_of(text: str, depth: int) -> answers.Value:
    answer = read_sum_of_sets(text, depth + 1)
    if not isinstance(answer, answers.Value):
        raise expression.Unreadable("not a value")
    return answer


def measured_value(text: str, measured: units.Measured) -> answers.Value:
    mixed = MIXED.fullmatch(text)
    if mixed and int(mixed[4][:100]):
        whole, numerator, denominator = (int(digits[:100]) for digits in mixed.groups()[1:])
        size = whole + Fraction(numerator, denominator)
        node = ("num", -size if mixed[1] else size)
    else:
        node = expression.parse(text)
    if measured.scale != 1:
        node = ("mul", node, ("num", measured.scale))
    return answers.Value(node, measured.unit, measured.is_percent)


def plus_minus(text: str, measured: units.Measured, depth: int) -> answers.Collection:
    """`a ± b` as the two values it stands for; several signs of one formula go together."""
    spellings = [
        PLUS_MINUS.sub(lambda m, upper=upper: " + " if (m[0] == "\\pm") == upper else " - ", text)
        for upper in (True, False)
    ]
    return answers.Collection(
        tuple(measured_value(spelling.strip(), measured) for spelling in spellings)
    )
