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

from jaxmath.decode import cache_rows, cache_xla, quantize
from jaxmath.decode.cache_xla import XlaCache
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
    def allocate(
        cls,
        config: ModelConfig,
        num_slots: int,
        length: int,
        dtype: Any,
        block_tokens: int = cache_xla.BLOCK_TOKENS,
    ) -> Int8Cache:
        """Zeros, for sequences of `length` tokens. dtype: of the model; the codes are int8."""
        shape = (num_slots, config.num_kv_heads, length)
        codes = XlaCache.allocate(config, num_slots, length, jnp.int8, block_tokens)
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
        q_BNH = _turned(q_BNH).astype(q_BNH.dtype)
        return self.codes.attend(q_BNH, length_B, self._steps)


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
