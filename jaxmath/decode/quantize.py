"""int8 rollouts: smaller weights, and keys that survive being stored in eight bits.

Symmetric absolute-maximum quantisation: x ≈ codes * step, with one step per output channel of a
weight, or per token and head of a key or value. The functions map parameters to parameters, so that
the program that places the trainer's weights can end with them:

    params = balance_keys(params)       # where the cache is quantised
    params = quantize_weights(params)   # where the weights are

Embedding, head, biases and norm scales stay as they are: they are few bytes or many logits.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from jaxmath.kernels.linear import QuantizedWeight
from jaxmath.model import qwen2

# dtype of codes → the largest code
LARGEST = {"int8": 127.0, "float8_e4m3fn": 448.0}


def to_codes(x: jax.Array, over: Sequence[int], dtype: str = "int8") -> tuple[jax.Array, jax.Array]:
    """codes and step, f32, with x ≈ codes * step; |codes * step - x| <= step / 2 for int8.

    Args:
      over: axes that share a step; the step lacks them. Zeros have a step of 0.
      dtype: entry of `LARGEST`. float8_e4m3fn has a relative error of up to 1/16 instead.
    """
    x_f32 = x.astype(jnp.float32)
    step = jnp.max(jnp.abs(x_f32), axis=tuple(over), keepdims=True) / LARGEST[dtype]
    scaled = x_f32 / jnp.where(step > 0, step, 1.0)
    if dtype == "int8":
        scaled = jnp.round(scaled)
    return scaled.astype(dtype), jnp.squeeze(step, axis=tuple(over))


def quantize_weights(params: qwen2.DecodeParams) -> qwen2.DecodeParams:
    """The seven matrices of each block as `QuantizedWeight`; the rest of `params` as it is."""

    def quantized(param: nnx.Variable) -> nnx.Variable:
        axes = param.get_metadata()["axes"]
        if "embed" not in axes:
            return param  # a bias or a norm scale
        # A matrix maps embed to the rest, or the rest to embed; the step spans what is summed over.
        summed = 1 if axes[0] == "embed" else len(axes) - 1
        return param.replace(QuantizedWeight(*to_codes(param.get_value(), range(summed))))

    return _map_blocks(lambda block: jax.tree.map(quantized, block, is_leaf=_is_param), params)


def balance_keys(params: qwen2.DecodeParams) -> qwen2.DecodeParams:
    """The same model with keys whose channels are about equally large.

    Qwen2.5 adds to some key channels a bias hundreds of times their spread (in the 7B model, in
    the first and last layer), which would set the step of the whole head and drown the others; an
    8-bit cache of such keys answers nonsense (verl-project/verl#4435). Here keys are divided, and
    the queries that meet them multiplied, by the expected root mean square of the key, bias
    included. Both channels of a rotary pair share a factor, so rotation commutes with it; factors
    are powers of two, so nothing is rounded: scores are equal to the bit.
    """
    return _map_blocks(_balanced, params)


def _balanced(block: qwen2.Block) -> qwen2.Block:
    wk_DKH, bk_KH = block.wk_DKH[...].astype(jnp.float32), block.bk_KH[...].astype(jnp.float32)
    # A normed activation has unit mean square, times the norm's scale; channels taken as unrelated.
    square_KH = bk_KH**2 + jnp.sum((wk_DKH * block.input_norm_D[...][:, None, None]) ** 2, axis=0)
    first, second = jnp.split(square_KH, 2, axis=1)  # the halves that rope.rotate turns together
    square_KH = jnp.tile(first + second, (1, 2)) / 2
    factor_KH = jnp.exp2(jnp.round(jnp.log2(jnp.where(square_KH > 0, square_KH, 1.0)) / 2))
    groups = block.config.num_heads // block.config.num_kv_heads
    factor_NH = jnp.repeat(factor_KH, groups, axis=0)
    return _replaced(
        block,
        wk_DKH=lambda w: w / factor_KH[None],
        bk_KH=lambda b: b / factor_KH,
        wq_DNH=lambda w: w * factor_NH[None],
        bq_NH=lambda b: b * factor_NH,
    )


def _replaced(block: qwen2.Block, **changes: Callable[[jax.Array], jax.Array]) -> qwen2.Block:
    """A copy of `block` with these parameters changed, each in its own dtype."""
    block = jax.tree.map(lambda x: x, block)
    for name, change in changes.items():
        param = getattr(block, name)
        value = param.get_value()
        setattr(block, name, param.replace(change(value).astype(value.dtype)))
    return block


def _map_blocks(change: Callable[[Any], Any], params: qwen2.DecodeParams) -> qwen2.DecodeParams:
    return dataclasses.replace(params, blocks=tuple(change(block) for block in params.blocks))


def _is_param(x: Any) -> bool:
    return isinstance(x, nnx.Variable)
