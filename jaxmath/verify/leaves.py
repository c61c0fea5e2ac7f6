"""What is left when lists, relations and brackets are taken apart: values with their units,
numerals in a base, ratios, times of day, words."""

import re
from collections.abc import Callable
from fractions import Fraction

from jaxmath.verify import answers, brackets, expression, sets, units, words

Read = Callable[[str], answers.Answer]
COLON = re.compile(r":|\\text\{to\}|(?<![A-Za-z\\])to(?![A-Za-z])")
BASED = re.compile(
    r"\(?(-?\d[0-9A-Fa-f]*+(?:\.[0-9A-Fa-f]+)?)\)?\s?_\s?(?:\{\s?\(?\s?(\w+)\s?\)?\s?\}|(\w{1,2})"
    r"|\\text\{([a-z]+)\}|\{\s?\\text\{([a-z]+)\}\s?\})"
)
CAPITALS = re.compile(r"[A-Z]{3,}")
CLOCK = re.compile(r"\d{1,2}\s*:\s*[0-5]\d(?:\s*:\s*[0-5]\d)?")
MIXED = re.compile(r"(-?)\s?(\d+) (\d+)\s?/\s?(\d+)")
PLUS_MINUS = re.compile(r"\\pm(?![A-Za-z])|\\mp(?![A-Za-z])")


def read_leaf(text: str, read: Read) -> answers.Answer:
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
        return answers.Ratio(tuple(value_of(part, read) for part in parts))
    if PLUS_MINUS.search(text):
        return plus_minus(text, measured)
    bracketed = sets.read_bracketed(text, read) if measured.unit or measured.is_percent else None
    if isinstance(bracketed, (answers.Tuple, answers.Interval, answers.Collection)):
        return bracketed  # a unit after brackets belongs to all inside
    return measured_value(text, measured)


def value_of(text: str, read: Read) -> answers.Value:
    answer = read(text)
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


def plus_minus(text: str, measured: units.Measured) -> answers.Collection:
    """`a ± b` as the two values it stands for; several signs of one formula go together."""
    spellings = [
        PLUS_MINUS.sub(lambda m, upper=upper: " + " if (m[0] == "\\pm") == upper else " - ", text)
        for upper in (True, False)
    ]
    return answers.Collection(
        tuple(measured_value(spelling.strip(), measured) for spelling in spellings)
    )
