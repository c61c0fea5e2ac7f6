"""Responses laid into the rows that the models see: one in a row, or several, best fit by length.

The algorithm keeps an array [B, T] with a response in each row; a model is fed `Rows`, which hold
for every position the place of its token in that array. Log-probabilities come back by the same
map, so nothing else knows whether rows are packed.

    batch [B, T] ─plan→ Rows of a mini-batch ─inputs→ tokens, positions, segment ids ─→ model
    [B, T] ←back─ logprob of the rows

The rows of a mini-batch are as many as its longest responses could need, so that programs compile
once; the loops over micro-batches stop behind the last one that holds anything.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxmath import sharding
from jaxmath.data import batches
from jaxmath.rl.rollouts import RolloutBatch

NOTHING = -1  # the place of padding


class Rows(NamedTuple):
    """Some responses of a batch, in rows of one length.

    place_BT: i32, response · T + position of the token in the [B, T] arrays; `NOTHING` on padding.
    num_rows: i32[], rows in use, which stand in front; None where all are, so that the loops have
      a length that the compiler knows.
    """

    place_BT: Any
    num_rows: Any


class Shape(NamedTuple):
    """Sizes of the rows of a mini-batch; all static."""

    max_rows: int
    row_tokens: int
    microbatch_rows: int  # in one forward pass


def shape_for(
    num_responses: int,
    max_tokens: int,
    *,
    microbatch_rows: int,
    row_tokens: int | None = None,
) -> Shape:
    """Rows that hold any `num_responses` sequences of up to `max_tokens` tokens.

    Args:
      row_tokens: length of a packed row, at least `max_tokens`; None for a sequence in each row.
    """
    # Best fit opens a row only when no open one has room, so all but one row hold at least so many.
    per_row = 1 if row_tokens is None else row_tokens // max_tokens
    num_rows = -(-num_responses // per_row)
    max_rows = -(-num_rows // microbatch_rows) * microbatch_rows
    return Shape(max_rows, row_tokens or max_tokens, microbatch_rows)


def plan(length_B: np.ndarray, chosen: Sequence[int], shape: Shape, *, width: int, pack: bool):
    """`Rows` of the chosen responses. NumPy.

    Args:
      length_B: tokens of each response with its prompt. chosen: which responses, by their row.
      width: T of the [B, T] arrays.
    """
    chosen = np.asarray(chosen)
    lengths = length_B[chosen]
    if pack:
        rows = batches.plan_rows(lengths.tolist(), shape.row_tokens)
    else:
        rows = [[i] for i in range(len(chosen))]
    place_BT = np.full((shape.max_rows, shape.row_tokens), NOTHING, np.int32)
    for place_T, row in zip(place_BT, rows, strict=False):
        start = 0
        for i in row:
            stop = start + lengths[i]
            place_T[start:stop] = chosen[i] * width + np.arange(lengths[i])
            start = stop
    return Rows(place_BT, np.int32(len(rows)) if pack else None)


# --- in a compiled program --------------------------------------------------------------------


def inputs(batch: RolloutBatch, place_BT) -> tuple[jax.Array, jax.Array, jax.Array]:
    """(tokens_BT, positions_BT, segment_ids_BT) of rows, i32; segments count from 1 in each row."""
    is_token_BT = place_BT >= 0
    response_BT = responses(batch, place_BT)
    before_BT = jnp.pad(response_BT[:, :-1], ((0, 0), (1, 0)), constant_values=NOTHING)
    segment_BT = jnp.cumsum(is_token_BT & (response_BT != before_BT), axis=1)
    return (
        pick(batch.tokens_BT, place_BT),
        pick(batch.positions_BT, place_BT),
        jnp.where(is_token_BT, segment_BT, 0).astype(jnp.int32),
    )


def responses(batch: RolloutBatch, place_BT) -> jax.Array:
    """i32: the response that each token belongs to; B, which is out of range, on padding."""
    B, T = batch.tokens_BT.shape
    return jnp.where(place_BT >= 0, place_BT // T, B)


def pick(x_BT, place_BT) -> jax.Array:
    """The numbers of an array [B, T] at the tokens of rows; 0 on padding."""
    flat = jnp.take(x_BT.reshape(-1), jnp.maximum(place_BT, 0))
    return jnp.where(place_BT >= 0, flat, jnp.zeros((), x_BT.dtype))


def back(x_BT, place_BT, like_BT) -> jax.Array:
    """The numbers of rows at their tokens' places in an array shaped `like_BT`; 0 elsewhere."""
    size = like_BT.size
    place = jnp.where(place_BT >= 0, place_BT, size).reshape(-1)  # out of range: dropped
    flat = jnp.zeros((size,), x_BT.dtype).at[place].set(x_BT.reshape(-1), mode="drop")
    return flat.reshape(like_BT.shape)


