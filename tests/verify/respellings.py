"""Real reference answers written otherwise: spellings of the same answer, and other answers close
by. Each function gives None where it does not apply."""

import json
import pathlib
import re
from fractions import Fraction

from jaxmath.verify import extract

SOURCES = ("eval/math500", "eval/gaokao2023en", "train/math_train", "train/math_test_minus_500")
FRACTION = re.compile(r"(-?)\\[dt]?frac ?\{(\d+)\} ?\{(\d+)\}")
INTEGER = re.compile(r"-?\d+")
DECIMAL = re.compile(r"-?\d*\.\d+")
INTERVAL = re.compile(r"(.*?)([(\[])([^()\[\],]*),([^()\[\],]*)([)\]])(.*)", re.DOTALL)
WORDS = re.compile(r"\\text\{[A-Z]?[a-z]{3,}\}|[A-Z]?[a-z]{4,}")
SUPERSCRIPTS = str.maketrans("0123456789", "⁰¹²³⁴⁵⁶⁷⁸⁹")


def references(shared: pathlib.Path) -> list[str]:
    """The distinct reference answers of competition mathematics, in order."""
    golds: dict[str, None] = {}
    for source in SOURCES:
        path = shared / "data" / f"{source}.jsonl"
        for row in map(json.loads, path.read_text(encoding="utf-8").splitlines()):
            gold = row.get("answer") or extract.extract(row["solution"]).answer
            golds[gold] = None
    return list(golds)


def items_of(gold: str) -> list[str] | None:
    """The parts of a list such as `1, 2`, which has no brackets of its own."""
    parts = [part.strip() for part in gold.split(",")]
    plain = all(re.fullmatch(r"[-+\d\w\\{}/ ^]+", part) for part in parts)
    words = re.search(r"[A-Za-z]{3,}", re.sub(r"\\[a-z]+", "", gold))
    is_number = re.search(r"\d,\d{3}(?!\d)", gold)
    usable = plain and not (words or is_number or re.search(r"\\text|\\[!,{]|\{,", gold))
    return parts if len(set(parts)) > 1 and usable and gold.count("{") == gold.count("}") else None


def coordinates(gold: str) -> list[str] | None:
    """The parts of a tuple of numbers."""
    bare = re.sub(r"\\(?:left|right)", "", gold).strip()
    match = re.fullmatch(r"\(([^()]*,[^()]*)\)", bare)
    return [part.strip() for part in match[1].split(",")] if match and "infty" not in bare else None


def grouped(gold: str, mark: str) -> str | None:
    if not re.fullmatch(r"-?\d{4,}", gold):
        return None
    return f"{int(gold):,}".replace(",", mark)


def fraction_as(pattern: str):
    def respell(gold: str) -> str | None:
        match = FRACTION.fullmatch(gold)
        return match and pattern.format(*match.groups())

    return respell


def as_decimal(gold: str) -> str | None:
    match = FRACTION.fullmatch(gold)
    if not match:
        return None
    scaled = Fraction(int(match[2]), int(match[3])) * 10**8
    if scaled.denominator != 1:
        return None
    digits = str(scaled.numerator).rjust(9, "0")
    return f"{match[1]}{digits[:-8]}.{digits[-8:]}"


def as_mixed(gold: str) -> str | None:
    match = FRACTION.fullmatch(gold)
    if not match or int(match[2]) <= int(match[3]):
        return None
    whole, rest = divmod(int(match[2]), int(match[3]))
    return f"{match[1]}{whole}\\frac{{{rest}}}{{{match[3]}}}" if rest else None


def wrapped(before: str, after: str, only: re.Pattern = re.compile(".*", re.DOTALL)):
    return lambda gold: before + gold + after if only.fullmatch(gold) else None


def replaced(old: str, new: str):
    return lambda gold: gold.replace(old, new) if old in gold else None


def on_items(respell):
    return lambda gold: (items := items_of(gold)) and respell(items)


def with_superscripts(gold: str) -> str | None:
    if not re.search(r"\^\d(?!\d)", gold):
        return None
    return re.sub(r"\^(\d)(?!\d)", lambda m: m[1].translate(SUPERSCRIPTS), gold)


def factor_under_root(gold: str) -> str | None:
    match = re.fullmatch(r"(\d+)\\sqrt\{(\d+)\}", gold)
    return match and rf"\sqrt{{{int(match[1]) ** 2 * int(match[2])}}}"


