"""Writing into a cache in place: one token per slot, or a prompt's tokens into chosen slots.

For arrays that begin with the slots, whatever their layout: `seq_axis` says where positions lie.
A cache may be several arrays of one layout; both functions take and return a tree of them.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp

from jaxmath import sharding


def insert(
    cache: Any,
    rows: Any,
    row_I: jax.Array,
    start_I: jax.Array,
    slot_I: jax.Array,
    count: jax.Array,
    width: int,
    *,
    axes: Sequence[str],
) -> Any:
    """Copies tokens start_I[i] … start_I[i] + width - 1 of row row_I[i] to the front of slot
    slot_I[i], for i < count.

    Args:
      rows: arrays laid out as those of `cache`, packed rows in place of slots, tokens of a row in
        place of positions.
      row_I, start_I, slot_I: i32; several slots may take one prompt.
      count: i32[]; the copy costs as much as there are entries in use.
      axes: logical axes of the arrays; an array of fewer dimensions has the first of them.
    """
    seq_axis = list(axes).index("seq")

    def copy(i, cache):
        def one(x, new):
            at, size = [0] * new.ndim, list(new.shape)
            at[0], at[seq_axis], size[0], size[seq_axis] = row_I[i], start_I[i], 1, width
            part = jax.lax.dynamic_slice(new, at, size)
            return jax.lax.dynamic_update_slice(x, part, [slot_I[i]] + [0] * (x.ndim - 1))

        return jax.tree.map(one, cache, rows)

    # Rows move between shards here: gathered once, outside the loop.
    gather = lambda new: sharding.constrain(new, None, *axes[1 : new.ndim])  # noqa: E731
    rows = jax.tree.map(lambda x, new: gather(new.astype(x.dtype)), cache, rows)
    return pin(jax.lax.fori_loop(0, count, copy, cache), axes)


def write(cache: Any, tokens: Any, position_B: jax.Array, *, axes: Sequence[str]) -> Any:
    """Puts one token of each slot at its position; a position beyond the cache is dropped.

    Args:
      tokens: arrays as those of `cache`, without the axis of positions.
    """
    before = (slice(None),) * (list(axes).index("seq") - 1)
    # vmap, not slots in the index: a scatter that batches over slots needs no other shard's tokens.
    put = jax.vmap(lambda slot, new, at: slot.at[(*before, at)].set(new, mode="drop"))
    written = jax.tree.map(lambda x, new: put(x, new.astype(x.dtype), position_B), cache, tokens)
    return pin(written, axes)


def pin(cache: Any, axes: Sequence[str]) -> Any:
    """Each array on its shards, by its logical axes."""
    return jax.tree.map(lambda x: sharding.constrain(x, *axes[: x.ndim]), cache)


def seen_lengths(length_B: jax.Array, length: int) -> jax.Array:
    """`length_B` in 1 … length: an attention kernel that sees nothing returns NaN or never ends."""
    return jnp.clip(length_B, 1, length)
