r"""Answers too long to be read as formulas: a number of many digits, a long list of numbers, a
value in many brackets, the same text with other spaces.

Every step takes time linear in the text.
"""

import collections
import re

from jaxmath.verify import characters, normalize

MAX_CHARS = 4_000_000
MAX_UNICODE_CHARS = 20_000  # one character may stand for many
PLAIN = re.compile(
    r"(?:[-+\d\s.,_'()\[\]{}$;!]|\\(?:left|right)(?![A-Za-z])|\\[{}!,;$ ()\[\]])*+", re.ASCII
)
GROUP_MARK = re.compile(r"(?<=\d)(?:\{,\}|,\\!|\\,|[ ,_'])(?=\d{3}(?!\d))")
ONLY_GROUPS = re.compile(r"[-+]?\d{1,3}(?:(?:\{,\}|,\\!|\\,|[ ,_'])\d{3})++(?:\.\d*+)?")
NUMBER = re.compile(r"([-+]?)0*+(\d*+)(?:\.(\d*+))?")
SIGNS = re.compile(r"[-+\s]*+")
OPENERS = re.compile(r"[(\[{\s]*+")
LIST_MARKS = re.compile(r"\\(?:left|right|[{}])|[{}\s$]|\\[()\[\],;! ]")
PAIRS = {"(": ")", "[": "]", "{": "}"}
Number = tuple[str, str, str]  # sign, digits, decimals


def same(first: str, second: str) -> str | None:
    """The rule by which two long answers are one, or None."""
    if max(len(first), len(second)) > MAX_CHARS:
        return None
    if normalize.LOOSE_SPACE.sub("", first) == normalize.LOOSE_SPACE.sub("", second):
        return "same but for spaces"
    texts = []
    for text in (first, second):
        if not text.isascii():
            if len(text) > MAX_UNICODE_CHARS:
                return None
            text = characters.characters(text)
        if not PLAIN.fullmatch(text):
            return None
        texts.append(text)
    values = [number(text) for text in texts]
    if None not in values:
        return "same long number" if values[0] == values[1] else None
    texts = [LIST_MARKS.sub("", text) for text in texts]
    if texts[0].count(",") != texts[1].count(","):
        return None
    lists = [members(text) for text in texts]
    return "same long list" if None not in lists and lists[0] == lists[1] else None


def number(text: str) -> Number | None:
    """The parts of a decimal number, without idle zeros, brackets and signs."""
    text = text.strip(" \t\n$")
    if ONLY_GROUPS.fullmatch(text):
        text = GROUP_MARK.sub("", text)
    text = unwrapped(text)
    signs = SIGNS.match(text)[0]
    text = unwrapped(text[len(signs) :])
    match = NUMBER.fullmatch(text)
    if not match or not (match[2] or match[3] or "0" in text):
        return None
    is_negative = (signs.count("-") + (match[1] == "-")) % 2
    whole, decimals = match[2], (match[3] or "").rstrip("0")
    return ("-" if is_negative and (whole or decimals) else "", whole, decimals)


def unwrapped(text: str) -> str:
    """A text without the brackets that enclose all of it, however many."""
    opening, closing = OPENERS.match(text).end(), len(text.rstrip(")]} \t\n"))
    core = text[opening:closing]
    low, high = 0, len(text)
    if opening >= closing or any(mark in core for mark in "()[]{}"):
        return text
    while low < opening and high > closing:
        if text[low].isspace():
            low += 1
        elif text[high - 1].isspace():
            high -= 1
        elif PAIRS[text[low]] == text[high - 1]:
            low, high = low + 1, high - 1
        else:
            return text
    return core if low == opening and high == closing else text


def members(text: str) -> collections.Counter | None:
    """The numbers between commas, with how often each occurs; None if it is anything else."""
    counts: collections.Counter[Number] = collections.Counter()
    for part in text.split(","):
        value = number(part)
        if value is None:
            return None
        counts[value] += 1
    return counts if counts.total() > 1 else None