PLAIN = re.compile(r"[^$]*", re.DOTALL)
COUNT = re.compile(r"\d+")
SAME = {
    "dollars": wrapped("$", "$", PLAIN),
    "brackets": wrapped("\\( ", " \\)", PLAIN),
    "stop": wrapped("", ".", PLAIN),
    "display": wrapped("\\displaystyle ", "\\,", PLAIN),
    "box": wrapped("\\boxed{", "}"),
    "dfrac": replaced("\\frac", "\\dfrac"),
    "short fractions": lambda g: re.sub(r"\\frac\{(\d)\}\{(\d)\}", r"\\frac\1\2", g),
    "spaced fractions": lambda g: re.sub(r"\\frac\{(\d)\}\{(\d)\}", r"\\frac \1 \2", g),
    "short roots": lambda g: re.sub(r"\\sqrt\{(\d)\}(?!\w)", r"\\sqrt\1", g),
    "no left right": lambda g: re.sub(r"\\(?:left|right)(?![a-z.])\s*", "", g),
    "minus": replaced("-", "\N{MINUS SIGN}"),
    "infinity": replaced("\\infty", "\N{INFINITY}"),
    "union": replaced("\\cup", "\N{UNION}"),
    "pi": lambda g: re.sub(r"\\pi(?![a-z])", "π", g) if "\\pi" in g else None,
    "superscripts": with_superscripts,
    "full width": lambda g: re.sub(r"\d", lambda m: chr(ord(m[0]) + 0xFEE0), g),
    "bold digits": lambda g: re.sub(r"\d", lambda m: chr(0x1D7CE + int(m[0])), g),
    "isolated": wrapped("\u2066", "\u2069"),
    "comma groups": lambda g: grouped(g, ","),
    "brace groups": lambda g: grouped(g, "{,}"),
    "thin groups": lambda g: grouped(g, ",\\!"),
    "narrow groups": lambda g: grouped(g, "\N{NARROW NO-BREAK SPACE}"),
    "spaced groups": lambda g: grouped(g, " "),
    "slash": fraction_as("{0}{1}/{2}"),
    "sign above": fraction_as("\\frac{{{0}{1}}}{{{2}}}"),
    "unreduced": lambda g: (
        (m := FRACTION.fullmatch(g)) and f"{m[1]}{int(m[2]) * 3}/{int(m[3]) * 3}"
    ),
    "decimal": as_decimal,
    "mixed": as_mixed,
    "zeros": wrapped("", ".00", INTEGER),
    "fraction": lambda g: str(Fraction(g)) if DECIMAL.fullmatch(g) else None,
    "plus": wrapped("+", "", COUNT),
    "named": wrapped("x = ", "", re.compile(r"-?\d+|" + FRACTION.pattern)),
    "sum": lambda g: f"{int(g) + 7}-7" if COUNT.fullmatch(g) else None,
    "quotient": lambda g: f"\\frac{{{int(g) * 6}}}{{6}}" if COUNT.fullmatch(g) else None,
    "square root": lambda g: f"\\sqrt{{{int(g) ** 2}}}" if COUNT.fullmatch(g) else None,
    "degrees": wrapped("", "^\\circ", COUNT),
    "centimetres": wrapped("", "\\text{ cm}", COUNT),
    "square feet": wrapped("", " square feet", COUNT),
    "of something": wrapped("", "\\text{ ways}", COUNT),
    "dollars and cents": wrapped("\\$", "", COUNT),
    "set": on_items(lambda items: "\\{" + ", ".join(items) + "\\}"),
    "reversed list": on_items(lambda items: ",".join(reversed(items))),
    "and": on_items(lambda items: ", ".join(items[1:]) + " \\text{ and } " + items[0]),
    "solutions": on_items(lambda items: " \\text{ or } ".join("x=" + item for item in items)),
    "spaced tuple": lambda g: (c := coordinates(g)) and "\\left( " + ",\\, ".join(c) + " \\right)",
    "factor under root": factor_under_root,
    "bmatrix": replaced("pmatrix", "bmatrix"),
    "text": wrapped("\\text{", "}", re.compile(r"[A-Za-z]{4,}|\([A-E]\)|[A-E]")),
    "bold": wrapped("\\textbf{", "}", re.compile(r"[A-Za-z]{4,}|\([A-E]\)|[A-E]")),
    "lower case": lambda g: g.lower() if re.fullmatch(r"[A-Z][a-z]{3,}", g) else None,
}


def first_digit(change):
    """A perturbation of the last digit of the first number, outside words."""

    def perturb(gold: str) -> str | None:
        match = re.search(r"\d*[1-9]\d*", gold)
        risky = "\\text" in gold or "\\mbox" in gold or "array" in gold or "," in gold
        if not match or risky or re.search(r"\D0\s*[\^\\]|\^0|\(-?1\)|=", gold):
            return None
        return gold[: match.start()] + change(match[0]) + gold[match.end() :]

    return perturb


