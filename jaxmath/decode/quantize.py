"""int8 weights for rollouts, made from the trainer's by the program that places them.

Symmetric absolute-maximum quantisation: x ≈ codes * step, one step per output channel of a weight.
The product takes the codes as they are and the step multiplies its result (`kernels.linear`), so a
token step reads half the bytes of bfloat16. Embedding, head, biases and norm scales stay: they are
few bytes, or every logit.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import jax
import jax.numpy as jnp
from flax import nnx

from jaxmath.kernels.linear import QuantizedWeight
from jaxmath.model import qwen2

LARGEST = 127  # not 128: symmetric, so that no code has a sign only


def to_codes(x: jax.Array, over: Sequence[int]) -> tuple[jax.Array, jax.Array]:
    """codes, int8, and step, f32, with |codes * step - x| <= step / 2.

    Args:
      over: axes that share a step; the step lacks them. Zeros have a step of 0.
    """
    over = tuple(over)
    x_f32 = x.astype(jnp.float32)
    step = jnp.max(jnp.abs(x_f32), axis=over, keepdims=True) / LARGEST
    codes = jnp.round(x_f32 / jnp.where(step > 0, step, 1.0)).astype(jnp.int8)
    return codes, jnp.squeeze(step, axis=over)


def quantize_weights(params: qwen2.DecodeParams) -> qwen2.DecodeParams:
    """`params` with the seven matrices of each block as `QuantizedWeight`.

    The trailing axes of a parameter's `axes` are those of its step.
    """

    def quantized(param: nnx.Variable) -> nnx.Variable:
        axes = param.get_metadata()["axes"]
        if "embed" not in axes:
            return param  # a bias or a norm scale
        # A matrix maps embed to the rest, or the rest to embed; the step spans what is summed over.
        summed = 1 if axes[0] == "embed" else len(axes) - 1
        return param.replace(QuantizedWeight(*to_codes(param.get_value(), range(summed))))

    is_param = lambda x: isinstance(x, nnx.Variable)  # noqa: E731
    blocks = jax.tree.map(quantized, params.blocks, is_leaf=is_param)
    return dataclasses.replace(params, blocks=blocks)
