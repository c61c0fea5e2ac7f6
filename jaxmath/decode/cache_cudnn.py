"""A cache for NVIDIA GPUs: cuDNN's attention with a key/value length per slot.

[B, S, K, H], the layout in which cuDNN reads keys and values; another one would be transposed, all
of it, at every step. The call is JAX's public `jax.nn.dot_product_attention`, one query per slot.
"""

from __future__ import annotations

import dataclasses
from typing import Any, ClassVar

import jax
import jax.numpy as jnp

from jaxmath.decode import cache_probe, cache_rows
from jaxmath.model.config import ModelConfig

AXES = ("batch", "seq", "kv_heads", "head_dim")


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class CudnnCache:
    """One layer: k_BSKH, v_BSKH, in bfloat16 or float16.

    implementation: of `jax.nn.dot_product_attention`. "xla" computes the same from the same layout
      on any back end, slowly.
    """

    k_BSKH: jax.Array
    v_BSKH: jax.Array
    implementation: ClassVar[str] = "cudnn"

    @classmethod
    def allocate(cls, config: ModelConfig, num_slots: int, length: int, dtype: Any) -> CudnnCache:
        """Zeros, for sequences of `length` tokens."""
        shape = (num_slots, length, config.num_kv_heads, config.head_dim)
        return cls(jnp.zeros(shape, dtype), jnp.zeros(shape, dtype))

    def axes(self) -> CudnnCache:
        """Logical axes in place of the arrays, for `sharding.named`."""
        return CudnnCache(AXES, AXES)

    def insert(self, k_PTKH, v_PTKH, row_I, start_I, slot_I, count, width: int) -> CudnnCache:
        """See `cache_rows.insert`."""
        rows = CudnnCache(k_PTKH, v_PTKH)
        return cache_rows.insert(self, rows, row_I, start_I, slot_I, count, width, axes=AXES)

    def write(self, k_BKH, v_BKH, position_B) -> CudnnCache:
        """See `cache_rows.write`."""
        return cache_rows.write(self, CudnnCache(k_BKH, v_BKH), position_B, axes=AXES)

    def attend(self, q_BNH, length_B) -> jax.Array:
        """out_BNH: one query per slot over its first `length_B` tokens."""
        out_B1NH = jax.nn.dot_product_attention(
            q_BNH[:, None],
            self.k_BSKH,
            self.v_BSKH,
            key_value_seq_lengths=cache_rows.seen_lengths(length_B, self.k_BSKH.shape[1]),
            implementation=self.implementation,
        )
        return out_B1NH[:, 0]


def probe(config: ModelConfig, dtype: Any) -> str | None:
    """Why this cache cannot be used here, or None where it can and agrees with plain attention."""
    if jnp.dtype(dtype) not in (jnp.bfloat16, jnp.float16):
        return f"cuDNN attention computes in bfloat16 or float16, not in {jnp.dtype(dtype).name}"
    if jax.default_backend() != "gpu":
        return f"cuDNN needs an NVIDIA GPU; the devices here are of type {jax.default_backend()}"
    return cache_probe.disagreement(CudnnCache, config, dtype)
