"""int8 weights and caches: how wrong they are, how small, and that balanced keys are the same."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from jaxmath import sharding
from jaxmath.decode import quantize
from jaxmath.decode.cache_quantized import QuantizedCache
from jaxmath.decode.cache_xla import XlaCache
from jaxmath.kernels.linear import QuantizedWeight, linear
from jaxmath.model import qwen2
from jaxmath.model.config import ModelConfig

MODEL = ModelConfig(
    vocab_size=200,
    num_layers=2,
    embed_dim=64,
    mlp_dim=96,
    num_heads=6,
    num_kv_heads=2,
    head_dim=32,
    dtype="float32",
)
OUTLIER = 100.0  # Qwen2.5-7B has key biases that far above the rest, in its first and last layer


@functools.cache
def make_params(dtype="float32", outlier=0.0):
    """A random model whose logits and scores spread as a trained one's do."""
    model = qwen2.Qwen2(MODEL, jax.random.key(0))
    model = jax.tree.map(lambda x: 6 * x if x.ndim > 2 else x, model)  # not norms, not tables
    model.head_DV = nnx.Param(15 * model.head_DV[...], axes=("embed", "vocab"))
    keys = iter(jax.random.split(jax.random.key(1), 2))
    for name in ("bq_NH", "bk_KH"):
        bias = getattr(model.layers, name)
        value = jax.random.normal(next(keys), bias.get_value().shape)
        if name == "bk_KH":
            value = value.at[0, :, 5].add(outlier)
        setattr(model.layers, name, bias.replace(value))
    return qwen2.unstack(model, dtype)


def token_logprobs(params, empty_cache, num_tokens=40):
    """logprob_BT of fixed random tokens, decoded one by one."""
    B = 4
    tokens_BT = np.random.default_rng(0).integers(0, MODEL.vocab_size, (B, num_tokens + 1))
    tokens_BT = tokens_BT.astype(np.int32)

    @jax.jit
    def step(params, caches, token_B, next_B, position):
        position_B, caches = jnp.full((B,), position), list(caches)
        x_B1D = params.embed_VD[token_B][:, None]
        for layer, block in enumerate(params.blocks):

            def attend(q_B1NH, k_B1KH, v_B1KH, layer=layer):
                caches[layer] = caches[layer].write(k_B1KH[:, 0], v_B1KH[:, 0], position_B)
                return caches[layer].attend(q_B1NH[:, 0], position_B + 1)[:, None]

            x_B1D = block(x_B1D, position_B[:, None], attend)
        hidden_B1D = qwen2.rms_norm(x_B1D, params.final_norm_D, MODEL.rms_norm_eps)
        logits_BV = qwen2.project(hidden_B1D, params.head_DV)[:, 0]
        logprob_BV = jax.nn.log_softmax(logits_BV)
        return caches, jnp.take_along_axis(logprob_BV, next_B[:, None], axis=1)[:, 0]

    caches, columns = [empty_cache(num_tokens)] * MODEL.num_layers, []
    for t in range(num_tokens):
        caches, logprob_B = step(params, caches, tokens_BT[:, t], tokens_BT[:, t + 1], t)
        columns.append(logprob_B)
    return np.stack(columns, axis=1)


def plain(dtype="float32"):
    return lambda length: XlaCache.allocate(MODEL, 4, length, dtype)


def quantized(dtype="int8"):
    return lambda length: QuantizedCache.allocate(MODEL, 4, length, dtype)


def mismatch(params, cache, dtype="float32", outlier=0.0):
    """(mean, worst) |difference of log-probabilities| to the model as it is."""
    exact_BT = token_logprobs(make_params(dtype, outlier), plain(dtype))
    difference_BT = np.abs(token_logprobs(params, cache) - exact_BT)
    return float(difference_BT.mean()), float(difference_BT.max())

if __name__ == "__main__":
    jax.config.update("jax_default_matmul_precision", "highest")
    p = make_params()
    e = token_logprobs(p, plain())
    print("logprob mean std", e.mean(), e.std())
    print("bf16", mismatch(make_params("bfloat16"), plain("bfloat16")))
    print("w8", mismatch(quantize.quantize_weights(p), plain()))
    print("kv8", mismatch(p, quantized()))
    print("kv8 bal", mismatch(quantize.balance_keys(p), quantized()))
    print("kvf8", mismatch(p, quantized("float8_e4m3fn")))
    print("both", mismatch(quantize.quantize_weights(quantize.balance_keys(p)), quantized()))
    o = make_params("float32", OUTLIER)
    print("outlier bf16", mismatch(make_params("bfloat16", OUTLIER), plain("bfloat16"), outlier=OUTLIER))
    print("outlier kv8", mismatch(o, quantized(), outlier=OUTLIER))
    print("outlier kv8 bal", mismatch(quantize.balance_keys(o), quantized(), outlier=OUTLIER))
    print("outlier kvf8", mismatch(o, quantized("float8_e4m3fn"), outlier=OUTLIER))
    print("outlier kvf8 bal", mismatch(quantize.balance_keys(o), quantized("float8_e4m3fn"), outlier=OUTLIER))
    for dt in ("float32","bfloat16"):
        o = make_params(dt, OUTLIER)
        a=token_logprobs(o, plain(dt)); b=token_logprobs(quantize.balance_keys(o), plain(dt))
        print("exact", dt, np.abs(a-b).max())
