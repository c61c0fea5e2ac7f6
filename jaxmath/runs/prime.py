"""`prime`: online reinforcement learning with an implicit process reward model.

A step: sample responses until enough prompts pass the accuracy filter (`rl.rollouts`), score them
with the policy (`rl.prime.score`), update PRM and policy (`rl.prime.prime_step`), hand the new
policy to the decoder.
"""

from __future__ import annotations

import dataclasses
import functools
import time
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from jaxmath import config as config_lib
from jaxmath import metrics, sharding
from jaxmath.checkpoint import store
from jaxmath.data import batches, prompts, records, tokenizer
from jaxmath.decode import decoder, sampling
from jaxmath.model import qwen2
from jaxmath.model.config import ModelConfig
from jaxmath.rl import prime, rollouts
from jaxmath.rl.config import RlConfig
from jaxmath.runs import models, respond, session
from jaxmath.runs import sampler as sampler_lib
from jaxmath.runs.progress import Progress
from jaxmath.train import optimizer as optimizer_lib
from jaxmath.train import state
from jaxmath.verify import pool

SHOWN = (
    "rollout/accuracy",
    "critic/score/mean",
    "actor/pg_loss",
    "actor/pg_clipfrac",
    "reward_model/prm_loss",
    "reward_model/dpo_acc",
    "response_length/mean",
    "timing_s/step",
)


@dataclasses.dataclass(frozen=True)
class PrimeRun:
    """One PRIME run.

    init_from: the SFT model that policy, PRM and reference all start from.
    rl: the algorithm. steps: rollout steps; each makes `rl.policy_updates` updates of the policy.
    epochs: the run also ends after so many passes over the problems.
    rollout_prompts: fresh prompts per round of generation; null for `rl.num_prompts`.
    ref_dtype: of the frozen reference's parameters.
    """

    output: str
    tokenizer: tokenizer.TokenizerConfig
    data: records.DataConfig
    init_from: str
    rl: RlConfig
    decode: decoder.DecodeConfig
    steps: int
    model: ModelConfig | None = None
    epochs: int = 1
    rollout_prompts: int | None = None
    prompt_style: str = "prime-rl"
    ref_dtype: str = "float32"
    seed: int = 0
    verify: pool.VerifyConfig = pool.VerifyConfig()
    mesh: sharding.MeshConfig = sharding.MeshConfig()
    checkpoint: store.CheckpointConfig = store.CheckpointConfig(save_every=16)
    wandb_project: str | None = None

    def __post_init__(self):
        for field in ("steps", "epochs"):
            if getattr(self, field) < 1:
                raise ValueError(f"{field} is {getattr(self, field)}; expected at least 1")
        if self.rollout_prompts is not None and self.rollout_prompts < 1:
            raise ValueError(f"rollout_prompts is {self.rollout_prompts}; expected at least 1")
        if self.decode.max_prompt_tokens != self.rl.max_prompt_tokens:
            raise ValueError(
                f"decode.max_prompt_tokens is {self.decode.max_prompt_tokens} and "
                f"rl.max_prompt_tokens is {self.rl.max_prompt_tokens}; make them equal"
            )
        if self.ref_dtype not in ("float32", "bfloat16"):
            raise ValueError(f"ref_dtype is {self.ref_dtype!r}; expected float32 or bfloat16")
        prompts.prompt_messages(self.prompt_style, "")


def plan(config: PrimeRun) -> dict[str, Any]:
    """What `--dry-run` prints besides the config."""
    rl = config.rl
    facts = models.plan(config, session.make_mesh(config))
    row = rl.max_prompt_tokens + rl.max_response_tokens
    return facts | {
        "responses per step": rl.num_prompts * rl.num_responses,
        "policy and PRM updates per step": f"{rl.policy_updates} and {rl.prm_updates}",
        "tokens per step, at most": rl.num_prompts * rl.num_responses * row,
        "tokens per micro-batch": rl.microbatch_size * row,
    }


class Loader:
    """Prompts in epochs of their own order, drawn from (seed, epoch); remembers its place.

    The end of an epoch that does not fill a batch is left out of it, as in the released loop.
    """

    def __init__(self, questions, seed: int, epochs: int, batch: int, position=(0, 0)):
        self.questions, self.seed, self.epochs, self.batch = questions, seed, epochs, batch
        self.epoch, self.index = position

    @property
    def position(self) -> tuple[int, int]:
        """(epoch, prompts of it already handed out)."""
        return self.epoch, self.index

    def next(self) -> list[rollouts.Prompt]:
        """The next batch; none, once, at the end of each epoch, and for good after the last."""
        if self.epoch < self.epochs and self.index + self.batch > len(self.questions):
            self.epoch, self.index = self.epoch + 1, 0
            return []
        if self.epoch == self.epochs:
            return []
        order = batches.prompt_order(len(self.questions), self.seed, self.epoch)
        taken = order[self.index : self.index + self.batch]
        self.index += self.batch
        chosen = [self.questions[i] for i in taken]
        return [rollouts.Prompt(question.id, question.tokens) for question in chosen]


