"""The grader `prime`: the reward of PRIME's and INTELLECT-MATH's RL code (spec, section 5).

For whoever must reproduce numbers published with that code; our reward is `grade`. Its habits are
kept, the odd ones too: an "answer is" cuts the text before the box is looked for, and what is in
the box is cut again at its last ". ", "is " or "=". Then four rules in turn: Hendrycks' string
rules; PRM800K's (units, millions, mixed numbers, lower case); item by item, where two fractions
must be one text, an integer equals no other form, and the rest may be equal as formulas; and a
tolerant comparison (1e-4, a hundred times more or less, items of lists, π also as 3.14).

Formulas are read by `plain_formula` and `latex_prefix` and never evaluated as programs; the
original runs Python's `eval` on text with `\\pi`, of which only arithmetic is reproduced. A decimal
in an irrational formula is exact here and rounded there: `10\\sqrt{10.5}` and `5\\sqrt{42}`. What
exceeds a time limit counts as wrong there, and is a fault of the pool here.
"""

import contextlib
import functools
import math
import operator
import re
from fractions import Fraction

from jaxmath.verify import (
    expression,
    hendrycks,
    latex_prefix,
    latex_text,
    plain_formula,
    tolerant,
    verdict,
)

Outcome = verdict.Outcome

MAX_CHARS = 4000  # of an answer; a longer one is compared as text only
MAX_ITEMS = 200


def grade_response(gold: str, response: str) -> verdict.Verdict:
    """Grade the answer that a whole response ends on."""
    found, rule = extract(response)
    return judge(gold, found, rule)


def grade_answer(gold: str, pred: str) -> verdict.Verdict:
    """Grade a bare answer."""
    return judge(gold, pred, "answer")


def judge(gold: str, found: str, how: str) -> verdict.Verdict:
    if not gold.strip():
        return verdict.make(Outcome.UNPARSEABLE_GOLD, "reference is empty", gold=gold)
    if not found.strip():
        return verdict.make(Outcome.NO_ANSWER, f"{how}: nothing", gold=gold, pred=found)
    try:
        rule = equal(found, gold)
    except RecursionError:
        return verdict.make(Outcome.WRONG, f"{how}: nested too deep", gold=gold, pred=found)
    if rule:
        return verdict.make(Outcome.RIGHT, f"{how}: {rule}", gold=gold, pred=found)
    return verdict.make(Outcome.WRONG, f"{how}: not equal", gold=gold, pred=found)


# ── extraction ──

BEFORE = ("answer:", "answer is", "answers are")
AFTER = ("is answer", "is the answer", "are answers", "are the answers")
LEADS = (
    "be ", "is ", "are ", "=", ": ", "get ", "be\n", "is\n", "are\n", ":\n", "get\n",
)  # fmt: skip


def extract(response: str) -> tuple[str, str]:
    """(answer, how it was found); the whole text where no mark was found."""
    text, how = response, "whole text"
    for mark in BEFORE:
        place = text.lower().rfind(mark)
        if place >= 0:
            text, how = text[place + len(mark) :].strip(), f"after '{mark}'"
    for mark in AFTER:
        place = text.lower().rfind(mark)
        if place >= 0:
            text, how = text[:place].strip(), f"before '{mark}'"
    content = last_box(text)
    if content:
        text, how = content, "box"
    place = text.rfind(". ")
    if place >= 0:
        text = text[:place].strip()
    for lead in LEADS:
        place = text.lower().rfind(lead)
        if place >= 0:
            text, how = text[place + len(lead) :].strip(), f"after '{lead.strip()}'"
    return text, how


BRACE = re.compile("[{}]")


def last_box(text: str) -> str | None:
    """The content of the last `\\boxed`, or else of the last `\\fbox`; None where it never closes.

    The braces counted are the first ones after the command, wherever they are."""
    start = max(text.rfind("\\boxed"), -1)
    start = start if start >= 0 else text.rfind("\\fbox")
    if start < 0:
        return None
    depth, first = 0, None
    for brace in BRACE.finditer(text, start):
        depth += 1 if brace[0] == "{" else -1
        if first is None and brace[0] == "{":
            first = brace.end()
        if brace[0] == "}" and depth == 0:
            return text[first : brace.start()].strip() if first is not None else None
    return None


# ── equality ──


def equal(pred: str, gold: str) -> str | None:
    """The rule by which two answers are equal, or None."""
    if pred == gold:
        return "same text"
    if max(len(pred), len(gold)) > MAX_CHARS:
        return None
    if hendrycks_form(pred) == hendrycks_form(gold):
        return "Hendrycks' text"
    normal = normalized(pred), normalized(gold)
    if normal[0] == normal[1]:
        return "PRM800K's text"
    if normal[0] and equal_items(*normal):
        return "item by item"
    values = (math.pi, 3.14) if "\\pi" in pred or "\\pi" in gold else (math.pi,)
    for value in values:
        with contextlib.suppress(ValueError):  # an index without a number before it: unequal
            if tolerantly_equal(pred, gold, value):
                return "within 1e-4"
    return None


