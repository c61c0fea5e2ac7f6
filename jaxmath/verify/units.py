"""Units, currencies and percent signs around a value.

A unit may be missing or added: `5`, `5 cm` and `5\\text{ cm}` are one answer. Two different units
are two answers.
"""

import functools
import re
from fractions import Fraction
from typing import NamedTuple

from jaxmath.verify import tokens

SYNONYMS = {
    "cm": "cm centimeter centimeters centimetre centimetres 厘米",
    "mm": "mm millimeter millimeters millimetre millimetres 毫米",
    "m": "m meter meters metre metres 米",
    "km": "km kilometer kilometers kilometre kilometres 千米 公里",
    "in": "in inch inches",
    "ft": "ft foot feet",
    "yd": "yd yard yards",
    "mi": "mi mile miles",
    "g": "g gm gram grams 克",
    "mg": "mg milligram milligrams",
    "kg": "kg kilogram kilograms 千克 公斤",
    "lb": "lb lbs pound pounds",
    "oz": "oz ounce ounces",
    "l": "l L liter liters litre litres 升",
    "ml": "ml mL milliliter milliliters millilitre millilitres 毫升",
    "s": "s sec secs second seconds 秒",
    "min": "min mins minute minutes 分钟",
    "h": "h hr hrs hour hours 小时",
    "day": "day days 天",
    "week": "week weeks",
    "month": "month months",
    "year": "year years yr yrs 年 岁",
    "dollar": "dollar dollars usd USD 美元",
    "cent": "cent cents",
    "euro": "euro euros eur EUR",
    "yuan": "yuan rmb RMB 元",
    "degree": "degree degrees deg",
    "radian": "radian radians rad",
    "unit": "unit units",
    "mi/h": "mph",
    "km/h": "kph kmh kmph",
    "gal": "gal gallon gallons",
    "qt": "quart quarts qt",
    "pt": "pint pints",
    "cup": "cup cups",
    "tbsp": "tablespoon tablespoons tbsp",
    "tsp": "teaspoon teaspoons tsp",
    "ton": "ton tons tonne tonnes",
    "acre": "acre acres",
    "ha": "hectare hectares ha",
    "mol": "mol mole moles",
    "A": "amp amps ampere amperes",
    "ohm": "ohm ohms",
    "C": "coulomb coulombs",
    "T": "tesla teslas",
    "eV": "eV",
    "cal": "calorie calories cal",
    "dm": "dm decimeter decimeters 分米",
    "nm": "nm nanometer nanometers",
    "ms": "ms millisecond milliseconds",
    "rpm": "rpm",
    "decade": "decade decades",
    "N": "N newton newtons",
    "J": "J joule joules",
    "W": "W watt watts",
    "V": "V volt volts",
    "Hz": "Hz hertz",
    "Pa": "Pa pascal pascals",
    "K": "K kelvin",
    "a.m.": "am a.m. a.m AM",
    "p.m.": "pm p.m. p.m PM",
    "people": "people person persons 人",
    "piece": "piece pieces pcs way ways men sets 个 件 只 本 颗 块 张 条 名 页 朵 棵 把 支 辆 袋"
    " 箱 次 种 组",
}
CANONICAL_UNIT = {word: unit for unit, spellings in SYNONYMS.items() for word in spellings.split()}
GENERAL_UNITS = frozenset(
    {"unit", "piece"}
)  # say that a count is meant, and agree with any other unit
SCALES = {
    "hundred": 100,
    "thousand": 10**3,
    "million": 10**6,
    "billion": 10**9,
    "trillion": 10**12,
    "dozen": 12,
}
SCALES |= {"万": 10**4, "亿": 10**8}
DOLLARS_BEFORE = re.compile(r"([-+]?)(?:\\text\{ ?(?:US)? ?\}|US)? ?\\\$ ?")
CURRENCY_BEFORE = re.compile(
    r"(?:\\text\{ ?(?:US|USD|EUR|Rs\.?)? ?\$?\}|US|Rs\.?|USD|[€£¥₹])\s?(?=[\d.\\-])"
)
CURRENCY_AFTER = re.compile(r"(?<=\d)\s?[€£¥₹]$")
PERCENT = re.compile(
    r"(?<!\s)\s*(?:\\?%|\\text\{\s?(?:\\?%|percentage|percent|pct|per cent)\s?\}"
    r"|\b(?:percentage|percent|pct|per cent)\b)$"
)
CONTRADICTING_WORDS = """
    and or to than not about at least most more less fewer between from if is are when where for
    plus minus times over only except but approximately nearly almost up below above divided by no
    none never unless with without either both mod modulo into equals equal integer real even
    odd prime any all undefined other others remainder base factorial root tenth tenths hundredths
    thousandths thirds fourths fifths sixths sevenths eighths ninths half halves true false
    millionths billionths doubled tripled halved twice thrice short left behind
"""
NOT_A_UNIT = frozenset(CONTRADICTING_WORDS.split())
BARE_LETTERS = frozenset(
    "msghlL"
)  # units that may stand outside \\text{}; the others are variables
SMALL_WORDS = frozenset(("per", "of", "old", "a", "each", "in"))
FORMULA_NAMES = frozenset(name.lower() for name in tokens.PLAIN_NAMES) | {
    name.lower() for name in tokens.GREEK
}
POWER = r"(?:\s*\^\s*\{?\s*(?P<power>-?\d)\s*\}?)?"
TEXT_UNIT = re.compile(r"\s?\\text\{ ?(?P<unit>[^{}]+)\}" + POWER + r"$")
WORD_UNIT = re.compile(
    r"(?P<space>(?<!\s)\s*)(?P<unit>(?<![^\W\d_])(?<!\\)[^\W\d_][^\W\d_./ ]*"
    r"(?:[ /]+[^\W\d_]+)*+\.?)" + POWER + r"$"
)
TEMPERATURE = re.compile(r"\\degree\s?(?:\\text\{ ?([CF])\}|([CF]))$")
FUNCTION = re.compile(r"\\(?:arc)?(?:sin|cos|tan|cot|sec|csc)")
VALUE_BEFORE = re.compile(r"[\d})]$|\\pi$|\\infty$")
MAX_UNIT_CHARS = 100  # at the end of an answer, where a unit is looked for
VALUE = re.compile(r"\d|\\pi|\\infty")
POWER_WORDS = {
    "square": 2,
    "sq": 2,
    "squared": 2,
    "cubic": 3,
    "cu": 3,
    "cubed": 3,
    "平方": 2,
    "立方": 3,
}


