"""Responses of an evaluation under a process reward model and its reference.

output/samples/prm/
  <benchmark>.jsonl       per response the log-probabilities of its steps (`eval.process_scores`)
  <benchmark>.job.json    the models and the way of cutting; `beta`, `value`, `aggregate` may change

A response is read as text, so that those of a server, or of an older run, can be scored too: its
tokens are those of the prompt as it was asked, of the text, and the stop token where it ended on
one. Packed rows have one shape, so one program scores all; which response stands where depends on
lengths alone, so a run that was cut off ends with the same bytes.
"""

from __future__ import annotations

import dataclasses
import json
import pathlib
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, NamedTuple

import jax
import numpy as np
from jax.sharding import Mesh

from jaxmath import config as config_lib
from jaxmath import sharding
from jaxmath.checkpoint import source
from jaxmath.data import batches, prompts, tokenizer
from jaxmath.eval import journal, process_scores
from jaxmath.eval.process_scores import StepLogprobs
from jaxmath.eval.samples import Sample
from jaxmath.model import qwen2
from jaxmath.runs import models, session
from jaxmath.runs.benchmark_tasks import Task
from jaxmath.runs.progress import Progress

if TYPE_CHECKING:
    from jaxmath.runs.evaluate import EvalRun


@dataclasses.dataclass(frozen=True)
class PrmConfig:
    """The process reward model, and how it scores.

    init_from: a PRIME run (its reward model is taken), another run or checkpoint, a Hugging Face
      folder or hub id, with the run's own tokenizer. ref: the reference likewise (of a PRIME run's,
      what that run started from); null scores by log π_φ alone.
    rule: see `eval.process_scores.ScoringRule`. split: how a response is cut into steps: "step" at
      each "Step k:", or at each "line", "paragraph" or "token", or not at all ("response").
    row_tokens, batch_rows: the shape of a batch, longest prompt and response included.
    dtype: of the parameters; null keeps that of the files.
    """

    init_from: str
    ref: str | None = None
    rule: process_scores.ScoringRule = process_scores.ScoringRule()
    split: process_scores.Split = "step"
    row_tokens: int = 4096
    batch_rows: int = 8
    dtype: str | None = None

    def __post_init__(self):
        for name in ("row_tokens", "batch_rows"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} is {getattr(self, name)}; expected at least 1")


class Reading(NamedTuple):
    """One response after its prompt, and where its steps begin."""

    row: Sample
    tokens: np.ndarray  # i32, prompt and response
    steps: tuple[int, ...]  # index in `tokens` of the first token of each step


def check_room(config: EvalRun, tasks: Sequence[Task]) -> None:
    """Raises ConfigError, before anything is sampled, if a response might not fit a row."""
    for task in tasks:
        longest = config.decode.max_prompt_tokens + task.max_tokens
        if longest > config.prm.row_tokens:
            raise config_lib.ConfigError(
                f"prm.row_tokens is {config.prm.row_tokens}, but a prompt of {task.name} with its "
                f"response may have {longest} tokens; raise it, or lower max_tokens"
            )


def score(
    config: EvalRun,
    tasks: Sequence[Task],
    rows: dict[str, list[Sample]],
    tokens: tokenizer.Tokenizer,
    folder: pathlib.Path,
) -> dict[str, dict[tuple[str, str, int], float | None]]:
    """Benchmark → sample → process score; what is on disk is not computed again.

    Raises:
      ConfigError: the folder holds scores by other models or of other steps.
    """
    found, pending = {}, []
    for task in tasks:
        _check_same_job(config.prm, task.name, folder)
        path = folder / "samples" / "prm" / f"{task.name}.jsonl"
        done = {row.key: row for row in journal.read_done(StepLogprobs, path)[0]}
        found[task.name] = done
        if len(done) < len(rows[task.name]):
            pending.append((task, path))
    if pending:
        mesh = session.make_mesh(config)
        models.check_rows(mesh, config.prm.batch_rows, "prm.batch_rows")
        with jax.set_mesh(mesh):
            scorer = Scorer(config, tokens, mesh)
            for task, path in pending:
                _score_task(scorer, task, rows[task.name], found[task.name], tokens, path)
    with_ref = config.prm.ref is not None
    return {
        name: {
            key: process_scores.response_score(steps, config.prm.rule, with_ref=with_ref)
            for key, steps in done.items()
        }
        for name, done in found.items()
    }


