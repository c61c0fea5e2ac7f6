"""One spelling for the many of LaTeX, Unicode and plain text.

`canonical` is a chain of small string functions; nothing here reads the mathematics, so each step
keeps the meaning of every answer and may be followed by any other reader. What stays LaTeX is what
`expression` and `answers` read.
"""

import functools
import re
import unicodedata

SUPERSCRIPTS = dict(zip("⁰¹²³⁴⁵⁶⁷⁸⁹⁺⁻⁽⁾ⁿⁱ", "0123456789+-()ni", strict=True))
SUBSCRIPTS = dict(zip("₀₁₂₃₄₅₆₇₈₉₊₋₍₎ₙₓ", "0123456789+-()nx", strict=True))

SYMBOLS = {
    **dict.fromkeys("−–—‐‑‒―﹣－", "-"),
    **dict.fromkeys("×✕✖⨯", r" \times "),
    **dict.fromkeys("·⋅∙•・", r" \cdot "),
    **dict.fromkeys("÷∕⁄", "/"),
    **dict.fromkeys("≤⩽≦", r" \le "),
    **dict.fromkeys("≥⩾≧", r" \ge "),
    **dict.fromkeys("≈≃≅", r" \approx "),
    **dict.fromkeys("°˚º", r"\degree "),
    **dict.fromkeys("′’ʹ＇", "'"),
    **dict.fromkeys("，、﹐", ","),
    **dict.fromkeys("∅⌀", r"\emptyset "),
    "∗": "*", "√": r"\sqrt ", "∛": r"\cbrt ", "∞": r"\infty ", "≠": r" \ne ", "∪": r" \cup ",
    "∩": r" \cap ", "∈": r" \in ", "±": r" \pm ", "∓": r" \mp ", "ℝ": r"\mathbb{R}",
    "ℤ": r"\mathbb{Z}", "ℕ": r"\mathbb{N}", "ℚ": r"\mathbb{Q}", "ℂ": r"\mathbb{C}",
    "∠": r"\angle ", "△": r"\triangle ", "∶": ":", "。": ".", "；": ";", "…": r"\ldots ",
    "∥": r"\parallel ", "⟨": r"\langle ", "⟩": r"\rangle ", "⌊": r"\lfloor ", "⌋": r"\rfloor ",
    "⌈": r"\lceil ", "⌉": r"\rceil ", "∑": r"\sum ", "∫": r"\int ", "∧": r"\text{ and }",
    "∨": r"\text{ or }", "⇒": r"\implies ", "→": r"\to ", "∖": r"\setminus ",
}  # fmt: skip
GREEK = {
    chr(code): "\\"
    + unicodedata.name(chr(code)).split()[-1].lower().replace("lamda", "lambda")
    + " "
    for code in range(0x3B1, 0x3CA)
    if code not in (0x3BF, 0x3C2)  # omicron looks like o; final sigma is no symbol
} | {
    "Δ": r"\Delta ",
    "Ω": r"\Omega ",
    "Σ": r"\Sigma ",
    "Π": r"\Pi ",
    "Φ": r"\Phi ",
    "Θ": r"\Theta ",
    "ϕ": r"\phi ",
}
TRANSLATION = str.maketrans(SYMBOLS | GREEK)
VULGAR = re.compile("[¼-¾⅐-⅞]")


def characters(text: str) -> str:
    """Unicode mathematics as LaTeX or ASCII; controls, zero-width and bidirectional marks go."""
    if text.isascii():
        return re.sub(r"[\x00-\x08\x0b-\x1f\x7f]", "", text)
    text = "".join(
        c for c in text if c in "\n\t" or unicodedata.category(c) not in ("Cc", "Cf", "Cs")
    )
    text = re.sub(f"[{''.join(SUPERSCRIPTS)}]+", lambda m: raised("^", m[0], SUPERSCRIPTS), text)
    text = re.sub(f"[{''.join(SUBSCRIPTS)}]+", lambda m: raised("_", m[0], SUBSCRIPTS), text)
    text = VULGAR.sub(lambda m: vulgar_fraction(m[0]), text)
    return unicodedata.normalize("NFKC", text.translate(TRANSLATION)).translate(TRANSLATION)


def raised(command: str, run: str, table: dict[str, str]) -> str:
    return command + "{" + "".join(table[c] for c in run) + "}"


def vulgar_fraction(character: str) -> str:
    """½ as \\frac{1}{2}."""
    numerator, denominator = unicodedata.normalize("NFKC", character).split("\N{FRACTION SLASH}")
    return rf"\frac{{{numerator}}}{{{denominator}}}"


