"""The programs of an update, see `rl.prime`: score, train the PRM, advantages, train the policy.

Pure functions of arrays; a run compiles each once. The algorithm's arrays are [B, T], a response in
each row; the models see `packing.Rows`.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jaxmath.metrics import Mean
from jaxmath.model import lora as lora_lib
from jaxmath.rl import advantages, packing, policy_loss, process_rewards
from jaxmath.rl.config import RlConfig
from jaxmath.rl.rollouts import RolloutBatch
from jaxmath.train import state as train_state
from jaxmath.train.optimizer import Optimizer


class Intermediates(NamedTuple):
    """What lies between scores and policy, f32; for inspection and for `replay`. None: no PRM."""

    prm_logprob_BT: jax.Array | None
    ref_logprob_BT: jax.Array | None
    score_BT: jax.Array | None
    process_reward_BT: jax.Array | None
    returns_BT: jax.Array
    advantage_BT: jax.Array
    old_logprob_BT: jax.Array | None = None  # of the batch, or as the policy's update found them


class Parts(NamedTuple):
    """The programs of an update; pure functions until `jax.jit` is mapped over them.

    score: (params, batch, rows, temperature) → logprob_BT of the responses in `rows`, 0 elsewhere.
    adapted: (ref, adapters, share, texts, rows, temperature) → as `score`, of the reference with
      `share` of what its adapters change: 1 is the PRM of `prm_lora`, 0 the reference itself.
    like: (params, ref) → params in the dtypes of `ref`.
    mismatch: batch → measures of how far decoder and trainer are apart, f32[] each.
    prm: (state, batch, ref_logprob_BT, rows, ref) → (state, report, logprob_BT), one update of the
      PRM; ref: what `prm_lora` adapts, else None.
    advantages: (batch, prm_logprob_BT, ref_logprob_BT) → (Intermediates, metrics).
    policy: (state, batch, advantage_BT, ref_logprob_BT, rows) → (state, report, logprob_BT), one
      update.

    The last of `prm` and `policy` are the model's log-probabilities before the update, of the
    responses in `rows` and 0 elsewhere; None where `prime` scores apart.
    """

    score: Callable[..., Any]
    adapted: Callable[..., Any]
    like: Callable[..., Any]
    mismatch: Callable[..., Any]
    prm: Callable[..., Any]
    advantages: Callable[..., Any]
    policy: Callable[..., Any]


def make(config: RlConfig, policy_optimizer: Optimizer, prm_optimizer: Optimizer) -> Parts:
    """The parts of a config's update, to be compiled."""
    return Parts(
        score=functools.partial(packing.logprobs, shape=config.rows(config.score_size)),
        adapted=functools.partial(_adapted_logprobs, config=config),
        like=lambda params, ref: jax.tree.map(lambda p, r: p.astype(r.dtype), params, ref),
        mismatch=functools.partial(_mismatch, config=config),
        prm=functools.partial(update_prm, config=config, optimizer=prm_optimizer),
        advantages=functools.partial(estimate_advantages, config=config),
        policy=functools.partial(update_policy, config=config, optimizer=policy_optimizer),
    )


def _adapted_logprobs(
    ref: Any,
    adapters: Any,
    share: jax.Array,
    batch: RolloutBatch,
    rows: packing.Rows,
    temperature,
    *,
    config: RlConfig,
) -> jax.Array:
    """One program for PRM and reference: where the adapters change nothing, the two are bit for bit
    equal, since 0 is added to the same products."""
    part = {"layers": {name: _with_share(ab, share) for name, ab in adapters["layers"].items()}}
    model = lora_lib.attach(ref, part, config.prm_lora)
    return packing.logprobs(model, batch, rows, temperature, config.rows(config.score_size))


def _with_share(pair: dict[str, Any], share: jax.Array) -> dict[str, Any]:
    return {"a": pair["a"], "b": pair["b"].replace(pair["b"].get_value() * share)}


