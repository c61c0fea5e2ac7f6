"""The key/value cache that runs everywhere: plain XLA, read block by block up to the longest slot.

Each block is an array of its own: XLA would copy a slice of one large array before it multiplies.
Blocks behind the longest live sequence are not read; the others are merged by the running maximum
and sum of the softmax (Milakov and Gimelshein, arXiv:1805.02867). Keys lie as [B, K, H, S]: that is
the layout in which a CPU's matrix product takes them without a transpose. What fits into one block
is plain softmax attention, with neither branch nor merge.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp

from jaxmath import sharding
from jaxmath.kernels.attention import NEG_INF
from jaxmath.model.config import ModelConfig

MAX_BLOCKS = 8  # each costs a branch per layer in the compiled program
BLOCK_TOKENS = 64  # at least, and a multiple of it
# On a GPU: the merging of short blocks moves a tenth of what the cache itself does.
GPU_BLOCK_TOKENS = 4096
KEY_AXES = ("batch", "kv_heads", "head_dim", "seq")
VALUE_AXES = ("batch", "kv_heads", "seq", "head_dim")


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class XlaCache:
    """One layer. keys: [B, K, H, S] and values: [B, K, S, H], S of one block each."""

    keys: tuple[Any, ...]
    values: tuple[Any, ...]

    @classmethod
    def allocate(
        cls,
        config: ModelConfig,
        num_slots: int,
        length: int,
        dtype: Any,
        block_tokens: int = BLOCK_TOKENS,
    ) -> XlaCache:
        """An empty cache of `num_slots` sequences of up to `length` tokens."""
        B, K, H = num_slots, config.num_kv_heads, config.head_dim
        # zeros, never jnp.empty: masked garbage may be NaN, and 0 * NaN is NaN.
        sizes = block_sizes(length, block_tokens)
        return cls(
            tuple(jnp.zeros((B, K, H, S), dtype) for S in sizes),
            tuple(jnp.zeros((B, K, S, H), dtype) for S in sizes),
        )

    def axes(self) -> XlaCache:
        """Logical axes in place of the arrays, for `sharding.named`."""
        return XlaCache((KEY_AXES,) * len(self.keys), (VALUE_AXES,) * len(self.values))

    @property
    def starts(self) -> tuple[int, ...]:
        """Position of each block's first token."""
        sizes = [v_BKSH.shape[2] for v_BKSH in self.values]
        return tuple(sum(sizes[:i]) for i in range(len(sizes)))

    def insert(self, k_RTKH, v_RTKH, row_I, start_I, slot_I, count, width: int) -> XlaCache:
        """Copies `width` tokens of a packed row, from `start_I[i]` on, into slot `slot_I[i]`.

        Args:
          k_RTKH, v_RTKH: keys and values of packed rows; every start + width is in range.
          row_I, start_I, slot_I: i32. count: i32[], entries in use; the others cost nothing.
        """
        # Rows move between shards here: gathered once, outside the loop.
        gather = lambda x: sharding.constrain(x, None, *VALUE_AXES[1:])  # noqa: E731
        k_RKTH, v_RKTH = gather(k_RTKH.swapaxes(1, 2)), gather(v_RTKH.swapaxes(1, 2))
        K, H = k_RKTH.shape[1], k_RKTH.shape[3]

        def copy(i, cache):
            def part(x_RKTH, first, size):
                at = (row_I[i], 0, start_I[i] + first, 0)
                return jax.lax.dynamic_slice(x_RKTH, at, (1, K, size, H))

            keys, values = list(cache.keys), list(cache.values)
            for block, first in enumerate(cache.starts):
                size = min(width - first, values[block].shape[2])
                if size <= 0:
                    break
                new_1KSH = part(v_RKTH, first, size).astype(values[block].dtype)
                new_1KHS = part(k_RKTH, first, size).swapaxes(2, 3).astype(keys[block].dtype)
                at = (slot_I[i], 0, 0, 0)
                values[block] = jax.lax.dynamic_update_slice(values[block], new_1KSH, at)
                keys[block] = jax.lax.dynamic_update_slice(keys[block], new_1KHS, at)
            return XlaCache(tuple(keys), tuple(values))

        return _pinned(jax.lax.fori_loop(0, count, copy, self))

    def write(self, k_BKH, v_BKH, position_B) -> XlaCache:
        """Puts one token of each slot at its position; one beyond the cache is dropped."""
        # vmap, not slots in the index: a scatter that batches over slots needs no other shard's.
        put_key = jax.vmap(lambda x_KHS, new_KH, at: x_KHS.at[..., at].set(new_KH, mode="drop"))
        put_value = jax.vmap(lambda x_KSH, new_KH, at: x_KSH.at[:, at].set(new_KH, mode="drop"))
        keys, values = [], []
        for k_BKHS, v_BKSH, start in zip(self.keys, self.values, self.starts, strict=True):
            size = v_BKSH.shape[2]
            at_B = position_B - start
            at_B = jnp.where(at_B < 0, size, at_B)  # a negative index would count from the end
            keys.append(put_key(k_BKHS, k_BKH.astype(k_BKHS.dtype), at_B))
            values.append(put_value(v_BKSH, v_BKH.astype(v_BKSH.dtype), at_B))
        return _pinned(XlaCache(tuple(keys), tuple(values)))

    def attend(self, q_BNH, length_B, steps=None) -> jax.Array:
        """Attention of one query per slot to its first `length_B` tokens; zeros where that is 0.

        Args:
          steps: k_step_BKS and v_step_BKS, f32, where keys and values are codes of that size.
        Returns out_BNH in the dtype of q; scores and softmax are f32.
        """
        B, N, H = q_BNH.shape
        K = self.values[0].shape[1]
        q_BKGH = q_BNH.reshape(B, K, N // K, H)
        if len(self.values) == 1:
            out_BKGH = _whole(q_BKGH, self.keys[0], self.values[0], steps, length_B)
            return out_BKGH.reshape(B, N, H).astype(q_BNH.dtype)
        longest = jnp.max(length_B)
        running = (
            jnp.full((B, K, N // K, 1), NEG_INF),
            jnp.zeros((B, K, N // K, 1)),
            jnp.zeros((B, K, N // K, H)),
        )
        for k_BKHS, v_BKSH, start in zip(self.keys, self.values, self.starts, strict=True):
            part = slice(start, start + v_BKSH.shape[2])
            block = (k_BKHS, v_BKSH, steps and tuple(x_BKS[:, :, part] for x_BKS in steps))
            merge = lambda running, block=block, start=start: _merge(  # noqa: E731
                running, q_BKGH, *block, length_B - start
            )
            running = jax.lax.cond(longest > start, merge, lambda running: running, running)
        _, sum_BKG1, out_BKGH = running
        out_BKGH = out_BKGH / jnp.maximum(sum_BKG1, 1e-30)
        return out_BKGH.reshape(B, N, H).astype(q_BNH.dtype)


def block_sizes(length: int, block_tokens: int) -> tuple[int, ...]:
    """Block lengths that sum to `length`: a multiple of `block_tokens`, equal but for the last, at
    most `MAX_BLOCKS`."""
    size = -(-length // MAX_BLOCKS)
    size = -(-size // block_tokens) * block_tokens
    full, rest = divmod(length, size)
    return (size,) * full + ((rest,) if rest else ())


def _whole(q_BKGH, k_BKHS, v_BKSH, steps, length_B):
    """Attention to all that is cached: one softmax, which a GPU does in one kernel."""
    score_BKGS, _ = _scores(q_BKGH, k_BKHS, steps, length_B)
    out_BKGH = _weighted(jax.nn.softmax(score_BKGS), v_BKSH, steps, q_BKGH.dtype)
    return jnp.where(length_B[:, None, None, None] > 0, out_BKGH, 0.0)


def _merge(running, q_BKGH, k_BKHS, v_BKSH, steps, length_B):
    """One block more into (largest score, sum of exponentials, weighted values)."""
    largest_BKG1, sum_BKG1, out_BKGH = running
    score_BKGS, seen_B11S = _scores(q_BKGH, k_BKHS, steps, length_B)
    new_BKG1 = jnp.maximum(largest_BKG1, jnp.max(score_BKGS, axis=-1, keepdims=True))
    weight_BKGS = jnp.where(seen_B11S, jnp.exp(score_BKGS - new_BKG1), 0.0)
    shrink_BKG1 = jnp.exp(largest_BKG1 - new_BKG1)
    sum_BKG1 = sum_BKG1 * shrink_BKG1 + jnp.sum(weight_BKGS, axis=-1, keepdims=True)
    add_BKGH = _weighted(weight_BKGS, v_BKSH, steps, q_BKGH.dtype)
    return new_BKG1, sum_BKG1, out_BKGH * shrink_BKG1 + add_BKGH


def _scores(q_BKGH, k_BKHS, steps, length_B):
    """(f32 scores, which of them count)."""
    S, H = k_BKHS.shape[3], k_BKHS.shape[2]
    score_BKGS = jnp.einsum(
        "BKGH,BKHS->BKGS", q_BKGH, k_BKHS.astype(q_BKGH.dtype), preferred_element_type=jnp.float32
    )
    if steps is not None:  # here and below, not on the codes: so they are never dequantised
        score_BKGS = score_BKGS * steps[0][:, :, None]
    seen_B11S = (jnp.arange(S)[None] < length_B[:, None])[:, None, None]
    return jnp.where(seen_B11S, score_BKGS * H**-0.5, NEG_INF), seen_B11S


def _weighted(weight_BKGS, v_BKSH, steps, dtype):
    """The values' weighted sum, f32."""
    if steps is not None:
        weight_BKGS = weight_BKGS * steps[1][:, :, None]
    return jnp.einsum(
        "BKGS,BKSH->BKGH",
        weight_BKGS.astype(dtype),
        v_BKSH.astype(dtype),
        preferred_element_type=jnp.float32,
    )


def _pinned(cache: XlaCache) -> XlaCache:
    return XlaCache(
        tuple(sharding.constrain(x, *KEY_AXES) for x in cache.keys),
        tuple(sharding.constrain(x, *VALUE_AXES) for x in cache.values),
    )