ALIASES = {
    "dfrac": r"\frac", "tfrac": r"\frac", "cfrac": r"\frac", "leq": r"\le", "geq": r"\ge",
    "leqslant": r"\le", "geqslant": r"\ge", "neq": r"\ne", "lt": "<", "gt": ">",
    "ldots": r"\ldots", "dots": r"\ldots", "cdots": r"\ldots", "dotsc": r"\ldots",
    "dotsb": r"\ldots", "lbrace": r"\{", "rbrace": r"\}", "lbrack": "[", "rbrack": "]",
    "lvert": "|", "rvert": "|", "vert": "|", "mid": "|", "ast": "*", "star": "*", "div": "/",
    "varnothing": r"\emptyset", "oslash": r"\emptyset", "colon": ":", "lparen": "(", "rparen": ")",
    "land": r"\text{ and }", "lor": r"\text{ or }", "dbinom": r"\binom", "tbinom": r"\binom",
    "varphi": r"\phi", "varepsilon": r"\epsilon", "thickapprox": r"\approx", "simeq": r"\approx",
    "doteq": r"\approx", "smallsetminus": r"\setminus", "backslash": r"\setminus",
    "bigcup": r"\cup", "degrees": r"\degree", "percent": "%", "ne": r"\ne",
}  # fmt: skip
DROPPED_NAMES = """
    left right middle big Big bigg Bigg bigl bigr Bigl Bigr biggl biggr Biggl Biggr displaystyle
    textstyle scriptstyle limits nolimits rm bf it sf tt noindent centering boldmath Large large
    normalsize mathstrut
"""
SPACE_NAMES = "quad qquad thinspace enspace medspace thickspace space newline hfill"
DROPPED = frozenset(DROPPED_NAMES.split())
SPACES = frozenset(SPACE_NAMES.split())
COMMAND = re.compile(r"\\\\|\\([A-Za-z]+)(\.?)|\\([^A-Za-z])|\$")


def layout(text: str) -> str:
    """LaTeX without what only moves ink: delimiters' sizes, spacing, dollar signs; one name per
    command."""

    def spelling(match: re.Match) -> str:
        name, dot, mark = match.groups()
        if match[0] == "\\\\":
            return match[0]
        if name is None:
            if mark in (None, "!", "$", "(", ")", "[", "]"):
                return ""  # \! and \$ join what stands around them; the others delimit
            return " " if mark in ",;:> \n\t/" else match[0]
        if name in ("left", "right", "middle"):
            return ""  # with the empty delimiter \left.
        if name in DROPPED or name in SPACES:
            return " " + dot
        return ALIASES[name] + " " + dot if name in ALIASES else match[0]

    text = re.sub(r"\\!\s+", "", text)
    text = COMMAND.sub(spelling, text).replace("~", " ")
    text = re.sub(
        r"\\(?:[hv]space|phantom)\*?\{[^{}]*\}|\{\s*,\s*\}",
        lambda m: "," if "," in m[0] else " ",
        text,
    )
    return text


OPERATORS = (
    (re.compile(r"\*\*(?=[\s\d({a-z-])"), "^"),
    (re.compile(r"<=|=<"), r" \\le "),
    (re.compile(r">=|=>"), r" \\ge "),
    (re.compile(r"(?<![\d)])!="), r" \\ne "),
    (re.compile(r"=="), "="),
    (re.compile(r"\^\s*(?:\{\s*\\circ\s*\}|\\circ\b)|\\degree\b"), r"\\degree "),
    (re.compile(r"\^\s*\{?\s*\\prime\s*\}?"), "'"),
    (re.compile(r"\+\s*\\infty"), r"\\infty"),
    (re.compile(r"\\mathbb\s*([A-Z])\b"), r"\\mathbb{\1}"),
    (re.compile(r"\\\*"), "*"),
    (re.compile(r"\{\s*\}"), ""),
    # a space lost between a function and its argument: \cotx
    (
        re.compile(r"\\((?:arc)?(?:sin|cos|tan)|cot|sec|csc|ln|log)([a-gi-zA-Z])(?![A-Za-z])"),
        r"\\\1 \2",
    ),
)


def operators(text: str) -> str:
    """Programmers' and typists' operators as the LaTeX ones; one sign for degrees."""
    for pattern, replacement in OPERATORS:
        text = pattern.sub(replacement, text)
    return text


TEXT_COMMAND = re.compile(
    r"\\(?:text(?:bf|it|rm|normal|sf|tt|up|sl)?|mbox|hbox|mathrm|mathbf|mathit|mathsf|mathtt|boldsymbol|bm|emph"
    r"|operatorname\*?|underline|pmb|mathop|rm)\s*\{([^{}]*)\}"
)
AND = re.compile(r"[,;\s]*\b(?:and|und|et|y)\b[\s,]*|[和与及]", re.IGNORECASE)
OR = re.compile(r"[,;\s]*\bor\b[\s,]*|[或]", re.IGNORECASE)
FUNCTION_NAME = re.compile(
    r"(?:arc)?(?:sin|cos|tan|cot|sec|csc)h?|ln|log|lg|exp|max|min|gcd|lcm|sgn|det|deg|arg"
)