def update_prm(
    state: train_state.TrainState,
    batch: RolloutBatch,
    ref_logprob_BT,
    rows: packing.Rows,
    ref: Any = None,
    *,
    config: RlConfig,
    optimizer: Optimizer,
) -> tuple[train_state.TrainState, dict[str, Any], Any]:
    """One update of the PRM on the responses in `rows`: (state, report, logprob_BT or None)."""

    def loss_sum(params, place_BT):
        if config.prm_lora is not None:
            params = lora_lib.attach(ref, params, config.prm_lora)
        mask_BT = packing.pick(batch.response_mask_BT, place_BT)
        prm_logprob_BT = params.token_logprobs(
            *packing.inputs(batch, place_BT), needed_BT=mask_BT > 0
        )
        score_BT = process_rewards.token_scores(
            prm_logprob_BT,
            packing.pick(ref_logprob_BT, place_BT),
            mask_BT,
        )
        score_B = packing.sum_by_response(score_BT, batch, place_BT)
        loss_B = process_rewards.cross_entropy(score_B, batch.outcome_reward_B, beta=config.beta)
        here_B = packing.chosen(batch, place_BT)
        kept = None
        if config.prm_score == "gradient":
            kept = packing.back(prm_logprob_BT, place_BT, batch.tokens_BT)
        return jnp.sum(loss_B * here_B) / config.prm_minibatch_size, kept

    shape = config.rows(config.prm_minibatch_size)
    loss, logprob_BT, grads = packing.sum_and_grad(loss_sum, state.params, rows, shape)
    state, report = train_state.apply_gradients(state, grads, loss, optimizer)
    return state, report | {"loss": loss}, logprob_BT


def estimate_advantages(
    batch: RolloutBatch, prm_logprob_BT, ref_logprob_BT, *, config: RlConfig
) -> tuple[Intermediates, dict[str, Any]]:
    """Scores → process rewards → returns → advantages, and what there is to report of them."""
    mask_BT = batch.response_mask_BT
    score_BT = process_reward_BT = None
    if config.prm:
        score_BT = process_rewards.token_scores(prm_logprob_BT, ref_logprob_BT, mask_BT)
        process_reward_BT = process_rewards.NORMS[config.prm_norm](
            process_rewards.place(score_BT, mask_BT, granularity=config.prm_granularity),
            beta=config.beta,
            num_groups=config.prm_norm_groups,
            zero_below=config.prm_zero_below,
        )
    returns_BT, advantage_BT = advantages.ESTIMATORS[config.advantage](
        batch.outcome_reward_B,
        process_reward_BT,
        mask_BT,
        num_responses=config.num_responses,
        gamma_outcome=config.gamma_outcome,
        gamma_process=config.gamma_process,
    )
    between = Intermediates(
        prm_logprob_BT, ref_logprob_BT, score_BT, process_reward_BT, returns_BT, advantage_BT
    )
    return between, _rollout_metrics(batch, between, config)


