"""What may stand left of an equals sign as a name: `x`, `a_3`, `f(x)`, `AB`, `(p, q)`, a phrase."""

import re

from jaxmath.verify import tokens

GREEK = "|".join(sorted(tokens.GREEK))
LETTER = rf"(?:[A-Za-z]|\\(?:{GREEK})(?![A-Za-z]))"
INDEX = r"(?:\s*_\s*(?:\{[^{}]*\}|[A-Za-z0-9]))?"
NAME = re.compile(
    rf"(?:m?\s*\\(?:angle|triangle)\s*)?(?:{LETTER}{INDEX}'*|[A-Z]{{2,4}}'*|\\(?:overline|vec|hat|bar)\s*\{{[A-Za-z]+\}}"
    rf"|\\text\{{[^{{}}]*\}}{INDEX}|(?:sum|ans|[A-Za-z]{{4,}})(?: [A-Za-z]+)*{INDEX}"
    rf"|P\s*\([^()]*\)|\\frac ?\{{d[a-z]?\}} ?\{{d[a-z]\}})"
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


def mentions(text: str, name: str) -> bool:
    """Whether a formula uses the name it would define."""
    return bool(re.search(rf"(?<![\\A-Za-z]){re.escape(name)}(?![A-Za-z_])", text))
