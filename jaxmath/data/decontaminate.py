"""Questions that stand in a benchmark are found, listed and left out.

Two rules. "same text": a question equals a benchmark's, spaces and punctuation aside. "n-gram": the
two share a sequence of `ngram_words` words, and their longest common subsequence of words is at
least `min_common` of the shorter of them. The second half of it, and the values, are those that
Qwen2.5-Math states (arXiv:2409.12122): thirteen words alone are often no more than "where m and n
are relatively prime positive integers. Find m + n".

For the same reason a sequence that more than `MAX_QUESTIONS` different questions of one benchmark
share is its formula rather than its content, and counts for nothing.

Text is compared as words: Unicode compatibility forms made equal, lower case, commands that only
style a formula dropped, every Chinese, Japanese or Korean character a word of its own. The
benchmarks' sequences are kept as 64-bit hashes; a hit is looked up and compared word by word.
"""

from __future__ import annotations

import collections
import dataclasses
import pathlib
import re
import unicodedata
from collections.abc import Iterable, Iterator
from typing import Any, NamedTuple

from jaxmath.data import records, sources

MAX_QUESTIONS = 4


@dataclasses.dataclass(frozen=True)
class DecontaminateConfig:
    """What questions are compared with.

    benchmarks: name → where its questions are. Each file of a folder or glob is a benchmark of its
      own, named `name/file`. Rows need a question and no answer.
    ngram_words: length of a shared sequence of words.
    min_common: 0 to 1; a question that shares one is left out if it also has so much in common; 0
      leaves out all that share one.
    """

    benchmarks: dict[str, records.DataConfig] = dataclasses.field(default_factory=dict)
    ngram_words: int = 13
    min_common: float = 0.6

    def __post_init__(self):
        if self.ngram_words < 4:
            raise ValueError(
                f"ngram_words is {self.ngram_words}; expected at least 4, or everything matches"
            )
        if not 0 <= self.min_common <= 1:
            raise ValueError(f"min_common is {self.min_common}; expected a share from 0 to 1")


class BenchmarkQuestion(NamedTuple):
    benchmark: str
    id: str
    text: str


@dataclasses.dataclass(frozen=True)
class Match:
    """A question found in a benchmark.

    rule: "same text" or "n-gram". ngram: the first shared sequence, or the whole text. common:
    longest common subsequence over the words of the shorter question. left_out: whether that is
    enough to leave the question out.
    """

    benchmark: str
    benchmark_id: str
    rule: str
    ngram: str
    common: float
    left_out: bool

    def to_row(self, question_id: str) -> dict[str, Any]:
        return {"question_id": question_id, **dataclasses.asdict(self)}


def read(config: DecontaminateConfig) -> Iterator[BenchmarkQuestion]:
    """The questions of every benchmark.

    Raises:
      ValueError: nothing is to be read there, or too many rows have no question.
    """
    for name, data in config.benchmarks.items():
        files = sources.files(data.path, data.split)
        if files is None or files == [pathlib.Path(data.path)]:
            yield from _questions(name, data)
        else:
            for file in files:
                yield from _questions(
                    f"{name}/{file.stem}", dataclasses.replace(data, path=str(file))
                )


def _questions(name: str, data: records.DataConfig) -> Iterator[BenchmarkQuestion]:
    for id, text in records.read_questions(data):
        yield BenchmarkQuestion(name, id, text)