def chosen(batch: RolloutBatch, place_BT) -> jax.Array:
    """f32[B]: 1 for the responses that stand in these rows."""
    zeros_B = jnp.zeros((batch.tokens_BT.shape[0],), jnp.float32)
    return zeros_B.at[responses(batch, place_BT).reshape(-1)].set(1.0, mode="drop")


def sum_by_response(x_BT, batch: RolloutBatch, place_BT) -> jax.Array:
    """f32[B]: Σ over each response's tokens of numbers of rows."""
    zeros_B = jnp.zeros((batch.tokens_BT.shape[0],), jnp.float32)
    return zeros_B.at[responses(batch, place_BT).reshape(-1)].add(x_BT.reshape(-1), mode="drop")


def logprobs(params: Any, batch: RolloutBatch, rows: Rows, temperature, shape: Shape) -> jax.Array:
    """logprob_BT, f32, of the tokens of the responses in `rows`; 0 elsewhere."""

    def one(i, out_BT):
        place_BT = _microbatch(rows, i, shape)
        needed_BT = pick(batch.response_mask_BT, place_BT) > 0
        part_BT = params.token_logprobs(
            *inputs(batch, place_BT), temperature=temperature, needed_BT=needed_BT
        )
        return jax.lax.dynamic_update_slice_in_dim(out_BT, part_BT, i * shape.microbatch_rows, 0)

    start_BT = jnp.zeros(rows.place_BT.shape, jnp.float32)
    out_BT = jax.lax.fori_loop(0, _num_microbatches(rows, shape), one, start_BT)
    return back(out_BT, rows.place_BT, batch.tokens_BT)


def sum_and_grad(
    fn: Callable[[Any, jax.Array], tuple[jax.Array, Any]], params: Any, rows: Rows, shape: Shape
) -> tuple[jax.Array, Any, Any]:
    """Value, auxiliary sums and gradient of Σ over micro-batches of `fn(params, place_BT)`.

    Args:
      fn: (params, place_BT of a micro-batch) → (f32[], pytree of arrays), each a sum over its rows.
    Returns:
      (value f32[], auxiliary sums, gradients in f32 whatever the dtype of `params`).
    """
    value_and_grad = jax.value_and_grad(fn, has_aux=True)

    def add(i, total):
        (value, aux), grads = value_and_grad(params, _microbatch(rows, i, shape))
        # f32: the sum over micro-batches of bf16 gradients would lose the small ones.
        return jax.tree.map(jnp.add, total, (value, aux, _f32(grads)))

    shapes = jax.eval_shape(fn, params, _microbatch(rows, 0, shape))
    zeros = jax.tree.map(lambda s: jnp.zeros(s.shape, s.dtype), shapes)
    start = (*zeros, jax.tree.map(lambda p: jnp.zeros(p.shape, jnp.float32), params))
    return jax.lax.fori_loop(0, _num_microbatches(rows, shape), add, start)


def _f32(tree: Any) -> Any:
    return jax.tree.map(lambda x: x.astype(jnp.float32), tree)


def _microbatch(rows: Rows, i, shape: Shape) -> jax.Array:
    """place_BT of micro-batch i, its rows on the shards of the batch."""
    m = shape.microbatch_rows
    place_BT = jax.lax.dynamic_slice_in_dim(jnp.asarray(rows.place_BT), i * m, m, 0)
    return sharding.constrain(place_BT, "batch", "seq")


def _num_microbatches(rows: Rows, shape: Shape) -> jax.Array | int:
    num_rows = shape.max_rows if rows.num_rows is None else rows.num_rows
    return -(-num_rows // shape.microbatch_rows)
