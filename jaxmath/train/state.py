"""TrainState, and the one place where gradients change it."""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import optax

from jaxmath.train import offload
from jaxmath.train.optimizer import Optimizer

Params = Any


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class TrainState:
    """All that a step reads and writes; a checkpoint is exactly this."""

    step: jax.Array  # i32[], optimizer updates asked for, skipped ones included
    params: Params
    opt_state: optax.OptState
    ema: Params | None = None  # averaged parameters, f32, where the optimizer keeps them


def create(params: Params, optimizer: Optimizer) -> TrainState:
    """A state before its first update."""
    opt_state = optimizer.transform.init(params)
    if optimizer.offload:
        opt_state = offload.mark(opt_state)
    ema = None
    if optimizer.ema_decay is not None:
        ema = jax.tree.map(lambda p: jnp.array(p, jnp.float32), params)  # a copy: both are donated
    return TrainState(jnp.zeros((), jnp.int32), params, opt_state, ema)


def apply_gradients(
    state: TrainState, grads: Params, loss: jax.Array, optimizer: Optimizer
) -> tuple[TrainState, dict[str, jax.Array]]:
    """One optimizer update, or none where the loss or a gradient is not finite.

    A skipped update keeps parameters and moments as they are (clipping by a NaN norm would spread
    it to every parameter), but counts in `step`: data order and learning rate go on.

    Args:
      grads: like `state.params`, f32.
      loss: f32[], the loss of these gradients.
    Returns:
      The new state, and `grad_norm` (before clipping), `lr` and `skipped` (1.0 or 0.0), each f32[].
    """
    grad_norm = optax.tree.norm(grads)
    lr = optimizer.schedule(state.step)
    before = offload.bring(state.opt_state) if optimizer.offload else state.opt_state
    directions, opt_state = optimizer.transform.update(grads, before, state.params)
    updates = jax.tree.map(lambda u: -lr * u, directions)
    params, ema = optax.apply_updates(state.params, updates), state.ema
    if ema is not None:
        rest = 1.0 - optimizer.ema_decay  # as a + (1 - d) · (w - a): exact where w equals a
        ema = jax.tree.map(lambda a, w: a + rest * (w - a), ema, params)
    finite = jnp.isfinite(grad_norm) & jnp.isfinite(loss)
    keep = lambda new, old: jnp.where(finite, new, old)  # noqa: E731
    params, opt_state, ema = jax.tree.map(
        keep, (params, opt_state, ema), (state.params, before, state.ema)
    )
    if optimizer.offload:
        opt_state = offload.take_back(opt_state)
    report = {"grad_norm": grad_norm, "lr": lr, "skipped": 1.0 - finite.astype(jnp.float32)}
    return TrainState(state.step + 1, params, opt_state, ema), report
