"""Which questions are worth asking: the first stage of PRIME's preprocessing, "S1".

PRIME's data keeps a question if its answer can be checked: nothing that needs a figure, no proofs,
no blanks to fill in, and an answer with a digit in it. Choices are told apart and kept; later
stages of PRIME rewrite them with a model, which is not done here.
"""

from __future__ import annotations

from types import MappingProxyType

KEEP, CHOICE = "keep", "choice"  # both are asked

FORBIDDEN = MappingProxyType(
    {"figure": "figure", "prove": "proof", "show that": "proof"}
)  # in the lower-cased question → what it is dropped as
CHOICE_MARKS = (("A.", "B.", "C."), ("A:", "B:", "C:"), ("(A)", "(B)", "(C)"))
BLANK = "\\underline{"

DROPPED = ("figure", "proof", "blank", "answer_without_digit")


def s1(question: str, answer: str) -> str:
    """`KEEP` or `CHOICE`, or the rule that drops the question: one of `DROPPED`.

    As in the original, the rules for blanks and answers are not put to choices.
    """
    lowered = question.lower()
    for words, rule in FORBIDDEN.items():
        if words in lowered:
            return rule
    if any(all(mark in question for mark in marks) for marks in CHOICE_MARKS):
        return CHOICE
    if BLANK in question:
        return "blank"
    if not any(char.isdigit() for char in answer):
        return "answer_without_digit"
    return KEEP
