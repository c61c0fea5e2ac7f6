"""Write a generated data set, graded problems and a tokenizer trained on them, to a folder."""

import dataclasses
import json
import os
import pathlib
import shutil
from typing import Any

import numpy as np

from jaxmath.data import problems, records, tokenizer
from jaxmath.runs import session


@dataclasses.dataclass(frozen=True)
class ProblemsConfig:
    """A generated data set.

    folder: receives train.jsonl, test.jsonl and tokenizer/.
    vocab_size: ids of the tokenizer at most.
    levels: the levels of difficulty to draw from, of 1 to 5.
    terse_fraction: share of the training solutions that state the answer without the steps.
    """

    folder: str
    num_train: int = 30_000
    num_test: int = 512
    seed: int = 0
    vocab_size: int = 512
    levels: tuple[int, ...] = problems.LEVELS
    terse_fraction: float = 0.0

    def __post_init__(self):
        if not self.folder:
            raise ValueError("folder is empty, expected where to write; set folder")
        for name in ("num_train", "num_test"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}")
        if not 0 <= self.terse_fraction < 1:
            raise ValueError(
                f"terse_fraction is {self.terse_fraction}; expected at least 0, below 1"
            )


def plan(config: ProblemsConfig) -> dict[str, Any]:
    """What `--dry-run` prints besides the config."""
    return {"problems": f"{config.num_train:,} to train on, {config.num_test:,} held out"}


def run(config: ProblemsConfig) -> session.Report:
    """Generates, trains the tokenizer, writes; the summary has counts and lengths in tokens.

    A file under its final name is whole: each is written beside it and then renamed.
    """
    folder = pathlib.Path(config.folder)
    folder.mkdir(parents=True, exist_ok=True)
    train, test = problems.generate(
        config.num_train, config.num_test, config.seed, config.levels, config.terse_fraction
    )

    partial = folder / "tokenizer.partial"
    shutil.rmtree(partial, ignore_errors=True)
    # With the role words of ChatML in the text, each becomes one token.
    texts = [f"user\n{p.problem}\nassistant\n{p.solution}" for p in train]
    trained = tokenizer.train_small(texts, partial, config.vocab_size)
    shutil.rmtree(folder / "tokenizer", ignore_errors=True)
    os.replace(partial, folder / "tokenizer")

    for name, split in (("train", train), ("test", test)):
        _write_jsonl(folder / f"{name}.jsonl", split)

    prompt_lengths = [len(trained.encode(p.problem)) for p in test]
    solution_lengths = [len(trained.encode(p.solution)) for p in test]
    summary = {
        "num_train": len(train),
        "num_test": len(test),
        "vocab_size": trained.vocab_size,
        "problem_tokens_mean": float(np.mean(prompt_lengths)),
        "problem_tokens_max": max(prompt_lengths),
        "solution_tokens_mean": float(np.mean(solution_lengths)),
        "solution_tokens_max": max(solution_lengths),
    }
    return session.Report(summary, (str(folder),))


def _write_jsonl(file: pathlib.Path, split: list[records.Problem]) -> None:
    partial = file.with_suffix(".partial")
    with partial.open("w", encoding="utf-8") as out:
        for problem in split:
            out.write(json.dumps(records.to_row(problem), ensure_ascii=False) + "\n")
    os.replace(partial, file)
