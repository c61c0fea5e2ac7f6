"""PRIME: process reinforcement through implicit rewards (arXiv:2502.01456), one update.

    score → process reward model → process rewards → advantages → policy

Three models of one architecture, all started from the SFT model: `policy` and `prm` learn, `ref`
does not. Where the released code and the paper differ we follow the code, and the file of that step
says so; accidents of the code are options that are off.
"""

from __future__ import annotations

import dataclasses
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jaxmath.metrics import Mean
from jaxmath.rl import advantages, policy_loss, process_rewards
from jaxmath.rl.config import RlConfig
from jaxmath.rl.rollouts import RolloutBatch
from jaxmath.train import microbatches
from jaxmath.train import state as train_state
from jaxmath.train.optimizer import Optimizer


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class PrimeState:
    """All that learns."""

    policy: train_state.TrainState
    prm: train_state.TrainState


class Intermediates(NamedTuple):
    """What lies between scores and policy, f32; for inspection and for `replay`."""

    prm_logprob_BT: jax.Array
    ref_logprob_BT: jax.Array
    score_BT: jax.Array
    process_reward_BT: jax.Array
    returns_BT: jax.Array
    advantage_BT: jax.Array


def score(params: Any, batch: RolloutBatch, *, microbatch_size: int, temperature: float = 1.0):
    """logprob_BT, f32: natural log-probability of each token given those before it.

    What `old_logprob_BT` is filled with: the sampling policy's parameters, at the temperature of
    sampling. The decoder's own numbers are not used for it: they come from another program.
    """

    def logprobs(rows):
        return params.token_logprobs(*rows, temperature=temperature)

    rows = (batch.tokens_BT, batch.positions_BT, batch.segment_ids_BT)
    return microbatches.over_rows(logprobs, rows, rows[0].shape[0] // microbatch_size)


def prime_step(
    state: PrimeState,
    ref: Any,
    batch: RolloutBatch,
    *,
    config: RlConfig,
    policy_optimizer: Optimizer,
    prm_optimizer: Optimizer,
) -> tuple[PrimeState, dict[str, Any]]:
    """One PRIME update on one batch of rollouts: (state, metrics).

    Args:
      ref: the reference model's parameters; None with `ref_type` policy.
      batch: with `old_logprob_BT`, see `score`.
    """
    state, metrics, _ = prime_update(
        state,
        ref,
        batch,
        config=config,
        policy_optimizer=policy_optimizer,
        prm_optimizer=prm_optimizer,
    )
    return state, metrics


def prime_update(
    state: PrimeState,
    ref: Any,
    batch: RolloutBatch,
    *,
    config: RlConfig,
    policy_optimizer: Optimizer,
    prm_optimizer: Optimizer,
) -> tuple[PrimeState, dict[str, Any], Intermediates]:
    """`prime_step`, and what it computed on the way."""
    mask_BT = batch.response_mask_BT

    prm, prm_logprob_BT, ref_logprob_BT, prm_metrics = update_prm(
        state.prm, ref, batch, config=config, optimizer=prm_optimizer
    )
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
    policy, policy_metrics = update_policy(
        state.policy, batch, advantage_BT, config=config, optimizer=policy_optimizer
    )

    between = Intermediates(
        prm_logprob_BT, ref_logprob_BT, score_BT, process_reward_BT, returns_BT, advantage_BT
    )
    metrics = prm_metrics | _rollout_metrics(batch, between, config) | policy_metrics
    return PrimeState(policy, prm), metrics, between


def update_prm(
    state: train_state.TrainState,
    ref: Any,
    batch: RolloutBatch,
    *,
    config: RlConfig,
    optimizer: Optimizer,
) -> tuple[train_state.TrainState, jax.Array, jax.Array, dict[str, Any]]:
    """Scores and trains: (state, prm_logprob_BT, ref_logprob_BT, metrics).

    Mini-batches are contiguous rows, not shuffled. (The released mini-batch b was rows 32b … 32b+31
    of each of 8 ranks; which prompts share one follows the number of devices there, and not here.)
    """

    def loss_sum(params, part):
        rows, ref_logprob_BT = part
        prm_logprob_BT = params.token_logprobs(
            rows.tokens_BT, rows.positions_BT, rows.segment_ids_BT
        )
        score_BT = process_rewards.token_scores(
            prm_logprob_BT, ref_logprob_BT, rows.response_mask_BT
        )
        loss_B = process_rewards.cross_entropy(
            process_rewards.response_scores(score_BT), rows.outcome_reward_B, beta=config.beta
        )
        return jnp.sum(loss_B) / config.prm_minibatch_size, ()

    def one_minibatch(state, rows):
        scored = _prm_and_ref_logprobs(state.params, ref, rows, config)
        if config.prm_update == "none":
            loss, _ = loss_sum(state.params, (rows, scored[1]))
            return state, (scored, _no_update(loss))
        loss, _, grads = microbatches.sum_and_grad(
            loss_sum,
            state.params,
            (rows, scored[1]),
            config.prm_minibatch_size // config.microbatch_size,
        )
        state, report = train_state.apply_gradients(state, grads, loss, optimizer)
        return state, (scored, report | {"loss": loss})

    minibatches = _contiguous(batch, config.prm_minibatch_size)
    state, (scored, reports) = jax.lax.scan(one_minibatch, state, minibatches)
    prm_logprob_BT, ref_logprob_BT = jax.tree.map(lambda x: x.reshape(-1, x.shape[-1]), scored)
    if config.prm_update == "before":
        prm_logprob_BT, ref_logprob_BT = _prm_and_ref_logprobs(state.params, ref, batch, config)
    metrics = {"reward_model/prm_loss": _mean_of_taken(reports, "loss")}
    if config.prm_update != "none":
        metrics |= _update_metrics("reward_model", reports)
    return state, prm_logprob_BT, ref_logprob_BT, metrics


def update_policy(
    state: train_state.TrainState,
    batch: RolloutBatch,
    advantage_BT: jax.Array,
    *,
    config: RlConfig,
    optimizer: Optimizer,
) -> tuple[train_state.TrainState, dict[str, Any]]:
    """Goes once through the responses in shuffled mini-batches: (state, metrics)."""

    def loss_sum(params, part):
        rows, advantage_BT, weight_BT, share_BT = part
        logprob_BT = params.token_logprobs(
            rows.tokens_BT, rows.positions_BT, rows.segment_ids_BT, temperature=config.temperature
        )
        loss_BT, clipped_BT = policy_loss.clipped_surrogate(
            logprob_BT, rows.old_logprob_BT, advantage_BT, clip_eps=config.clip_eps
        )
        sums = {
            "clipfrac": policy_loss.reduce(clipped_BT, share_BT),
            "kl": policy_loss.reduce(rows.old_logprob_BT - logprob_BT, share_BT),
        }
        return policy_loss.reduce(loss_BT, weight_BT), sums

    def one_minibatch(state, part):
        rows, advantage_BT = part
        # Over the mini-batch, not the micro-batch: the loss is a mean over the whole of it.
        weight_BT = policy_loss.REDUCTIONS[config.loss_reduction](rows.response_mask_BT)
        share_BT = policy_loss.token_mean(rows.response_mask_BT)
        loss, sums, grads = microbatches.sum_and_grad(
            loss_sum,
            state.params,
            (rows, advantage_BT, weight_BT, share_BT),
            config.policy_minibatch_size // config.microbatch_size,
        )
        state, report = train_state.apply_gradients(state, grads, loss, optimizer)
        return state, report | sums | {"loss": loss}

    key = jax.random.fold_in(jax.random.key(config.shuffle_seed), state.step)
    order_B = jax.random.permutation(key, advantage_BT.shape[0])
    shuffled = jax.tree.map(lambda x: x[order_B], (batch, advantage_BT))
    minibatches = _contiguous(shuffled, config.policy_minibatch_size)
    state, reports = jax.lax.scan(one_minibatch, state, minibatches)
    return state, {
        "actor/pg_loss": _mean_of_taken(reports, "loss"),
        "actor/ppo_kl": _mean_of_taken(reports, "kl"),
        "actor/pg_clipfrac": _mean_of_taken(reports, "clipfrac"),
    } | _update_metrics("actor", reports)


def _prm_and_ref_logprobs(
    prm: Any, ref: Any, batch: RolloutBatch, config: RlConfig
) -> tuple[jax.Array, jax.Array]:
    """(prm_logprob_BT, ref_logprob_BT), bit for bit equal where the parameters are.

    One loop body scores both models. Two forwards in one program, or in two, may be fused and
    rounded differently, and batch_norm would blow the difference up to unit size while the PRM is
    still near its reference. The price is a forward pass beside the one in the gradient, and a copy
    of the parameters while it lasts.
    """
    if config.ref_type == "policy":
        prm_logprob_BT = score(prm, batch, microbatch_size=config.microbatch_size)
        return prm_logprob_BT, batch.old_logprob_BT

    def one(is_ref):
        params = jax.tree.map(lambda p, r: jnp.where(is_ref, r.astype(p.dtype), p), prm, ref)
        return score(params, batch, microbatch_size=config.microbatch_size)

    prm_logprob_BT, ref_logprob_BT = jax.lax.map(one, jnp.array([False, True]))
    return prm_logprob_BT, ref_logprob_BT


def _contiguous(batch: Any, rows: int) -> Any:
    """[B, ...] → [B / rows, rows, ...], neighbours together."""
    return jax.tree.map(lambda x: x.reshape(-1, rows, *x.shape[1:]), batch)


def _mean_of_taken(reports: dict[str, jax.Array], name: str) -> Mean:
    """Mean over the updates that were not skipped: one bad batch does not hide the others."""
    taken = reports["skipped"] == 0
    return Mean(jnp.sum(jnp.where(taken, reports[name], 0.0)), jnp.sum(taken.astype(jnp.float32)))


def _update_metrics(prefix: str, reports: dict[str, jax.Array]) -> dict[str, Any]:
    return {
        f"{prefix}/grad_norm": _mean_of_taken(reports, "grad_norm"),
        f"{prefix}/lr": reports["lr"][-1],
        f"{prefix}/skipped_updates": jnp.sum(reports["skipped"]),
    }


def _no_update(loss: jax.Array) -> dict[str, jax.Array]:
    return {"loss": loss, "skipped": jnp.zeros(())}


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
        "reward_model/dpo_acc": process_rewards.pairwise_accuracy(
            process_rewards.response_scores(between.score_BT),
            batch.outcome_reward_B,
            num_responses=config.num_responses,
        ),
        "critic/score/mean": Mean(jnp.sum(batch.outcome_reward_B), rows),
        "response_length/mean": Mean(num_tokens, rows),
        "response_length/max": jnp.max(length_B),
        **over_tokens("critic/process_rewards", between.process_reward_BT),
        **over_tokens("critic/advantages", between.advantage_BT),
        **over_tokens("critic/returns", between.returns_BT),
    }
    if batch.decoder_logprob_BT is not None:
        gap_BT = jnp.abs(batch.decoder_logprob_BT - batch.old_logprob_BT) * mask_BT
        metrics["mismatch/logprob_abs_mean"] = Mean(jnp.sum(gap_BT), num_tokens)
    return metrics
