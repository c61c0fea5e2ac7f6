"""Gradients of a sum over a batch, a few rows at a time.

Losses are written as sums over rows, with the division folded into the rows' weights or done at the
end, so that any number of micro-batches gives the gradient of the whole batch. Averaging the means
of micro-batches would weigh a short one's tokens more.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from jaxmath import sharding


def split(batch: Any, num_microbatches: int) -> Any:
    """[B, ...] → [num_microbatches, B / num_microbatches, ...]; micro-batch i has rows i, i + n …

    Rows are dealt out in turn, so that each shard of the batch deals from its own rows.

    Raises:
      ValueError: `num_microbatches` does not divide B.
    """

    def one(x):
        if x.shape[0] % num_microbatches:
            raise ValueError(
                f"num_microbatches is {num_microbatches}, which does not divide the "
                f"{x.shape[0]} rows of the batch; choose a divisor"
            )
        return jnp.swapaxes(x.reshape(-1, num_microbatches, *x.shape[1:]), 0, 1)

    return jax.tree.map(one, batch)


def sum_and_grad(
    fn: Callable[[Any, Any], tuple[jax.Array, Any]], params: Any, batch: Any, num_microbatches: int
) -> tuple[jax.Array, Any, Any]:
    """Value, auxiliary sums and gradient of Σ over micro-batches of `fn(params, microbatch)`.

    Args:
      fn: (params, rows) → (f32[], pytree of arrays), each a sum over the rows.
    Returns:
      (value f32[], auxiliary sums, gradients in f32 whatever the dtype of `params`).
    """
    value_and_grad = jax.value_and_grad(fn, has_aux=True)
    # f32: the sum over micro-batches of bf16 gradients would lose the small ones.
    f32 = lambda tree: jax.tree.map(lambda g: g.astype(jnp.float32), tree)  # noqa: E731

    def add(total, rows):
        (value, aux), grads = value_and_grad(params, constrain_rows(rows))
        return jax.tree.map(jnp.add, total, (value, aux, f32(grads))), None

    parts = split(batch, num_microbatches)
    first = jax.tree.map(lambda x: x[0], parts)
    shapes = jax.eval_shape(fn, params, first)
    zeros = jax.tree.map(lambda s: jnp.zeros(s.shape, s.dtype), shapes)
    start = (*zeros, jax.tree.map(lambda p: jnp.zeros(p.shape, jnp.float32), params))
    return jax.lax.scan(add, start, parts)[0]


def constrain_rows(rows: Any) -> Any:
    """Pins the rows of a micro-batch to the shards of the batch: [rows, T] or [rows]."""
    return jax.tree.map(
        lambda x: sharding.constrain(x, *("batch", "seq")[: x.ndim]),
        rows,
    )
