"""Units, currencies and percent signs around a value.

A unit may be missing or added: `5`, `5 cm` and `5\\text{ cm}` are one answer. Two different units
are two answers.
"""

import re
from fractions import Fraction
from typing import NamedTuple

SYNONYMS = {
    "cm": "cm centimeter centimeters centimetre centimetres 厘米",
    "mm": "mm millimeter millimeters millimetre millimetres 毫米",
    "m": "m meter meters metre metres 米",
    "km": "km kilometer kilometers kilometre kilometres 千米 公里",
    "in": "in inch inches",
    "ft": "ft foot feet",
    "yd": "yd yard yards",
    "mi": "mi mile miles",
    "g": "g gram grams 克",
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
    "mph": "mph",
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
    "piece": "piece pieces 个 件 只 本 颗 块 张 条 名",
}
CANONICAL_UNIT = {word: unit for unit, spellings in SYNONYMS.items() for word in spellings.split()}
GENERAL_UNITS = frozenset(
    {"unit", "piece"}
)  # say that a count is meant, and agree with any other unit
SCALES = {"hundred": 100, "thousand": 10**3, "million": 10**6, "billion": 10**9, "trillion": 10**12}
SCALES |= {"万": 10**4, "亿": 10**8}
PERCENT = re.compile(
    r"\s*(?:\\?%|\\text\{\s*(?:\\?%|percentage|percent|pct|per cent)\s*\}"
    r"|\b(?:percentage|percent|pct|per cent)\b)$"
)
CONTRADICTING_WORDS = """
    and or to than not about at least most more less fewer between from if is are when where for
    plus minus times over only except but approximately nearly almost up below above divided by no
    none never unless with without either both the mod modulo into equals equal integer real even
    odd prime any all undefined
"""
NOT_A_UNIT = frozenset(CONTRADICTING_WORDS.split())
POWER = r"(?:\s*\^\s*\{?\s*(?P<power>-?\d)\s*\}?)?"
TEXT_UNIT = re.compile(r"\s*\\text\{\s*(?P<unit>[^{}]+?)\s*\}" + POWER + r"$")
WORD_UNIT = re.compile(
    r"(?P<space>\s*)(?P<unit>[^\W\d_][^\W\d_./ ]*(?:[ /]+[^\W\d_]+)*\.?)" + POWER + r"$"
)
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
    text = re.sub(r"^(?:\\text\{(?:US)?\s*\$?\}|(?:US|Rs\.?|USD|[€£¥₹])\s*)(?=[\d.\\-])", "", text)
    text = re.sub(r"(?<=\d)\s*[€£¥₹]$", "", text).strip()
    percent = PERCENT.search(text)
    if percent and VALUE.search(text[: percent.start()]):
        return Measured(text[: percent.start()].strip(), "", Fraction(1), True)
    if text.endswith(r"\degree") and "\\degree" not in text[:-7]:
        value = text[:-7].strip()
        return Measured(value, "degree", Fraction(1), False)
    scale, found = Fraction(1), []
    for _ in range(4):
        match = TEXT_UNIT.search(text, max(0, len(text) - MAX_UNIT_CHARS)) or word_unit(text)
        if not match:
            break
        value = text[: match.start()].rstrip(" ,\\").strip()
        phrase = (
            match["unit"].strip().rstrip(".")
            if match["unit"] not in CANONICAL_UNIT
            else match["unit"]
        )
        if not VALUE.search(value) or not is_unit_phrase(phrase) or value[-1:] in "+-*/^_=<>(":
            break
        phrase_words = phrase.split()
        if phrase_words[0].lower() in SCALES:
            scale *= SCALES[phrase_words.pop(0).lower()]
        if phrase_words:
            found.insert(0, canonical_unit(phrase_words, match["power"]))
        text = value
    if text.endswith(r"\degree") and "\\degree" not in text[:-7]:
        return Measured(text[:-7].strip(), "degree", scale, False)
    return Measured(text, " ".join(found), scale, False)


def word_unit(text: str) -> re.Match | None:
    """Words after a number, not inside `\\text{}`; one letter counts only as a known unit after a
    space."""
    match = WORD_UNIT.search(text, max(0, len(text) - MAX_UNIT_CHARS))
    if not match or text[: match.start()].endswith("\\"):
        return None
    before = text[: match.start()]
    if not before or not re.search(r"[\d})]$|\\pi\s*$", before):
        return None
    unit = match["unit"].rstrip(".")
    known = unit in CANONICAL_UNIT or match["unit"] in CANONICAL_UNIT
    if len(unit) == 1 and not unit.isascii():
        return match if known or unit in SCALES else None
    if len(unit) == 1:
        return match if known and match["space"] else None
    if re.fullmatch(r"[a-zA-Z]{2,3}", unit) and not known:
        return None  # a product of variables
    if "/" in unit and not all(part.strip() in CANONICAL_UNIT for part in re.split(r"[/ ]+", unit)):
        return None
    return match


def is_unit_phrase(phrase: str) -> bool:
    return not NOT_A_UNIT & set(re.split(r"[^\w]+", phrase.lower()))


def canonical_unit(phrase_words: list[str], power: str | None) -> str:
    """One spelling per unit; an area's `^2` is kept as a suffix."""
    exponent = int(power) if power else 1
    names = []
    for word in phrase_words:
        if word.lower() in POWER_WORDS:
            exponent *= POWER_WORDS[word.lower()]
        else:
            names.append(
                CANONICAL_UNIT.get(word) or CANONICAL_UNIT.get(word.lower()) or word.lower()
            )
    return " ".join(names) + (f"^{exponent}" if exponent != 1 else "")


def agree(first: str, second: str) -> bool:
    """Whether two units may stand for one: equal, or one of them missing, or a mere "units"."""
    if first == second or not first or not second:
        return True
    general = [name.split("^")[0] in GENERAL_UNITS for name in (first, second)]
    if any(general):
        return True
    known = set(SYNONYMS)
    # Unknown words ("boxes", "blue marbles") describe; only two known units can contradict each
    # other.
    return not (first.split("^")[0] in known and second.split("^")[0] in known)
