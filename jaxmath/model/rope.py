"""Rotary position embedding (Su et al., arXiv:2104.09864), the half-split form of Qwen2."""

from __future__ import annotations

import jax
import jax.numpy as jnp


def rotation(positions_BT: jax.Array, head_dim: int, theta: float) -> tuple[jax.Array, jax.Array]:
    """cos and sin of position * theta ** (-2 i / head_dim), each f32[B, T, 1, head_dim / 2]."""
    # f32: bf16 rounds 257 to 256, and sin(257) is not sin(256).
    exponent_h = jnp.arange(0, head_dim, 2, dtype=jnp.float32) / head_dim
    frequency_h = 1.0 / (theta**exponent_h)
    angle_BT1h = positions_BT.astype(jnp.float32)[:, :, None, None] * frequency_h[None, None, None]
    return jnp.cos(angle_BT1h), jnp.sin(angle_BT1h)


def rotate(x_BTNH: jax.Array, cos_BT1h: jax.Array, sin_BT1h: jax.Array) -> jax.Array:
    """Rotates the pairs (x_i, x_{i + H/2}); computed in f32, returned in the dtype of `x_BTNH`."""
    first, second = jnp.split(x_BTNH.astype(jnp.float32), 2, axis=-1)
    turned = (first * cos_BT1h - second * sin_BT1h, second * cos_BT1h + first * sin_BT1h)
    return jnp.concatenate(turned, axis=-1).astype(x_BTNH.dtype)
