r"""One spelling for the many of LaTeX, Unicode and plain text.

`canonical` is a chain of small string functions; nothing here reads the mathematics, so each step
keeps the meaning of every answer and may be followed by any other reader. What stays LaTeX is what
`expression` and `answers` read; `\and` and `\or` stand for the two words.
"""

import functools
import re

from jaxmath.verify import characters, units

ALIASES = {
    "dfrac": r"\frac", "tfrac": r"\frac", "cfrac": r"\frac", "leq": r"\le", "geq": r"\ge",
    "leqslant": r"\le", "geqslant": r"\ge", "neq": r"\ne", "lt": "<", "gt": ">",
    "ldots": r"\ldots", "dots": r"\ldots", "cdots": r"\ldots", "dotsc": r"\ldots",
    "dotsb": r"\ldots", "lbrace": r"\{", "rbrace": r"\}", "lbrack": "[", "rbrack": "]",
    "lvert": "|", "rvert": "|", "vert": "|", "mid": "|", "ast": "*", "star": "*", "div": "/",
    "varnothing": r"\emptyset", "oslash": r"\emptyset", "colon": ":", "lparen": "(", "rparen": ")",
    "land": r"\and", "lor": r"\or",
    "overrightarrow": r"\vec", "widehat": r"\hat",
    "lang": r"\langle", "rang": r"\rangle", "reals": r"\mathbb{R}", "R": r"\mathbb{R}",
    "dbinom": r"\binom", "tbinom": r"\binom",
    "varphi": r"\phi", "varepsilon": r"\epsilon", "thickapprox": r"\approx", "simeq": r"\approx",
    "doteq": r"\approx", "smallsetminus": r"\setminus", "backslash": r"\setminus",
    "degrees": r"\degree", "percent": "%", "ne": r"\ne",
}  # fmt: skip
DROPPED_NAMES = """
    left right middle big Big bigg Bigg bigl bigr Bigl Bigr biggl biggr Biggl Biggr displaystyle
    textstyle scriptstyle limits nolimits rm bf it sf tt noindent centering boldmath Large large
    normalsize mathstrut boxed fbox huge LARGE small mathbin mathrel mathord
"""
SPACE_NAMES = "quad qquad thinspace enspace medspace thickspace space newline hfill"
DROPPED = frozenset(DROPPED_NAMES.split())
SPACES = frozenset(SPACE_NAMES.split())
COMMAND = re.compile(r"\\\\|\\([A-Za-z]+)(\.?)|\\([^A-Za-z])|\$")
JOINED_AFTER = re.compile(r"\\!\s+")
BLANKS = re.compile(r"\\(?:[hv]space|[hv]?phantom)\*?(?:\{[^{}]*\}| [^\s{\\])|\{\s*,\s*\}")
COLORS = re.compile(r"\\(?:text)?color(?:box)?\s*\{[^{}]*\}")
LEVEL = r"((?:[^{}]|\{[^{}]*\})*+)"  # of braces: what stands between two, with one level inside
OVER = re.compile(
    r"\{((?:(?!\\over|\\choose)[^{}]|\{[^{}]*\})*+)\\(over|choose)(?![A-Za-z])" + LEVEL + r"\}"
)
OVER_ALL = re.compile(r"([^{}]*?)\\(over|choose)(?![A-Za-z])([^{}]*)")


def layout(text: str) -> str:
    """LaTeX without what only moves ink: delimiters' sizes, spacing, dollar signs; one name per
    command."""

    def spelling(match: re.Match) -> str:
        name, dot, mark = match.groups()
        if match[0] == "\\\\":
            return match[0]
        if name is None:
            if mark in (None, "!", "(", ")", "[", "]"):
                return ""  # \! joins what stands around it; the others delimit
            return " " if mark in ",;:> \n\t/" else match[0]
        if name in ("left", "right", "middle"):
            return ""  # with the empty delimiter \left.
        if name in DROPPED or name in SPACES:
            return " " + dot
        return ALIASES[name] + " " + dot if name in ALIASES else match[0]

    text = COLORS.sub("", JOINED_AFTER.sub("", text))
    text = COMMAND.sub(spelling, text).replace("~", " ")
    text = BLANKS.sub(lambda m: "," if "," in m[0] else " ", text)
    if "\\over" in text or "\\choose" in text:
        text = OVER.sub(fraction_of, text)
        whole = OVER_ALL.fullmatch(text)
        text = fraction_of(whole) if whole else text
    return text


