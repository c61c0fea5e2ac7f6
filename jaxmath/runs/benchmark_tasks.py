"""What an evaluation asks: each benchmark with its questions, prompts, examples and limits.

output/
  questions/<benchmark>.jsonl      the problems with their reference answers, as they were read
  samples/<benchmark>.job.json     what the samples depend on; a resumed run must agree with it
"""

from __future__ import annotations

import dataclasses
import functools
import json
import pathlib
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, Literal

import jax

from jaxmath import config as config_lib
from jaxmath.data import examples, prompts, records
from jaxmath.eval import benchmarks
from jaxmath.runs import models, session
from jaxmath.verify import pool

if TYPE_CHECKING:
    from jaxmath.runs.evaluate import EvalRun

BASE = "base"  # as prompt_style: each benchmark's own text style
BASE_STYLE = "problem-solution"  # of problems that are no known benchmark
MAX_NAMED = 5  # bad reference answers that are printed; all are kept

Gold = Literal["answer", "eval_answer"]


@dataclasses.dataclass(frozen=True)
class Task:
    """A benchmark as this run asks it; `problems` as their source has them."""

    name: str
    problems: list[records.Problem]
    prompt_style: str
    max_tokens: int
    examples_for: Callable[[records.Problem], Sequence[prompts.Example]]
    gold: Gold

    def graded(self) -> list[records.Problem]:
        """The problems with the answers that responses are compared with."""
        return [dataclasses.replace(p, answer=gold_of(p, self.gold)) for p in self.problems]


def gold_of(problem: records.Problem, gold: Gold) -> str:
    """The reference answer; `eval_answer` is there only where the original evaluation had another
    string than the data set."""
    return problem.extra.get("eval_answer", problem.answer) if gold != "answer" else problem.answer


def check(config: EvalRun) -> None:
    """Raises ValueError for a way to ask that there is not."""
    if config.prompt_style not in (None, BASE):
        prompts.check_style(config.prompt_style)
    if isinstance(config.few_shot, int):
        if config.few_shot < 0:
            raise ValueError(f"few_shot is {config.few_shot}; expected 0 or more")
        if config.few_shot and config.problems:
            raise ValueError(
                f"few_shot is {config.few_shot}, but problems ({', '.join(config.problems)}) have "
                "no examples of their own; name a file: few_shot: {source: FILE, num: "
                f"{config.few_shot}}}"
            )


def build(config: EvalRun) -> list[Task]:
    """Reads every question."""
    problems = {
        name: benchmarks.load(name, config.benchmark_folder, config.limit)
        for name in config.benchmarks
    } | {
        name: records.read_problems(data)[: config.limit] for name, data in config.problems.items()
    }
    drawn: Sequence[prompts.Example] | None = None
    if isinstance(config.few_shot, examples.FewShotConfig):
        drawn = examples.draw(config.few_shot, [p.problem for ps in problems.values() for p in ps])
    return [_task(config, name, problems[name], drawn) for name in problems]


def max_tokens(config: EvalRun, name: str) -> int:
    """Tokens of a response: what the config says, else the benchmark's published limit, or what the
    model's positions leave of it after the longest prompt that is allowed."""
    if config.max_tokens is not None:
        return config.max_tokens
    if name not in benchmarks.BENCHMARKS:
        return config.sampling.max_tokens
    published = benchmarks.BENCHMARKS[name].max_tokens
    if not config.engine.is_local:
        return published
    shape = config.model or models.model_config(config)
    return min(published, max(1, shape.max_positions - config.decode.max_prompt_tokens))


