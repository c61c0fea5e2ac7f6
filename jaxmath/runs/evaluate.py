"""`eval`: sample, grade and score benchmarks; every sample is kept.

output/
  config.yaml, environment.json   the resolved config, with the grader's name, and package versions
  questions/<benchmark>.jsonl     the problems with their reference answers
  samples/<benchmark>.jsonl       one row per response: prompt, text, verdict, the rule that decided
  samples/prm/<benchmark>.jsonl   what a process reward model says of them, if one is given
  summary.json, table.txt         the scores
"""

from __future__ import annotations

import contextlib
import dataclasses
import pathlib
import time
from collections.abc import Callable
from typing import Any

from jaxmath import sharding
from jaxmath.data import examples, prompts, records, tokenizer
from jaxmath.decode import decoder, remote, sampling
from jaxmath.eval import benchmarks, journal
from jaxmath.eval.samples import Sample
from jaxmath.model.config import ModelConfig
from jaxmath.runs import benchmark_tasks, models, process_scores, respond, results, session
from jaxmath.runs.benchmark_tasks import Task
from jaxmath.runs.progress import Progress
from jaxmath.verify import pool

WRITE_EVERY = 512  # responses, or seconds, between two writes to disk
WRITE_EVERY_S = 30.0


@dataclasses.dataclass(frozen=True)
class EvalRun:
    """One evaluation.

    benchmarks: names in `eval.benchmarks.BENCHMARKS`, read from `benchmark_folder` (JSONL files),
      or where that is null from the hub. problems: further sets of questions by a name of your own.
    limit: at most so many questions of each. prompt_style, max_tokens: null for what each benchmark
      was published with ("plain" and `sampling.max_tokens` for `problems`). prompt_style "base"
      asks a base model by each benchmark's own text style.
    few_shot: worked examples before each question: how many of our own, or a file to draw them from
      (source, num); null for the benchmark's number: five before lettered choices, else none, and
      four to eight for a base model.
    num_samples: k of avg@k; 1 with `sampling.temperature` 0 is the greedy score.
    gold: which reference answer counts, see `benchmark_tasks.gold_of`; `verify.grader` says how.
    prm: a process reward model for prm@k and the weighted vote, also of samples that are there.
    init_from, model: as in `sft`. engine: or a server that has the model; of `model`, `decode` and
      `mesh` only `decode.max_prompt_tokens` then has a say.
    """

    output: str
    tokenizer: tokenizer.TokenizerConfig
    decode: decoder.DecodeConfig
    benchmarks: tuple[str, ...] = ()
    benchmark_folder: str | None = None
    problems: dict[str, records.DataConfig] = dataclasses.field(default_factory=dict)
    init_from: str | None = None
    engine: remote.EngineConfig = remote.EngineConfig()
    model: ModelConfig | None = None
    limit: int | None = None
    prompt_style: str | None = None
    few_shot: int | examples.FewShotConfig | None = None
    max_tokens: int | None = None
    num_samples: int = 1
    seed: int = 0
    sampling: sampling.SamplingConfig = sampling.SamplingConfig(temperature=0.0)
    gold: benchmark_tasks.Gold = "answer"
    verify: pool.VerifyConfig = pool.VerifyConfig()
    prm: process_scores.PrmConfig | None = None
    mesh: sharding.MeshConfig = sharding.MeshConfig()

    def __post_init__(self):
        if self.engine.is_local:
            models.check_source(self)
        known = ", ".join(benchmarks.BENCHMARKS)
        if not self.benchmarks and not self.problems:
            raise ValueError(f"benchmarks and problems are empty; name some of {known}")
        for name in self.benchmarks:
            if name not in benchmarks.BENCHMARKS:
                raise ValueError(f"benchmarks: {name!r} is not known; choose from {known}")
        if clash := set(self.benchmarks) & set(self.problems):
            raise ValueError(f"problems: {sorted(clash)} are names of benchmarks; rename them")
        if self.num_samples < 1:
            raise ValueError(f"num_samples is {self.num_samples}; expected at least 1")
        if self.num_samples > 1 and self.sampling.temperature == 0:
            raise ValueError(
                f"num_samples is {self.num_samples} but sampling.temperature is 0, which gives the "
                "same response every time; raise the temperature or set num_samples to 1"
            )
        if self.prm is not None and self.num_samples == 1:
            raise ValueError(
                "prm is given but num_samples is 1, which leaves nothing to choose from; raise it"
            )
        benchmark_tasks.check(self)


def plan(config: EvalRun) -> dict[str, Any]:
    """What `--dry-run` prints besides the config."""
    facts = respond.plan(config)
    for name in config.benchmarks:
        known, limit = benchmarks.BENCHMARKS[name], benchmark_tasks.max_tokens(config, name)
        count = f"{known.num_rows} questions ({known.language}) x {config.num_samples} samples"
        facts[name] = f"{count} of up to {limit} tokens"
    return facts


