"""The words of the formula language: a canonical text as a list of tokens, within limits."""

import re

MAX_CHARS = 4096  # of one answer
MAX_TOKENS = 4000


class Unreadable(ValueError):
    """The text is not a formula of the grammar, or exceeds its limits."""


FUNCTION_NAMES = """
    sin cos tan cot sec csc arcsin arccos arctan arccot sinh cosh tanh coth arcsinh arccosh arctanh
    exp abs ln lg log sqrt cbrt
"""
GREEK_NAMES = """
    alpha beta gamma delta epsilon zeta eta theta iota kappa lambda mu nu xi rho sigma tau upsilon
    phi chi psi omega Gamma Delta Theta Lambda Xi Pi Sigma Upsilon Phi Psi Omega
    ell hbar imath jmath vartheta
"""
DECORATION_NAMES = "bar hat vec overline tilde dot ddot widetilde mathcal overarc"
FIGURE_NAMES = "angle triangle square odot"
FUNCTIONS = frozenset(FUNCTION_NAMES.split())
GREEK = frozenset(GREEK_NAMES.split())
OPAQUE = frozenset({"sum", "prod", "int", "iint", "oint", "lim", "sup", "max", "min", "gcd", "lcm"})
DECORATIONS = frozenset(DECORATION_NAMES.split())
FIGURES = frozenset(FIGURE_NAMES.split())
CONSTANTS = {"pi": "pi", "infty": "inf", "inf": "inf", "infinity": "inf"}
SPELLINGS = {"asin": "arcsin", "acos": "arccos", "atan": "arctan", "tg": "tan", "ctg": "cot"}
SPELLINGS |= {"arctg": "arctan", "Log": "log", "Ln": "ln", "Sqrt": "sqrt", "cosec": "csc"}

PLAIN_NAMES = sorted(FUNCTIONS | SPELLINGS.keys() | CONSTANTS.keys(), key=len, reverse=True)
TOKEN = re.compile(
    r"(?P<space>\s+)"
    r"|(?P<repeating>\d*\.\d*\s*\\(?:overline|bar|dot)\s*(?:\{\s*\d+\s*\}|\d))"
    r"|(?P<number>(?:\d+\.(?:\d+|(?![\d(]))|\.\d+|\d+)(?:(?:E[+-]?|e-?|e\+(?=\d\d))\d{1,3}(?![\w.]))?)"
    r"|(?P<command>\\(?:[A-Za-z]+|[{}|%]))"
    rf"|(?P<name>(?:{'|'.join(PLAIN_NAMES)})(?![a-z]))"
    r"|(?P<letters>[A-Za-z]+)"
    r"|(?P<mark>[-+*/^_()\[\]{}|!'=<>,])"
)


def tokenize(text: str) -> list[str]:
    """Tokens of a canonical text; runs of up to three letters are products of variables, longer
    ones are words."""
    if len(text) > MAX_CHARS:
        raise Unreadable(f"{len(text)} characters")
    tokens, position = [], 0
    while position < len(text):
        match = TOKEN.match(text, position)
        if not match:
            raise Unreadable(f"character {text[position]!r}")
        position = match.end()
        kind = match.lastgroup
        if kind == "letters":
            known = leading_name(match[0])
            if known and len(match[0]) - len(known) <= 2 and match[0] != known:
                position = match.start() + len(known)
                tokens.append("\\" + known)
            elif len(match[0]) > 3:
                raise Unreadable(f"word {match[0]!r}")
            else:
                tokens.extend(match[0])
        elif kind == "name":
            tokens.append("\\" + match[0])
        elif kind != "space":
            tokens.append(match[0])
    if len(tokens) > MAX_TOKENS:
        raise Unreadable(f"{len(tokens)} tokens")
    return tokens


def leading_name(run: str) -> str | None:
    """The function name or constant with which a run of letters such as `sinx` or `pir` opens."""
    return next((name for name in PLAIN_NAMES if run.startswith(name)), None)
