"""The benchmarks by name: where their questions come from, and how the published scores asked them.

Questions are read from a folder of JSONL files (`FOLDER/math500.jsonl`; rows with `id`, `problem`,
`answer` and anything else) or, without a folder, from the Hugging Face hub. Prompt style, examples
and token limit are those of the published evaluations: INTELLECT-MATH and PRIME (arXiv:2502.01456)
where they report a benchmark, Qwen2.5-Math (arXiv:2409.12122) elsewhere; a run's config may say
otherwise. The examples themselves are ours (`data.examples`).
"""

from __future__ import annotations

import dataclasses
import pathlib
import re
from collections.abc import Sequence
from types import MappingProxyType
from typing import Literal

from jaxmath.data import examples, records
from jaxmath.data.prompts import Example
from jaxmath.eval import hub as hubs

CHOICE_SHOTS = 5
LETTER = re.compile(r"[A-E]")


@dataclasses.dataclass(frozen=True)
class Benchmark:
    """One row of `BENCHMARKS`.

    choice: has questions answered by a letter; Qwen2.5-Math shows five examples before those whose
      answer is one of A to E, and so do we.
    subject: of the examples before the other questions, a key of `data.examples.EXAMPLES`; a chat
      model sees none, a base model `base_shots`.
    published_grader: named grader (`verify.graders`) nearest to that of the published scores, which
      compared with `eval_answer` where a row has one. The scripts for MATH-500, AIME and AMC read
      the last box and compare as Qwen2.5-Math does.
    """

    file: str  # name inside the local folder
    num_rows: int  # of that file
    hub: hubs.Hub | None = None  # None: read from a folder only
    prompt_style: str = "qwen25-math-cot"  # a key of data.prompts.PROMPT_STYLES
    base_style: str = "problem-solution"  # a key of data.prompts.TEXT_STYLES
    max_tokens: int = 2048  # of a response
    language: Literal["en", "zh"] = "en"
    choice: bool = False
    subject: str = "competition"
    base_shots: int = 4
    published_grader: str = "qwen"

    def examples_for(
        self, problem: records.Problem, *, base: bool, num: int | None = None
    ) -> Sequence[Example]:
        """What is shown before a problem: `num` examples, by default the benchmark's own number.

        Raises:
          ValueError: there are not so many.
        """
        offers_choices = self.choice and LETTER.fullmatch(problem.answer.strip()) is not None
        subject, usual = self.subject, self.base_shots if base else 0
        if offers_choices:
            subject, usual = {"en": "choice", "zh": "choice-zh"}[self.language], CHOICE_SHOTS
        known, wanted = examples.EXAMPLES[subject], usual if num is None else num
        if wanted > len(known):
            raise ValueError(
                f"{self.file}: {wanted} examples wanted, {len(known)} are known of {subject!r}; "
                "lower few_shot, or draw them from a file: few_shot.source"
            )
        return known[:wanted]


def load(
    name: str, folder: str | pathlib.Path | None = None, limit: int | None = None
) -> list[records.Problem]:
    """The questions of one benchmark in their own order; the first `limit` of them, if given.

    `extra` of a local row holds its further fields (`level`, `eval_answer`, …).

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
        problems = hubs.problems(name, benchmark.hub)
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


_PRIME = {"prompt_style": "prime-eval", "max_tokens": 4096}
_MATH500 = {"prompt_style": "prime-eval", "max_tokens": 8192}
_SCHOOL_ZH = {"language": "zh", "choice": True, "subject": "school-zh", "base_shots": 5}

BENCHMARKS = MappingProxyType(
    {
        # the five of INTELLECT-MATH's report
        "math500": Benchmark("math500.jsonl", 500, hubs.MATH500, **_MATH500),
        # 675 as Qwen2.5-Math, PRIME and INTELLECT-MATH score it; the hub has one row less
        "olympiadbench": Benchmark("olympiadbench.jsonl", 675, hubs.OLYMPIADBENCH, **_PRIME),
        "aime24": Benchmark("aime24.jsonl", 30, hubs.AIME24, **_PRIME),
        "amc": Benchmark("amc83.jsonl", 83, hubs.AMC, **_PRIME),
        "minerva_math": Benchmark(
            "minerva_math.jsonl", 272, hubs.MINERVA_MATH, subject="science", **_PRIME
        ),
        # all three years, of which PRIME reports 2024
        "aime22_24": Benchmark("aime22_24.jsonl", 90, hubs.AIME22_24, **_PRIME),
        # those of Qwen2.5-Math
        "gsm8k": Benchmark(
            "gsm8k.jsonl",
            1319,
            hubs.GSM8K,
            base_style="question-answer",
            subject="word",
            base_shots=8,
        ),
        "amc23": Benchmark("amc23.jsonl", 40, hubs.AMC23),
        "gaokao2023en": Benchmark("gaokao2023en.jsonl", 383, hubs.GAOKAO2023EN),
        "college_math": Benchmark("college_math.jsonl", 2818, subject="college"),
        "carp_en": Benchmark("carp_en.jsonl", 976),
        "sat_math": Benchmark("sat_math.jsonl", 32, choice=True),
        "aqua": Benchmark("aqua.jsonl", 254, hubs.AQUA, choice=True),
        "cmath": Benchmark(
            "cmath.jsonl",
            600,
            hubs.CMATH,
            base_style="question-answer",
            language="zh",
            subject="word-zh",
            base_shots=5,
        ),
        "gaokao_math_cloze": Benchmark(
            "gaokao_math_cloze.jsonl", 118, **_SCHOOL_ZH | {"choice": False}
        ),
        "gaokao_math_qa": Benchmark("gaokao_math_qa.jsonl", 351, **_SCHOOL_ZH),
        "gaokao2024_I": Benchmark("gaokao2024_I.jsonl", 14, **_SCHOOL_ZH),
        "gaokao2024_II": Benchmark("gaokao2024_II.jsonl", 14, **_SCHOOL_ZH),
        "gaokao2024_mix": Benchmark("gaokao2024_mix.jsonl", 91, **_SCHOOL_ZH),
        "cn_middle_school": Benchmark("cn_middle_school.jsonl", 101, **_SCHOOL_ZH),
    }
)
