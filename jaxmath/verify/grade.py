"""A response or an answer against the reference: a `Verdict` with the rule that decided.

Cheap rules come first: equal text, equal numbers, choice letters; only then are the answers read as
mathematics. The reading of a reference is cached, since it is compared with many samples. Model
text is only ever parsed, never run.
"""

import functools
import re
from fractions import Fraction

from jaxmath.verify import (
    answers,
    brackets,
    equivalence,
    extract,
    normalize,
    plain,
    reader,
    tokens,
    units,
    verdict,
    words,
)

Outcome = verdict.Outcome

MAX_ANSWER_CHARS = tokens.MAX_CHARS
BRACES = re.compile(r"\\.|[{}]", re.DOTALL)
LIST_MARK = re.compile(r",|;|\\(?:and|or)(?![A-Za-z])")
MANY_BRACKETS = re.compile(r"[(\[{]{10}")  # more than the reader takes apart
NUMBER = re.compile(r"[+-]?\d{1,300}(?:\.\d{1,300})?|[+-]?\.\d{1,300}")


def grade_response(gold: str, response: str) -> verdict.Verdict:
    """Grade the final answer of a whole response."""
    if not is_readable(gold):
        return verdict.make(
            Outcome.UNPARSEABLE_GOLD, "reference is empty or its braces do not match", gold=gold
        )
    found = extract.extract(response)
    if found.answer is None:
        return verdict.make(Outcome.NO_ANSWER, found.rule, gold=gold)
    return grade_answer(gold, found.answer)


def grade_answer(gold: str, pred: str) -> verdict.Verdict:
    """Grade a bare answer. A box around either side is opened."""
    if not is_readable(gold):
        return verdict.make(
            Outcome.UNPARSEABLE_GOLD, "reference is empty or its braces do not match", gold=gold
        )
    if extract.is_blank(pred):
        return verdict.make(Outcome.NO_ANSWER, "empty answer", gold=gold, pred=pred)
    gold_text, pred_text = gold.strip(), pred.strip()
    if gold_text == pred_text:
        rule: str | None = "same text"
    elif max(len(gold_text), len(pred_text)) > MAX_ANSWER_CHARS:
        rule = plain.same(gold_text, pred_text)
        failure = f"answer longer than {MAX_ANSWER_CHARS} characters, and not plain numbers"
    else:
        rule, failure = rule_of(unboxed(gold), unboxed(pred)), "no rule makes them equal"
        if not rule and MANY_BRACKETS.match(pred_text):
            rule = plain.same(gold_text, pred_text)
    outcome = Outcome.RIGHT if rule else Outcome.WRONG
    return verdict.make(outcome, rule or failure, gold=gold, pred=pred)


@functools.lru_cache(maxsize=65536)
def is_readable(gold: str) -> bool:
    """Whether a reference can be compared with anything."""
    if extract.is_blank(gold):
        return False
    depth = 0
    for brace in BRACES.finditer(gold):
        depth += {"{": 1, "}": -1}.get(brace[0], 0)
        if depth < 0:
            return False
    return depth == 0


def unboxed(text: str) -> str:
    """The content of a box that is the whole answer."""
    boxes = extract.outer_boxes(text) if "box" in text else []
    if len(boxes) == 1 and boxes[0].content is not None:
        start, content, end = boxes[0]
        return content if extract.is_blank(text[:start] + text[end:]) else text
    return text


def rule_of(gold: str, pred: str) -> str | None:
    """The first rule by which two answers are one, or None."""
    gold_text, pred_text = normalize.canonical(gold), normalize.canonical(pred)
    if not pred_text or not gold_text:
        return None
    if normalize.squeezed(gold_text) == normalize.squeezed(pred_text):
        return "same spelling"
    gold_text, pred_text = both_readings(gold_text, pred_text)
    if NUMBER.fullmatch(gold_text) and NUMBER.fullmatch(pred_text):
        return "same number" if Fraction(gold_text) == Fraction(pred_text) else None
    prose = [words.in_words(text) for text in (gold_text, pred_text)]
    if prose[0] and len(prose[0]) > 1 and prose[0] == prose[1]:
        return "same words"
    if words.same_letters(gold_text, pred_text):
        return "same letters"
    letters = [words.choice(text) for text in (gold_text, pred_text)]
    if None not in letters and any(words.LETTER.fullmatch(text) for text in (gold_text, pred_text)):
        return "same choice" if letters[0] == letters[1] else None
    gold_text, pred_text = (
        words.numeral(written) or text
        for written, text in zip(prose, (gold_text, pred_text), strict=True)
    )
    rule = equivalence.same(read(gold_text), read(pred_text))
    if rule:
        return rule
    if not (units.FUNCTION.search(gold_text) and units.FUNCTION.search(pred_text)):
        return None
    bare = [text.replace("\\degree", " ").strip() for text in (gold_text, pred_text)]
    if "" in bare or bare == [gold_text, pred_text]:
        return None
    return "same but for degree signs" if equivalence.same(*map(read, bare)) else None


def both_readings(gold: str, pred: str) -> tuple[str, str]:
    """`12,345` as a number, unless the other side says by a space or a longer group that it is a
    list."""
    texts = tuple(normalize.thousands_outside_brackets(text) for text in (gold, pred))
    lists = [len(brackets.split(text, LIST_MARK)[0]) > 1 for text in texts]
    if lists[0] != lists[1]:
        return (gold, texts[1]) if lists[1] else (texts[0], pred)
    return texts


@functools.lru_cache(maxsize=65536)
def read(text: str) -> answers.Answer:
    return reader.read(text)
