"""Keys and values of the tokens seen so far: allocate, write, attend.

One pair of arrays per layer, so that an unrolled decode step updates each in place. Slot s of a row
holds the token at position s, so the mask of a row is just its length.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp

from jaxmath import sharding
from jaxmath.kernels import attention as attention_kernels
from jaxmath.model.config import ModelConfig

CACHE_AXES = ("batch", "kv_heads", "seq", "head_dim")


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class KVCache:
    """k, v: one [B, K, S, H] array per layer, in the compute dtype."""

    k: tuple[jax.Array, ...]
    v: tuple[jax.Array, ...]


def allocate(config: ModelConfig, batch: int, length: int, dtype: Any = None) -> KVCache:
    """An empty cache for `batch` rows of `length` tokens."""
    shape = (batch, config.num_kv_heads, length, config.head_dim)
    # zeros, never jnp.empty: masked garbage may be NaN, and 0 * NaN is NaN.
    make = lambda: jnp.zeros(shape, dtype or config.dtype)  # noqa: E731
    layers = range(config.num_layers)
    return KVCache(tuple(make() for _ in layers), tuple(make() for _ in layers))


def insert(cache: KVCache, prompt: KVCache, row_I, slot_I, count) -> KVCache:
    """Copies prompt `row_I[i]` into positions 0 … T-1 of slot `slot_I[i]`, for i < count.

    Args:
      prompt: [P, K, T, H] per layer, T at most the cache length.
      row_I, slot_I: i32; several slots may take one row.
      count: i32[]; the copy costs as much as there are entries in use.
    """
    # Rows move between shards here: gathered once, outside the loop.
    gather = lambda x_PKTH: sharding.constrain(x_PKTH, None, *CACHE_AXES[1:])  # noqa: E731
    prompt = jax.tree.map(gather, prompt)

    def copy(i, cache):
        def one(x_BKSH, new_PKTH):
            new_1KTH = jax.lax.dynamic_slice_in_dim(new_PKTH, row_I[i], 1)
            new_1KTH = new_1KTH.astype(x_BKSH.dtype)
            return jax.lax.dynamic_update_slice(x_BKSH, new_1KTH, (slot_I[i], 0, 0, 0))

        return jax.tree.map(one, cache, prompt)

    cache = jax.lax.fori_loop(0, count, copy, cache)
    return jax.tree.map(lambda x_BKSH: sharding.constrain(x_BKSH, *CACHE_AXES), cache)


def write_token(cache_BKSH, new_B1KH, position_B) -> jax.Array:
    """Puts one token of each row at its position; a position beyond the cache is dropped."""
    # vmap, not rows in the index: a scatter that batches over rows needs no other shard's tokens.
    put = jax.vmap(lambda row_KSH, new_KH, at: row_KSH.at[:, at].set(new_KH, mode="drop"))
    cache_BKSH = put(cache_BKSH, new_B1KH[:, 0].astype(cache_BKSH.dtype), position_B)
    return sharding.constrain(cache_BKSH, *CACHE_AXES)


def attend(q_B1NH, k_BKSH, v_BKSH, length_B) -> jax.Array:
    """Attention of one query per row to the first `length_B` cached tokens. Returns out_B1NH."""
    B, _, N, H = q_B1NH.shape
    K, S = k_BKSH.shape[1:3]
    q_BKGH = q_B1NH.reshape(B, K, N // K, H)
    score_BKGS = jnp.einsum("BKGH,BKSH->BKGS", q_BKGH, k_BKSH, preferred_element_type=jnp.float32)
    seen_B11S = (jnp.arange(S)[None] < length_B[:, None])[:, None, None]
    score_BKGS = jnp.where(seen_B11S, score_BKGS * H**-0.5, attention_kernels.NEG_INF)
    prob_BKGS = jax.nn.softmax(score_BKGS, axis=-1).astype(v_BKSH.dtype)
    out_BKGH = jnp.einsum("BKGS,BKSH->BKGH", prob_BKGS, v_BKSH, preferred_element_type=jnp.float32)
    return out_BKGH.reshape(B, 1, N, H).astype(q_B1NH.dtype)
