"""Matrices, and the cases of a function or a system."""

import re
from collections.abc import Callable

from jaxmath.verify import answers, brackets, expression

MAX_CELLS = 400
Read = Callable[[str], answers.Answer]

MATRIX = re.compile(
    r"([^&]{0,200}?)(?:[\[(] ?)?\\begin ?\{([bBpvV]?matrix|smallmatrix|array)\}"
    r"(?: ?\{[lcr|\s]*\})?(.*)"
    r"\\end ?\{\2\}(?: ?[\])])?",
    re.DOTALL,
)
CASES = re.compile(
    r"(?:\\\{ ?\\begin ?\{(array|aligned)\}(?: ?\{[lcr|\s]*\})?|\\begin ?\{cases\})(.*)"
    r"\\end ?\{(?:array|aligned|cases)\}",
    re.DOTALL,
)
CONDITION = re.compile(r"^\\text\{(?:if|for|when)\}|^(?:if|for|when)\b|,$")
ROW = re.compile(r"\\\\(?:\s*\[[^\]]*\])?")
CELL = re.compile(r"&")


def read_array(text: str, read: Read) -> answers.Answer | None:
    """The matrix or the cases that a whole text is, or None."""
    cases = CASES.fullmatch(text)
    if cases:
        return read_cases(cases[2], read)
    matrix = MATRIX.fullmatch(text)
    if matrix and matrix[3].count("\\begin") == matrix[3].count("\\end"):
        return read_matrix(matrix[2], matrix[3], matrix[1].strip(), read)
    return None


def rows_of(body: str) -> list[list[str]]:
    """The cells of an array, row by row."""
    lines = [line for line in brackets.split(body, ROW)[0] if line.replace("\\hline", "").strip()]
    return [brackets.split(line, CELL)[0] for line in lines]


def read_matrix(environment: str, body: str, factor: str, read: Read) -> answers.Matrix:
    """A matrix; a number in front multiplies all of it."""
    rows = tuple(tuple(map(read, row)) for row in rows_of(body))
    if not rows or len({len(row) for row in rows}) != 1 or len(rows) * len(rows[0]) > MAX_CELLS:
        raise expression.Unreadable("matrix")
    if factor:
        factor = TIMES_AT_END.sub("", factor)
        node = expression.parse(factor + "1" if factor in ("-", "+") else factor)
        if environment in ("vmatrix", "Vmatrix") or not all(
            isinstance(cell, answers.Value) for row in rows for cell in row
        ):
            raise expression.Unreadable("factor of a matrix")
        rows = tuple(
            tuple(cell._replace(node=("mul", node, cell.node)) for cell in row) for row in rows
        )
    return answers.Matrix(rows, environment in ("vmatrix", "Vmatrix"))


TIMES_AT_END = re.compile(r"(?:\\cdot|\\times|\*) ?$")


def read_cases(body: str, read: Read) -> answers.Answer:
    """Equations that hold together, or the pieces of a function with their conditions."""
    rows = [[CONDITION.sub("", cell.strip()).strip() for cell in row] for row in rows_of(body)]
    rows = [[cell for cell in row if cell] for row in rows]
    if all(len(row) == 1 for row in rows) and rows:
        return read(",".join(row[0] for row in rows))
    pieces = [answers.Tuple(tuple(map(read, row))) for row in rows]
    return answers.Collection(tuple(pieces), is_set=True)
