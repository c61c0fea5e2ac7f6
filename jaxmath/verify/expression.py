"""A formula as a tree, read by a small recursive-descent parser; nothing is ever evaluated as code.

The grammar knows numbers, letters, the arithmetic operators, roots, powers, factorials, binomials,
absolute values, floor and ceiling, the elementary functions and named constants, in LaTeX or typed
plainly. A sum, an integral, a limit or
`f(x)` becomes one opaque symbol named by its canonical form: equal only to itself. What the grammar
does not know is
`Unreadable`, and is then compared as text.

A tree is nested tuples `(operator, *arguments)`:
    ("num", Fraction)  ("sym", name)  ("const", "pi" | "e" | "i" | "inf")
    ("add", a, b, …)  ("mul", a, b, …)  ("neg", a)  ("div", a, b)  ("pow", a, b)
    ("root", a, n)  ("fact", a)  ("deg", a)  ("call", function, a)  ("log", a, base)
    ("binom", n, k)
"""

import functools
import re
from collections.abc import Callable
from fractions import Fraction

from jaxmath.verify import tokens

Node = tuple
Unreadable = tokens.Unreadable

MAX_DEPTH = 40
MAX_DIGITS = 1000  # of one number
TIMES = frozenset({"*", "\\cdot", "\\times"})
OPAQUE_CALLS = frozenset("fghFGH")
CLOSERS = {"(": ")", "[": "]", "{": "}", "\\{": "\\}", "|": "|"}
CLOSERS |= {"\\lfloor": "\\rfloor", "\\lceil": "\\rceil"}


@functools.lru_cache(maxsize=4096)
def parse(text: str) -> Node:
    """The tree of a canonical text.

    Raises:
      Unreadable: if it is not a formula of the grammar.
    """
    parser = Parser(tokens.tokenize(text))
    node = parser.sum()
    if parser.position < len(parser.tokens):
        raise Unreadable(f"unexpected {parser.tokens[parser.position]!r}")
    return node


