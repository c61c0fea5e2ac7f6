"""The words of LaTeX as sympy's reader cuts them, and a place among them that can be gone back to.

A word is a letter, a digit, a command, a mark, or a `d` with the variable after it.
"""

import re
from collections.abc import Callable

from jaxmath.verify import expression

Node = expression.Node

MAX_CHARS = 4000
MAX_DEPTH = 40
MAX_STEPS = 20_000  # words looked at, the ways back included

SKIPPED = re.compile(
    r"(?:[ \t\r\n]+|\\(?:thinspace|medspace|thickspace|quad|qquad|negthinspace|negmedspace"
    r"|negthickspace|left|right|vrule|vcenter|vbox|vskip|vspace|hfil)(?![A-Za-z])|\\[,:;!*\-./\"(=])+"
)
TOKEN = re.compile(
    r"(?P<differential>d[ \t\r\n]*(?:[A-Za-z]|\\[A-Za-z]+))|(?P<letter>[A-Za-z])|(?P<digit>[0-9])"
    r"|(?P<command>\\[A-Za-z]+)|(?P<quotes>'+)|&?=|\\[{}]|[-+*/(){}\[\]|_^:!<>,.]"
)
RELATIONS = {
    "=": "=", "&=": "=", "<": "<", ">": ">", "\\neq": "!=",
    "\\le": "<=", "\\leq": "<=", "\\leqq": "<=", "\\leqslant": "<=",
    "\\ge": ">=", "\\geq": ">=", "\\geqq": ">=", "\\geqslant": ">=",
}  # fmt: skip
TIMES = ("*", "\\times", "\\cdot")
OVER = ("/", "\\div", ":")
CLOSERS = {"(": ")", "[": "]", "{": "}", "\\{": "\\}"}
FRACTIONS = ("\\frac", "\\dfrac", "\\tfrac")
BINOMIALS = ("\\binom", "\\dbinom", "\\tbinom")
ARC = {"\\arsinh": "arcsinh", "\\arcosh": "arccosh", "\\artanh": "arctanh"}
CALL_NAMES = """
    sin cos tan csc sec cot arcsin arccos arctan arccot sinh cosh tanh exp
"""
CALLS = {f"\\{name}": name for name in CALL_NAMES.split()} | ARC
LOGARITHMS = ("\\log", "\\ln", "\\lg")
RESERVED = {
    *RELATIONS, *TIMES, *OVER, *FRACTIONS, *BINOMIALS, *CALLS, *LOGARITHMS, "\\sqrt", "\\overline",
    "\\sum", "\\prod", "\\int", "\\lim", "\\to", "\\rightarrow", "\\lfloor", "\\rfloor", "\\lceil",
    "\\rceil", "\\langle", "\\rangle", "\\mathit",
}  # fmt: skip


class Mistake(ValueError):
    """The next word does not fit; a caller may go back to where it was sure."""


class Stuck(expression.Unreadable):
    """A character that no formula has."""


class Words:
    """The words of a text, one after the other; `position` is a place in the text."""

    def __init__(self, text: str):
        self.text = text
        self.position = 0
        self.depth = 0
        self.steps = 0

    def peek(self) -> tuple[str, str, int]:
        """(word, kind, place after it); the word is "" at the end."""
        self.steps += 1
        if self.steps > MAX_STEPS:
            raise Stuck("too long")
        place = self.position
        skipped = SKIPPED.match(self.text, place)
        place = skipped.end() if skipped else place
        if place >= len(self.text):
            return "", "", place
        token = TOKEN.match(self.text, place)
        if not token:
            raise Stuck(f"unexpected {self.text[place]!r}")
        return token[0], token.lastgroup or "", token.end()

    def next_is(self, *words: str) -> bool:
        return self.peek()[0] in words

    def take(self) -> str:
        word, _, self.position = self.peek()
        return word

    def expect(self, word: str) -> None:
        if self.take() != word:
            raise Mistake(f"expected {word!r}")

    def attempt(self, reader: Callable[[], Node]) -> Node | None:
        """What `reader` reads, or None, with nothing read."""
        place, depth = self.position, self.depth
        try:
            return reader()
        except Mistake:
            self.position, self.depth = place, depth
            return None
