"""Which of a question's responses become training records; every other gets the reason it does not.

A response meets the filters in the order of `FATES` and is counted under the first that holds it
back. All of them look at the rows of one question at a time, so any number of rows can stream by.
"""

from __future__ import annotations

import collections
import dataclasses
import hashlib
import re
import struct
from collections.abc import Callable
from types import MappingProxyType
from typing import Any, Literal

Row = dict[str, Any]

KEPT = "kept"
# "wrong", "no_answer", … are outcomes of the verifier; the others are reasons of this module.
FATES = (
    KEPT,
    "question_left_out",
    "wrong",
    "no_answer",
    "unparseable_gold",
    "timeout",
    "error",
    "cut_off",
    "too_long",
    "too_short",
    "repetitive",
    "foreign",
    "pass_rate",
    "duplicate",
    "over_limit",
)
JUDGED = ("right", "wrong", "no_answer")  # other outcomes say nothing of the response

MIN_LINE_CHARS = 20  # a shorter line, such as "So" or "$$", repeats without harm


@dataclasses.dataclass(frozen=True)
class FilterConfig:
    """What a response must be like to become a record. null switches a filter off.

    right: the verifier found it right. One that was cut off at the token limit is never kept.
    min_tokens, max_tokens: its length, both inclusive.
    max_repeated_ngrams: share, 0 to 1, of its `ngram_words`-word sequences that stood in it before.
    max_line_repeats: how often one line of 20 characters or more may stand in it.
    max_foreign_letters: share, 0 to 1, of its letters whose script the question does not use;
      Latin and Greek letters, which formulas use, are never foreign.
    distinct: of equal responses to a question (spaces aside) only the first.
    pass_rate: [low, high], both inclusive: share of right ones among the question's responses.
      Responses that could not be judged count neither way.
    max_per_question: at most so many of those that pass everything else.
    choose: which: the first sampled, the shortest in tokens, or at random by the run's seed.
    """

    right: bool = True
    min_tokens: int | None = None
    max_tokens: int | None = None
    max_repeated_ngrams: float | None = None
    ngram_words: int = 8
    max_line_repeats: int | None = None
    max_foreign_letters: float | None = None
    distinct: bool = False
    pass_rate: tuple[float, float] | None = None
    max_per_question: int | None = None
    choose: Literal["first", "shortest", "random"] = "first"

    def __post_init__(self):
        counts = ("min_tokens", "max_tokens", "max_line_repeats", "max_per_question", "ngram_words")
        for field in counts:
            if (value := getattr(self, field)) is not None and value < 1:
                raise ValueError(f"{field} is {value}; expected at least 1, or null for no limit")
        for field in ("max_repeated_ngrams", "max_foreign_letters"):
            if (value := getattr(self, field)) is not None and not 0 <= value <= 1:
                raise ValueError(f"{field} is {value}; expected a share from 0 to 1, or null")
        if None not in (self.min_tokens, self.max_tokens) and self.min_tokens > self.max_tokens:
            raise ValueError(
                f"min_tokens {self.min_tokens} is above max_tokens {self.max_tokens}; no response "
                "has such a length"
            )
        if self.pass_rate is not None and not 0 <= self.pass_rate[0] <= self.pass_rate[1] <= 1:
            raise ValueError(
                f"pass_rate is {list(self.pass_rate)}; expected [low, high], 0 <= low <= high <= 1"
            )


def fates(rows: list[Row], question: str, config: FilterConfig, seed: int = 0) -> list[str]:
    """What becomes of each response to one question: one of `FATES`, in the order of `rows`.

    Args:
      rows: all its samples: `problem_id`, `sample`, `outcome`, `response`, `num_tokens`,
        `finish_reason`.
      seed: decides what `choose: random` chooses.
    """
    found = [_own_fate(row, question, config) for row in rows]
    passing = [i for i, fate in enumerate(found) if fate == KEPT]
    if config.pass_rate is not None and not _in_band(rows, config.pass_rate):
        for i in passing:
            found[i] = "pass_rate"
        return found
    if config.distinct:
        seen: set[str] = set()
        for i in passing:
            text = " ".join(rows[i]["response"].split())
            if text in seen:
                found[i] = "duplicate"
            seen.add(text)
        passing = [i for i in passing if found[i] == KEPT]
    if config.max_per_question is not None:
        order = sorted(passing, key=lambda i: ORDERS[config.choose](rows[i], seed))
        for i in order[config.max_per_question :]:
            found[i] = "over_limit"
    return found