# ── Hendrycks' string rules ──


@functools.lru_cache(maxsize=4096)
def hendrycks_form(text: str) -> str:
    text = text.strip()
    whole = re.search(r"^\\text\{(?P<text>.+?)\}$", text)
    text = whole["text"].strip() if whole else text
    try:
        return hendrycks_chain(text)
    except (IndexError, ValueError):  # cut off after a \frac or \sqrt, or two units
        return text


def hendrycks_chain(text: str) -> str:
    text = text.replace("\n", "").replace("\\!", "").replace("\\\\", "\\")
    text = text.replace("tfrac", "frac").replace("dfrac", "frac")
    text = text.replace("\\left", "").replace("\\right", "")
    text = text.replace("^{\\circ}", "").replace("^\\circ", "").replace("\\$", "")
    if "\\text{ " in text:
        text, _ = text.split("\\text{ ")
    text = text.replace("\\%", "").replace(" .", " 0.").replace("{.", "{0.")
    if not text:
        return text
    text = hendrycks.bare_value(text)
    first, *roots = text.split("\\sqrt")
    roots = [root if root[0] == "{" else "{" + root[0] + "}" + root[1:] for root in roots]
    text = "\\sqrt".join([first, *roots]).replace(" ", "")
    text = hendrycks.braced_fractions(text)
    return hendrycks.slash_fraction("\\frac{1}{2}" if text == "0.5" else text, roots=False)


# ── PRM800K's normal form ──

UNIT_NAMES = """
    degree cm centimeter meter mile second minute hour day week month year foot feet inch yard liter
"""
UNITS = tuple(re.compile(unit + r"(es)?(s)? *(\^[0-9]+)?") for unit in UNIT_NAMES.split())
POWERS = (("million", "*10^6"), ("billion", "*10^9"), ("trillion", "*10^12"))
SPELLINGS = (("√", "sqrt"), ("π", "pi"), ("∞", "inf"), ("∪", "U"), ("·", "*"), ("×", "*"))
GROUPED = re.compile(r"(\d)(,)(\d\d\d)($|\D)")


@functools.lru_cache(maxsize=4096)
def normalized(text: str) -> str:
    whole = re.search(r"^\\text\{(?P<text>.+?)\}$", text)
    text = whole["text"] if whole else text
    text = text.replace("\\%", "%").replace("\\$", "$").replace("$", "").replace("%", "")
    text = text.replace(" or ", " , ").replace(" and ", " , ")
    for word, power in POWERS:
        text = text.replace(word, power)
    for unit in UNITS:
        text = unit.sub("", text)
    text = re.sub(r"\^ *\\circ", "", text)
    if text[:1] == "{" and text[-1:] == "}":
        text = text[1:-1]
    text = re.sub(r",\\! *", "", text)
    value = tolerant.as_float(text)
    if value is not None and math.isfinite(value) and is_whole(value):
        text = str(round(value))
    if "\\" in text:
        with contextlib.suppress(expression.Unreadable):
            text = without_latex(text)
    text = re.sub("- *", "-", text)
    text = re.sub(r"([0-9]) +([0-9])", r"\1+\2", text).lower()  # a mixed number is a sum
    if names_whole(text):
        text = str(int(float(text.replace(",", ""))))
    return text


def without_latex(text: str) -> str:
    text = text.replace("\\tfrac", "\\frac").replace("\\dfrac", "\\frac")
    text = latex_text.plain(text.replace("\\frac", " \\frac"))  # apart from the 7 of 7\frac{3}{4}
    for old, new in SPELLINGS:
        text = text.replace(old, new)
    return text.strip()


def is_whole(value: float) -> bool:
    return abs(value - round(value)) <= 1e-7


def without_grouping(text: str) -> str:
    """`12,345` as 12345."""
    while True:
        joined = GROUPED.sub(r"\1\3\4", text)
        if joined == text:
            return text
        text = joined


def names_whole(text: str) -> bool:
    value = tolerant.as_float(without_grouping(text))
    return value is not None and math.isfinite(value) and is_whole(value)


# ── item by item ──

BRACKETS = "()[]"
FRACTION = re.compile(r"^-?[0-9]+.?/0*[1-9][0-9]*.?$")
FORBIDDEN = re.compile(r"\^[{(]|\^[0-9]+\^|\^[0-9][0-9]+")
MAX_LETTERS = 2


def items_of(text: str) -> list[str]:
    text = without_grouping(text)
    if not text:
        return []
    inside = text[1:-1]
    bracketed = len(text) > 2 and text[0] in BRACKETS and text[-1] in BRACKETS
    if bracketed and not any(bracket in inside for bracket in BRACKETS):
        return [item.strip() for item in inside.split(",")]
    return [text]


