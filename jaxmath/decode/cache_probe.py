"""Does a cache work on the devices at hand? A small one is compiled, run and compared."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp

from jaxmath.kernels import attention
from jaxmath.model.config import ModelConfig

LENGTHS = (1, 3, 130, 253)  # one slot each: a token too few shows in the short ones
MAX_LENGTH = 256
TOLERANCE = 0.03  # of the largest output of a slot: about eight roundings to bfloat16


def disagreement(cache_class: Any, config: ModelConfig, dtype: Any) -> str | None:
    """None where `cache_class` gives the attention of `kernels.attention`, else what went wrong.

    One program on one device; call it where no mesh is set. dtype: of everything.
    """
    B, N, K, H = len(LENGTHS), config.num_heads, config.num_kv_heads, config.head_dim

    @jax.jit
    def worst_error(seed):  # an argument: without one, compiling would be running on constants
        keys = jax.random.split(jax.random.key(seed, impl="threefry2x32"), 3)
        q_BNH = jax.random.normal(keys[0], (B, N, H)).astype(dtype)
        k_BSKH, v_BSKH = (
            jax.random.normal(key, (B, MAX_LENGTH, K, H)).astype(dtype) for key in keys[1:]
        )
        slot_I, zeros_I = jnp.arange(B), jnp.zeros((B,), jnp.int32)
        length_B = jnp.array(LENGTHS, jnp.int32)
        last_B = length_B - 1
        cache = cache_class.allocate(config, B, MAX_LENGTH, dtype)
        cache = cache.insert(k_BSKH, v_BSKH, slot_I, zeros_I, slot_I, B, MAX_LENGTH)
        cache = cache.write(k_BSKH[slot_I, last_B], v_BSKH[slot_I, last_B], last_B)
        out_BNH = cache.attend(q_BNH, length_B).astype(jnp.float32)
        seen_B1S = jnp.arange(MAX_LENGTH)[None, None] < length_B[:, None, None]
        plain_B1NH = attention.masked_attention(q_BNH[:, None], k_BSKH, v_BSKH, seen_B1S)
        plain_BNH = plain_B1NH[:, 0].astype(jnp.float32)
        error_B = jnp.max(jnp.abs(out_BNH - plain_BNH), axis=(1, 2))
        return jnp.max(error_B / jnp.max(jnp.abs(plain_BNH), axis=(1, 2)))

    try:
        error = float(worst_error(0))
    except Exception as error:  # whatever a kernel raises, the answer is the same: not here
        return " ".join(f"{type(error).__name__}: {error}".split()[:40])
    if not error <= TOLERANCE:  # also where it is NaN
        return f"its output differs from plain attention by {error:.1%}"
    return None
