"""Benchmarks on the Hugging Face hub: what in their rows is the problem, what the answer."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from operator import itemgetter
from typing import Any

from jaxmath.data import records, sources

Row = dict[str, Any]


@dataclasses.dataclass(frozen=True)
class Hub:
    """A data set on the hub, and how to read its rows."""

    path: str
    split: str
    problem: Callable[[Row], str]
    answer: Callable[[Row], str]
    num_rows: int  # after `keep`
    config: str | None = None
    id: str | None = None  # name of a field; None: the number of the row
    keep: Callable[[Row], bool] = lambda row: True


def problems(name: str, hub: Hub) -> list[records.Problem]:
    """The kept rows, in order.

    Raises:
      ValueError: a row that is not as described.
    """
    found = []
    for where, row in sources.rows(hub.path, hub.split, hub.config):
        try:
            if not hub.keep(row):
                continue
            id = f"{name}/{row[hub.id] if hub.id else where.line}"
            problem, answer = hub.problem(row), hub.answer(row)
            if not (isinstance(problem, str) and problem.strip() and answer.strip()):
                raise ValueError(f"problem {problem!r} with answer {answer!r}, expected two texts")
        except (AttributeError, IndexError, KeyError, TypeError, ValueError) as error:
            raise ValueError(
                f"{where}: {type(error).__name__} {error}; the row's fields are {', '.join(row)}."
                " Has the data set changed? read the benchmark from a folder"
            ) from None
        found.append(records.Problem(id, problem, answer, source=hub.path))
    return found


def _whole(row: Row) -> str:
    """AMC keeps whole numbers as floats, AIME with zeros in front: 142.0 is 142, 025 is 25."""
    value = float(row["answer"])
    return str(int(value)) if value.is_integer() else str(row["answer"])


def _after_hashes(row: Row) -> str:
    """GSM8K ends a worked solution with `#### 1,234`."""
    return row["answer"].split("####")[1].strip().replace(",", "")


def _with_context(row: Row) -> str:
    """OlympiadBench keeps a premise that several problems share in `context`."""
    context = row.get("context")
    return f"{context}\n{row['question']}" if context else row["question"]


def _final_answers(row: Row) -> str:
    """OlympiadBench lists its final answers; each may stand between dollar signs."""
    return ",".join(answer.strip().strip("$") for answer in row["final_answer"])


def _with_choices(row: Row) -> str:
    """AQuA-RAT lists its choices as `A)21`."""
    labelled = [choice.strip().split(")", 1) for choice in row["options"]]
    choices = " ".join(f"({letter}) {text.strip()}" for letter, text in labelled)
    return f"{row['question']}\nAnswer Choices: {choices}"


def _is_2024(row: Row) -> bool:
    """The url ends like `2024_AIME_I_Problems/Problem_4`."""
    return "2024_AIME" in row["url"]


def _has_answer(row: Row) -> bool:
    """Two rows of GaoKao 2023 En have none."""
    return bool(row["answer"].strip())


_problem, _question, _answer = itemgetter("problem"), itemgetter("question"), itemgetter("answer")
_AIME, _AMC = "AI-MO/aimo-validation-aime", "AI-MO/aimo-validation-amc"

# Fields and counts come from data set cards and public loading code. No card was found that states
# all of them for Hothan/OlympiadBench, math-ai/minervamath, math-ai/amc23, weitianwen/cmath and
# MARIO-Math-Reasoning/Gaokao2023-Math-En: should one differ, loading stops at the row or the count.
MATH500 = Hub("HuggingFaceH4/MATH-500", "test", _problem, _answer, 500, id="unique_id")
OLYMPIADBENCH = Hub(
    "Hothan/OlympiadBench",
    "train",
    _with_context,
    _final_answers,
    674,
    config="OE_TO_maths_en_COMP",
    id="id",
)
AIME24 = Hub(_AIME, "train", _problem, _whole, 30, id="id", keep=_is_2024)
AIME22_24 = Hub(_AIME, "train", _problem, _whole, 90, id="id")
AMC = Hub(_AMC, "train", _problem, _whole, 83, id="id")
AMC23 = Hub("math-ai/amc23", "test", _question, _whole, 40, id="id")
MINERVA_MATH = Hub("math-ai/minervamath", "test", _question, _answer, 272)
GSM8K = Hub("openai/gsm8k", "test", _question, _after_hashes, 1319, config="main")
AQUA = Hub("deepmind/aqua_rat", "test", _with_choices, itemgetter("correct"), 254, config="raw")
CMATH = Hub("weitianwen/cmath", "validation", _question, itemgetter("golden"), 600)
GAOKAO2023EN = Hub(
    "MARIO-Math-Reasoning/Gaokao2023-Math-En",
    "train",
    _question,
    _answer,
    383,
    keep=_has_answer,
)
