"""The grader `lenient`: the strict rules, and where they find nothing, a few more.

    last number                the last number of a response that has neither box nor announcement
    rounding of the reference  a decimal, right to the places it states
    reference is a rounding    the same the other way round, for an exact answer
    percent as number          50% and 0.5
    percent sign missing       50% and 50

For evaluation, where a published score was made so; never the reward. Whatever one of these rules
accepts says so in its rule; the strict verdict stands in all other cases. What a response shows in
a box that is empty or never closes is an answer given badly, not the absence of one.
"""

import re
from fractions import Fraction
from typing import NamedTuple

from jaxmath.verify import (
    answers,
    brackets,
    equivalence,
    evaluate,
    expression,
    extract,
    grade,
    normalize,
    reader,
    units,
    verdict,
)

Outcome = verdict.Outcome

BOX = re.compile(r"\\(?:boxed|fbox)(?![A-Za-z])")
MIN_DECIMALS = 2  # a rounding says something from so many decimals on,
MIN_DIGITS = 3  # or from so many digits in all


def grade_response(gold: str, response: str) -> verdict.Verdict:
    """Grade the final answer of a whole response, or else its last number."""
    strict = grade.grade_response(gold, response)
    if strict.outcome is Outcome.NO_ANSWER and not BOX.search(response):
        found = extract.last_number(response)
        if found.answer is not None:
            return named(found.rule, grade_answer(gold, found.answer))
    if strict.outcome is Outcome.WRONG:
        found = extract.extract(response)
        return strict if found.answer is None else loosened(strict, gold, found.answer)
    return strict


def grade_answer(gold: str, pred: str) -> verdict.Verdict:
    """Grade a bare answer."""
    return loosened(grade.grade_answer(gold, pred), gold, pred)


def named(prefix: str, result: verdict.Verdict) -> verdict.Verdict:
    return verdict.Verdict(result.outcome, f"{prefix}: {result.rule}", result.pred, result.gold)


def loosened(strict: verdict.Verdict, gold: str, pred: str) -> verdict.Verdict:
    """The strict verdict, unless it is `wrong` and a lenient rule says otherwise."""
    if strict.outcome is not Outcome.WRONG or len(pred) > grade.MAX_ANSWER_CHARS:
        return strict
    texts = [normalize.canonical(grade.unboxed(text)) for text in (gold, pred)]
    rule = rule_of(*grade.both_readings(*texts))
    return verdict.make(Outcome.RIGHT, rule, gold=gold, pred=pred) if rule else strict


def rule_of(gold: str, pred: str) -> str | None:
    """The lenient rule by which two values, or two ordered lists of values, are one."""
    sides = [Side(*value_text(text)) for text in (gold, pred)]
    if all(isinstance(side.answer, answers.Value) for side in sides):
        return rounding(*sides) or percent(*sides)
    kinds = [type(side.answer) for side in sides]
    if kinds[0] is not kinds[1] or kinds[0] not in LISTS:
        return None
    opened = [brackets.inside(side.text) or ("", side.text, "") for side in sides]
    items = [brackets.split(content, reader.COMMA)[0] for _, content, _ in opened]
    marks = [(opener, closer) for opener, _, closer in opened]
    if marks[0] != marks[1] or len(items[0]) != len(items[1]) or len(items[0]) < 2:
        return None
    rules = [rule_of_items(*pair) for pair in zip(*items, strict=True)]
    return None if None in rules else next((rule for rule in rules if rule != EXACT), None)


EXACT = "exact"
LISTS = (answers.Tuple, answers.Collection, answers.Interval)


def rule_of_items(gold: str, pred: str) -> str | None:
    sides = grade.read(gold), grade.read(pred)
    return EXACT if equivalence.same(*sides) else rule_of(gold, pred)


class Side(NamedTuple):
    """One side of a comparison: its canonical text, and what it says."""

    text: str
    answer: answers.Answer


def value_text(text: str) -> tuple[str, answers.Answer]:
    """A text and its reading, without the name of `name = value`."""
    text = text.strip()
    answer = grade.read(text)
    if isinstance(answer, answers.Assignment):
        return text.rpartition("=")[2].strip(), answer.value
    return text, answer


# ── roundings ──

DECIMAL = re.compile(r"(-?\s*\d*\.(\d+))(?:\s*\\times\s*10\s*\^\s*\{?\s*(-?\d{1,3})\s*\}?)?")


def rounding(gold: Side, pred: Side) -> str | None:
    """Whether one value is a decimal and the other rounds to it."""
    if gold.answer.is_percent != pred.answer.is_percent:
        return None
    if not units.agree(gold.answer.unit, pred.answer.unit):
        return None
    if rounds_to(gold, pred):
        return "rounding of the reference"
    # of an exact form: a second decimal with more places is another number
    is_exact_form = not DECIMAL.match(pred.text)
    return "reference is a rounding" if is_exact_form and rounds_to(pred, gold) else None


def rounds_to(value: Side, decimal: Side) -> bool:
    """Whether a decimal numeral, or one times a power of ten, is a value rounded to its places."""
    numeral = DECIMAL.match(decimal.text)
    if not numeral or expression.symbols(value.answer.node) | expression.symbols(
        decimal.answer.node
    ):
        return False
    mantissa, decimals, power = numeral.groups()
    if len(decimals) < MIN_DECIMALS and len(re.sub(r"\D", "", mantissa).lstrip("0")) < MIN_DIGITS:
        return False
    unit = Fraction(10) ** int(power or 0)
    stated = Fraction(re.sub(r"\s", "", mantissa)) * unit
    if not evaluate.within(decimal.answer.node, stated, Fraction(0)):
        return False  # the numeral is only a part of it
    return evaluate.within(value.answer.node, stated, unit / (2 * 10 ** len(decimals)))


# ── percent ──


def percent(gold: Side, pred: Side) -> str | None:
    """Whether one value is a percentage and the other the number it is, or the bare percentage."""
    if gold.answer.is_percent == pred.answer.is_percent:
        return None
    share, number = (gold, pred) if gold.answer.is_percent else (pred, gold)
    if number.answer.unit:
        return None
    node = share.answer.node
    if evaluate.same_value(node, number.answer.node):
        return "percent sign missing"
    hundredth = ("div", node, ("num", Fraction(100)))
    return "percent as number" if evaluate.same_value(hundredth, number.answer.node) else None