@dataclasses.dataclass(frozen=True)
class Programs:
    """The compiled functions of a run."""

    score: Any
    step: Any
    batch_shardings: tuple[Any, Any]  # of [B, T] and of [B] arrays


def run(config: PrimeRun) -> session.Report:
    """Trains to the end, or on from the newest checkpoint."""
    folder = session.open_folder(config, "prime")
    mesh = session.make_mesh(config)
    models.check_rows(mesh, config.rl.microbatch_size, "rl.microbatch_size")
    tokens = tokenizer.Tokenizer(config.tokenizer)
    problems = records.read_problems(config.data, folder / "rejects.jsonl")
    questions, by_id, _ = respond.questions(
        tokens, config.prompt_style, problems, config.rl.max_prompt_tokens, "prime"
    )
    batch_prompts = config.rollout_prompts or config.rl.num_prompts
    if len(questions) < batch_prompts:
        raise ValueError(
            f"{config.data.path} has {len(questions)} usable prompts, fewer than the "
            f"{batch_prompts} of one round; add problems or lower rl.num_prompts"
        )
    gold = {i: problem.answer for i, problem in by_id.items()}
    optimizers = make_optimizers(config)
    meta = models.meta(config, mesh, tokens, folder)
    meta["data"] = config_lib.fingerprint([[q.tokens, q.gold] for q in questions])

    with (
        jax.set_mesh(mesh),
        store.CheckpointStore(folder / "checkpoints", config.checkpoint) as checkpoints,
        pool.VerifierPool(config.verify) as verifier,
    ):
        shape = models.config_of(meta)
        ref = None
        if config.rl.ref_type == "freeze":
            ref = models.load(config, mesh, dtype=config.ref_dtype)
            meta["reference"] = models.digest_of(ref)
        prime_state, step = models.restore_or(
            checkpoints,
            lambda: abstract_state(shape, optimizers, mesh),
            lambda: _initial(config, optimizers, mesh),
            meta,
        )
        session.record(folder, config, "prime")
        saved = checkpoints.meta(step) if step else {}
        loader = Loader(
            questions,
            config.seed,
            config.epochs,
            batch_prompts,
            tuple(saved.get("loader", (0, 0))),
        )
        by_question = {question.id: question for question in questions}
        buffer = tuple(rollouts.Prompt(i, by_question[i].tokens) for i in saved.get("buffer", ()))
        programs = step_programs(config, optimizers, mesh, prime_state, ref)
        drawn = sampling.SamplingConfig(
            temperature=config.rl.temperature,
            max_tokens=config.rl.max_response_tokens,
            seed=config.seed,
        )
        responder = respond.Responder(shape, config.decode, drawn, tokens, mesh, verifier)
        responder.set_model(prime_state.policy.params)
        sampler = sampler_lib.Sampler(responder, gold, config.rl.num_responses)
        values: dict[str, float] = {}
        with Progress("prime", config.steps, "steps", initial=step) as progress:
            writer = metrics.MetricWriter(
                folder,
                resume_step=step,
                show=SHOWN,
                wandb_project=config.wandb_project,
                echo=progress.print,
            )
            while step < config.steps:
                outcome = _one_step(
                    config, step, prime_state, ref, loader, buffer, sampler, programs, tokens
                )
                if outcome is None:
                    progress.print(f"prime: the problems ran out in step {step + 1}")
                    break
                prime_state, buffer, step_metrics, timing = outcome
                start = time.monotonic()
                responder.set_model(prime_state.policy.params)
                jax.block_until_ready(responder.decoder.params)
                timing["timing_s/sync"] = time.monotonic() - start
                step += 1
                if step % config.checkpoint.save_every == 0 or step == config.steps:
                    start = time.monotonic()
                    position = {
                        "step": step,
                        "loader": loader.position,
                        "buffer": [prompt.id for prompt in buffer],
                    }
                    checkpoints.save(step, prime_state, meta | position)
                    timing["timing_s/checkpoint"] = time.monotonic() - start
                timing["timing_s/step"] = sum(timing.values())
                progress.update(1, sampler.num_tokens)
                values = writer.write(step, {**step_metrics, **timing})
            writer.close()
        # Every end is saved, also that of problems that ran out between two saves.
        if step and checkpoints.latest_step() != step:
            position = {"loader": loader.position, "buffer": [p.id for p in buffer]}
            checkpoints.save(step, prime_state, meta | {"step": step} | position)
    if not values and step:  # nothing was left to do
        values = metrics.read_rows(folder / "metrics.jsonl")[-1]
    summary = {"steps": step} | {name: values[name] for name in SHOWN if name in values}
    return session.Report(summary, (str(folder / "checkpoints"),))


