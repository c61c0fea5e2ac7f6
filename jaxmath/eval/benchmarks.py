"""The benchmarks by name: where their questions come from, and how the published scores asked them.

Questions are read from a folder of JSONL files (`FOLDER/math500.jsonl`; rows with `id`, `problem`,
`answer` and anything else) or, without a folder, from the Hugging Face hub. Prompt style and token
limit are those of the published evaluations: INTELLECT-MATH and PRIME (arXiv:2502.01456) where they
report a benchmark, Qwen2.5-Math (arXiv:2409.12122) elsewhere; a run's config may say otherwise.
"""

from __future__ import annotations

import dataclasses
import pathlib
from collections.abc import Callable
from operator import itemgetter
from types import MappingProxyType
from typing import Any

from jaxmath.data import records, sources

Row = dict[str, Any]


@dataclasses.dataclass(frozen=True)
class Hub:
    """A data set on the Hugging Face hub, and what in its rows is the problem and the answer."""

    path: str
    split: str
    problem: Callable[[Row], str]
    answer: Callable[[Row], str]
    num_rows: int  # after `keep`
    config: str | None = None
    id: str | None = None  # name of a field; None: the number of the row
    keep: Callable[[Row], bool] = lambda row: True


@dataclasses.dataclass(frozen=True)
class Benchmark:
    """One row of `BENCHMARKS`."""

    file: str  # name inside the local folder
    num_rows: int  # of that file
    hub: Hub | None = None  # None: read from a folder only
    prompt_style: str = "qwen25-math-cot"  # a key of data.prompts.PROMPT_STYLES
    max_tokens: int = 2048  # of a response


def load(
    name: str, folder: str | pathlib.Path | None = None, limit: int | None = None
) -> list[records.Problem]:
    """The questions of one benchmark in their own order; the first `limit` of them, if given.

    `extra` of a local row holds its further fields (`level`, `official_answer`, …).

    Raises:
      ValueError: an unknown name, no folder for a benchmark that is not on the hub, a missing file,
        any malformed row, or a number of rows that is not the benchmark's.
    """
    if name not in BENCHMARKS:
        raise ValueError(f"benchmark {name!r}: expected one of {', '.join(BENCHMARKS)}")
    if limit is not None and limit < 1:
        raise ValueError(f"limit {limit}: expected at least 1, or none for all questions")
    benchmark = BENCHMARKS[name]
    if folder is not None:
        source, expected = str(pathlib.Path(folder) / benchmark.file), benchmark.num_rows
        every_row = records.DataConfig(source, max_reject_fraction=0.0)
        problems = records.read_problems(every_row)
    elif benchmark.hub is not None:
        source, expected = benchmark.hub.path, benchmark.hub.num_rows
        problems = _from_hub(name, benchmark.hub)
    else:
        raise ValueError(
            f"benchmark {name}: no source on the hub is known; give a folder that has"
            f" {benchmark.file}"
        )
    if len(problems) != expected:
        raise ValueError(
            f"{source}: {len(problems)} rows, expected the {expected} of {name};"
            " a score over other questions is not comparable"
        )
    return problems[:limit]


def _from_hub(name: str, hub: Hub) -> list[records.Problem]:
    problems = []
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
        problems.append(records.Problem(id, problem, answer, source=hub.path))
    return problems


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


def _is_2024(row: Row) -> bool:
    """The url ends like `2024_AIME_I_Problems/Problem_4`."""
    return "2024_AIME" in row["url"]


_PROBLEM, _QUESTION, _ANSWER = itemgetter("problem"), itemgetter("question"), itemgetter("answer")
_AIME, _AMC = "AI-MO/aimo-validation-aime", "AI-MO/aimo-validation-amc"
_PRIME = {"prompt_style": "prime-eval", "max_tokens": 4096}

# Hub fields and counts come from data set cards and public loading code. No card was found that
# states all of them for Hothan/OlympiadBench, math-ai/minervamath and math-ai/amc23: should one
# differ, loading stops at the row or at the count.
BENCHMARKS = MappingProxyType(
    {
        "math500": Benchmark(
            "math500.jsonl",
            500,
            Hub("HuggingFaceH4/MATH-500", "test", _PROBLEM, _ANSWER, 500, id="unique_id"),
            prompt_style="prime-eval",
            max_tokens=8192,
        ),
        "olympiadbench": Benchmark(
            "olympiadbench.jsonl",
            675,  # as Qwen2.5-Math, PRIME and INTELLECT-MATH score it; the hub has one row less
            Hub(
                "Hothan/OlympiadBench",
                "train",
                _with_context,
                _final_answers,
                674,
                config="OE_TO_maths_en_COMP",
                id="id",
            ),
            **_PRIME,
        ),
        "aime24": Benchmark(
            "aime24.jsonl",
            30,
            Hub(_AIME, "train", _PROBLEM, _whole, 30, id="id", keep=_is_2024),
            **_PRIME,
        ),
        "aime22_24": Benchmark(
            "aime22_24.jsonl", 90, Hub(_AIME, "train", _PROBLEM, _whole, 90, id="id"), **_PRIME
        ),
        "amc": Benchmark(
            "amc83.jsonl", 83, Hub(_AMC, "train", _PROBLEM, _whole, 83, id="id"), **_PRIME
        ),
        "minerva_math": Benchmark(
            "minerva_math.jsonl",
            272,
            Hub("math-ai/minervamath", "test", _QUESTION, _ANSWER, 272),
            **_PRIME,
        ),
        "gsm8k": Benchmark(
            "gsm8k.jsonl",
            1319,
            Hub("openai/gsm8k", "test", _QUESTION, _after_hashes, 1319, config="main"),
        ),
        "amc23": Benchmark(
            "amc23.jsonl", 40, Hub("math-ai/amc23", "test", _QUESTION, _whole, 40, id="id")
        ),
        "gaokao2023en": Benchmark("gaokao2023en.jsonl", 383),
        "college_math": Benchmark("college_math.jsonl", 2818),
        "carp_en": Benchmark("carp_en.jsonl", 976),
        "cmath": Benchmark("cmath.jsonl", 600),
        "gaokao_math_cloze": Benchmark("gaokao_math_cloze.jsonl", 118),
        # choices, answered by a letter; Qwen2.5-Math shows five examples first, this asks at once
        "sat_math": Benchmark("sat_math.jsonl", 32),
        "aqua": Benchmark("aqua.jsonl", 254),
    }
)