def fraction_of(match: re.Match) -> str:
    """`{a \\over b}` as \\frac{a}{b}."""
    command = "frac" if match[2] == "over" else "binom"
    return rf"\{command}{{{match[1]}}}{{{match[3]}}}"


OPERATORS = (
    (re.compile(r"\*\*(?=[\s\d({a-z-])"), "^"),
    (re.compile(r"<=|=<"), r" \\le "),
    (re.compile(r">=|=>"), r" \\ge "),
    (re.compile(r"(?<![\d)])!="), r" \\ne "),
    (re.compile(r"=="), "="),
    (re.compile(r"\^\s*(?:\{\s*\\circ\s*\}|\\circ\b)|\\degree\b|(?<=\d)\s*\\circ\b"), r"\\degree "),
    (
        re.compile(r"(?<=\d)\s*\^\s*\{?\s*(?:\\(?:text|mathrm)\s*\{\s*o\s*\}|o(?![a-z]))\s*\}?"),
        r"\\degree ",
    ),
    (re.compile(r"\^\s*\{?\s*((?:\\prime\s*)+)\}?"), lambda m: "'" * m[1].count("prime")),
    (re.compile(r"\+\s*\\infty"), r"\\infty"),
    (re.compile(r"\\mathbb\s*([A-Z])\b"), r"\\mathbb{\1}"),
    (re.compile(r"\\mathbf\s*\{\s*R\s*\}"), r"\\mathbb{R}"),
    (re.compile(r"[,;]?\s?\(\s?([a-z]\s?\\in\b[^()]*)\)$"), r", \1"),
    (re.compile(r"\\\*"), "*"),
    (re.compile(r"(?:\\(?:text|mathrm|mbox|textbf)\s?)?\{\s?\}"), ""),
    # a space lost between a function and its argument: \cotx
    (
        re.compile(r"\\((?:arc)?(?:sin|cos|tan)|cot|sec|csc|ln|log|sqrt)([a-gi-zA-Z])(?![A-Za-z])"),
        r"\\\1 \2",
    ),
    (re.compile(r"[-+](?:\s*[-+]){2,}"), lambda m: "-" if m[0].count("-") % 2 else "+"),
)


def operators(text: str) -> str:
    """Programmers' and typists' operators as the LaTeX ones; one sign for degrees."""
    for pattern, replacement in OPERATORS:
        text = pattern.sub(replacement, text)
    return text


TEXT_COMMAND = re.compile(
    r"\\(?:text(?:bf|it|rm|normal|sf|tt|up|sl)?|mbox|hbox|mathrm|mathbf|mathit|mathsf|mathtt|bold|boldsymbol|bm|emph"
    r"|operatorname\*?|underline|pmb|mathop|rm)\s*\{" + LEVEL + r"\}"
)
AND = re.compile(r"[,;]?\s?(?:and|und|et|as well as)[\s,]?|[和与及]", re.IGNORECASE)
OR = re.compile(r"[,;]?\s?or[\s,]?|[或]", re.IGNORECASE)
FUNCTION_NAME = re.compile(
    r"(?:arc)?(?:sin|cos|tan|cot|sec|csc)h?|ln|log|lg|exp|max|min|gcd|lcm|sgn|det|deg|arg"
)
HALF_DAY = re.compile(r"([ap])\.?\s?m\.?", re.IGNORECASE)
TIME_HALF_DAY = re.compile(
    r"(?<=:\d\d)\s*([APap])\.?\s?[Mm]\b\.?|(?<=\d)\s*(?:([AP])M\b|([ap])\.m\b\.?)"
)
WORDS_IN_TEXT = re.compile(r"[^\W\d_]{2,}(?:[ '-][^\W\d_]+)*")
AND_WORD = re.compile(r"(?<![\\\w])(?:and|AND)(?!\w)|[和与及]|\\wedge(?![A-Za-z])")
OR_WORD = re.compile(r"(?<![\\\w])(?:or|OR)(?!\w)|或|\\vee(?![A-Za-z])")
TEXT_OVER_TEXT = re.compile(r"(\\text\{[^{}]*)\}\s*/\s*\\text\{")
TEXT_FRACTION = re.compile(r"\\frac\s*\{\s*\\text\{([^{}]*)\}\s*\}\s*\{\s*\\text\{([^{}]*)\}\s*\}")
COMMA_BEFORE_WORD = re.compile(r",\s*(;|\\(?:or|and)\b)")
FORMULA_MARK = re.compile(r"[\\^_=<>{}+*]")
PROSE = re.compile(r"(?<![\\A-Za-z])(?!(?:and|or)\b)[^\W\d_]{2}")