def _one_step(config, step, prime_state, ref, loader, buffer, sampler, programs, tokens):
    """(state, buffer, metrics, seconds by phase), or None when the problems have run out."""
    sampler.begin(step)
    collected = rollouts.collect(loader.next, sampler, config.rl, buffer)
    while collected.exhausted and loader.epoch < config.epochs:
        # The buffer survives into the next epoch; the unfinished batch does not.
        collected = rollouts.collect(loader.next, sampler, config.rl, collected.buffer)
    if collected.exhausted:
        return None
    timing = {"timing_s/gen": sampler.seconds}
    with _timed(timing, "timing_s/old_logprob"):
        host_batch = rollouts.to_batch(
            collected.groups,
            max_prompt_tokens=config.rl.max_prompt_tokens,
            max_response_tokens=config.rl.max_response_tokens,
            pad_id=tokens.pad_id,
            eos_ids=tokens.eos_ids,
        )
        rows, flat = programs.batch_shardings
        batch = jax.tree.map(lambda x: jax.device_put(x, rows if x.ndim == 2 else flat), host_batch)
        old_logprob_BT = programs.score(prime_state.policy.params, batch)
        batch = batch._replace(old_logprob_BT=jax.block_until_ready(old_logprob_BT))
    with _timed(timing, "timing_s/update"):
        prime_state, step_metrics = programs.step(prime_state, ref, batch)
        step_metrics = metrics.fetch(step_metrics)
    num_tokens = float(np.count_nonzero(host_batch.segment_ids_BT))
    step_metrics |= (
        collected.stats
        | sampler.metrics()
        | {
            "perf/gen_tokens_per_s": sampler.num_tokens / max(timing["timing_s/gen"], 1e-9),
            "perf/update_tokens_per_s": num_tokens / max(timing["timing_s/update"], 1e-9),
        }
    )
    return prime_state, collected.buffer, step_metrics, timing


class _timed:
    def __init__(self, into: dict[str, float], name: str):
        self.into, self.name = into, name

    def __enter__(self) -> None:
        self.start = time.monotonic()

    def __exit__(self, *_) -> None:
        self.into[self.name] = time.monotonic() - self.start


def make_optimizers(config: PrimeRun) -> tuple[optimizer_lib.Optimizer, optimizer_lib.Optimizer]:
    """Of the policy and of the PRM."""
    rl, make = config.rl, optimizer_lib.make_optimizer
    return (
        make(rl.policy_optimizer, config.steps * rl.policy_updates),
        make(rl.prm_optimizer, config.steps * rl.prm_updates),
    )


def _create(params: qwen2.Qwen2, optimizers) -> prime.PrimeState:
    """Policy and PRM from the same parameters."""
    policy_optimizer, prm_optimizer = optimizers
    copy = jax.tree.map(jnp.copy, params)
    return prime.PrimeState(
        state.create(params, policy_optimizer), state.create(copy, prm_optimizer)
    )


def _initial(config: PrimeRun, optimizers, mesh: Mesh) -> prime.PrimeState:
    params = models.load(config, mesh, dtype="float32")
    create = functools.partial(_create, optimizers=optimizers)
    shardings = sharding.tree_shardings(mesh, jax.eval_shape(create, params))
    return jax.jit(create, out_shardings=shardings)(params)


def abstract_state(shape: ModelConfig, optimizers, mesh: Mesh) -> prime.PrimeState:
    """Shapes and placement of all that learns."""
    create = functools.partial(_create, optimizers=optimizers)
    return models.with_shardings(jax.eval_shape(create, models.abstract_params(shape)), mesh)


def step_programs(config: PrimeRun, optimizers, mesh: Mesh, prime_state, ref) -> Programs:
    """The jitted functions for states like these, whose arrays may be abstract."""
    rl = config.rl
    rows, flat = sharding.named(mesh, ("batch", "seq")), sharding.named(mesh, ("batch",))
    batch = rollouts.RolloutBatch(rows, rows, rows, rows, flat, rows, rows)
    shardings = sharding.tree_shardings(mesh, prime_state)
    ref_shardings = None if ref is None else sharding.tree_shardings(mesh, ref)
    score = functools.partial(
        prime.score, microbatch_size=rl.microbatch_size, temperature=rl.temperature
    )
    step = functools.partial(
        prime.prime_step, config=rl, policy_optimizer=optimizers[0], prm_optimizer=optimizers[1]
    )
    return Programs(
        score=jax.jit(
            score,
            in_shardings=(shardings.policy.params, batch._replace(old_logprob_BT=None)),
            out_shardings=rows,
        ),
        step=jax.jit(
            step,
            in_shardings=(shardings, ref_shardings, batch),
            out_shardings=(shardings, sharding.replicated(mesh)),
            donate_argnums=0,
        ),
        batch_shardings=(rows, flat),
    )
