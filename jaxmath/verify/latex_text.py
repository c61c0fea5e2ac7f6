"""LaTeX as plain text, the way `pylatexenc` writes it: `\\frac{1}{2}` is `1/2`, `\\sqrt{2}` is
`√(2)`, whatever the index of the root; braces and unknown commands go, what they held stays.

For the grader `prime`, which compares answers in that spelling. Nothing is put in brackets that
needs them: `\\frac{1+x}{2}` is `1+x/2` there and here.
"""

import re

from jaxmath.verify import expression

MAX_DEPTH = 40

TOKEN = re.compile(r"\\[A-Za-z]+\s*|\\.|[{}]|%[^\n]*\n?|[^\\{}%]+|\\", re.DOTALL)
SYMBOLS = {
    "cdot": "·", "times": "×", "pi": "π", "infty": "∞", "cup": "∪", "cap": "∩", "le": "≤",
    "leq": "≤", "ge": "≥", "geq": "≥", "ne": "≠", "neq": "≠", "in": "∈", "pm": "±", "mp": "∓",
    "alpha": "α", "beta": "β", "gamma": "γ", "delta": "δ", "epsilon": "ϵ", "zeta": "ζ", "eta": "η",
    "theta": "θ", "lambda": "λ", "mu": "μ", "nu": "ν", "xi": "ξ", "rho": "ρ", "sigma": "σ",
    "tau": "τ", "phi": "ϕ", "varphi": "φ", "chi": "χ", "psi": "ψ", "omega": "ω", "circ": "∘",
    "dots": "…", "ldots": "…", "cdots": "⋯", "quad": "  ", "qquad": "    ", "angle": "∠",
    "emptyset": "∅", "to": "→", "rightarrow": "→", "lfloor": "⌊", "rfloor": "⌋", "lceil": "⌈",
    "rceil": "⌉", "div": "÷", "ast": "∗", "star": "⋆", "prime": "'", "mid": "|", "approx": "≈",
    "sim": "∼", "equiv": "≡", "perp": "⊥", "parallel": "∥", "langle": "⟨", "rangle": "⟩",
    "sin": "sin", "cos": "cos", "tan": "tan", "cot": "cot", "sec": "sec", "csc": "csc",
    "arcsin": "arcsin", "arccos": "arccos", "arctan": "arctan", "sinh": "sinh", "cosh": "cosh",
    "tanh": "tanh", "log": "log", "ln": "ln", "lg": "lg", "exp": "exp", "min": "min",
    "max": "max", "gcd": "gcd", "det": "det", "lim": "lim", "sum": "∑", "prod": "∏", "int": "∫",
    "setminus": "∖", "subset": "⊂", "mathbb": "", "Delta": "Δ", "Omega": "Ω", "Sigma": "Σ",
}  # fmt: skip
MARKS = {
    ",": " ",
    ";": " ",
    ":": " ",
    " ": " ",
    "!": "",
    "\\": "\n",
    "(": "",
    ")": "",
    "[": "",
    "]": "",
}
DROPPED_WITH_CONTENT = ("mbox", "hspace", "vspace", "phantom", "label")


def plain(text: str) -> str:
    """The text without its LaTeX.

    Raises:
      expression.Unreadable: it is nested too deep.
    """
    return Converter(TOKEN.findall(text)).run().replace("$", "")


class Converter:
    def __init__(self, tokens: list[str]):
        self.tokens = tokens
        self.position = 0
        self.depth = 0

    def run(self) -> str:
        """Everything up to a closing brace or the end."""
        self.depth += 1
        if self.depth > MAX_DEPTH:
            raise expression.Unreadable("nested too deep")
        parts = []
        while self.position < len(self.tokens) and self.tokens[self.position] != "}":
            parts.append(self.next())
        self.depth -= 1
        return "".join(parts)

    def next(self) -> str:
        token = self.tokens[self.position]
        self.position += 1
        if token == "{":
            inside = self.run()
            self.position += 1
            return inside
        if token[0] == "\\" and len(token) > 1:
            return self.command(token[1:])
        return "" if token[0] in "%\\" else token

    def command(self, name: str) -> str:
        bare = name.strip()
        if bare in ("left", "right"):
            return ""
        if bare == "frac":
            return f"{self.argument()}/{self.argument()}"
        if bare == "sqrt":
            self.index()
            return f"√({self.argument()})"
        if bare in DROPPED_WITH_CONTENT:
            self.argument()
            return ""
        if bare == "begin":
            self.argument()
            return self.matrix()
        if bare == "end":
            self.argument()
            return ""
        if bare == "mathbb":
            return self.argument().replace("R", "ℝ").replace("Z", "ℤ").replace("N", "ℕ")
        if not bare.isalpha():
            return MARKS.get(name, name)
        return SYMBOLS.get(bare, "")

    def matrix(self) -> str:
        """The rows of an environment up to its end, in square brackets; cells as wide as the
        widest."""
        rows = [[""]]
        while self.position < len(self.tokens) and not self.tokens[self.position].startswith(
            "\\end"
        ):
            if self.tokens[self.position] == "\\\\":
                self.position += 1
                rows.append([""])
                continue
            first, *cells = self.next().split("&")
            rows[-1][-1] += first
            rows[-1] += cells
        cells = [[cell.strip() for cell in row] for row in rows]
        width = max(len(cell) for row in cells for cell in row)
        return "[ " + "; ".join(" ".join(cell.rjust(width) for cell in row) for row in cells) + " ]"

    def index(self) -> None:
        """Steps over `[…]`."""
        if self.position < len(self.tokens) and self.tokens[self.position].startswith("["):
            rest = "".join(self.tokens[self.position :])
            closing = rest.find("]")
            if closing >= 0:
                self.tokens = TOKEN.findall(rest[closing + 1 :])
                self.position = 0

    def argument(self) -> str:
        """A group, a command, or one character."""
        if self.position >= len(self.tokens):
            return ""
        token = self.tokens[self.position]
        if token[0] in "{\\":
            return self.next()
        if token == "}":
            return ""
        token = token.lstrip()
        if not token:
            self.position += 1
            return self.argument()
        self.tokens[self.position] = token[1:]
        if not token[1:]:
            self.position += 1
        return token[0]
