"""`prime`: online reinforcement learning with an implicit process reward model, or without one.

A step: hand the policy to the decoder, sample responses until enough prompts pass the accuracy
filter (`rl.rollouts`), let the decoder's memory go, score them with the policy (`rl.prime.score`),
update PRM and policy (`rl.prime.prime_update`).
"""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import numpy as np

from jaxmath import config as config_lib
from jaxmath import metrics, sharding
from jaxmath.checkpoint import adapters, store
from jaxmath.data import batches, prompts, records, tokenizer
from jaxmath.decode import decoder, sampling
from jaxmath.model.config import ModelConfig
from jaxmath.rl import prime, rollouts
from jaxmath.rl.config import RlConfig
from jaxmath.runs import models, prime_programs, respond, session, speed
from jaxmath.runs import sampler as sampler_lib
from jaxmath.runs.progress import Progress
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
UPDATE = ("old_logprob", "ref", "prm", "adv", "policy")  # the phases that train


class MismatchError(ValueError):
    """Decoder and trainer disagree on the log-probabilities of the responses."""


@dataclasses.dataclass(frozen=True)
class PrimeRun:
    """One PRIME run.

    init_from: the SFT model that policy, PRM and reference (as far as there are any) start from.
    rl: the algorithm. steps: rollout steps; each makes `rl.policy_updates` updates of the policy.
    epochs: the run also ends after so many passes over the problems.
    rollout_prompts: fresh prompts per round of generation; null for `rl.num_prompts`.
    ref_dtype: of the frozen reference's parameters, and of those the PRM is scored with.
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
    return facts | {
        "responses per step": rl.num_prompts * rl.num_responses,
        "policy updates per step": rl.policy_updates,
        "PRM updates per step": rl.prm_updates if rl.prm and rl.prm_update != "none" else 0,
        "tokens per step, at most": rl.num_prompts * rl.num_responses * rl.max_tokens,
        "tokens per micro-batch": rl.microbatch_rows * rl.rows(rl.score_size).row_tokens,
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


def run(config: PrimeRun) -> session.Report:
    """Trains to the end, or on from the newest checkpoint."""
    folder = session.open_folder(config, "prime")
    mesh = session.make_mesh(config)
    rl = config.rl
    what = "rows of rl.tokens_per_microbatch" if rl.packed else "rl.microbatch_size"
    models.check_rows(mesh, rl.microbatch_rows, what)
    tokens = tokenizer.Tokenizer(config.tokenizer)
    problems = records.read_problems(config.data, folder / "rejects.jsonl")
    questions, by_id, _ = respond.questions(
        tokens, config.prompt_style, problems, rl.max_prompt_tokens, "prime"
    )
    batch_prompts = config.rollout_prompts or rl.num_prompts
    if len(questions) < batch_prompts:
        raise ValueError(
            f"{config.data.path} has {len(questions)} usable prompts, fewer than the "
            f"{batch_prompts} of one round; add problems or lower rl.num_prompts"
        )
    gold = {i: problem.answer for i, problem in by_id.items()}
    meta = models.meta(config, mesh, tokens, folder)
    meta["data"] = config_lib.fingerprint([[q.tokens, q.gold] for q in questions])

    with (
        jax.set_mesh(mesh),
        store.CheckpointStore(folder / "checkpoints", config.checkpoint) as checkpoints,
        pool.VerifierPool(config.verify) as verifier,
    ):
        shape = models.shape_on(config, mesh)
        ref = None
        if rl.needs_reference:
            ref = prime_programs.reference(config, mesh)
            meta["reference"] = models.digest_of(ref)
        if rl.prm_lora is not None:
            meta[adapters.PRM_KEY] = models.base_meta(
                config.init_from, ref, rl.prm_lora, meta["reference"]
            )
        compiled = prime_programs.make(config, mesh)
        prime_state, step = models.restore_or(
            checkpoints,
            lambda: compiled.state,
            lambda: prime_programs.initial_state(config, mesh),
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
        drawn = sampling.SamplingConfig(
            temperature=rl.temperature, max_tokens=rl.max_response_tokens, seed=config.seed
        )
        responder = respond.Responder(shape, config.decode, drawn, tokens, mesh, verifier)
        sampler = sampler_lib.Sampler(responder, gold, rl.num_responses)
        peak = speed.peak_flops(mesh)
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
                phases = speed.Phases()
                with phases("sync"):
                    responder.set_model(prime_state.policy.params)
                    jax.block_until_ready(responder.decoder.params)
                collected = _collect(config, step, loader, buffer, sampler, phases)
                if collected.exhausted:
                    progress.print(f"prime: the problems ran out in step {step + 1}")
                    break
                responder.release()  # the update makes them stale, and wants their memory
                buffer = collected.buffer
                host_batch = rollouts.to_batch(
                    collected.groups,
                    max_prompt_tokens=rl.max_prompt_tokens,
                    max_response_tokens=rl.max_response_tokens,
                    pad_id=tokens.pad_id,
                    eos_ids=tokens.eos_ids,
                )
                prime_state, step_metrics = one_step(
                    config, step, prime_state, ref, host_batch, compiled, phases
                )
                step += 1
                if step % config.checkpoint.save_every == 0 or step == config.steps:
                    position = {
                        "step": step,
                        "loader": loader.position,
                        "buffer": [prompt.id for prompt in buffer],
                    }
                    with phases("checkpoint"):
                        checkpoints.save(step, prime_state, meta | position)
                progress.update(1, sampler.num_tokens)
                step_metrics |= collected.stats | sampler.metrics() | speed.memory_metrics()
                step_metrics |= _speeds(rl, shape, host_batch, sampler.num_tokens, phases, peak)
                values = writer.write(step, step_metrics | phases.metrics())
            writer.close()
        # Every end is saved, also that of problems that ran out between two saves.
        if step and checkpoints.latest_step() != step:
            position = {"loader": loader.position, "buffer": [p.id for p in buffer]}
            checkpoints.save(step, prime_state, meta | {"step": step} | position)
    if not values and step:  # nothing was left to do
        values = metrics.read_rows(folder / "metrics.jsonl")[-1]
    summary = {"steps": step} | {name: values[name] for name in SHOWN if name in values}
    return session.Report(summary, (str(folder / "checkpoints"),))


def _collect(config, step, loader, buffer, sampler, phases) -> rollouts.Collected:
    """The groups of a step; `exhausted` where the problems have run out for good."""
    sampler.begin(step)
    waited = sampler.responder.verify_wait_s
    collected = rollouts.collect(loader.next, sampler, config.rl, buffer)
    while collected.exhausted and loader.epoch < config.epochs:
        # The buffer survives into the next epoch; the unfinished batch does not.
        collected = rollouts.collect(loader.next, sampler, config.rl, collected.buffer)
    waited = sampler.responder.verify_wait_s - waited
    phases.add("verify", waited)
    phases.add("gen", sampler.seconds - waited)
    return collected


def one_step(config, step, prime_state, ref, host_batch, compiled, phases):
    """(state, metrics) after the update of one step on its rollouts.

    Raises:
      MismatchError: decoder and trainer are further apart than `rl.max_mismatch`.
    """
    rl, parts = config.rl, compiled.parts
    batch = jax.device_put(host_batch, compiled.whole)
    if not rl.on_policy:
        with phases("old_logprob"):
            old_logprob_BT = prime.score(
                prime_state.policy.params, batch, rl.temperature, config=rl, parts=parts
            )
            batch = batch._replace(old_logprob_BT=jax.block_until_ready(old_logprob_BT))
        found = _mismatch(rl, step + 1, batch, parts)
    prime_state, step_metrics, between = prime.prime_update(
        prime_state, ref, batch, config=rl, parts=parts, phase=phases
    )
    if rl.on_policy:
        batch = batch._replace(old_logprob_BT=between.old_logprob_BT)
        found = _mismatch(rl, step + 1, batch, parts)
    return prime_state, found | metrics.fetch(step_metrics)


def _mismatch(rl: RlConfig, step: int, batch, parts) -> dict[str, float]:
    """How far decoder and trainer are apart, where the decoder's log-probabilities were kept."""
    if batch.decoder_logprob_BT is None:
        return {}
    found = metrics.fetch(parts.mismatch(batch))
    gap = found["mismatch/logprob_abs_mean"]
    if rl.max_mismatch is not None and not gap <= rl.max_mismatch:  # a NaN is no agreement either
        raise MismatchError(
            f"step {step}: decoder and trainer differ by {gap:.4g} nats per token in the mean, "
            f"more than rl.max_mismatch {rl.max_mismatch:g}; the responses are not the policy's. "
            "Check decode.dtype, decode.int8_weights and decode.cache (int8 rounds most) against "
            "model.dtype, model.attention, and that rl.temperature is the only filter of sampling; "
            "raise rl.max_mismatch if the difference is wanted, with rl.importance_cap to weigh it"
        )
    return found