class Measured(NamedTuple):
    """`value` is what stays of the text; `unit` its canonical unit ("" if none); `scale` multiplies
    the value."""

    value: str
    unit: str
    scale: Fraction
    is_percent: bool


def split(text: str) -> Measured:
    """Take the unit, the percent sign and words such as "million" off the end of a text."""
    currency = DOLLARS_BEFORE.match(text)
    if currency:
        measured = split(currency[1] + text[currency.end() :].replace("\\$", ""))
        return (
            measured if measured.unit or measured.is_percent else measured._replace(unit="dollar")
        )
    text = text.replace("\\$", "")
    currency = CURRENCY_BEFORE.match(text)
    text = CURRENCY_AFTER.sub("", text[currency.end() :] if currency else text).strip()
    percent = PERCENT.search(text, max(0, len(text) - MAX_UNIT_CHARS))
    if percent and VALUE.search(text[: percent.start()]):
        return Measured(text[: percent.start()].strip(), "", Fraction(1), True)
    temperature = TEMPERATURE.search(text, max(0, len(text) - MAX_UNIT_CHARS))
    if temperature and VALUE.search(text[: temperature.start()]):
        unit = "degree" + (temperature[1] or temperature[2])
        return Measured(text[: temperature.start()].strip(), unit, Fraction(1), False)
    if is_in_degrees(text):
        return Measured(text[:-7].strip(), "degree", Fraction(1), False)
    scale, found = Fraction(1), []
    for _ in range(4):
        match = TEXT_UNIT.search(text, max(0, len(text) - MAX_UNIT_CHARS)) or word_unit(text)
        if not match:
            break
        value = text[: match.start()].rstrip(" ,\\").strip()
        unit = match["unit"].strip()
        phrase = unit if unit in CANONICAL_UNIT else unit.rstrip(".")
        if not VALUE.search(value) or not is_unit_phrase(phrase) or value[-1:] in "+-*/^_=<>(":
            break
        phrase_words = phrase.split()
        while phrase_words and phrase_words[0].lower() in SCALES:
            scale *= SCALES[phrase_words.pop(0).lower()]
        if phrase_words:
            found.insert(0, canonical_unit(" ".join(phrase_words), match["power"]))
        text = value
    if is_in_degrees(text):
        return Measured(text[:-7].strip(), "degree", scale, False)
    return Measured(text, " ".join(found), scale, False)