def update_policy(
    state: train_state.TrainState,
    batch: RolloutBatch,
    advantage_BT,
    ref_logprob_BT,
    rows: packing.Rows,
    *,
    config: RlConfig,
    optimizer: Optimizer,
) -> tuple[train_state.TrainState, dict[str, Any], Any]:
    """One update of the policy on the responses in `rows`: (state, report, logprob_BT or None).

    Args:
      batch: without `old_logprob_BT`, this model is the one that sampled: its log-probabilities
        here are the old ones, and are returned.
      ref_logprob_BT: at the temperature of sampling; None where the KL is neither used nor
        reported.
    """
    # Over the mini-batch, not the micro-batch: the loss is a mean over the whole of it.
    mask_BT = batch.response_mask_BT * packing.chosen(batch, rows.place_BT)[:, None]
    weight_BT = policy_loss.REDUCTIONS[config.loss_reduction](mask_BT, config.max_response_tokens)
    share_BT = policy_loss.token_mean(mask_BT, config.max_response_tokens)
    low, high = config.clip_range

    def loss_sum(params, place_BT):
        at = functools.partial(packing.pick, place_BT=place_BT)
        logprob_BT, entropy_BT = params.token_scores(
            *packing.inputs(batch, place_BT),
            temperature=config.temperature,
            needed_BT=at(batch.response_mask_BT) > 0,
            entropy=True,
        )
        if batch.old_logprob_BT is None:
            old_BT = jax.lax.stop_gradient(logprob_BT)
            kept = packing.back(old_BT, place_BT, batch.tokens_BT)
        else:
            old_BT, kept = at(batch.old_logprob_BT), None
        share = at(share_BT)
        loss_BT, clipped_BT = policy_loss.clipped_surrogate(
            logprob_BT, old_BT, at(advantage_BT), clip_eps_low=low, clip_eps_high=high
        )
        if config.importance_cap is not None:
            loss_BT = loss_BT * policy_loss.importance_weight(
                old_BT, at(batch.decoder_logprob_BT), cap=config.importance_cap
            )
        sums = {
            "clipfrac": policy_loss.reduce(clipped_BT, share),
            "kl": policy_loss.reduce(old_BT - logprob_BT, share),
            "entropy": policy_loss.reduce(entropy_BT, share),
        }
        if ref_logprob_BT is not None:
            # d, not the KL, is masked: what lies outside the response may overflow in exp.
            d_BT = jnp.where(at(mask_BT) > 0, logprob_BT - at(ref_logprob_BT), 0.0)
            kl_BT = policy_loss.KL_ESTIMATORS[config.kl_estimator](d_BT)
            sums["kl_ref"] = policy_loss.reduce(kl_BT, share)
            if config.kl_coef:
                loss_BT = loss_BT + config.kl_coef * kl_BT
        if config.entropy_coef:
            loss_BT = loss_BT - config.entropy_coef * entropy_BT
        return policy_loss.reduce(loss_BT, at(weight_BT)), (sums, kept)

    shape = config.rows(config.policy_minibatch_size)
    loss, (sums, logprob_BT), grads = packing.sum_and_grad(loss_sum, state.params, rows, shape)
    state, report = train_state.apply_gradients(state, grads, loss, optimizer)
    return state, report | sums | {"loss": loss}, logprob_BT


def _mismatch(batch: RolloutBatch, *, config: RlConfig) -> dict[str, jax.Array]:
    old_BT, decoder_BT, mask_BT = (
        batch.old_logprob_BT,
        batch.decoder_logprob_BT,
        batch.response_mask_BT,
    )
    found = policy_loss.mismatch(old_BT, decoder_BT, mask_BT)
    if config.importance_cap is not None:
        over_BT = (old_BT - decoder_BT > math.log(config.importance_cap)) * mask_BT
        found["truncated"] = jnp.sum(over_BT) / jnp.maximum(jnp.sum(mask_BT), 1)
    return {f"mismatch/{name}": value for name, value in found.items()}


def _rollout_metrics(
    batch: RolloutBatch, between: Intermediates, config: RlConfig
) -> dict[str, Any]:
    mask_BT = batch.response_mask_BT
    num_tokens = jnp.sum(mask_BT)
    length_B = jnp.sum(mask_BT, axis=1)
    rows = jnp.float32(mask_BT.shape[0])

    def over_tokens(name, x_BT):
        return {
            f"{name}/mean": Mean(jnp.sum(x_BT * mask_BT), num_tokens),
            f"{name}/max": jnp.max(jnp.where(mask_BT > 0, x_BT, -jnp.inf)),
            f"{name}/min": jnp.min(jnp.where(mask_BT > 0, x_BT, jnp.inf)),
        }

    metrics = {
        "critic/score/mean": Mean(jnp.sum(batch.outcome_reward_B), rows),
        "response_length/mean": Mean(num_tokens, rows),
        "response_length/max": jnp.max(length_B),
        **over_tokens("critic/advantages", between.advantage_BT),
        **over_tokens("critic/returns", between.returns_BT),
    }
    if not config.prm:
        return metrics
    score_B = process_rewards.response_scores(between.score_BT)
    metrics |= over_tokens("critic/process_rewards", between.process_reward_BT)
    metrics["reward_model/dpo_acc"] = process_rewards.pairwise_accuracy(
        score_B, batch.outcome_reward_B, num_responses=config.num_responses
    )
    if config.prm_update == "none":  # else the updates report their own
        loss_B = process_rewards.cross_entropy(score_B, batch.outcome_reward_B, beta=config.beta)
        metrics["reward_model/prm_loss"] = Mean(jnp.sum(loss_B), rows)
    return metrics
