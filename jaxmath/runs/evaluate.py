"""`eval`: sample, grade and score benchmarks; every sample is kept.

output/
  samples/<benchmark>.jsonl   one row per response
  summary.json, table.txt     the scores
"""

from __future__ import annotations

import dataclasses
import json
import pathlib
from typing import Any

import jax

from jaxmath import config as config_lib
from jaxmath import sharding
from jaxmath.data import prompts, records, tokenizer
from jaxmath.decode import decoder, remote, sampling
from jaxmath.eval import benchmarks, samples, scores
from jaxmath.model.config import ModelConfig
from jaxmath.runs import models, respond, session
from jaxmath.runs.progress import Progress
from jaxmath.verify import pool

WRITE_EVERY = 512  # responses between two writes to disk


@dataclasses.dataclass(frozen=True)
class EvalRun:
    """One evaluation.

    benchmarks: names in `eval.benchmarks.BENCHMARKS`, read from `benchmark_folder` (JSONL files),
      or where that is null from the hub. problems: further sets of questions by a name of your own.
    limit: at most so many questions of each. prompt_style, max_tokens: null for what each benchmark
      was published with ("plain" and `sampling.max_tokens` for `problems`).
    num_samples: k of avg@k; 1 with `sampling.temperature` 0 is the greedy score.
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
    max_tokens: int | None = None
    num_samples: int = 1
    seed: int = 0
    sampling: sampling.SamplingConfig = sampling.SamplingConfig(temperature=0.0)
    verify: pool.VerifyConfig = pool.VerifyConfig()
    mesh: sharding.MeshConfig = sharding.MeshConfig()

    def __post_init__(self):
        if self.engine.is_local:
            models.check_source(self)
        if not self.benchmarks and not self.problems:
            known = ", ".join(benchmarks.BENCHMARKS)
            raise ValueError(f"benchmarks and problems are empty; name some of {known}")
        for name in self.benchmarks:
            if name not in benchmarks.BENCHMARKS:
                known = ", ".join(benchmarks.BENCHMARKS)
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
        if self.prompt_style is not None:
            prompts.prompt_messages(self.prompt_style, "")


@dataclasses.dataclass(frozen=True)
class Task:
    """A benchmark as this run asks it."""

    name: str
    problems: list[records.Problem]
    prompt_style: str
    max_tokens: int


def plan(config: EvalRun) -> dict[str, Any]:
    """What `--dry-run` prints besides the config."""
    facts = respond.plan(config)
    for name in config.benchmarks:
        known = benchmarks.BENCHMARKS[name]
        facts[name] = f"{known.num_rows} questions x {config.num_samples} samples"
    return facts


def run(config: EvalRun) -> session.Report:
    """Samples what is missing, scores everything, prints the table."""
    folder = session.open_folder(config, "eval")
    (folder / "samples").mkdir(exist_ok=True)
    tokens = tokenizer.Tokenizer(config.tokenizer)
    tasks, results = _tasks(config), []
    for task in tasks:
        _check_same_job(config, task, folder)
    session.record(folder, config, "eval")
    with (
        pool.VerifierPool(config.verify) as verifier,
        respond.responders(config, tokens, verifier, logprobs=True) as responder_for,
    ):
        for task in tasks:
            rows = _sample(config, task, tokens, responder_for, folder)
            results.append(scores.score(task.name, rows, _equivalent(verifier)))
    table = scores.table(results)
    if jax.process_index() == 0:
        print(table)
        session.write_atomic(folder / "table.txt", table + "\n")
        rows = [dataclasses.asdict(result) for result in results]
        session.write_atomic(folder / "summary.json", json.dumps(rows, indent=2) + "\n")
    summary = {
        result.name: {
            "accuracy": result.accuracy,
            "low": result.low,
            "high": result.high,
            "rows": result.num_questions * result.num_samples,
        }
        for result in results
    }
    return session.Report(summary, (str(folder / "samples"), str(folder / "summary.json")))


def compare(run_a: str, run_b: str) -> str:
    """The paired difference of two finished runs on the benchmarks they share, as a table."""
    found = []
    for run in (run_a, run_b):
        paths = sorted((pathlib.Path(run) / "samples").glob("*.jsonl"))
        if not paths:
            raise ValueError(f"{run}: no samples/*.jsonl; expected the output folder of an eval")
        found.append({path.stem: path for path in paths})
    shared = sorted(found[0].keys() & found[1].keys())
    if not shared:
        raise ValueError(f"{run_a} and {run_b} have no benchmark in common")
    return scores.comparison_table(
        {n: scores.compare(samples.read(found[0][n]), samples.read(found[1][n])) for n in shared}
    )


def _tasks(config: EvalRun) -> list[Task]:
    tasks = []
    for name in config.benchmarks:
        known = benchmarks.BENCHMARKS[name]
        problems = benchmarks.load(name, config.benchmark_folder, config.limit)
        style = config.prompt_style or known.prompt_style
        tasks.append(Task(name, problems, style, config.max_tokens or known.max_tokens))
    for name, data in config.problems.items():
        problems = records.read_problems(data)[: config.limit]
        max_tokens = config.max_tokens or config.sampling.max_tokens
        tasks.append(Task(name, problems, config.prompt_style or "plain", max_tokens))
    return tasks


def _sample(config: EvalRun, task: Task, tokens, responder_for, folder) -> list[samples.Sample]:
    path = folder / "samples" / f"{task.name}.jsonl"
    done, _ = samples.read_done(path)
    questions, by_id, dropped = respond.questions(
        tokens, task.prompt_style, task.problems, config.decode.max_prompt_tokens, task.name
    )
    answered = {(row.id, row.sample) for row in done}
    indices = range(config.num_samples)
    skipped = [
        _skipped(task, tokens, problem, index, reasons[problem.id])
        for reasons in [{d.id: d.reason for d in dropped}]
        for problem in task.problems
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
    rows, unwritten = list(done), skipped
    sample = dataclasses.replace(config.sampling, seed=config.seed, max_tokens=task.max_tokens)
    responder = responder_for(sample, lambda i: _prompt_text(task, tokens, by_id[i]))
    total = len(task.problems) * config.num_samples
    with Progress(task.name, total, "responses", initial=len(done) + len(skipped)) as progress:
        try:
            for response in responder.answer(questions, indices, asked):
                progress.update(1, response.num_tokens)
                unwritten.append(_row(task, tokens, by_id[response.question], response))
                if len(unwritten) >= WRITE_EVERY:
                    rows += unwritten
                    samples.append(path, unwritten)
                    unwritten = []
        except remote.EngineError:  # what a server has answered is not asked for again
            samples.append(path, unwritten)
            raise
    rows += unwritten
    samples.write(path, rows)  # sorted: equal runs leave equal files
    return rows


def _check_same_job(config: EvalRun, task: Task, folder: pathlib.Path) -> None:
    """Rows of one file must come from one model and one way of asking."""
    same = {
        "init_from": config.init_from if config.engine.is_local else None,
        "engine": None if config.engine.is_local else config.engine.model,
        "seed": config.seed,
        "num_samples": config.num_samples,
        "sampling": config_lib.to_dict(config.sampling),
        "prompt_style": task.prompt_style,
        "max_tokens": task.max_tokens,
        "tokenizer": config_lib.to_dict(config.tokenizer),
        "questions": config_lib.fingerprint([[p.id, p.problem, p.answer] for p in task.problems]),
    }
    path = folder / "samples" / f"{task.name}.job.json"
    if path.exists() and (folder / "samples" / f"{task.name}.jsonl").exists():
        other = json.loads(path.read_text())
        changed = sorted(k for k in same if same[k] != other.get(k))
        if changed:
            raise config_lib.ConfigError(
                f"{folder}: {task.name} was sampled with another {', '.join(changed)}; use that "
                "configuration, or another output folder"
            )
    session.write_atomic(path, json.dumps(same, indent=2) + "\n")


def _row(task: Task, tokens, problem, response: respond.Response) -> samples.Sample:
    return samples.Sample(
        benchmark=task.name,
        id=problem.id,
        sample=response.sample,
        prompt=_prompt_text(task, tokens, problem),
        response=response.text,
        num_tokens=response.num_tokens,
        finish_reason=response.finish_reason,
        outcome=str(response.verdict.outcome),
        rule=response.verdict.rule,
        pred=response.verdict.pred,
        gold=problem.answer,
        logprob=float(response.logprobs.sum()),
    )


def _skipped(task: Task, tokens, problem, index: int, reason: str) -> samples.Sample:
    return samples.Sample(
        benchmark=task.name,
        id=problem.id,
        sample=index,
        prompt=_prompt_text(task, tokens, problem),
        response="",
        num_tokens=0,
        finish_reason="skipped",
        outcome="no_answer",
        rule=reason,
        pred=None,
        gold=problem.answer,
        logprob=0.0,
    )


def _prompt_text(task: Task, tokens, problem) -> str:
    return respond.prompt_text(tokens, task.prompt_style, problem)


def _equivalent(verifier: pool.VerifierPool):
    """maj@k votes over equivalent answers: the verifier decides, in its workers."""

    def equivalent(a: str, b: str) -> bool:
        return a == b or verifier.grade_answers([(a, b)])[0].is_right

    return equivalent