def kept(
    folder: pathlib.Path, name: str, prm: PrmConfig
) -> dict[tuple[str, str, int], float | None]:
    """The scores of a finished run, from its folder."""
    rows = journal.read(StepLogprobs, folder / "samples" / "prm" / f"{name}.jsonl")
    with_ref = prm.ref is not None
    score_of = process_scores.response_score
    return {row.key: score_of(row, prm.rule, with_ref=with_ref) for row in rows}


class Scorer:
    """Both models on the mesh, and the one program that reads rows under either.

    Raises:
      ConfigError: a model with fewer ids than the tokenizer.
    """

    def __init__(self, config: EvalRun, tokens: tokenizer.Tokenizer, mesh: Mesh):
        self.config = config.prm
        self._sharding = sharding.named(mesh, ("batch", "seq"))
        self._logprobs = jax.jit(_logprobs, out_shardings=self._sharding)
        self.prm = _load(config, self.config.init_from, tokens, mesh, source.PRM_SUBTREES)
        self.ref = None
        if self.config.ref is not None:
            self.ref = _load(config, self.config.ref, tokens, mesh, source.SUBTREES)

    def logprobs(self, batch: batches.SftBatch) -> tuple[np.ndarray, np.ndarray | None]:
        """(prm_logprob_BT, ref_logprob_BT), f32 on the host."""
        rows = (batch.tokens_BT, batch.positions_BT, batch.segment_ids_BT)
        rows = tuple(jax.device_put(x, self._sharding) for x in rows)
        ref = None if self.ref is None else self._logprobs(self.ref, *rows)
        prm = self._logprobs(self.prm, *rows)
        return np.asarray(prm), None if ref is None else np.asarray(ref)


def _logprobs(model: qwen2.Qwen2, tokens_BT, positions_BT, segment_ids_BT) -> jax.Array:
    return model.token_logprobs(tokens_BT, positions_BT, segment_ids_BT)


def _load(
    config: EvalRun, path: str, tokens: tokenizer.Tokenizer, mesh: Mesh, subtrees: Sequence[str]
) -> qwen2.Qwen2:
    path = models.checkpoint_path(path)
    shape = source.load_config(path)
    if config.model is not None and config.model.same_weights(shape):
        shape = config.model  # computed as the config says
    if shape.vocab_size < tokens.vocab_size:
        raise config_lib.ConfigError(
            f"prm: {path} knows {shape.vocab_size} tokens, the tokenizer of this run "
            f"{tokens.vocab_size}; score with a model of the same tokenizer"
        )
    shape = shape.on_mesh(mesh, must=shape is config.model)
    return source.load_model(path, mesh, config.prm.dtype, shape, subtrees=subtrees)[0]


def _score_task(
    scorer: Scorer,
    task: Task,
    rows: Sequence[Sample],
    done: dict[tuple[str, str, int], StepLogprobs],
    tokens: tokenizer.Tokenizer,
    path: pathlib.Path,
) -> None:
    """Adds the missing rows to `done` and to the file, batch by batch."""
    path.parent.mkdir(exist_ok=True)
    skipped = [
        StepLogprobs(*row.key, prm=(), ref=None)
        for row in rows
        if row.finish_reason == "skipped" and row.key not in done
    ]
    journal.append(path, skipped)
    done |= {row.key: row for row in skipped}
    sequences = list(_sequences(scorer.config, task, rows, tokens))
    with Progress(f"{task.name} prm", len(rows), "responses", initial=len(done)) as progress:
        for packed in _batches(sequences, scorer.config):
            if all(s.row.key in done for row in packed for s in row):
                continue
            batch = _batch(packed, scorer.config)
            found = list(_step_logprobs(packed, *scorer.logprobs(batch)))
            new = [row for row in found if row.key not in done]
            journal.append(path, new)
            done |= {row.key: row for row in new}
            progress.update(len(new), int(np.count_nonzero(batch.segment_ids_BT)))
    journal.write(path, done.values())  # sorted: equal runs leave equal files


