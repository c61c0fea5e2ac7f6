"""The XLA cache in 8 bits: half the bytes of bfloat16 to hold and to read, on any back end.

Codes lie as in `cache_xla.XlaCache`, with a step for each token and head beside them
(`quantize.to_codes`). A step multiplies a score or a weight, never a key or value, so no
dequantised copy of the cache exists; codes are exact in bfloat16.

Keys are turned by a Hadamard matrix before, and queries alike, which leaves every score as it is
(QuaRot, arXiv:2404.00456). Qwen2.5 adds to some key channels a bias hundreds of times their spread
(the 7B model in its first and last layer); one such channel would set the step of the whole head,
and an 8-bit cache of plain keys answers nonsense (verl-project/verl#4435). Turned, it is shared out
among all channels. int8 and not float8: as small, and with a step per token a few times as near.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxmath.decode import cache_rows, quantize
from jaxmath.decode.cache_xla import XlaCache
from jaxmath.kernels.attention import NEG_INF
from jaxmath.model.config import ModelConfig

STEP_AXES = ("batch", "kv_heads", "seq")


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Int8Cache:
    """One layer. codes: int8, of turned keys and of values; k_step_BKS, v_step_BKS: f32."""

    codes: XlaCache
    k_step_BKS: Any
    v_step_BKS: Any

    @classmethod
    def allocate(cls, config: ModelConfig, num_slots: int, length: int, dtype: Any) -> Int8Cache:
        """Zeros, for sequences of `length` tokens. dtype: of the model; the codes are int8."""
        shape = (num_slots, config.num_kv_heads, length)
        codes = XlaCache.allocate(config, num_slots, length, jnp.int8)
        return cls(codes, jnp.zeros(shape, jnp.float32), jnp.zeros(shape, jnp.float32))

    def axes(self) -> Int8Cache:
        """Logical axes in place of the arrays, for `sharding.named`."""
        return Int8Cache(self.codes.axes(), STEP_AXES, STEP_AXES)

    def insert(self, k_PTKH, v_PTKH, row_I, start_I, slot_I, count, width: int) -> Int8Cache:
        """Quantises the packed rows once, then copies as `cache_rows.insert` says."""
        k_PTKH, k_step_PTK = _quantized(_turned(k_PTKH))
        v_PTKH, v_step_PTK = _quantized(v_PTKH)
        new = tuple(step_PTK.swapaxes(1, 2) for step_PTK in (k_step_PTK, v_step_PTK))
        entries = (row_I, start_I, slot_I, count, width)
        steps = cache_rows.insert(self._steps, new, *entries, axes=STEP_AXES)
        return Int8Cache(self.codes.insert(k_PTKH, v_PTKH, *entries), *steps)

    def write(self, k_BKH, v_BKH, position_B) -> Int8Cache:
        """Puts one token of each slot at its position; one beyond the cache is dropped."""
        k_BKH, k_step_BK = _quantized(_turned(k_BKH))
        v_BKH, v_step_BK = _quantized(v_BKH)
        new = (k_step_BK, v_step_BK)
        steps = cache_rows.write(self._steps, new, position_B, axes=STEP_AXES)
        return Int8Cache(self.codes.write(k_BKH, v_BKH, position_B), *steps)

    @property
    def _steps(self):
        return self.k_step_BKS, self.v_step_BKS

    def attend(self, q_BNH, length_B) -> jax.Array:
        """out_BNH: one query per slot over its first `length_B` tokens, block by block.

        Blocks behind the longest live sequence are not read (see `cache_xla`).
        """
        B, N, H = q_BNH.shape
        K, S = self.k_step_BKS.shape[1:]
        q_BKGH = _turned(q_BNH).astype(q_BNH.dtype).reshape(B, K, N // K, H)
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


def _quantized(x: jax.Array) -> tuple[jax.Array, jax.Array]:
    return quantize.to_codes(x, over=(x.ndim - 1,))


def _turned(x: jax.Array) -> jax.Array:
    """x times an orthogonal matrix that spreads each of the last axis's channels; f32."""
    signs = _hadamard(x.shape[-1])  # ±1 and 0: exact in any dtype
    turned = jnp.matmul(x, signs.astype(x.dtype), preferred_element_type=jnp.float32)
    return turned * np.float32(np.abs(signs).sum(0)[0] ** -0.5)


def _hadamard(size: int) -> np.ndarray:
    """Sylvester's matrix of ±1, as large as the largest power of two that divides `size`; several
    along the diagonal where that is less."""
    signs = np.ones((1, 1), np.float32)
    while size % (2 * len(signs)) == 0:
        signs = np.block([[signs, signs], [signs, -signs]])
    return np.kron(np.eye(size // len(signs), dtype=np.float32), signs)