def words(text: str) -> str:
    """`\\text{…}` and its kin: connectives become `\\and` and `\\or`, a formula in it comes out,
    words stay as `\\text{…}`."""

    def spelling(match: re.Match) -> str:
        bare = " ".join(match[1].replace("~", " ").split())
        before = match.string[: match.start()].rstrip()[-1:]
        if AND.fullmatch(bare):
            return r" \and "
        if OR.fullmatch(bare):
            return r" \or "
        if FUNCTION_NAME.fullmatch(bare) and not (
            bare == "min" and (before.isdigit() or before == "}")
        ):
            return "\\" + bare + " "
        half = HALF_DAY.fullmatch(bare)
        if half:
            return rf"\text{{{half[1].lower()}m}}"
        if bare.lower() in ("infinity", "inf"):
            return r"\infty "
        if bare[:1].isdigit() or (FORMULA_MARK.search(bare) and not PROSE.search(bare)):
            return WORDS_IN_TEXT.sub(wrapped, TIME_HALF_DAY.sub(half_day, bare))
        follows_value = before.isdigit() or before in ("}", ")")
        follows_unit = UNIT_OVER.search(match.string, max(0, match.start() - 20), match.start())
        is_unit = bare in units.CANONICAL_UNIT and (follows_value or follows_unit)
        if match[0].startswith(MATH_FONTS) and len(bare) < 4 and bare.isalpha() and not is_unit:
            return bare  # a product of variables
        if bare in ("e", "i", "d") or (not LETTER_PAIR.search(bare) and not is_unit):
            return bare
        return r"\text{" + bare + "}"

    for _ in range(3):  # \textbf{\text{…}}
        once = TEXT_COMMAND.sub(spelling, text)
        if once == text:
            break
        text = once
    text = TIME_HALF_DAY.sub(half_day, text)
    text = OR_WORD.sub(r" \\or ", AND_WORD.sub(r" \\and ", text))
    text = TEXT_OVER_TEXT.sub(r"\1/", TEXT_FRACTION.sub(r"\\text{\1/\2}", text))  # km/h
    return COMMA_BEFORE_WORD.sub(r" \1", text)


MATH_FONTS = ("\\math", "\\bm", "\\boldsymbol")
LETTER_PAIR = re.compile(r"[^\W\d_]{2}")
UNIT_OVER = re.compile(r"(?:\}\s*/\s*|\\frac ?\{ ?|\} ?\{ ?)$")


def half_day(match: re.Match) -> str:
    return rf" \text{{{next(filter(None, match.groups())).lower()}m}}"


def wrapped(match: re.Match) -> str:
    """Words of a text that also holds numbers, on their own."""
    if FUNCTION_NAME.fullmatch(match[0]) and match[0] != "min":
        return "\\" + match[0] + " "
    if match[0] in ("and", "or") or match.string[: match.start()].endswith(("\\", "\\text{")):
        return match[0]
    return rf"\text{{{match[0]}}}"


MARKED_THOUSANDS = re.compile(
    r"(?<=\d)\s?(?:\{\s?,\s?\}\s?|,\s?\\!\s?|\\!\s?,\s?|\\,|\\ |\\;|\\:|~)(?=\d{3}(?!\d))"
)
SPACED_THOUSANDS = re.compile(r"([-+]?\d{1,3}(?: \d{3})+)(?![\d ])(?!\s*[\d/,])")
OTHER_THOUSANDS = re.compile(r"[-+]?\d{1,3}(?:(?:'\d{3})+|(?:_\d{3})+|(?:\.\d{3}){2,})")


