"""A cache in 8 bits: half the bytes of bfloat16 to hold and to read, on any back end.

The codes lie as in `cache_xla.XlaCache`, with a step for each token and head beside them
(`quantize.to_codes`). A step multiplies a score or a weight, never a key or value, so no
dequantised copy of the cache exists; 8-bit codes are exact in bfloat16. Use it with
`quantize.balance_keys`.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp

from jaxmath.decode import cache_probe, cache_rows, quantize
from jaxmath.decode.cache_xla import XlaCache
from jaxmath.kernels.attention import NEG_INF
from jaxmath.model.config import ModelConfig

STEP_AXES = ("batch", "kv_heads", "seq")


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class QuantizedCache:
    """One layer. codes: int8 or float8_e4m3fn; k_step_BKS, v_step_BKS: f32."""

    codes: XlaCache
    k_step_BKS: Any
    v_step_BKS: Any

    @classmethod
    def allocate(
        cls, config: ModelConfig, num_slots: int, length: int, dtype: Any
    ) -> QuantizedCache:
        """Zeros, for sequences of `length` tokens. dtype: of the codes (`quantize.LARGEST`)."""
        shape = (num_slots, config.num_kv_heads, length)
        codes = XlaCache.allocate(config, num_slots, length, dtype)
        return cls(codes, jnp.zeros(shape, jnp.float32), jnp.zeros(shape, jnp.float32))

    def axes(self) -> QuantizedCache:
        """Logical axes in place of the arrays, for `sharding.named`."""
        return QuantizedCache(self.codes.axes(), STEP_AXES, STEP_AXES)

    def insert(self, k_PTKH, v_PTKH, row_I, start_I, slot_I, count, width: int) -> QuantizedCache:
        """Quantises the packed rows once, then copies as `cache_rows.insert` says."""
        k_PTKH, k_step_PTK = self._quantized_key(k_PTKH)
        v_PTKH, v_step_PTK = self._quantized(v_PTKH)
        steps, new = (self.k_step_BKS, self.v_step_BKS), (k_step_PTK, v_step_PTK)
        new = tuple(step_PTK.swapaxes(1, 2) for step_PTK in new)
        entries = (row_I, start_I, slot_I, count, width)
        steps = cache_rows.insert(steps, new, *entries, axes=STEP_AXES)
        return QuantizedCache(self.codes.insert(k_PTKH, v_PTKH, *entries), *steps)

    def write(self, k_BKH, v_BKH, position_B) -> QuantizedCache:
        """Puts one token of each slot at its position; one beyond the cache is dropped."""
        k_BKH, k_step_BK = self._quantized_key(k_BKH)
        v_BKH, v_step_BK = self._quantized(v_BKH)
        steps, new = (self.k_step_BKS, self.v_step_BKS), (k_step_BK, v_step_BK)
        steps = cache_rows.write(steps, new, position_B, axes=STEP_AXES)
        return QuantizedCache(self.codes.write(k_BKH, v_BKH, position_B), *steps)

    def _quantized(self, x):
        return quantize.to_codes(x, (x.ndim - 1,), self.codes.values[0].dtype.name)

    def _quantized_key(self, k):
        if self.codes.values[0].dtype == jnp.int8:
            k = k.astype(jnp.float32) @ hadamard(k.shape[-1])
        return self._quantized(k)

    def attend(self, q_BNH, length_B) -> jax.Array:
        """out_BNH: one query per slot over its first `length_B` tokens, block by block.

        Blocks behind the longest live sequence are not read (see `cache_xla`).
        """
        B, N, H = q_BNH.shape
        K, S = self.k_step_BKS.shape[1:]
        if self.codes.values[0].dtype == jnp.int8:
            q_BNH = (q_BNH.astype(jnp.float32) @ hadamard(H) / (H & -H)).astype(q_BNH.dtype)
        q_BKGH = q_BNH.reshape(B, K, N // K, H)
        length_B = cache_rows.seen_lengths(length_B, S)
        longest = jnp.max(length_B)
        zeros_BKGH = jnp.zeros(q_BKGH.shape, jnp.float32)
        running = (zeros_BKGH[..., :1] + NEG_INF, zeros_BKGH[..., :1], zeros_BKGH)
        blocks = zip(self.codes.keys, self.codes.values, self.codes.starts, strict=True)
        for k_BKHS, v_BKSH, start in blocks:
            part = slice(start, start + v_BKSH.shape[2])
            block = (k_BKHS, self.k_step_BKS[:, :, part], v_BKSH, self.v_step_BKS[:, :, part])
            merge = lambda running, block=block, start=start: _merge(  # noqa: E731
                running, q_BKGH, *block, length_B - start
            )
            running = jax.lax.cond(longest > start, merge, lambda running: running, running)
        _, sum_BKG1, out_BKGH = running
        return (out_BKGH / sum_BKG1).reshape(B, N, H).astype(q_BNH.dtype)


def hadamard(H):
    import numpy as np
    m = np.ones((1, 1), np.float32)
    while len(m) < (H & -H):
        m = np.block([[m, m], [m, -m]])
    return jnp.asarray(np.kron(np.eye(H // len(m), dtype=np.float32), m))


def _merge(running, q_BKGH, k_BKHS, k_step_BKS, v_BKSH, v_step_BKS, length_B):
    """One block more into (largest score, sum of exponentials, weighted values)."""
    largest_BKG1, sum_BKG1, out_BKGH = running
    S, H = v_BKSH.shape[2:]
    dtype = q_BKGH.dtype
    score_BKGS = jnp.einsum(
        "BKGH,BKHS->BKGS", q_BKGH, k_BKHS.astype(dtype), preferred_element_type=jnp.float32
    )
    score_BKGS = score_BKGS * (k_step_BKS * H**-0.5)[:, :, None]
    seen_B11S = (jnp.arange(S)[None] < length_B[:, None])[:, None, None]
    score_BKGS = jnp.where(seen_B11S, score_BKGS, NEG_INF)
    new_BKG1 = jnp.maximum(largest_BKG1, jnp.max(score_BKGS, axis=-1, keepdims=True))
    # Every slot sees a token of the first block, so unseen ones come to exp(NEG_INF - finite) = 0.
    weight_BKGS = jnp.exp(score_BKGS - new_BKG1)
    shrink_BKG1 = jnp.exp(largest_BKG1 - new_BKG1)
    sum_BKG1 = sum_BKG1 * shrink_BKG1 + jnp.sum(weight_BKGS, axis=-1, keepdims=True)
    weight_BKGS = (weight_BKGS * v_step_BKS[:, :, None]).astype(dtype)
    add_BKGH = jnp.einsum(
        "BKGS,BKSH->BKGH", weight_BKGS, v_BKSH.astype(dtype), preferred_element_type=jnp.float32
    )
    return new_BKG1, sum_BKG1, out_BKGH * shrink_BKG1 + add_BKGH


def probe(config: ModelConfig, dtype: Any) -> str | None:
    """Why codes of `dtype` cannot be used here, or None where they can.

    float8_e4m3fn is refused on accelerators that would emulate it: int8 is as small, and nearer.
    """
    name = jnp.dtype(dtype).name
    if name not in quantize.LARGEST:
        return f"{name} is not a dtype of codes; choose from {', '.join(quantize.LARGEST)}"
    device = jax.devices()[0]
    if name == "float8_e4m3fn" and device.platform != "cpu" and not _has_float8(device):
        return f"{device.device_kind} has no float8_e4m3fn; use int8"
    # Of one value, a code is wrong by up to 1/254 of the largest in int8, 1/16 of itself in float8.
    return cache_probe.disagreement(QuantizedCache, config, dtype, config.dtype, tolerance=0.1)


def _has_float8(device: jax.Device) -> bool:
    if device.platform == "gpu":
        return tuple(int(part) for part in device.compute_capability.split(".")) >= (8, 9)
    return device.device_kind.startswith("TPU7")