def _speeds(
    rl: RlConfig, shape: ModelConfig, batch, gen_tokens: int, phases: speed.Phases, peak
) -> dict[str, float]:
    """Tokens per second of generation and update, and the share of the devices' peak of the latter.

    Work is counted without padding and recomputation: 1 forward pass to score, 3 to train.
    """
    length_B = np.count_nonzero(batch.segment_ids_BT, axis=1)
    seconds = max(phases.total(*UPDATE), 1e-9)
    found = {
        "perf/gen_tokens_per_s": gen_tokens / max(phases.total("gen", "verify"), 1e-9),
        "perf/update_tokens_per_s": float(np.sum(length_B)) / seconds,
    }
    if peak is not None:
        found["perf/mfu"] = passes(rl) * speed.forward_flops(shape, length_B) / (seconds * peak)
    return found


def passes(rl: RlConfig) -> int:
    """Forward passes over a step's tokens that its update amounts to; a gradient is three."""
    count = 3 if rl.on_policy else 4  # the policy's update, old log-probabilities
    if rl.needs_reference:
        count += 1
    if rl.prm:
        trained = 3 if rl.prm_lora is None else 2  # a frozen weight has no gradient to compute
        scored = rl.prm_update == "none" or rl.prm_score == "apart"
        count += scored + (0 if rl.prm_update == "none" else trained)
    return count