class Parser:
    """Recursive descent over tokens; `position` only moves forward."""

    def __init__(self, words: list[str]):
        self.tokens = words
        self.position = 0
        self.depth = 0
        self.bars = 0

    def peek(self, offset: int = 0) -> str:
        index = self.position + offset
        return self.tokens[index] if index < len(self.tokens) else ""

    def take(self) -> str:
        token = self.peek()
        if not token:
            raise Unreadable("unexpected end")
        self.position += 1
        return token

    def expect(self, token: str) -> None:
        if self.take() != token:
            raise Unreadable(f"expected {token!r}")

    def nested(self, reader: Callable[..., Node], *arguments) -> Node:
        """What `reader` reads one level further in."""
        self.depth += 1
        if self.depth > MAX_DEPTH:
            raise Unreadable("nested too deep")
        node = reader(*arguments)
        self.depth -= 1
        return node

    def sum(self) -> Node:
        terms = [self.signed_product()]
        while self.peek() in ("+", "-"):
            terms.append(self.signed_product())
        return terms[0] if len(terms) == 1 else ("add", *terms)

    def signed_product(self) -> Node:
        negative = False
        while self.peek() in ("+", "-"):
            negative ^= self.take() == "-"
        product = self.product()
        return ("neg", product) if negative else product

    def product(self, inside_function: bool = False) -> Node:
        factors, divisions = [self.power()], 0
        while True:
            token = self.peek()
            if token in TIMES and not inside_function:
                self.take()
                factors.append(self.signed_power())
            elif token == "/" and not inside_function:
                self.take()
                divisions += 1
                if divisions > MAX_DEPTH:
                    raise Unreadable("divided too often")
                numerator = factors[0] if len(factors) == 1 else ("mul", *factors)
                factors = [("div", numerator, self.signed_power())]
            elif self.continues_product(token, factors[-1], inside_function):
                factors.append(self.power())
            else:
                return factors[0] if len(factors) == 1 else ("mul", *factors)

    def signed_power(self) -> Node:
        if self.peek() in ("+", "-"):
            sign = self.take()
            node = self.nested(self.signed_power)
            return ("neg", node) if sign == "-" else node
        return self.power()

    def continues_product(self, token: str, before: Node, inside_function: bool) -> bool:
        """Whether a token is a further factor; of a function's bare argument, no function is."""
        if token[:1].isdigit():
            last = self.tokens[self.position - 1]
            return last in (")", "!") or (
                last == "}" and before[0] in ("div", "pow", "root", "binom")
            )
        return self.starts_factor(token) and not (inside_function and self.is_function(token))

    def starts_factor(self, token: str) -> bool:
        """Whether a token may follow a factor without a multiplication sign; a number may not."""
        if not token or token[0].isdigit() or token[0] == ".":
            return False
        if token == "|":
            return not self.bars
        if token.startswith("\\"):
            name = token[1:]
            return name in ("frac", "binom", "lfloor", "lceil", "{") or self.is_named(name)
        return token.isalpha() or token in ("(", "[", "{")

    def is_named(self, name: str) -> bool:
        return (
            name in tokens.FUNCTIONS
            or name in tokens.SPELLINGS
            or name in tokens.CONSTANTS
            or name in tokens.GREEK
            or name in tokens.OPAQUE
            or name in tokens.DECORATIONS
            or name in tokens.FIGURES
        )

    def is_function(self, token: str) -> bool:
        return (
            token[:1] == "\\"
            and (token[1:] in tokens.FUNCTIONS or token[1:] in tokens.SPELLINGS)
            and token not in ("\\sqrt", "\\cbrt")
        )

    def power(self) -> Node:
        base = self.postfix(self.atom())
        if self.peek() != "^":
            return base
        self.take()
        node = ("pow", base, self.exponent())
        return self.postfix(node)

    def exponent(self) -> Node:
        if self.peek() in ("+", "-"):
            sign = self.take()
            node = self.nested(self.exponent)
            return ("neg", node) if sign == "-" else node
        base = self.atom()
        if self.peek() != "^":
            return base
        self.take()
        return ("pow", base, self.nested(self.exponent))

    def postfix(self, node: Node) -> Node:
        for _ in range(MAX_DEPTH):
            token = self.peek()
            if token == "!":
                self.take()
                if self.peek() == "!":
                    raise Unreadable("double factorial")
                node = ("fact", node)
            elif token == "\\degree":
                self.take()
                node = ("deg", node)
            elif token == "\\%":
                self.take()
                node = ("div", node, ("num", Fraction(100)))
            else:
                return node
        raise Unreadable("too many signs after a value")

    def atom(self) -> Node:
        token = self.take()
        if token[0].isdigit() or (token[0] == "." and len(token) > 1):
            return self.number(token)
        if token in ("(", "[", "{", "\\{", "|", "\\lfloor", "\\lceil"):
            return self.bracketed(token)
        if token == "\\frac":
            return ("div", self.argument(), self.argument())
        if token == "\\binom":
            return ("binom", self.argument(), self.argument())
        if token.startswith("\\"):
            return self.named(token[1:])
        if token.isalpha():
            return self.symbol(token)
        raise Unreadable(f"unexpected {token!r}")

    def number(self, token: str) -> Node:
        if len(token) > MAX_DIGITS:
            raise Unreadable("number too long")
        value = (
            repeating(token)
            if "\\" in token
            else Fraction(token.rstrip(".") if token[-1] == "." else token)
        )
        if self.peek() == "_":
            raise Unreadable("number with an index")
        if self.peek() == "\\frac" and value.denominator == 1 and token.isdigit():
            start, unread = self.position, list(self.tokens)
            self.take()
            numerator, denominator = self.argument(), self.argument()
            if numerator[0] == denominator[0] == "num" and denominator[1]:
                return ("num", value + numerator[1] / denominator[1])  # a mixed number
            self.position, self.tokens = start, unread
        return ("num", value)

    def bracketed(self, opener: str) -> Node:
        self.bars += opener == "|"
        node = self.nested(self.sum)
        self.expect(CLOSERS[opener])
        self.bars -= opener == "|"
        if opener == "|":
            return ("call", "abs", node)
        if opener in ("\\lfloor", "\\lceil"):
            return ("call", opener[2:], node)
        return node

    def argument(self) -> Node:
        """What LaTeX gives a command: a group, or one character or command."""
        token = self.peek()
        if token[:1].isdigit() and "\\" not in token:
            if len(token) > 1:
                self.tokens[self.position] = token[1:]
            else:
                self.take()
            return ("num", Fraction(int(token[0])))
        return self.nested(self.atom)

    def named(self, name: str) -> Node:
        name = tokens.SPELLINGS.get(name, name)
        if name in tokens.CONSTANTS:
            return ("const", tokens.CONSTANTS[name])
        if name in tokens.GREEK:
            return self.symbol("\\" + name)
        if name in ("sqrt", "cbrt"):
            return self.root(name)
        if name in tokens.OPAQUE:
            return self.opaque(name)
        if name in tokens.FUNCTIONS:
            return self.function(name)
        if name in tokens.DECORATIONS:
            return self.decorated(name)
        if name in tokens.FIGURES:
            return ("sym", f"\\{name} " + self.corners())
        raise Unreadable(f"command \\{name}")

    def decorated(self, name: str) -> Node:
        """A letter, or the ends of a segment, with a bar or an arrow over it."""
        start = self.position
        node = self.argument()
        letters = "".join(token for token in self.tokens[start : self.position] if token.isalpha())
        if not (letters.isupper() and len(letters) > 1):
            return self.symbol(f"\\{name}{{{canon(node)}}}")
        return node if name == "overline" else ("sym", f"\\{name} {letters}")

    def corners(self) -> str:
        """The capital letters of an angle or a triangle, or the number of an angle."""
        letters = []
        while self.peek().isalpha() and self.peek().isupper() and len(letters) < 4:
            letters.append(self.take())
        if not letters:
            return canon(self.atom())
        return "".join(letters)

    def root(self, name: str) -> Node:
        index = ("num", Fraction(3 if name == "cbrt" else 2))
        if self.peek() == "[" and name == "sqrt" and self.has_radicand_after_bracket():
            index = self.bracketed(self.take())
        return ("root", self.nested(self.atom), index)

    def has_radicand_after_bracket(self) -> bool:
        """Whether `[…]` after a root is its index: something that can be a radicand follows."""
        closing = self.position
        while closing < len(self.tokens) and self.tokens[closing] != "]":
            closing += 1
        follower = self.tokens[closing + 1] if closing + 1 < len(self.tokens) else ""
        return bool(follower) and (follower[0].isdigit() or self.starts_factor(follower))

    def function(self, name: str) -> Node:
        exponent = base = None
        while self.peek() in ("^", "_"):
            if self.take() == "^":
                exponent = self.exponent()
            else:
                base = self.argument_of_index()
        if self.peek() in ("(", "[", "{"):
            node = self.bracketed(self.take())
        else:
            node = self.nested(self.product, True)
        if exponent == ("neg", ("num", Fraction(1))) and "arc" + name in tokens.FUNCTIONS:
            name, exponent = "arc" + name, None
        if name in ("log", "ln", "lg"):
            default = ("const", "e") if name == "ln" else ("num", Fraction(10))
            node = ("log", node, base or default)
        elif base is not None:
            raise Unreadable(f"index on {name}")
        else:
            node = ("call", name, node)
        return node if exponent is None else ("pow", node, exponent)

    def argument_of_index(self) -> Node:
        """The base of a logarithm: a group, or a whole number or letter."""
        return self.atom() if self.peek()[:1].isdigit() else self.argument()

    def symbol(self, name: str) -> Node:
        if name in ("e", "i") and self.peek() != "_":
            return ("const", name)
        while self.peek() in ("_", "'"):
            name += self.take()
            if name[-1] == "_":
                name += self.index()
        if name[0] in OPAQUE_CALLS and self.peek() == "(":
            name += "(" + canon(self.bracketed(self.take())) + ")"
        return ("sym", name)

    def index(self) -> str:
        """The tokens of an index or of a sum's limits, joined."""
        token = self.take()
        if token != "{":
            return token
        level, inside = 1, []
        while level:
            token = self.take()
            level += (token == "{") - (token == "}")
            inside.append(token)
        return "".join(inside[:-1])

    def opaque(self, name: str) -> Node:
        limits = {"_": "", "^": ""}
        while self.peek() in ("_", "^"):
            which = self.take()
            limits[which] = self.index()
        body = canon(self.nested(self.product))
        return ("sym", f"\\{name}_{limits['_']}^{limits['^']}({body})")


