"""Finding the final answer in a response.

The strict reading is the default and the reward: the last `\\boxed{…}` or `\\fbox{…}` is the
answer. A last box that is empty or never closes means no answer, whatever stood before it, and
neighbouring boxes with different contents are alternatives, not an answer. Only a response without
any box is searched for a sentence such as "the answer is …".
`last_number` is the lenient reading; a caller asks for it by name.
"""

import re
from typing import NamedTuple


class Extraction(NamedTuple):
    """`answer` is None when there is none; `rule` says how it was found, or why there is none."""

    answer: str | None
    rule: str


class Box(NamedTuple):
    """A box command at `start`; `content` is None if it never closes; `end` is just past it."""

    start: int
    content: str | None
    end: int


MAX_SENTENCE_CHARS = 400  # of an answer announced in prose, where nothing marks its end

BOX = re.compile(r"\\(?:boxed|fbox)(?![A-Za-z])")
BARE_BOX_CONTENT = re.compile(r"\s*(-?\d[\d.,]*(?<![.,])|\\?[A-Za-z]+)")
BRACES = re.compile(r"\\.|[{}]", re.DOTALL)


def extract(response: str) -> Extraction:
    """The final answer of a response, read strictly."""
    boxes = last_two_boxes(response)
    if not boxes:
        return announced(response)
    box = boxes[-1]
    if box.content is None:
        return Extraction(None, "last box never closes")
    if is_blank(box.content):
        return Extraction(None, "last box is empty")
    if len(boxes) == 2 and are_neighbours(response, *boxes):
        return Extraction(None, "several boxes side by side")
    return Extraction(box.content.strip(), "box")


def last_two_boxes(text: str) -> list[Box]:
    """The last box and the one before it, in order; time is linear in the text."""
    starts = [text.rfind("\\boxed"), text.rfind("\\fbox")]
    boxes: list[Box] = []
    while len(boxes) < 2 and max(starts) >= 0:
        start = max(starts)
        command = BOX.match(text, start)
        if command:
            boxes.append(read_box(text, command))
        which = starts.index(start)
        starts[which] = text.rfind(("\\boxed", "\\fbox")[which], 0, start)
    return boxes[::-1]


def read_box(text: str, command: re.Match) -> Box:
    """The box whose command was matched. Without braces, `\\boxed 7` holds the number or word that
    follows."""
    opening = command.end()
    while text[opening : opening + 1].isspace():
        opening += 1
    if text[opening : opening + 1] != "{":
        bare = BARE_BOX_CONTENT.match(text, command.end())
        return Box(command.start(), bare and bare[1], bare.end() if bare else command.end())
    depth = 0
    for brace in BRACES.finditer(text, opening):
        depth += {"{": 1, "}": -1}.get(brace[0], 0)
        if depth == 0:
            return Box(command.start(), text[opening + 1 : brace.start()], brace.end())
    return Box(command.start(), None, len(text))


def is_blank(text: str) -> bool:
    """Whether nothing but spaces, LaTeX spacing, empty braces and dollar signs is there."""
    return not re.sub(r"\\(?:quad|qquad|text|mathrm|[,;:! ])|[\s{}$~]", "", text)


CONNECTIVE = re.compile(
    r"\\(?:quad|qquad|text(?:rm|bf|normal)?|mbox|mathrm|newline|[,;:!()\[\] ]|\\)"
    r"|\b(?:and|or|und|et|ou)\b"
    r"|[\s$,;:.&{}~*]|[、，；和或与及]"
)


def are_neighbours(text: str, first: Box, second: Box) -> bool:
    """Whether two boxes with different contents stand side by side, joined by no more than "and" or
    "or"."""
    if first.content is None or not first.end <= second.start <= first.end + 80:
        return False
    gap = text[first.end : second.start]
    if re.sub(r"\s", "", first.content) == re.sub(r"\s", "", second.content):
        return False
    return not CONNECTIVE.sub("", gap)


ANNOUNCEMENTS = (
    ("answer tag", re.compile(r"<answer>")),
    ("#### marker", re.compile(r"^#### ", re.MULTILINE)),
    ("final answer", re.compile(r"final answer\**\s*(?:is\b|[:：=])\**[:：]?", re.IGNORECASE)),
    ("answer is", re.compile(r"answers?\**\s+(?:is|are)\b\**[:：]?", re.IGNORECASE)),
    ("answer:", re.compile(r"\banswer\**\s*[:：]\**", re.IGNORECASE)),
    ("答案", re.compile(r"答案\s*(?:[是为為]|[:：])+\s*[:：]?|故选|因此选|应选|选择")),
)
SENTENCE_END = re.compile(r"</answer>|\n|<\||[。；]|\.(?=\s|$)|!(?=\s|$)|I hope it is correct")
MATH_SPAN = re.compile(
    r"\s*(?:\$\$?([^$]+)\$|\\\(((?:(?!\\\)).)+)\\\)|\\\[((?:(?!\\\]).)+)\\\])", re.DOTALL
)


def announced(response: str) -> Extraction:
    """The answer that a sentence announces, for a response without a box: the last announcement of
    the first kind that occurs."""
    for name, pattern in ANNOUNCEMENTS:
        last = max(pattern.finditer(response), key=re.Match.start, default=None)
        if last is None:
            continue
        after = response[last.end() : last.end() + MAX_SENTENCE_CHARS]
        while after[:1] in " \t\n*:：" and after:
            after = after[1:]
        answer = first_statement(after)
        return Extraction(answer or None, name if answer else f"nothing after '{name}'")
    return Extraction(None, "no box and no announced answer")


def first_statement(text: str) -> str:
    """The first sentence of a text, or the formula it opens with."""
    span = MATH_SPAN.match(text)
    if span and re.match(r"\s*(?:[.。,!*\n]|$|<|I hope)", text[span.end() :]):
        return next(group for group in span.groups() if group is not None).strip()
    end = SENTENCE_END.search(text)
    return (text[: end.start()] if end else text).strip().strip("*").strip()


NUMBER = re.compile(r"-?\d+(?:,\d{3})*(?:\.\d+)?(?:/\d+)?")


def last_number(response: str) -> Extraction:
    """The last number in the text: the lenient reading, for published scores that were made so."""
    numbers = NUMBER.findall(response)
    return Extraction(numbers[-1], "last number") if numbers else Extraction(None, "no number")
