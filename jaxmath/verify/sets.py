"""Sets, intervals and tuples: what brackets hold, and unions of it."""

import re
from collections.abc import Callable

from jaxmath.verify import answers, arrays, brackets, expression, names, normalize, regions

MAX_ITEMS = 200  # of a tuple
Read = Callable[[str], answers.Answer]
COMMA = re.compile(r",")
CUP = re.compile(r"\\cup(?![A-Za-z])|\\or(?![A-Za-z])|\bU\b")
SUCH_THAT = re.compile(r"\||:")
SETMINUS = re.compile(r"\\setminus(?![A-Za-z])")
REALS = ("\\mathbb{R}", "\\text{all real numbers}", "all real numbers", "\\text{all reals}")
TURNED_BRACKETS = re.compile(r"([\[\]])([^\[\](){},]+),([^\[\](){},]+)([\[\]])")


def read_sum(text: str, read: Read) -> answers.Answer | None:
    """Sets joined by union signs, the reals without some points, or what brackets hold; None if a
    text is none of these."""
    text = normalize.trimmed(text)
    if text[:1] == "]" or text[-1:] == "[":  # ]0, 1[ is open
        text = TURNED_BRACKETS.sub(
            lambda m: "[("[m[1] == "]"] + m[2] + "," + m[3] + "])"[m[4] == "["], text
        )
    without = brackets.split(text, SETMINUS)[0]
    if len(without) == 2 and read_bracketed(without[0], read) == answers.ALL_REALS:
        points = read(without[1])
        items = points.items if isinstance(points, answers.Collection) else (points,)
        region = all(isinstance(i, answers.Value) for i in items) and regions.without(list(items))
        if region:
            return region
    parts, _ = brackets.split(text, CUP)
    if len(parts) > 1:
        return union([read(part) for part in parts])
    return read_bracketed(text, read)


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


def read_bracketed(text: str, read: Read) -> answers.Answer | None:
    """A matrix, or what a pair of brackets around the whole text means; None if there is no such
    pair."""
    if "\\begin" in text:
        array = arrays.read_array(text, read)
        if array:
            return array
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
            return read_set_builder(content, read)
        if len(parts) == 1 and opener == "{":
            return read(content)
        if "" in parts:
            raise expression.Unreadable("empty item")
        return answers.Collection(answers.flat([read(part) for part in parts]), is_set=True)
    if len(parts) == 1:
        return read(content) if (opener, closer) == ("(", ")") else None
    if "" in parts or len(parts) > MAX_ITEMS:
        raise expression.Unreadable("empty item")
    items = tuple(map(read, parts))
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


def read_set_builder(content: str, read: Read) -> answers.Interval | answers.Union:
    """`\\{x | condition\\}`, where the condition says by inequalities where x lies."""
    parts, _ = brackets.split(content, SUCH_THAT)
    name = MEMBER_OF_REALS.sub("", parts[0])
    if len(parts) == 2 and names.name_of(name):
        condition = read(parts[1])
        where = answers.region(condition)
        if where and (not isinstance(condition, answers.Solved) or condition.name == name):
            return where
    raise expression.Unreadable("set builder")