def run(config: EvalRun) -> session.Report:
    """Samples what is missing, scores everything, prints the table."""
    folder = session.open_folder(config, "eval")
    (folder / "samples").mkdir(exist_ok=True)
    tokens = tokenizer.Tokenizer(config.tokenizer)
    tasks = benchmark_tasks.build(config)
    for task in tasks:
        benchmark_tasks.check_same_job(config, task, folder)
        benchmark_tasks.keep_questions(task, folder)
    if config.prm is not None:
        process_scores.check_room(config, tasks)
    session.record(folder, config, "eval")
    grader = config.verify.grader
    with pool.VerifierPool(config.verify) as verifier:
        bad_golds = {}
        for task in tasks:
            golds = {problem.id: problem.answer for problem in task.graded()}
            bad_golds[task.name] = benchmark_tasks.bad_golds(task.name, golds, verifier, grader)
        rows = _sample_all(config, tasks, tokens, verifier, folder)
        prm = {}
        if config.prm is not None:  # the policy's memory is free again
            prm = process_scores.score(config, tasks, rows, tokens, folder)
        scored = results.score(rows, verifier, prm, bad_golds, dict.fromkeys(rows, grader))
    return results.write(folder, scored, bad_golds)


def _sample_all(
    config: EvalRun,
    tasks: list[Task],
    tokens: tokenizer.Tokenizer,
    verifier: pool.VerifierPool,
    folder: pathlib.Path,
) -> dict[str, list[Sample]]:
    """Benchmark → its rows; the model is loaded only if any is missing."""
    rows = {}
    with contextlib.ExitStack() as stack:
        responder_for = None
        for task in tasks:
            path = folder / "samples" / f"{task.name}.jsonl"
            done, _ = journal.read_done(Sample, path)
            if len(done) < len(task.problems) * config.num_samples:
                if responder_for is None:
                    opened = respond.responders(config, tokens, verifier, logprobs=True)
                    responder_for = stack.enter_context(opened)
                done = _sample(config, task, tokens, responder_for, path, done)
            rows[task.name] = done
    return rows


def _sample(
    config: EvalRun,
    task: Task,
    tokens: tokenizer.Tokenizer,
    responder_for: Callable[..., respond.Responder | respond.RemoteResponder],
    path: pathlib.Path,
    done: list[Sample],
) -> list[Sample]:
    """All rows of one benchmark; the new ones are written as they come."""
    problems = task.graded()
    questions, by_id, dropped = respond.questions(
        tokens,
        task.prompt_style,
        problems,
        config.decode.max_prompt_tokens,
        task.name,
        task.examples_for,
    )
    asks = {
        p.id: prompts.prompt_text(tokens, task.prompt_style, p.problem, task.examples_for(p))
        for p in problems
    }
    answered = {(row.id, row.sample) for row in done}
    indices = range(config.num_samples)
    reasons = {d.id: d.reason for d in dropped}
    unwritten = [
        _skipped(task, asks[problem.id], problem, index, reasons[problem.id])
        for problem in problems
        if problem.id in reasons
        for index in indices
        if (problem.id, index) not in answered
    ]
    asked = {
        (question.id, index)
        for question in questions
        for index in indices
        if (by_id[question.id].id, index) in answered
    }
    stop = (*config.sampling.stop, *prompts.stops(task.prompt_style))
    sample = dataclasses.replace(
        config.sampling, seed=config.seed, max_tokens=task.max_tokens, stop=stop
    )
    responder = responder_for(sample, lambda i: asks[by_id[i].id])
    rows, written = list(done), time.monotonic()
    total, initial = len(problems) * config.num_samples, len(done) + len(unwritten)
    with Progress(task.name, total, "responses", initial=initial) as progress:
        try:
            for response in responder.answer(questions, indices, asked):
                progress.update(1, response.num_tokens)
                problem = by_id[response.question]
                unwritten.append(_row(task, asks[problem.id], problem, response))
                late = time.monotonic() - written > WRITE_EVERY_S
                if len(unwritten) >= WRITE_EVERY or late:
                    rows += unwritten
                    journal.append(path, unwritten)
                    unwritten, written = [], time.monotonic()
        except remote.EngineError:  # what a server has answered is not asked for again
            journal.append(path, unwritten)
            raise
    rows += unwritten
    journal.write(path, rows)  # sorted: equal runs leave equal files
    return sorted(rows, key=lambda row: row.key)


def _row(task: Task, prompt: str, problem: records.Problem, response: respond.Response) -> Sample:
    return Sample(
        benchmark=task.name,
        id=problem.id,
        sample=response.sample,
        prompt=prompt,
        response=response.text,
        num_tokens=response.num_tokens,
        finish_reason=response.finish_reason,
        outcome=str(response.verdict.outcome),
        rule=response.verdict.rule,
        pred=response.verdict.pred,
        gold=problem.answer,
        logprob=float(response.logprobs.sum()),
    )


def _skipped(task: Task, prompt: str, problem: records.Problem, index: int, reason: str) -> Sample:
    return Sample(
        benchmark=task.name,
        id=problem.id,
        sample=index,
        prompt=prompt,
        response="",
        num_tokens=0,
        finish_reason="skipped",
        outcome="no_answer",
        rule=reason,
        pred=None,
        gold=problem.answer,
        logprob=0.0,
    )