def thousands(text: str) -> str:
    """`12{,}345`, `12,\\!345` and `12 345` as 12345; these marks leave no doubt, unlike the comma
    of `12,345`."""
    text = MARKED_THOUSANDS.sub("", text)
    spaced = SPACED_THOUSANDS.match(text)
    if spaced:
        return spaced[1].replace(" ", "") + text[spaced.end() :]
    if OTHER_THOUSANDS.fullmatch(text):
        return re.sub(r"['_.]", "", text)
    return text


PLAIN_THOUSANDS = re.compile(r"(?<![\d.,])\d{1,3}(?:,\d{3})+(?!\d|,\d)")


def thousands_outside_brackets(text: str) -> str:
    """`12,345` as 12345, but not the comma of a pair, an interval or a set such as `(12,345)`."""
    if "," not in text:
        return text
    depth_at, depth = [], 0
    for character in text:
        depth += character in "(["
        depth_at.append(depth)
        depth -= character in ")]"
    is_set = text.startswith(("{", r"\{")) and text.endswith("}")

    def joined(match: re.Match) -> str:
        bracketed = depth_at[match.start()] > 0 or is_set
        return match[0] if bracketed else match[0].replace(",", "")

    return PLAIN_THOUSANDS.sub(joined, text)


LABEL = re.compile(
    r"(?:\\text\{\s?)?(?:(?:the )?(?:final )?answer(?: is)?|答案[是为]?)"
    r"\s?:?\s?\}?\s?:?\s?(?=[^\s:}])"
    r"|\\text\{(?!not\b|no\b)[A-Za-z]{3,12}(?: [a-z]{2,12}){0,3}:\}\s?(?=\S)",
    re.IGNORECASE,
)
SIGN_BEFORE = re.compile(r"(?:=|\\approx(?![A-Za-z]))\s*(?=[^\s=])")


QUOTES = ('""', "``", "`'", "“”")


def trimmed(text: str) -> str:
    """Without surrounding space, emphasis, closing punctuation, and what only announces."""
    text = " ".join(text.split())
    while True:
        shorter = text.rstrip(" .,;:" if not text.endswith("\\,") else " ").strip()
        if shorter.endswith("\\"):
            shorter = shorter.rstrip("\\")  # a backslash that escapes nothing, a line that ends
        if len(shorter) > 2 and shorter[:2] == shorter[-2:] == "**":
            shorter = shorter[2:-2]
        if len(shorter) > 2 and shorter[:1] + shorter[-1:] in QUOTES:
            shorter = shorter[1:-1]
        label = LABEL.match(shorter) or SIGN_BEFORE.match(shorter)
        if label:
            shorter = shorter[label.end() :]
        if shorter == text:
            return text
        text = shorter


@functools.lru_cache(maxsize=4096)
def canonical(text: str) -> str:
    """The one spelling in which answers are compared and read."""
    text = thousands(trimmed(characters.characters(text)))
    return trimmed(words(operators(layout(text))))


LOOSE_SPACE = re.compile(r"(?<![A-Za-z0-9])\s+|\s+(?![A-Za-z0-9])")
RESPELLINGS = (
    (re.compile(r"\\(frac|binom)(\d)(\d)"), r"\\\1{\2}{\3}"),
    (re.compile(r"\\(frac|binom) (\d) ?(\d)"), r"\\\1{\2}{\3}"),
    (re.compile(r"\\(frac|binom) ?(\d)(?=\{)"), r"\\\1{\2}"),
    (re.compile(r"(\\(?:frac|binom)\{[^{}]*\})(\d)"), r"\1{\2}"),
    (re.compile(r"\\sqrt ?(\d)(?!\d)"), r"\\sqrt{\1}"),
    (re.compile(r"([\^_])\{(\w)\}(?!\w)"), r"\1\2"),
    (re.compile(r"\\text\{([^{}]*)\}"), r" \1 "),
)


def squeezed(text: str) -> str:
    """A canonical text without spaces, except where two letters or digits would run together, and
    with the braces of one style."""
    text = LOOSE_SPACE.sub("", text)
    if "\\" in text or "^" in text:
        for pattern, replacement in RESPELLINGS:
            text = pattern.sub(replacement, text)
        text = LOOSE_SPACE.sub("", text).strip()
    return text
