"""Supervised fine-tuning: masked next-token loss, and its step.

The batch carries weights, not a mask: with weight 1 on each supervised token the loss is the mean
over tokens, with 1/n on the n supervised tokens of a sequence the mean over sequences of their
token means.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp

from jaxmath.data.batches import SftBatch
from jaxmath.metrics import Mean
from jaxmath.model import lora as lora_lib
from jaxmath.train import microbatches
from jaxmath.train import state as train_state
from jaxmath.train.optimizer import Optimizer


def loss_sums(params: Any, batch: SftBatch) -> tuple[jax.Array, dict[str, jax.Array]]:
    """(Σ w · nll, {"weight": Σ w, "tokens": number of supervised tokens}), each f32[].

    nll_t = -log p(token t | earlier tokens of its segment), in nats; `batch.loss_weights_BT` is w.
    """
    weight_BT = batch.loss_weights_BT
    logprob_BT = params.token_logprobs(
        batch.tokens_BT, batch.positions_BT, batch.segment_ids_BT, needed_BT=weight_BT > 0
    )
    # where: a token without weight may have a probability of zero, and 0 · -inf is not a number.
    nll_BT = jnp.where(weight_BT > 0, -logprob_BT, 0.0)
    sums = {"weight": jnp.sum(weight_BT), "tokens": jnp.sum(weight_BT > 0).astype(jnp.float32)}
    return jnp.sum(weight_BT * nll_BT), sums


def sft_step(
    state: train_state.TrainState,
    batch: SftBatch,
    base: Any = None,
    *,
    optimizer: Optimizer,
    num_microbatches: int = 1,
    lora: lora_lib.LoraConfig | None = None,
    seed: int = 0,
) -> tuple[train_state.TrainState, dict[str, Any]]:
    """One update on loss = Σ w·nll / Σ w over the whole batch, whatever `num_microbatches` is.

    Args:
      base: with `lora` the frozen model, of which `state.params` are the adapters.
      seed: of the dropout of `lora`, which also depends on the step and the row.

    Metrics: `sft/loss` (of finite steps; a Mean weighted by Σ w), `sft/num_tokens` (supervised),
    `sft/grad_norm` (before clipping), `sft/lr`, `sft/skipped_updates` (1 where the loss or the
    gradient was not finite).
    """
    seeds_B = None
    if lora is not None and lora.dropout:
        key = jax.random.fold_in(jax.random.key(seed), state.step)
        seeds_B = jax.random.bits(key, batch.tokens_BT.shape[:1], jnp.uint32)

    def sums_of(params, rows):
        batch, seeds_B = rows
        model = params if lora is None else lora_lib.attach(base, params, lora, seeds_B)
        return loss_sums(model, batch)

    total, sums, grads = microbatches.sum_and_grad(
        sums_of, state.params, (batch, seeds_B), num_microbatches
    )
    weight = jnp.maximum(sums["weight"], jnp.finfo(jnp.float32).tiny)  # a batch without targets
    grads = jax.tree.map(lambda g: g / weight, grads)
    state, report = train_state.apply_gradients(state, grads, total / weight, optimizer)
    taken = report["skipped"] == 0
    return state, {
        "sft/loss": Mean(jnp.where(taken, total, 0.0), jnp.where(taken, sums["weight"], 0.0)),
        "sft/num_tokens": sums["tokens"],
        "sft/grad_norm": report["grad_norm"],
        "sft/lr": report["lr"],
        "sft/skipped_updates": report["skipped"],
    }


def eval_loss(params: Any, batch: SftBatch, *, num_microbatches: int = 1) -> Mean:
    """Σ w·nll and Σ w of a batch, without a gradient; add over batches for a data set's loss."""

    def add(total, rows):
        value, sums = loss_sums(params, microbatches.constrain_rows(rows))
        return total + Mean(value, sums["weight"]), None

    zero = Mean(jnp.zeros((), jnp.float32), jnp.zeros((), jnp.float32))
    return jax.lax.scan(add, zero, microbatches.split(batch, num_microbatches))[0]