def num_right(rows: list[Row]) -> int:
    return sum(row["outcome"] == "right" for row in rows)


def _own_fate(row: Row, question: str, config: FilterConfig) -> str:
    if config.right and row["outcome"] != "right":
        return row["outcome"]
    if row["finish_reason"] == "length":
        return "cut_off"
    if config.max_tokens is not None and row["num_tokens"] > config.max_tokens:
        return "too_long"
    if config.min_tokens is not None and row["num_tokens"] < config.min_tokens:
        return "too_short"
    if _is_repetitive(row["response"], config):
        return "repetitive"
    limit = config.max_foreign_letters
    if limit is not None and foreign_letters(row["response"], question) > limit:
        return "foreign"
    return KEPT


def _in_band(rows: list[Row], band: tuple[float, float]) -> bool:
    judged = sum(row["outcome"] in JUDGED for row in rows)
    return judged > 0 and band[0] <= num_right(rows) / judged <= band[1]


def _is_repetitive(response: str, config: FilterConfig) -> bool:
    limit = config.max_repeated_ngrams
    if limit is not None and repeated_ngrams(response, config.ngram_words) > limit:
        return True
    return config.max_line_repeats is not None and line_repeats(response) > config.max_line_repeats


def repeated_ngrams(text: str, size: int) -> float:
    """Share of the word sequences of length `size` that occurred before in the text; 0 to 1."""
    words = text.split()
    total = len(words) - size + 1
    if total < 1:
        return 0.0
    return 1 - len(set(zip(*(words[i:] for i in range(size)), strict=False))) / total


def line_repeats(text: str) -> int:
    """How often the most frequent line of `MIN_LINE_CHARS` or more stands in the text."""
    lines = (line.strip() for line in text.splitlines())
    counts = collections.Counter(line for line in lines if len(line) >= MIN_LINE_CHARS)
    return max(counts.values(), default=0)


# Ranges of Unicode blocks. Han, kana and hangul are apart: Japanese in a Chinese text is a mixture.
SCRIPTS = MappingProxyType(
    {
        "han": re.compile("[\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U0002fa1f]"),
        "kana": re.compile("[\u3041-\u30ff\u31f0-\u31ff\uff66-\uff9f]"),
        "hangul": re.compile("[\u1100-\u11ff\u3130-\u318f\uac00-\ud7af]"),
        "cyrillic": re.compile("[\u0400-\u052f]"),
        "hebrew": re.compile("[\u05d0-\u05ea]"),
        "arabic": re.compile("[\u0620-\u064a\u066e-\u06d3\u0750-\u077f]"),
        "indic": re.compile("[\u0900-\u0dff]"),
        "thai": re.compile("[\u0e01-\u0e4e]"),
    }
)
LETTER = re.compile(r"[^\W\d_]")


def foreign_letters(response: str, question: str) -> float:
    """Share of the response's letters in scripts of which the question has no letter; 0 to 1."""
    if response.isascii():
        return 0.0
    foreign = sum(
        len(letters.findall(response))
        for letters in SCRIPTS.values()
        if not letters.search(question)
    )
    return foreign / len(LETTER.findall(response)) if foreign else 0.0


def _draw(row: Row, seed: int) -> bytes:
    packed = struct.pack("<QQQ", seed, row["problem_id"], row["sample"])
    return hashlib.blake2b(packed, digest_size=8).digest()


ORDERS: MappingProxyType[str, Callable[[Row, int], Any]] = MappingProxyType(
    {
        "first": lambda row, seed: row["sample"],
        "shortest": lambda row, seed: (row["num_tokens"], row["sample"]),
        "random": _draw,
    }
)
