"""TrainState, and the one place where gradients change it."""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import optax

from jaxmath.train.optimizer import Optimizer

Params = Any


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class TrainState:
    """All that a step reads and writes; a checkpoint is exactly this."""

    step: jax.Array  # i32[], optimizer updates asked for, skipped ones included
    params: Params
    opt_state: optax.OptState


def create(params: Params, optimizer: Optimizer) -> TrainState:
    """A state before its first update."""
    return TrainState(jnp.zeros((), jnp.int32), params, optimizer.transform.init(params))


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
    directions, opt_state = optimizer.transform.update(grads, state.opt_state, state.params)
    updates = jax.tree.map(lambda u: -lr * u, directions)
    params = optax.apply_updates(state.params, updates)
    finite = jnp.isfinite(grad_norm) & jnp.isfinite(loss)
    keep = lambda new, old: jnp.where(finite, new, old)  # noqa: E731
    params, opt_state = jax.tree.map(keep, (params, opt_state), (state.params, state.opt_state))
    report = {"grad_norm": grad_norm, "lr": lr, "skipped": 1.0 - finite.astype(jnp.float32)}
    return TrainState(state.step + 1, params, opt_state), report