def equal_items(pred: str, gold: str) -> bool:
    first, second = items_of(pred), items_of(gold)
    if len(second) > 1 and (pred[0] != gold[0] or pred[-1] != gold[-1]):
        return False
    if len(first) != len(second) or len(first) > MAX_ITEMS:
        return False
    return all(map(equal_item, first, second))


def equal_item(pred: str, gold: str) -> bool:
    if FRACTION.search(pred) and FRACTION.search(gold):
        return pred == gold
    if names_whole(pred) != names_whole(gold):
        return False
    both = f"({gold})-({pred})"
    letters = {c for c in both.replace("sqrt", "").replace("frac", "") if c.isalpha()}
    if len(letters) > MAX_LETTERS or FORBIDDEN.search(both):
        return False
    try:
        trees = [plain_formula.read(t.replace("^", "**"), implicit=True) for t in (gold, pred)]
    except expression.Unreadable:
        return False
    return tolerant.same_value(*trees)


# ── tolerantly ──

ARITHMETIC = re.compile(r"[-+*/(). 0-9e]+")
MAX_COMPARED_CHARS = 1000


def tolerantly_equal(pred: str, gold: str, pi: float) -> bool:
    """Whether two answers are equal within 1e-4.

    Raises:
      ValueError: one of them has an index and no number before it.
    """
    pred, gold = with_pi(pred, pi)[:MAX_COMPARED_CHARS], with_pi(gold, pi)
    if pred.strip().lower() == gold.strip().lower() or pred.replace(" ", "") == gold.replace(
        " ", ""
    ):
        return True
    numbers = as_number(pred), as_number(gold)
    if None not in numbers:
        return tolerant.close_or_percent(*numbers)
    if not pred:
        return False
    pred, gold = pred.strip(), gold.strip()
    if hendrycks.same_but_for_brackets(pred, gold):
        return True
    ends = (pred[:1], pred[-1:]), (gold[:1], gold[-1:])
    bracketed = ends[0] == ends[1] and ends[0][0] in ("(", "[") and ends[0][1] in (")", "]")
    if bracketed and all_equal(pred[1:-1].split(","), gold[1:-1].split(",")):
        return True
    if "," in pred and "," in gold:
        sides = [[item.strip() for item in text.split(",")] for text in (pred, gold)]
        if len(sides[0]) == len(sides[1]):
            return all_equal(*sides)
    return equal_formulas(pred, gold)


def all_equal(pred: list[str], gold: list[str]) -> bool:
    if len(pred) != len(gold) or len(pred) > MAX_ITEMS:
        return False
    return all(tolerantly_equal(*pair, math.pi) for pair in zip(pred, gold, strict=True))


def with_pi(text: str, pi: float) -> str:
    """The text without a dollar or percent sign around a number, the base of a numeral, and with a
    value for π; arithmetic that this leaves is carried out."""
    if re.match(r"\$\d+(\.\d+)?", text):
        return text[1:]
    if re.match(r"^\d+(\.\d+)?\\?%$", text):
        return text.replace("\\%", "").replace("%", "")
    if "_" in text:
        return str(int(float(text.split("_")[0])))
    if "\\pi" not in text:
        return text
    text = re.sub(r"(?<=\d)\\pi", f"*{pi}", text)
    text = text.replace("\\pi", f"1*{pi}")
    if ARITHMETIC.fullmatch(text):
        with contextlib.suppress(expression.Unreadable):
            value = tolerant.number_of(plain_formula.read(text))
            return text if value is None else repr(value)
    return text


def as_number(text: str) -> float | None:
    return tolerant.as_float(text.replace("{,}", "") if "{,}" in text else text.replace(",", ""))


def read_program(text: str) -> expression.Node | bool:
    """A formula as Python has it, where `2^9` is an exclusive or, 11; True for a list.

    Raises:
      expression.Unreadable.
    """
    if "^" not in text:
        return plain_formula.read_or_list(text)
    numbers = [tolerant.number_of(plain_formula.read(side)) for side in text.split("^")]
    if any(number is None or not number.is_integer() for number in numbers):
        raise expression.Unreadable("exclusive or of what are no integers")
    return ("num", Fraction(functools.reduce(operator.xor, map(int, numbers))))


READERS = (read_program, latex_prefix.read)


def equal_formulas(pred: str, gold: str) -> bool:
    first, second = (tolerant.read_first(text, READERS) for text in (pred, gold))
    trees = [t for t in (first, second) if type(t) is tuple]
    if len(trees) < 2:
        return False  # no formula, or an equation: sympy takes no difference of those
    return tolerant.same_value(*trees) or tolerant.close_trees(*trees)