def _sequences(
    prm: PrmConfig, task: Task, rows: Sequence[Sample], tokens: tokenizer.Tokenizer
) -> Iterator[Reading]:
    problems = {problem.id: problem for problem in task.problems}
    asked: dict[str, list[int]] = {}
    for row in sorted(rows, key=lambda row: row.key):
        if row.finish_reason == "skipped":
            continue
        if row.id not in asked:
            problem = problems[row.id]
            asked[row.id] = prompts.prompt_tokens(
                tokens, task.prompt_style, problem.problem, task.examples_for(problem)
            )
        prompt = asked[row.id]
        ids, starts = tokens.encode_with_starts(row.response)
        # A text style ends on a string, not on a token.
        if row.finish_reason == "stop" and task.prompt_style not in prompts.TEXT_STYLES:
            ids, starts = [*ids, tokens.eos_ids[0]], [*starts, len(row.response)]
        firsts = process_scores.first_tokens(prm.split, row.response, starts)
        steps = tuple(len(prompt) + first for first in firsts)
        if len(prompt) + len(ids) > prm.row_tokens:
            raise config_lib.ConfigError(
                f"prm.row_tokens is {prm.row_tokens}, but sample {row.sample} of {row.id} has "
                f"{len(prompt) + len(ids)} tokens with its prompt; raise it"
            )
        yield Reading(row, np.array([*prompt, *ids], np.int32), steps)


def _batches(sequences: Sequence[Reading], prm: PrmConfig) -> Iterator[list[list[Reading]]]:
    """Rows of sequences, `batch_rows` at a time; the last batch may have fewer."""
    plan = batches.plan_rows([len(s.tokens) for s in sequences], prm.row_tokens)
    for start in range(0, len(plan), prm.batch_rows):
        yield [[sequences[i] for i in row] for row in plan[start : start + prm.batch_rows]]


def _batch(packed: Sequence[Sequence[Reading]], prm: PrmConfig) -> batches.SftBatch:
    shape = (prm.batch_rows, prm.row_tokens)
    arrays = [np.zeros(shape, np.int32) for _ in range(3)]
    tokens_BT, positions_BT, segment_ids_BT = arrays
    for b, row in enumerate(packed):
        start = 0
        for segment, sequence in enumerate(row, start=1):
            end = start + len(sequence.tokens)
            tokens_BT[b, start:end] = sequence.tokens
            positions_BT[b, start:end] = np.arange(end - start)
            segment_ids_BT[b, start:end] = segment
            start = end
    return batches.SftBatch(*arrays, loss_weights_BT=np.zeros(shape, np.float32))


def _step_logprobs(
    packed: Sequence[Sequence[Reading]], prm_BT: np.ndarray, ref_BT: np.ndarray | None
) -> Iterator[StepLogprobs]:
    for b, row in enumerate(packed):
        start = 0
        for sequence in row:
            end = start + len(sequence.tokens)
            sums = [
                None if x is None else _step_sums(x[b, start:end], sequence.steps)
                for x in (prm_BT, ref_BT)
            ]
            yield StepLogprobs(*sequence.row.key, *sums)
            start = end


def _step_sums(logprob_T: np.ndarray, steps: tuple[int, ...]) -> tuple[float, ...]:
    """f64 sums from each step's first token up to the next step."""
    if not steps:
        return ()
    sums = np.add.reduceat(logprob_T.astype(np.float64), np.array(steps))
    return tuple(float(x) for x in sums)


def _check_same_job(prm: PrmConfig, name: str, folder: pathlib.Path) -> None:
    """Steps of one file must come from one pair of models; scores without a reference may be taken
    from rows that have one."""
    (folder / "samples" / "prm").mkdir(parents=True, exist_ok=True)
    path = folder / "samples" / "prm" / f"{name}.job.json"
    job = {"init_from": prm.init_from, "ref": prm.ref, "split": prm.split, "dtype": prm.dtype}
    if path.exists() and path.with_name(f"{name}.jsonl").exists():
        other = json.loads(path.read_text())
        if prm.ref is None:
            job["ref"] = other["ref"]
        if changed := sorted(key for key in job if job[key] != other.get(key)):
            raise config_lib.ConfigError(
                f"{path.parent}: {name} was scored with another prm.{', prm.'.join(changed)}; use "
                f"that, or move {path.parent} away"
            )
    session.write_atomic(path, json.dumps(job, indent=2) + "\n")