def is_in_degrees(text: str) -> bool:
    """Whether the degree sign at the end belongs to the whole, not to the argument of a sine."""
    return text.endswith(r"\degree") and "\\degree" not in text[:-7] and not FUNCTION.search(text)


def word_unit(text: str) -> re.Match | None:
    """Words after a number, not inside `\\text{}`; one letter counts only as a known unit after a
    space."""
    match = WORD_UNIT.search(text, max(0, len(text) - MAX_UNIT_CHARS))
    if not match or text[: match.start()].endswith("\\"):
        return None
    before = text[: match.start()]
    if not before or not VALUE_BEFORE.search(before):
        return None
    unit = match["unit"].rstrip(".")
    if "/" in unit and not all(part in CANONICAL_UNIT for part in unit.replace("/", " ").split()):
        return None
    letters = [word for word in unit.replace("/", " ").split() if len(word) == 1 and word.isascii()]
    if letters and not (
        BARE_LETTERS.issuperset(letters) and ("/" in unit or (match["space"] and unit in letters))
    ):
        return None  # a product of variables
    return match if all(is_unit_word(word) for word in unit.replace("/", " ").split()) else None


def is_unit_word(word: str) -> bool:
    """Whether a word outside `\\text{}` can be part of a unit: a known one, or one too long for a
    product of variables and not the name of a function or a Greek letter."""
    lower = word.lower()
    if word in CANONICAL_UNIT or lower in CANONICAL_UNIT or lower in SCALES or lower in SMALL_WORDS:
        return True
    if not word.isascii():
        return len(word) > 1
    return lower in POWER_WORDS or (len(word) > 3 and lower not in FORMULA_NAMES)


def is_unit_phrase(phrase: str) -> bool:
    """Whether words only say of what a value is, and neither change nor limit it."""
    phrase_words = re.split(r"[^\w]+", phrase.lower())
    if len(phrase) == 1 and phrase.isascii():
        return phrase in CANONICAL_UNIT
    return NOT_A_UNIT.isdisjoint(phrase_words) and not POWER_WORDS.keys() >= set(phrase_words)


EXPONENT = re.compile(r"\^?\s*\{?(-?\d)\}?$")


def canonical_unit(phrase: str, power: str | None) -> str:
    """One spelling per unit, `km/h` for "kilometers per hour"; a power is kept as a suffix."""
    sign, exponent, names = 1, 1, []
    outer = int(power) if power else 1
    for word in phrase.replace("/", " / ").split():
        if word in ("/", "per"):
            sign = -1
            continue
        if word.lower() in POWER_WORDS:
            if word.lower().endswith("ed") and names:
                names[-1] = (names[-1][0], names[-1][1] * POWER_WORDS[word.lower()])
            else:
                exponent = POWER_WORDS[word.lower()]
            continue
        own = EXPONENT.search(word)
        if own and own.start():
            exponent, word = exponent * int(own[1]), word[: own.start()]
        name = CANONICAL_UNIT.get(word) or CANONICAL_UNIT.get(word.lower()) or word.lower()
        for part, part_sign in zip(name.split("/"), (1, -1), strict=False):
            names.append((part, sign * part_sign * exponent))
        exponent = 1
    if names and outer != 1:
        names[-1] = (names[-1][0], names[-1][1] * outer)
    return "·".join(name + (f"^{e}" if e != 1 else "") for name, e in names)


@functools.lru_cache(maxsize=1024)
def factors(unit: str) -> frozenset[tuple[str, str]] | None:
    """The known units in a product with their powers; None if any of it only describes."""
    parts = {tuple((part + "^1").split("^")[:2]) for part in unit.replace(" ", "·").split("·")}
    return frozenset(parts) if all(name in KNOWN for name, _ in parts) else None


KNOWN = frozenset(part for unit in SYNONYMS for part in unit.split("/")) | {"degreeC", "degreeF"}


def agree(first: str, second: str) -> bool:
    """Whether two units may stand for one: equal, or one of them missing, or a mere "units"."""
    if first == second or not first or not second:
        return True
    if any(name.split("^")[0] in GENERAL_UNITS for name in (first, second)):
        return True
    if {first, second} in ({"degree", "degreeC"}, {"degree", "degreeF"}):
        return True
    known = factors(first), factors(second)
    # Unknown words ("boxes", "blue marbles") describe; only known units can contradict each other.
    return None in known or known[0] == known[1]