def repeating(token: str) -> Fraction:
    """The value of a decimal such as `2.1\\overline{36}`."""
    whole, cycle = re.fullmatch(r"(\d*\.\d*)\s*\\[a-z]+\s*\{?\s*(\d+)\s*\}?", token).groups()
    places = len(whole.split(".")[1])
    start = Fraction(whole + "0") if whole[-1] == "." else Fraction(whole)
    return start + Fraction(int(cycle), (10 ** len(cycle) - 1) * 10**places)


def canon(node: Node) -> str:
    """One string per tree, the same whatever the order of terms and factors."""
    operator, *arguments = node
    if operator in ("add", "mul"):
        return operator + "(" + ",".join(sorted(canon(a) for a in arguments)) + ")"
    parts = [canon(a) if isinstance(a, tuple) else str(a) for a in arguments]
    return operator + "(" + ",".join(parts) + ")"


def renamed(node: Node, old: str, new: str) -> Node:
    """The tree with another name for a variable."""
    if node == ("sym", old):
        return ("sym", new)
    return tuple(renamed(part, old, new) if isinstance(part, tuple) else part for part in node)


def symbols(node: Node) -> frozenset[str]:
    """Names of the variables in a tree."""
    if node[0] == "sym":
        return frozenset({node[1]})
    return frozenset().union(*(symbols(a) for a in node[1:] if isinstance(a, tuple)))
