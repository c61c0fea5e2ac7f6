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


def write_prompt(cache_BKSH, new_BTKH) -> jax.Array:
    """Puts the T tokens of each row at positions 0 … T-1."""
    new_BKTH = new_BTKH.swapaxes(1, 2).astype(cache_BKSH.dtype)
    cache_BKSH = jax.lax.dynamic_update_slice(cache_BKSH, new_BKTH, (0, 0, 0, 0))
    return sharding.constrain(cache_BKSH, *CACHE_AXES)


def write_token(cache_BKSH, new_B1KH, position_B) -> jax.Array:
    """Puts one token of each row at its position; a position beyond the cache is dropped."""
    rows_B = jnp.arange(cache_BKSH.shape[0])
    new_BKH = new_B1KH[:, 0].astype(cache_BKSH.dtype)
    cache_BKSH = cache_BKSH.at[rows_B, :, position_B].set(new_BKH, mode="drop")
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