def turned_end(gold: str) -> str | None:
    """The first interval with another bracket at its finite end."""
    match = INTERVAL.fullmatch(re.sub(r"\\(?:left|right)", "", gold))
    if not match or ("\\infty" not in gold and match[2] + match[5] == "()") or "sqrt[" in gold:
        return None
    before, opener, low, high, closer, after = match.groups()
    if "infty" in low and "infty" in high:
        return None
    if "infty" in low:
        closer = "]" if closer == ")" else ")"
    else:
        opener = "[" if opener == "(" else "("
    return f"{before}{opener}{low},{high}{closer}{after}"


def other_sign(gold: str) -> str | None:
    if not re.fullmatch(r"-?(\d*[1-9]\d*|\\frac\{\d+\}\{\d+\}|\d*\\sqrt\{\d+\}|\d*\\pi)", gold):
        return None
    return gold[1:] if gold[0] == "-" else "-" + gold


def upside_down(gold: str) -> str | None:
    match = FRACTION.fullmatch(gold)
    return f"{match[1]}{match[3]}/{match[2]}" if match and match[2] != match[3] else None


def rounded(gold: str) -> str | None:
    match = FRACTION.fullmatch(gold)
    if not match:
        return None
    value = Fraction(int(match[2]), int(match[3]))
    text = f"{float(value):.4f}"
    return match[1] + text if Fraction(text) != value else None


POSITIVE = re.compile(r"[1-9]\d{0,6}")
OTHER = {
    "one more": first_digit(lambda digits: str(int(digits) + 1)),
    "tenfold": lambda g: g + "0" if POSITIVE.fullmatch(g) else None,
    "sign": other_sign,
    "upside down": upside_down,
    "rounded": rounded,
    "percent": wrapped("", "\\%", POSITIVE),
    "hundredfold": wrapped("", "00", POSITIVE),
    "a hundredth": lambda g: f"{int(g)}/100" if POSITIVE.fullmatch(g) else None,
    "a little more": lambda g: f"{g}.00001" if POSITIVE.fullmatch(g) else None,
    "restated": lambda g: f"x+1={int(g) + 1}" if POSITIVE.fullmatch(g) else None,
    "doubled equation": lambda g: f"2x={2 * int(g)}" if POSITIVE.fullmatch(g) else None,
    "inequality": wrapped("x > ", "", POSITIVE),
    "alternative": lambda g: f"{g} \\text{{ or }} {int(g) + 1}" if POSITIVE.fullmatch(g) else None,
    "either sign": wrapped("\\pm ", "", POSITIVE),
    "range": lambda g: f"{g}-{int(g) + 3}" if POSITIVE.fullmatch(g) else None,
    "at least": wrapped("\\text{at least }", "", POSITIVE),
    "times x": wrapped("", " x y", POSITIVE),
    "times pi": wrapped("", "\\pi", POSITIVE),
    "base": wrapped("", "_{12}", POSITIVE),
    "other base": lambda g: re.sub(r"_\{?(\d+)\}?$", "_{11}", g) if re.search(r"\d_", g) else None,
    "no base": lambda g: re.sub(r"_\d$", "", g) if re.search(r"\d_\d$", g) else None,
    "a million": wrapped("", "\\text{ million}", POSITIVE),
    "no pi": lambda g: g.replace("\\pi", "") if re.fullmatch(r"\d+\\pi", g) else None,
    "22/7": lambda g: g.replace("\\pi", "\\cdot 22/7") if re.fullmatch(r"\d+\\pi", g) else None,
    "no root": lambda g: (m := re.fullmatch(r"(\d*)\\sqrt\{(\d+)\}", g)) and f"{m[1]}({m[2]})",
    "turned end": turned_end,
    "dropped": on_items(lambda items: ",".join(items[:-1])),
    "padded": on_items(lambda items: ",".join([*items, "977"])),
    "turned tuple": lambda g: (
        f"({','.join(reversed(c))})" if (c := coordinates(g)) and c != c[::-1] else None
    ),
    "short tuple": lambda g: (c := coordinates(g)) and f"({','.join(c[:-1])})",
    "long tuple": lambda g: (c := coordinates(g)) and f"({','.join([*c, '0'])})",
    "other words": lambda g: (
        g.replace("e", "o", 1) if WORDS.fullmatch(g) and "e" in g[5:] else None
    ),
    "not": wrapped("\\text{not }", "", WORDS),
}
