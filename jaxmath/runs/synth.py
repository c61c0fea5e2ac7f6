"""`synth`: a teacher answers questions, the verifier keeps the right answers as SFT records.

    output/
      shards/               every response with its verdict (`data/shards.py`)
      contamination.jsonl   questions that stand in a benchmark (`runs/questions.py`)
      sft.jsonl, sft.parquet, summary.json, README.md   what is kept of them (`runs/collect.py`)

A sample depends on (seed, question, sample index) alone, and each is made once: killed at any
moment and started again, a run ends with the same bytes. Started several times with the same
output, on one host or on several with a common file system, the workers share the shards out among
themselves, and take over those of a worker that died.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import hashlib
import json
import pathlib
import time
from collections.abc import Callable, Iterator
from typing import Any, Literal

import jax

from jaxmath import config as config_lib
from jaxmath import sharding
from jaxmath.data import (
    card,
    claims,
    decontaminate,
    durable,
    prompts,
    records,
    selection,
    shards,
    tokenizer,
)
from jaxmath.decode import decoder, remote, sampling
from jaxmath.model.config import ModelConfig
from jaxmath.runs import collect, hub, questions, respond, session
from jaxmath.runs.progress import Progress
from jaxmath.verify import pool

QUIET_S = 60.0  # between two words about waiting


@dataclasses.dataclass(frozen=True)
class SynthRun:
    """One synthesis job.

    init_from: the teacher. engine: or a server that has one; of `model`, `decode` and `mesh` only
      `decode.max_prompt_tokens` then has a say.
    prompt_style: how the teacher is asked; sft_style: how the kept rows are put, and `null` for the
      same style.
    difficulty: "s1" asks only what PRIME's first filter lets through.
    decontaminate: benchmarks whose questions are not asked.
    num_samples: responses per question.
    filters, card, push_to_hub: what is kept, how it is described, where it is sent; these may
      change without anything being sampled again.
    regrade: grade every response again while collecting, by the verifier of today; what was sampled
      stays as it is.
    shard_questions: questions per shard, the unit that workers share out; while the last of a shard
      is answered slots stand idle.
    lease_s: a worker on another host that was not heard of for so long counts as dead.
    """

    output: str
    tokenizer: tokenizer.TokenizerConfig
    data: records.DataConfig
    decode: decoder.DecodeConfig
    init_from: str | None = None
    engine: remote.EngineConfig = remote.EngineConfig()
    model: ModelConfig | None = None
    prompt_style: str = "intellect-synth"
    sft_style: str | None = "intellect-sft"
    difficulty: Literal["none", "s1"] = "none"
    decontaminate: decontaminate.DecontaminateConfig = dataclasses.field(
        default_factory=decontaminate.DecontaminateConfig
    )
    num_samples: int = 2
    filters: selection.FilterConfig = selection.FilterConfig()
    card: card.CardConfig = card.CardConfig()
    push_to_hub: hub.HubConfig | None = None
    regrade: bool = False
    shard_questions: int = 4096
    lease_s: float = 300.0
    seed: int = 0
    sampling: sampling.SamplingConfig = sampling.SamplingConfig(temperature=0.9, max_tokens=8192)
    verify: pool.VerifyConfig = pool.VerifyConfig()
    mesh: sharding.MeshConfig = sharding.MeshConfig()

    def __post_init__(self):
        if self.engine.is_local and self.init_from is None:
            raise ValueError("init_from is null; name the teacher, or a server in engine")
        for field in ("num_samples", "shard_questions"):
            if getattr(self, field) < 1:
                raise ValueError(f"{field} is {getattr(self, field)}; expected at least 1")
        if not 0 < self.lease_s < float("inf"):
            raise ValueError(f"lease_s is {self.lease_s}; expected a number of seconds above 0")
        for style in (self.prompt_style, self.sft_style or self.prompt_style):
            prompts.prompt_messages(style, "")


def plan(config: SynthRun) -> dict[str, Any]:
    """What `--dry-run` prints besides the config."""
    return respond.plan(config) | {"tokens per response, at most": config.sampling.max_tokens}


def run(config: SynthRun) -> session.Report:
    """Samples what is missing, alone or with others, then collects the shards.

    Raises:
      ConfigError: the folder holds samples made otherwise, or the environment lacks something.
    """
    if jax.process_count() > 1:
        raise config_lib.ConfigError(
            f"synth runs as one JAX process, got {jax.process_count()}; start one on each host "
            "with the same output, and they share the work"
        )
    if config.push_to_hub is not None:
        hub.token(config.push_to_hub)
    folder = session.open_folder(config, "synth")
    durable.remove_scratch(folder)
    tokens = tokenizer.Tokenizer(config.tokenizer)
    found = records.read_answered(config.data, folder / "rejects.jsonl")
    num_shards = -(-len(found.problems) // config.shard_questions)
    store = shards.Shards(folder / "shards", num_shards)
    _check_same_job(config, found.problems, store.folder)
    session.record(folder, config, "synth")
    choice = questions.choose(config.difficulty, config.decontaminate, found, folder)
    style = config.sft_style or config.prompt_style
    job = collect.Job(
        folder,
        store,
        choice,
        config.filters,
        style,
        config.num_samples,
        config.seed,
        config.card,
        _about(config, choice, style),
        config.push_to_hub,
        config.verify if config.regrade else None,
    )
    with claims.Claims(store.folder / "claims", config.lease_s) as held:
        _check_same_grading(config, store)
        _fill(config, tokens, found.problems, choice, store, held)
        _check_same_grading(config, store)  # of what other workers brought
        summary = collect.collect(job, held)
    return session.Report(summary, (str(folder / "sft.jsonl"), str(folder / "sft.parquet")))


def _check_same_job(config: SynthRun, problems: list[records.Problem], folder) -> None:
    """Shards of one folder must come from one configuration and the same questions."""
    free = (
        "output",
        "mesh",
        "verify",
        "sft_style",
        "difficulty",
        "decontaminate",
        "filters",
        "card",
        "push_to_hub",
        "regrade",
        "lease_s",
    )
    same = {k: v for k, v in config_lib.to_dict(config).items() if k not in free}
    if config.engine.is_local:
        del same["engine"]
    else:
        same["engine"] = {"kind": config.engine.kind, "model": config.engine.model}
    same["decode"] = {"max_prompt_tokens": config.decode.max_prompt_tokens}
    digest = hashlib.sha256()
    for problem in problems:
        digest.update(json.dumps([problem.id, problem.problem, problem.answer]).encode() + b"\n")
    same["questions"] = digest.hexdigest()
    path = folder / "job.json"
    durable.publish(path, json.dumps(same, indent=2).encode() + b"\n")
    other = json.loads(path.read_text())
    changed = sorted(k for k in same.keys() | other.keys() if same.get(k) != other.get(k))
    if changed:
        raise config_lib.ConfigError(
            f"{folder.parent} holds samples made with another {', '.join(changed)}; use that "
            "configuration, or another output folder"
        )


def _check_same_grading(config: SynthRun, store: shards.Shards) -> None:
    """Verdicts of different kinds are not mixed."""
    ours = _grading(config)
    for record in store.records():
        theirs = record.facts["grading"]
        if theirs != ours and not config.regrade:
            raise config_lib.ConfigError(
                f"{store.folder / record.file} was graded with {theirs}, not with {ours}; set "
                "regrade to true to grade everything again, or verify as it was"
            )


def _grading(config: SynthRun) -> dict[str, Any]:
    """The fields of `verify` that decide what is right; the others are limits and speed."""
    limits = ("num_workers", "timeout_s", "memory_mb", "batch_size")
    return {k: v for k, v in config_lib.to_dict(config.verify).items() if k not in limits}


def _fill(
    config: SynthRun,
    tokens: tokenizer.Tokenizer,
    problems: list[records.Problem],
    choice: questions.Choice,
    store: shards.Shards,
    held: claims.Claims,
) -> None:
    """Until every shard is there and is what its record says."""
    while True:
        for fault in store.verify():
            session.say(f"synth: {fault}; it is made again")
        if not store.missing():
            return
        with Sampler(config, tokens, problems, choice, store) as sampler:
            shards.fill(store, held, sampler.work, _waiting())


class Sampler:
    """Makes the rows of shards. The teacher is loaded for the first of them that is ours."""

    def __init__(
        self,
        config: SynthRun,
        tokens: tokenizer.Tokenizer,
        problems: list[records.Problem],
        choice: questions.Choice,
        store: shards.Shards,
    ):
        self.config, self.tokens, self.problems, self.choice = config, tokens, problems, choice
        done = sum(record.rows for record in store.records())
        total = len(choice.asked) * config.num_samples
        self._stack = contextlib.ExitStack()
        self._progress = Progress("synth", total, "responses", initial=done)
        self._facts = {"verifier": collect.verifier_name(), "grading": _grading(config)}

    def __enter__(self) -> Sampler:
        self._stack.enter_context(self._progress)
        return self

    def __exit__(self, *exc) -> None:
        self._stack.__exit__(*exc)

    def work(self, shard: int, done: dict[shards.Name, shards.Row]) -> shards.Work:
        """What is to be done for one shard; questions are tokenized as late as here."""
        config, size = self.config, self.config.shard_questions
        places = range(shard * size, min((shard + 1) * size, len(self.problems)))
        by_problem = {self.problems[i].id: i for i in places if i in self.choice.asked}
        kept, dropped = prompts.filter_prompts(
            self.tokens,
            config.prompt_style,
            (self.problems[i] for i in by_problem.values()),
            config.decode.max_prompt_tokens,
        )
        asked = [
            respond.Question(by_problem[prompt.problem.id], prompt.tokens, prompt.problem.answer)
            for prompt in kept
        ]
        names = {(question.id, i) for question in asked for i in range(config.num_samples)}
        self._progress.update(len(done))
        too_long = [by_problem[problem.id] for problem in dropped]
        facts = self._facts | {"prompts_too_long": too_long}
        return shards.Work(names, self._rows(asked, done), facts)

    def _rows(
        self, asked: list[respond.Question], done: dict[shards.Name, shards.Row]
    ) -> Iterator[shards.Row]:
        names = frozenset(done)
        for response in self._responder.answer(asked, range(self.config.num_samples), names):
            self._progress.update(1, response.num_tokens)
            yield _row(response, self.problems[response.question])

    @functools.cached_property
    def _responder(self) -> respond.Responder | respond.RemoteResponder:
        config, tokens = self.config, self.tokens
        verifier = self._stack.enter_context(pool.VerifierPool(config.verify))
        make = respond.responders(config, tokens, verifier, logprobs=False)
        return self._stack.enter_context(make)(
            dataclasses.replace(config.sampling, seed=config.seed),
            lambda i: respond.prompt_text(tokens, config.prompt_style, self.problems[i]),
        )


def _row(response: respond.Response, problem: records.Problem) -> shards.Row:
    return {
        "prompt": problem.problem,
        "response": _whole_characters(response.text),
        "problem_id": response.question,
        "ground_truth": problem.answer,
        "sample": response.sample,
        "source_id": problem.id,
        "num_tokens": response.num_tokens,
        "finish_reason": response.finish_reason,
        **collect.grades(response.verdict),
    }


def _whole_characters(text: str) -> str:
    """Halves of surrogate pairs become U+FFFD, or one character where two meet.

    A server may send either, escaped in its JSON, and no UTF-8 file can hold them.
    """
    if text.isascii():
        return text
    return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")


def _waiting() -> Callable[[int, str | None], None]:
    told = float("-inf")

    def wait(shard: int, owner: str | None) -> None:
        nonlocal told
        if owner is not None and time.monotonic() - told > QUIET_S:
            told = time.monotonic()
            session.say(f"synth: nothing left to claim; shard {shard} is with {owner}")

    return wait


def _about(config: SynthRun, choice: questions.Choice, style: str) -> dict[str, Any]:
    """What the card says besides counts."""
    drawn = config_lib.to_dict(config.sampling)
    drawn = {k: v for k, v in drawn.items() if v is not False and v not in (None, "", [])}
    overlap: dict[str, Any] = {"matches listed": choice.matches}
    if config.decontaminate.benchmarks:
        overlap |= {
            "words of a shared sequence": config.decontaminate.ngram_words,
            "least share in common": config.decontaminate.min_common,
        }
    else:
        overlap = {"compared with": "nothing"}
    grading = config_lib.to_dict(config.verify)
    for field in ("num_workers", "batch_size"):  # which decide no verdict
        del grading[field]
    return {
        "teacher": _public(config.init_from if config.engine.is_local else config.engine.model),
        "source": f"{_public(config.data.path)} ({config.data.split})",
        "prompt": prompts.prompt_messages(config.prompt_style, "{question}"),
        "sft_prompt": prompts.prompt_messages(style, "{question}"),
        "sampling": drawn | {"seed": config.seed, "responses per question": config.num_samples},
        "grading": grading,
        "decontamination": overlap,
    }


def _public(name: str) -> str:
    """A hub id as it is; of a path, which says nothing to others, the last part."""
    path = pathlib.Path(name)
    return path.name if path.exists() else name