def _task(
    config: EvalRun,
    name: str,
    problems: list[records.Problem],
    drawn: Sequence[prompts.Example] | None,
) -> Task:
    known = benchmarks.BENCHMARKS.get(name)
    base_style = known.base_style if known else BASE_STYLE
    style = config.prompt_style or (known.prompt_style if known else "plain")
    style = base_style if style == BASE else style
    if drawn is not None:
        examples_for = lambda problem: drawn  # noqa: E731
    elif known:
        base, num = style in prompts.TEXT_STYLES, config.few_shot
        examples_for = functools.partial(known.examples_for, base=base, num=num)
    else:
        examples_for = prompts.no_examples
    limit = max_tokens(config, name)
    if known and config.max_tokens is None and limit < known.max_tokens:
        session.say(
            f"{name}: responses of up to {limit} tokens where {known.max_tokens} were published: "
            "the model has no more positions after a prompt of decode.max_prompt_tokens"
        )
    return Task(name, problems, style, limit, examples_for, config.gold)


def keep_questions(task: Task, folder: pathlib.Path) -> None:
    """Writes questions/<benchmark>.jsonl."""
    (folder / "questions").mkdir(exist_ok=True)
    lines = [json.dumps(records.to_row(p), ensure_ascii=False) + "\n" for p in task.problems]
    if jax.process_index() == 0:
        session.write_atomic(folder / "questions" / f"{task.name}.jsonl", "".join(lines))


def read_questions(folder: pathlib.Path, name: str) -> dict[str, records.Problem]:
    """Question id → problem, from questions/<benchmark>.jsonl."""
    path = folder / "questions" / f"{name}.jsonl"
    every_row = records.DataConfig(str(path), max_reject_fraction=0.0)
    return {problem.id: problem for problem in records.read_problems(every_row)}


def bad_golds(
    name: str, golds: dict[str, str], verifier: pool.VerifierPool, grader: str
) -> list[dict[str, Any]]:
    """The reference answers that are not right when a response gives just them, in a box.

    No response to such a question can be graded fairly; they are named, and counted in the table.

    Args:
      golds: question id → reference answer.
      grader: by which they are compared.
    """
    responses = [(gold, f"The answer is $\\boxed{{{gold}}}$.") for gold in golds.values()]
    found = [
        {"id": id, "gold": gold, "outcome": str(result.outcome), "rule": result.rule}
        for (id, gold), result in zip(golds.items(), verifier.grade(responses, grader), strict=True)
        if not result.is_right
    ]
    if found:
        session.say(
            f"{name}: {len(found)} of {len(golds)} reference answers do not equal themselves "
            f"(grader {grader}): "
            + "; ".join(f"{row['id']} {row['gold']!r} ({row['rule']})" for row in found[:MAX_NAMED])
            + ("; …" if len(found) > MAX_NAMED else "")
        )
    return found


def check_same_job(config: EvalRun, task: Task, folder: pathlib.Path) -> None:
    """Rows of one file must come from one model, one way of asking and one way of grading.

    Raises:
      ConfigError: the folder's rows come from another.
    """
    shown = [[(e.question, e.solution) for e in task.examples_for(p)] for p in task.problems]
    same = {
        "init_from": config.init_from if config.engine.is_local else None,
        "engine": None if config.engine.is_local else config.engine.model,
        "seed": config.seed,
        "num_samples": config.num_samples,
        "sampling": config_lib.to_dict(config.sampling),
        "prompt_style": task.prompt_style,
        "examples": config_lib.fingerprint(shown),
        "max_tokens": task.max_tokens,
        "tokenizer": config_lib.to_dict(config.tokenizer),
        "questions": config_lib.fingerprint([[p.id, p.problem, p.answer] for p in task.problems]),
        "grader": config.verify.grader,
        "gold": task.gold,
    }
    path = folder / "samples" / f"{task.name}.job.json"
    if path.exists() and (folder / "samples" / f"{task.name}.jsonl").exists():
        other = json.loads(path.read_text())
        if changed := sorted(key for key in same if same[key] != other.get(key)):
            raise config_lib.ConfigError(
                f"{folder}: {task.name} was sampled with another {', '.join(changed)}; use that "
                "configuration, or another output folder"
            )
    session.write_atomic(path, json.dumps(same, indent=2) + "\n")
