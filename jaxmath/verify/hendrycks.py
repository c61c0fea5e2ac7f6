"""String rules of the MATH release (Hendrycks 2021), as far as the graders `prime` and `qwen` share
them. They look at spelling only, and keep every habit of the originals.
"""

import re


def braced_fractions(text: str) -> str:
    """`\\frac12` as `\\frac{1}{2}`, `\\frac1{x}` as `\\frac{1}{x}`; all as it was if one of them is
    cut off.

    Raises:
      IndexError: nothing follows a `\\frac`.
    """
    first, *others = text.split("\\frac")
    parts = [first]
    for other in others:
        if other[0] == "{":
            parts.append(other)
        elif len(other) < 2:
            return text
        elif other[1] == "{":
            parts.append("{" + other[0] + "}" + other[1:])
        else:
            parts.append("{" + other[0] + "}{" + other[1] + "}" + other[2:])
    return "\\frac".join(parts)


def slash_fraction(text: str, *, roots: bool) -> str:
    """`1/2` as `\\frac{1}{2}`; with `roots`, a side that has a square root may be anything."""
    sides = text.split("/")
    if len(sides) != 2:
        return text
    for side in sides:
        if roots and "sqrt" in side:
            continue
        try:
            if str(int(side)) != side:
                return text
        except ValueError:
            return text
    return "\\frac{" + sides[0] + "}{" + sides[1] + "}"


def bare_value(text: str) -> str:
    """A text with a digit before its point, and without a short `k = ` in front."""
    text = "0" + text if text[0] == "." else text
    sides = text.split("=")
    return sides[1] if len(sides) == 2 and len(sides[0]) <= 2 else text


def same_but_for_brackets(pred: str, gold: str) -> bool:
    """Whether two answers are one text once braces and brackets are gone; square ones only where
    the other side has no round ones, and the reverse."""
    square = pred.startswith("[") and pred.endswith("]") and not gold.startswith("(")
    round_ = pred.startswith("(") and pred.endswith(")") and not gold.startswith("[")
    if square or round_:
        pred, gold = pred.strip("[]()"), gold.strip("[]()")
    return re.sub(r"[{}()]", "", pred) == re.sub(r"[{}()]", "", gold)
