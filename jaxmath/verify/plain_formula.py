"""A formula in the syntax of programmers, `2*x**2 + sqrt(3)`, into an `expression` tree.

For the graders that reproduce published numbers: they hand such text to sympy, whose reader
evaluates it as a program. Here it is only parsed, within limits. `implicit` adds what sympy calls
implicit multiplication: `2x`, `2(3)`, and a name of several letters is their product.
"""

import re
import unicodedata
from fractions import Fraction

from jaxmath.verify import expression

Node = expression.Node

MAX_CHARS = 2000
MAX_DEPTH = 40
MAX_EXPONENT_DIGITS = 4

TOKEN = re.compile(
    r"\s*(?:(?P<number>(?:\d+\.\d*|\.\d+|\d+)(?:[eE][+-]?\d+)?)|(?P<name>[^\W\d]\w*)"
    r"|(?P<mark>\*\*|[-+*/()!,]))"
)
CONSTANTS = {
    "pi": ("const", "pi"),
    "E": ("const", "e"),
    "I": ("const", "i"),
    "oo": ("const", "inf"),
}
CALLS = {
    "sin": "sin", "cos": "cos", "tan": "tan", "cot": "cot", "sec": "sec", "csc": "csc",
    "sinh": "sinh", "cosh": "cosh", "tanh": "tanh", "asin": "arcsin", "acos": "arccos",
    "atan": "arctan", "exp": "exp", "abs": "abs", "Abs": "abs", "floor": "floor",
    "ceiling": "ceil",
}  # fmt: skip
FUNCTIONS = {*CALLS, "sqrt", "cbrt", "log", "ln", "factorial", "binomial"}
UNDEFINED = {"N", "O", "Q", "S", "and", "or", "not", "in", "is", "if", "else", "for", "lambda"}


def read(text: str, *, implicit: bool = False) -> Node:
    """The tree of a whole text.

    Raises:
      expression.Unreadable.
    """
    reader = Reader(words_of(text), implicit)
    try:
        node = reader.sum()
    except RecursionError as error:
        raise expression.Unreadable("nested too deep") from error
    if reader.position < len(reader.words):
        raise expression.Unreadable(f"unexpected {reader.peek()!r}")
    return node


def read_or_list(text: str) -> Node | bool:
    """The tree of a text; True for a list with commas, which is no formula but readable.

    Raises:
      expression.Unreadable.
    """
    if "," not in text:
        return read(text)
    try:
        return read(text)  # the comma may be that of a function
    except expression.Unreadable:
        for item in text.strip(" ()[]{}").split(","):
            read(item)
        return True


def words_of(text: str) -> list[tuple[str, str]]:
    """(word, kind) of a text without its last spaces."""
    text = text.strip()
    if len(text) > MAX_CHARS:
        raise expression.Unreadable("too long")
    words, place = [], 0
    while place < len(text):
        token = TOKEN.match(text, place)
        if not token:
            raise expression.Unreadable(f"unexpected {text[place]!r}")
        words.append((token[token.lastgroup], token.lastgroup))
        place = token.end()
    return words


