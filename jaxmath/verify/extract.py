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

FIRST_BOX = re.compile(r"\\(?:boxed|fbox)(?![A-Za-z])")
BOX_OR_BRACE = re.compile(
    r"\\(?:boxed|fbox)(?![A-Za-z])(?:(?P<box>\s*+\{)|(?P<bare>))|\\.|[{}]", re.DOTALL
)
BARE_BOX_CONTENT = re.compile(r"\s*+(-?\d[\d.,]*(?<![.,])|\\?[A-Za-z]+)")


def extract(response: str) -> Extraction:
    """The final answer of a response, read strictly."""
    boxes = outer_boxes(response)
    if not boxes:
        return announced(response)
    box = boxes[-1]
    if box.content is None:
        return Extraction(None, "last box never closes")
    if is_blank(box.content):
        return Extraction(None, "last box is empty")
    if has_rival(response, boxes):
        return Extraction(None, "several boxes side by side")
    return Extraction(box.content.strip(), "box")


def outer_boxes(text: str) -> list[Box]:
    """The boxes that lie in no other box, in order; one that never closes counts only if it is the
    last to begin. A box that holds nothing but another box has that one's content. Time is linear
    in the text."""
    first = FIRST_BOX.search(text)
    if not first:
        return []
    open_braces: list[tuple[int, int] | None] = []  # (start, content) of a box, None of a group
    spans: list[tuple[int, int, int, int]] = []  # (start, end, start and end of the content)
    last_start, last_closes = -1, False
    for token in BOX_OR_BRACE.finditer(text, first.start()):
        if token[0] == "{":
            open_braces.append(None)
        elif token[0] == "}":
            opened_at = open_braces.pop() if open_braces else None
            if opened_at:
                start, low = opened_at
                high, inner = token.start(), None
                while spans and spans[-1][0] > start:
                    inner, is_only = spans.pop(), inner is None
                    if is_only and is_blank(text[low : inner[0]] + text[inner[1] : high]):
                        low, high = inner[2:]
                spans.append((start, token.end(), low, high))
                last_closes |= start == last_start
        elif token.lastgroup == "bare":  # `\\boxed 7` holds the number or word that follows
            last_start = token.start()
            found = BARE_BOX_CONTENT.match(text, token.end())
            last_closes = found is not None
            if found:
                spans.append((last_start, found.end(), *found.span(1)))
        elif token.lastgroup == "box":
            last_start, last_closes = token.start(), False
            open_braces.append((token.start(), token.end()))
    boxes = [Box(start, text[low:high], end) for start, end, low, high in spans]
    return boxes if last_closes else [*boxes, Box(last_start, None, len(text))]


BLANK = re.compile(r"\\(?:quad|qquad|text|mathrm|[,;:! ])|[\s{}$~.\u200b-\u200f\u2060\ufeff]")


def is_blank(text: str) -> bool:
    """Whether nothing but spaces, LaTeX spacing, empty braces, dollar signs and stops is there."""
    return not BLANK.sub("", text)


CONNECTIVE = re.compile(
    r"\\(?:quad|qquad|text(?:rm|bf|normal)?|mbox|mathrm|newline|implies|[,;:!()\[\] ]|\\)"
    r"|\b(?:and|or|und|et|ou)\b|\b[A-Za-z](?:_\{?\w\}?)?\s?="
    r"|[\s$,;:.&{}~*]|[、，；和或与及]"
)
MAX_GAP_CHARS = 80  # between two boxes that stand side by side


def has_rival(text: str, boxes: list[Box]) -> bool:
    """Whether boxes with other contents stand beside the last one, joined by no more than "and" or
    "or": alternatives, not an answer."""
    last = spaceless(boxes[-1].content)
    for first, second in zip(boxes[-2::-1], boxes[:0:-1], strict=True):
        gap = text[first.end : second.start]
        if first.content is None or len(gap) > MAX_GAP_CHARS or CONNECTIVE.sub("", gap):
            return False
        if spaceless(first.content) != last:
            return True
    return False


def spaceless(text: str) -> str:
    return "".join(text.split())


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
    r"\s*+(?:\$\$?([^$]+)\$|\\\(((?:(?!\\\)).)+)\\\)|\\\[((?:(?!\\\]).)+)\\\])", re.DOTALL
)
STATEMENT_END = re.compile(r"\s*+(?:[.。,!*<]|$|I hope)|[^\S\n]*+\n")


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
    if span and STATEMENT_END.match(text, span.end()):
        return next(group for group in span.groups() if group is not None).strip()
    end = SENTENCE_END.search(text)
    return (text[: end.start()] if end else text).strip().strip("*").strip()


NUMBER = re.compile(r"-?\d+(?:,\d{3})*(?:\.\d+)?(?:/\d+)?")


def last_number(response: str) -> Extraction:
    """The last number in the text: the lenient reading, for published scores that were made so."""
    numbers = NUMBER.findall(response)
    return Extraction(numbers[-1], "last number") if numbers else Extraction(None, "no number")