def words(text: str) -> str:
    """`\\text{…}` and its kin: connectives become separators (`;` for and, `\\or` for or), a
    formula in it comes out, words stay as `\\text{…}`."""

    def spelling(match: re.Match) -> str:
        content = match[1]
        bare = content.replace("~", " ").strip()
        before = text[: match.start()].rstrip()[-1:]
        if AND.fullmatch(content):
            return " ; "
        if OR.fullmatch(content):
            return r" \or "
        if FUNCTION_NAME.fullmatch(bare) and not (bare == "min" and before.isdigit()):
            return "\\" + bare + " "
        follows_value = before.isdigit() or before in ("}", ")")
        follows_unit = re.search(r"\}\s*/\s*$", text[: match.start()])
        is_unit = len(bare) == 1 and bare.isalpha() and (follows_value or follows_unit)
        if re.fullmatch(r"[ap]\.?\s?m\.?", bare, re.IGNORECASE):
            return r"\text{" + bare.replace(".", "").replace(" ", "").lower() + "}"
        if bare in ("e", "i", "d") or (not re.search(r"[^\W\d_]{2}", bare) and not is_unit):
            return bare
        return r"\text{" + re.sub(r"\s+", " ", bare) + "}"

    for _ in range(3):  # \textbf{\text{…}}
        once = TEXT_COMMAND.sub(spelling, text)
        if once == text:
            break
        text = once
    text = re.sub(r"(?<![\\\w])(?:and|AND)(?!\w)|[和与及]", " ; ", text)
    text = re.sub(r"(?<![\\\w])(?:or|OR)(?!\w)|或", r" \\or ", text)
    text = re.sub(r"(\\text\{[^{}]*)\}\s*/\s*\\text\{", r"\1/", text)  # km/h
    return re.sub(r",\s*(;|\\or\b)", r" \1", text)


EXPLICIT_THOUSANDS = re.compile(r"(?<=\d),(?=\d{3}(?!\d))")


def thousands(text: str) -> str:
    """`12{,}345` and `12,\\!345` as 12345; these marks leave no doubt, unlike the comma of
    `12,345`."""
    text = re.sub(r"(?<=\d)\s*(?:\{\s*,\s*\}\s*|,\s*\\!\s*|\\!\s*,\s*)(?=\d{3}(?!\d))", "", text)
    return re.sub(
        r"(?<=\d)(?:\\,|\\ |\\;|~|\N{NO-BREAK SPACE}|\N{NARROW NO-BREAK SPACE})(?=\d{3}(?!\d))",
        "",
        text,
    )


PLAIN_THOUSANDS = re.compile(r"(?<![\d.,])\d{1,3}(?:,\d{3})+(?![\d,])")


def thousands_outside_brackets(text: str) -> str:
    """`12,345` as 12345, but not the comma of a pair, an interval or a set such as `(12,345)`."""
    if "," not in text:
        return text
    depth_at, depth = [], 0
    for character in text:
        depth += character in "(["
        depth_at.append(depth)
        depth -= character in ")]"
    is_set = re.fullmatch(r"\s*\\?\{.*\}\s*", text, re.DOTALL)

    def joined(match: re.Match) -> str:
        bracketed = depth_at[match.start()] > 0 or is_set
        return match[0] if bracketed else match[0].replace(",", "")

    return PLAIN_THOUSANDS.sub(joined, text)


def trimmed(text: str) -> str:
    """Without surrounding space, emphasis, and closing punctuation."""
    text = re.sub(r"\s+", " ", text).strip()
    while True:
        shorter = text.rstrip(" .,;:" if not text.endswith("\\,") else " ").strip()
        if shorter.endswith("\\") and not shorter.endswith("\\\\"):
            shorter = shorter[:-1]  # a backslash that escapes nothing
        if len(shorter) > 2 and shorter[:2] == shorter[-2:] == "**":
            shorter = shorter[2:-2]
        if shorter == text:
            return text
        text = shorter


@functools.lru_cache(maxsize=4096)
def canonical(text: str) -> str:
    """The one spelling in which answers are compared and read."""
    text = thousands(trimmed(characters(text)))
    return trimmed(words(operators(layout(text))))


def squeezed(text: str) -> str:
    """A canonical text without spaces, except where two letters or digits would run together."""
    return re.sub(r"(?<![A-Za-z0-9])\s+|\s+(?![A-Za-z0-9])", "", text)


def in_words(text: str) -> str | None:
    """A canonical text that is words only, in lower case; None if there is anything else in it.

    Capitals of short runs are kept: `AB` may be a segment, and `ab` a product."""
    text = re.sub(r"\\text\{([^{}]*)\}", r" \1 ", text)
    text = text[1:-1] if text[:1] == "{" and text[-1:] == "}" else text
    text = re.sub(r"[\s.,!?\"'`*_-]+", " ", text).strip()
    if not text.replace(" ", "").isalpha():
        return None
    return " ".join(w.casefold() if len(w) > 3 or w[1:].islower() else w for w in text.split())