class Benchmarks:
    """An index of benchmark questions; `matches` looks a question up."""

    def __init__(self, questions: Iterable[BenchmarkQuestion], config: DecontaminateConfig):
        self.size, self.min_common = config.ngram_words, config.min_common
        self.questions: list[BenchmarkQuestion] = []
        self._by_text: dict[str, list[int]] = {}
        self._by_ngram: dict[int, list[int]] = {}
        for number, question in enumerate(questions):
            self.questions.append(question)
            plain = _plain(question.text)
            words = WORD.findall(plain)
            self._by_text.setdefault(_bare(plain), []).append(number)
            for hashed in dict.fromkeys(_hashes(words, self.size)):
                self._by_ngram.setdefault(hashed, []).append(number)
        self._forget_formulas()

    def counts(self) -> dict[str, int]:
        """Questions by benchmark."""
        return dict(collections.Counter(question.benchmark for question in self.questions))

    def matches(self, text: str) -> list[Match]:
        """What a question has in common with the benchmarks, one match a benchmark question."""
        plain = _plain(text)
        words = WORD.findall(plain)
        found = {
            number: self._match(number, "same text", " ".join(words), 1.0)
            for number in self._by_text.get(_bare(plain), ())
        }
        for start, hashed in enumerate(_hashes(words, self.size)):
            for number in self._by_ngram.get(hashed, ()):
                if number in found:
                    continue
                theirs = words_of(self.questions[number].text)
                ngram = words[start : start + self.size]
                if _contains(theirs, ngram):  # else two hashes that happen to be equal
                    common = common_words(words, theirs) / min(len(words), len(theirs))
                    found[number] = self._match(number, "n-gram", " ".join(ngram), common)
        return list(found.values())

    def _match(self, number: int, rule: str, ngram: str, common: float) -> Match:
        question = self.questions[number]
        left_out = common >= self.min_common
        return Match(question.benchmark, question.id, rule, ngram, round(common, 4), left_out)

    def _forget_formulas(self) -> None:
        for hashed, numbers in list(self._by_ngram.items()):
            if len(numbers) <= MAX_QUESTIONS:
                continue
            texts: dict[str, set[str]] = collections.defaultdict(set)
            for number in numbers:
                question = self.questions[number]
                texts[question.benchmark].add(_bare(_plain(question.text)))
            if max(map(len, texts.values())) > MAX_QUESTIONS:
                del self._by_ngram[hashed]


# Commands that say how a formula looks; what is left of \dfrac is \frac.
STYLE = re.compile(
    r"\\(?:left|right|[bB]igg?[lr]?|displaystyle|textstyle|limits|nolimits|qquad|quad|mathrm|mathbf"
    r"|mathit|text(?:rm|bf|it)?|mbox|operatorname)(?![a-zA-Z])|\\[,;:! ]|(?<=\\)[dt](?=frac|binom)"
)
CJK = "\u3041-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uac00-\ud7af"
WORD = re.compile(rf"\d+|[{CJK}]|[^\W\d_{CJK}]+")
PUNCTUATION = re.compile(r"[^\w+\-*/=<>^|!%]+|_+")


def words_of(text: str) -> list[str]:
    """The words, numbers and CJK characters of a text, in the form in which they are compared."""
    return WORD.findall(_plain(text))


def _plain(text: str) -> str:
    if not text.isascii():
        text = unicodedata.normalize("NFKC", text)
    return (STYLE.sub(" ", text) if "\\" in text else text).lower()


def _bare(plain: str) -> str:
    """Letters, digits and arithmetic signs alone: "1+1" and "1-1" are different questions."""
    return PUNCTUATION.sub("", plain)


def _hashes(words: list[str], size: int) -> Iterator[int]:
    return map(hash, zip(*(words[i:] for i in range(size)), strict=False))


def _contains(words: list[str], part: list[str]) -> bool:
    size = len(part)
    return any(words[i : i + size] == part for i in range(len(words) - size + 1))


def common_words(left: list[str], right: list[str]) -> int:
    """Length of the longest common subsequence of two lists of words.

    A row of the dynamic programme is one integer, a bit a word (H. Hyyrö, 2004: "Bit-parallel LCS
    length computation revisited").
    """
    masks: dict[str, int] = {}
    for i, word in enumerate(left):
        masks[word] = masks.get(word, 0) | 1 << i
    full = (1 << len(left)) - 1
    row = full
    for word in right:
        hits = row & masks.get(word, 0)
        row = ((row + hits) | (row - hits)) & full
    return len(left) - row.bit_count()
