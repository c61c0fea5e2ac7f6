"""PRIME: process reinforcement through implicit rewards (arXiv:2502.01456), one update.

    score → process reward model → process rewards → advantages → policy

Three models of one architecture, all started from the SFT model: `policy` and `prm` learn, `ref`
does not. With `prm_lora` the PRM is adapters beside `ref`, and there is no third copy. With `prm`
false the middle falls out, and GRPO and its kin remain. Where the released code and the paper
differ we follow the code, and the file of that step says so; accidents of the code are options that
are off.

The update is a few compiled programs (`rl.parts`) that the host calls one after the other, so that
each can be timed, planned and given the memory of the others.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from jaxmath.data import batches
from jaxmath.metrics import Mean
from jaxmath.rl import packing
from jaxmath.rl.config import RlConfig
from jaxmath.rl.parts import Intermediates, Parts
from jaxmath.rl.rollouts import RolloutBatch
from jaxmath.train import state as train_state

Phase = Callable[[str], contextlib.AbstractContextManager[Any]]


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class PrimeState:
    """All that learns."""

    policy: train_state.TrainState
    prm: train_state.TrainState | None  # None where `RlConfig.prm` is false


def reference(params: Any, dtype: str) -> Any:
    """A frozen copy of the parameters in `dtype`; norm scales stay f32, as they are computed in."""

    def one(leaf):
        is_norm = leaf.get_metadata()["axes"] == ("norm",)
        return leaf.replace(leaf.get_value().astype(jnp.float32 if is_norm else dtype))

    return jax.tree.map(one, params, is_leaf=lambda x: isinstance(x, nnx.Variable))


def score(
    params: Any, batch: RolloutBatch, temperature: float, *, config: RlConfig, parts: Parts
) -> jax.Array:
    """logprob_BT, f32: natural log-probability of each response token given those before it, 0
    elsewhere.

    What `old_logprob_BT` is filled with: the sampling policy's parameters, at the temperature of
    sampling. The decoder's own numbers are not used for it: they come from another program. A run
    whose steps have one update (`config.on_policy`) leaves this pass out.
    """
    plans = _in_order(batch, config, config.score_size)
    return _score(functools.partial(parts.score, params), batch, plans, temperature)


def prime_update(
    state: PrimeState,
    ref: Any,
    batch: RolloutBatch,
    *,
    config: RlConfig,
    parts: Parts,
    phase: Phase = contextlib.nullcontext,
) -> tuple[PrimeState, dict[str, Any], Intermediates]:
    """One update on one batch of rollouts: (state, metrics, what was computed on the way).

    Args:
      state: its arrays are given away where `parts` donate them.
      ref: the reference model's parameters; None unless `config.needs_reference`.
      batch: with `old_logprob_BT`, see `score`; with `config.on_policy` it may be None.
      parts: as `parts.make(config, …)` makes them, compiled.
      phase: entered with "ref", "prm", "adv", "policy", each left when its work is done.
    Raises:
      ValueError: an option needs log-probabilities that the batch lacks.
    """
    if batch.old_logprob_BT is None and not config.on_policy:
        raise ValueError(
            "these rollouts lack old_logprob_BT, which a step of several updates, or a reference "
            'of ref_type "policy", needs; fill it with prime.score'
        )
    if config.importance_cap is not None and batch.decoder_logprob_BT is None:
        raise ValueError(
            f"importance_cap is {config.importance_cap}, but these rollouts lack the decoder's "
            "log-probabilities; set it to null, or keep them"
        )
    prm, prm_logprob_BT, metrics = state.prm, None, {}
    with phase("ref"):
        ref_logprob_BT, ref_policy_BT = _reference_logprobs(ref, prm, batch, config, parts)
        jax.block_until_ready((ref_logprob_BT, ref_policy_BT))
    if config.prm:
        with phase("prm"):
            prm, prm_logprob_BT, metrics = _train_prm(
                prm, ref, batch, ref_logprob_BT, config=config, parts=parts
            )
    with phase("adv"):
        between, rollout_metrics = parts.advantages(
            batch, prm_logprob_BT, ref_logprob_BT if config.prm else None
        )
        jax.block_until_ready(between.advantage_BT)
    with phase("policy"):
        policy, old_logprob_BT, policy_metrics = _train_policy(
            state.policy, batch, between.advantage_BT, ref_policy_BT, config=config, parts=parts
        )
    between = between._replace(old_logprob_BT=old_logprob_BT)
    return PrimeState(policy, prm), metrics | rollout_metrics | policy_metrics, between


def _score(
    program: Callable[..., jax.Array],
    batch: RolloutBatch,
    plans: Sequence[packing.Rows],
    temperature: float,
) -> jax.Array:
    """logprob_BT of all rows of the plans by `program`: (texts, rows, temperature) → logprob_BT."""
    # Without log-probabilities, so that one program takes it before and after they are known.
    texts = batch._replace(old_logprob_BT=None, decoder_logprob_BT=None)
    logprob_BT = program(texts, plans[0], np.float32(temperature))
    for rows in plans[1:]:
        logprob_BT = logprob_BT + program(texts, rows, np.float32(temperature))
    return logprob_BT


def _reference_logprobs(ref, prm, batch, config: RlConfig, parts: Parts):
    """Of the reference: (logprob_BT for the PRM, logprob_BT for the KL of the policy), or None.

    They differ where the temperature is not 1: the PRM's is 1, the policy's that of sampling.
    """
    if config.ref_type == "policy":
        return batch.old_logprob_BT, batch.old_logprob_BT
    program = functools.partial(parts.score, ref)
    if config.prm_lora is not None:
        program = functools.partial(parts.adapted, ref, prm.params, np.float32(0))
    plans = _in_order(batch, config, config.score_size)
    for_prm = _score(program, batch, plans, 1.0) if config.prm else None
    if not config.has_kl:
        return for_prm, None
    if config.prm and config.temperature == 1:
        return for_prm, for_prm
    return for_prm, _score(program, batch, plans, config.temperature)


def _train_prm(
    state, ref, batch, ref_logprob_BT, *, config: RlConfig, parts: Parts
) -> tuple[train_state.TrainState, jax.Array, dict[str, Any]]:
    """Scores and trains: (state, prm_logprob_BT, metrics).

    PRM and reference are scored by one program, on the same rows and in the same dtypes: they are
    bit for bit equal where the parameters are. Two programs may be fused and rounded differently,
    and batch_norm would blow the difference up to unit size while the PRM is still near its
    reference. The price is a forward pass beside the one in the gradient; `prm_score` "gradient"
    does without, as the released code does.

    Mini-batches are contiguous rows, not shuffled. (The released mini-batch b was rows 32b … 32b+31
    of each of 8 ranks; which prompts share one follows the number of devices there, and not here.)
    """

    def scored(state, plans):
        params = state.params
        if config.prm_lora is not None:
            program = functools.partial(parts.adapted, ref, params, np.float32(1))
            return _score(program, batch, plans, 1.0)
        if ref is not None and not _same_dtypes(params, ref):
            params = parts.like(params, ref)
        return _score(functools.partial(parts.score, params), batch, plans, 1.0)

    plans = _in_order(batch, config, config.prm_minibatch_size)
    if config.prm_update == "none":
        return state, jax.block_until_ready(scored(state, plans)), {}
    reports, prm_logprob_BT = [], None
    for rows in plans:
        apart = config.prm_update == "after" and config.prm_score == "apart"
        logprob_BT = scored(state, [rows]) if apart else None
        base = None if config.prm_lora is None else ref
        state, report, found_BT = parts.prm(state, batch, ref_logprob_BT, rows, base)
        logprob_BT = found_BT if logprob_BT is None else logprob_BT
        prm_logprob_BT = logprob_BT if prm_logprob_BT is None else prm_logprob_BT + logprob_BT
        reports.append(report)
    if config.prm_update == "before":
        prm_logprob_BT = scored(state, plans)
    jax.block_until_ready((state, prm_logprob_BT))
    reports = _stack(reports)
    metrics = {"reward_model/prm_loss": _mean_of_taken(reports, "loss")}
    return state, prm_logprob_BT, metrics | _update_metrics("reward_model", reports)


def _train_policy(
    state, batch, advantage_BT, ref_logprob_BT, *, config: RlConfig, parts: Parts
) -> tuple[train_state.TrainState, jax.Array, dict[str, Any]]:
    """Goes once through the responses in shuffled mini-batches.

    Returns (state, old_logprob_BT, metrics).
    """
    first = int(state.step)
    order = batches.prompt_order(advantage_BT.shape[0], config.shuffle_seed, first)
    reports = []
    for rows in _plans(batch, config, order, config.policy_minibatch_size):
        state, report, old_BT = parts.policy(state, batch, advantage_BT, ref_logprob_BT, rows)
        reports.append(report)
    jax.block_until_ready(state)
    reports = _stack(reports)
    names = {
        "loss": "actor/pg_loss",
        "kl": "actor/ppo_kl",
        "clipfrac": "actor/pg_clipfrac",
        "kl_ref": "actor/kl_ref",
        "entropy": "actor/entropy",
    }
    metrics = {
        ours: _mean_of_taken(reports, name) for name, ours in names.items() if name in reports
    }
    old_BT = batch.old_logprob_BT if old_BT is None else old_BT
    return state, old_BT, metrics | _update_metrics("actor", reports)


def _in_order(batch: RolloutBatch, config: RlConfig, size: int) -> list[packing.Rows]:
    return _plans(batch, config, np.arange(batch.tokens_BT.shape[0]), size)


def _plans(batch: RolloutBatch, config: RlConfig, order, size: int) -> list[packing.Rows]:
    """Rows of each `size` responses in the given order."""
    segment_ids_BT = np.asarray(batch.segment_ids_BT)
    length_B, width = np.count_nonzero(segment_ids_BT, axis=1), segment_ids_BT.shape[1]
    shape = config.rows(size)
    return [
        packing.plan(length_B, order[first : first + size], shape, width=width, pack=config.packed)
        for first in range(0, len(order), size)
    ]


def _same_dtypes(a: Any, b: Any) -> bool:
    pairs = zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True)
    return all(x.dtype == y.dtype for x, y in pairs)


# --- metrics ----------------------------------------------------------------------------------


def _stack(reports: list[dict[str, Any]]) -> dict[str, np.ndarray]:
    """Reports of the updates, on the host: name → f32[updates]."""
    fetched = jax.device_get(reports)
    return {name: np.stack([report[name] for report in fetched]) for name in fetched[0]}


def _mean_of_taken(reports: dict[str, np.ndarray], name: str) -> Mean:
    """Mean over the updates that were not skipped: one bad batch does not hide the others."""
    taken = reports["skipped"] == 0
    return Mean(np.sum(np.where(taken, reports[name], 0.0)), np.sum(taken, dtype=np.float32))


def _update_metrics(prefix: str, reports: dict[str, np.ndarray]) -> dict[str, Any]:
    return {
        f"{prefix}/grad_norm": _mean_of_taken(reports, "grad_norm"),
        f"{prefix}/lr": reports["lr"][-1],
        f"{prefix}/skipped_updates": np.sum(reports["skipped"]),
    }