class Reader:
    """Recursive descent; `position` only moves forward."""

    def __init__(self, words: list[tuple[str, str]], implicit: bool):
        self.words, self.implicit = words, implicit
        self.position = 0
        self.depth = 0

    def peek(self) -> str:
        return self.words[self.position][0] if self.position < len(self.words) else ""

    def kind(self) -> str:
        return self.words[self.position][1] if self.position < len(self.words) else ""

    def take(self) -> str:
        word = self.peek()
        self.position += 1
        return word

    def expect(self, word: str) -> None:
        if self.take() != word:
            raise expression.Unreadable(f"expected {word!r}")

    def sum(self) -> Node:
        self.depth += 1
        if self.depth > MAX_DEPTH:
            raise expression.Unreadable("nested too deep")
        terms = [self.product()]
        while self.peek() in ("+", "-"):
            sign = self.take()
            term = self.product()
            terms.append(("neg", term) if sign == "-" else term)
        self.depth -= 1
        return terms[0] if len(terms) == 1 else ("add", *terms)

    def product(self) -> Node:
        node = self.signed()
        while True:
            if self.peek() in ("*", "/"):
                operator = "mul" if self.take() == "*" else "div"
                node = (operator, node, self.signed())
            elif self.implicit and (self.kind() in ("number", "name") or self.peek() == "("):
                node = ("mul", node, self.power())
            else:
                return node

    def signed(self) -> Node:
        negative = False
        while self.peek() in ("+", "-"):
            negative ^= self.take() == "-"
        node = self.power()
        return ("neg", node) if negative else node

    def power(self) -> Node:
        base = self.atom()
        while self.peek() == "!":
            self.take()
            base = ("fact", base)
        if self.peek() != "**":
            return base
        self.take()
        self.depth += 1
        if self.depth > MAX_DEPTH:
            raise expression.Unreadable("nested too deep")
        exponent = self.signed()
        self.depth -= 1
        return ("pow", base, exponent)

    def atom(self) -> Node:
        kind, word = self.kind(), self.take()
        if kind == "number":
            return self.number(word)
        if word == "(":
            node = self.sum()
            self.expect(")")
            return node
        if kind != "name" or word in UNDEFINED:
            raise expression.Unreadable(f"unexpected {word!r}")
        if word in FUNCTIONS:
            return self.call(word)
        if word in CONSTANTS:
            return CONSTANTS[word]
        if self.implicit:
            return product_of_letters(word)
        if self.peek() == "(":
            arguments = ",".join(expression.canon(node) for node in self.arguments())
            return ("sym", f"{word}({arguments})")
        return ("sym", word)

    def number(self, word: str) -> Node:
        mantissa, _, exponent = word.lower().partition("e")
        too_long = len(mantissa) > expression.MAX_DIGITS
        if too_long or len(exponent.lstrip("+-")) > MAX_EXPONENT_DIGITS:
            raise expression.Unreadable("number too long")
        if word.isdigit() and len(word) > 1 and word[0] == "0" and word.strip("0"):
            raise expression.Unreadable("leading zero")
        return ("num", Fraction(f"{mantissa.rstrip('.')}e{exponent or 0}"))

    def arguments(self) -> list[Node]:
        self.expect("(")
        nodes = [self.sum()]
        while self.peek() == ",":
            self.take()
            nodes.append(self.sum())
        self.expect(")")
        return nodes

    def call(self, name: str) -> Node:
        if self.peek() == "(":
            arguments = self.arguments()
        elif self.implicit and self.kind() in ("number", "name"):
            arguments = [self.power()]
        else:
            raise expression.Unreadable(f"function {name} without its argument")
        if name in ("log", "ln") and len(arguments) < 3:
            return ("log", arguments[0], arguments[1] if arguments[1:] else ("const", "e"))
        if name == "binomial" and len(arguments) == 2:
            return ("binom", *arguments)
        if len(arguments) != 1:
            raise expression.Unreadable(f"{len(arguments)} arguments of {name}")
        if name in ("sqrt", "cbrt"):
            return ("root", arguments[0], ("num", Fraction(2 if name == "sqrt" else 3)))
        if name == "factorial":
            return ("fact", arguments[0])
        return ("call", CALLS[name], arguments[0])


def product_of_letters(word: str) -> Node:
    """`xy` as x·y and `x2` as x·2; a name with an index or of a Greek letter stays whole."""
    if "_" in word or len(word) == 1 or is_greek(word):
        return ("sym", word)
    factors = []
    for part in re.findall(r"\d+|.", word):
        factors.append(("num", Fraction(part)) if part.isdigit() else ("sym", part))
    return ("mul", *factors)


def is_greek(word: str) -> bool:
    try:
        return bool(unicodedata.lookup("GREEK SMALL LETTER " + word.upper()))
    except KeyError:
        return False
