"""int8 weights and caches: how wrong they are, how small, and what they do to log-probabilities."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from jaxmath import sharding
from jaxmath.decode import cache_int8, quantize
from jaxmath.decode.cache_int8 import Int8Cache
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
MATRICES = ("wq_DNH", "wk_DKH", "wv_DKH", "wo_NHD", "gate_DF", "up_DF", "down_FD")


@functools.cache
def make_params(dtype="float32", outlier=0.0):
    """A random model whose scores and logits spread as a trained one's do.

    outlier: added to one channel's bias of every key head, as Qwen2.5-7B has it in two layers.
    """
    model = qwen2.Qwen2(MODEL, jax.random.key(0))
    model = jax.tree.map(lambda x: 6 * x if x.ndim > 2 else x, model)  # the matrices of blocks
    model.head_DV = model.head_DV.replace(15 * model.head_DV[...])
    for key, name in zip(jax.random.split(jax.random.key(1)), ("bq_NH", "bk_KH"), strict=True):
        bias = getattr(model.layers, name)
        value = jax.random.normal(key, bias.get_value().shape)
        if name == "bk_KH":
            value = value.at[:, :, 5].add(outlier)
        setattr(model.layers, name, bias.replace(value))
    return qwen2.unstack(model, dtype)


@jax.jit
def decode_step(params, caches, token_B, next_B, position):
    """One token of each row through the caches; the log-probability of the next."""
    position_B, caches = jnp.full_like(token_B, position), list(caches)
    x_B1D = params.embed_VD[token_B][:, None]
    for layer, block in enumerate(params.blocks):

        def attend(q_B1NH, k_B1KH, v_B1KH, layer=layer):
            caches[layer] = caches[layer].write(k_B1KH[:, 0], v_B1KH[:, 0], position_B)
            return caches[layer].attend(q_B1NH[:, 0], position_B + 1)[:, None]

        x_B1D = block(x_B1D, position_B[:, None], attend)
    hidden_B1D = qwen2.rms_norm(x_B1D, params.final_norm_D, MODEL.rms_norm_eps)
    logprob_BV = jax.nn.log_softmax(qwen2.project(hidden_B1D, params.head_DV)[:, 0])
    return caches, jnp.take_along_axis(logprob_BV, next_B[:, None], axis=1)[:, 0]


def token_logprobs(params, cache=XlaCache, batch=4, num_tokens=40):
    """logprob_BT of fixed random tokens."""
    shape = (batch, num_tokens + 1)
    tokens_BT = np.random.default_rng(0).integers(0, MODEL.vocab_size, shape, np.int32)
    empty = cache.allocate(MODEL, batch, num_tokens, params.embed_VD.dtype)
    caches, columns = [empty] * MODEL.num_layers, []
    for t in range(num_tokens):
        caches, logprob_B = decode_step(params, caches, tokens_BT[:, t], tokens_BT[:, t + 1], t)
        columns.append(logprob_B)
    return np.stack(columns, axis=1)


def mismatch(params, cache=XlaCache, outlier=0.0):
    """mean |difference of log-probabilities| to the same model in f32."""
    exact_BT = token_logprobs(make_params("float32", outlier))
    return float(np.mean(np.abs(token_logprobs(params, cache) - exact_BT)))


def num_bytes(tree):
    return sum(x.size * x.dtype.itemsize for x in jax.tree.leaves(tree))


# --- codes ------------------------------------------------------------------------------------


@pytest.mark.parametrize("over", [(0,), (2,), (0, 1)])
def test_codes_are_within_half_a_step(over):
    x = np.random.default_rng(0).standard_normal((16, 5, 33), np.float32) * 7
    codes, step = quantize.to_codes(x, over)
    assert (codes.dtype, step.dtype) == (jnp.int8, jnp.float32)
    assert step.shape == tuple(n for axis, n in enumerate(x.shape) if axis not in over)
    step = np.expand_dims(step, over)
    assert np.all(np.abs(np.asarray(codes, np.float32) * step - x) <= step * 0.5001)
    np.testing.assert_array_equal(np.max(np.abs(np.asarray(codes, int)), over), 127)


def test_zeros_have_codes_of_zero():
    codes, step = quantize.to_codes(jnp.zeros((3, 4)), (1,))
    assert not np.any(codes) and not np.any(step)


@pytest.mark.parametrize("size", [2, 24, 96, 128])
def test_turning_keeps_products_and_spreads_a_channel(size):
    q, k = np.random.default_rng(size).standard_normal((2, 7, size), np.float32)
    k[:, 1] += 1000
    turned = [np.asarray(cache_int8._turned(jnp.asarray(x)), np.float64) for x in (q, k)]
    np.testing.assert_allclose(turned[0] @ turned[1].T, q @ k.T, rtol=1e-4, atol=1e-2)
    spread = size & -size  # the largest power of two in it
    assert np.max(np.abs(turned[1])) < 1000 * spread**-0.5 + 10


# --- weights ----------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize(
    ("spec", "x_shape", "w_shape"),
    [
        ("BTD,DNH->BTNH", (2, 3, 12), (12, 3, 4)),
        ("BTNH,NHD->BTD", (2, 3, 3, 4), (3, 4, 12)),
        ("BTF,FD->BTD", (2, 3, 12), (12, 5)),
    ],
)
def test_a_product_with_codes_is_that_with_the_weight_they_stand_for(spec, x_shape, w_shape, dtype):
    rng = np.random.default_rng(0)
    x = jnp.asarray(rng.standard_normal(x_shape, np.float32)).astype(dtype)
    w = rng.standard_normal(w_shape, np.float32)
    summed = x.ndim - 2  # leading axes of w
    quantized = QuantizedWeight(*quantize.to_codes(w, range(summed)))
    y = jax.jit(linear, static_argnums=0)(spec, x, quantized)
    assert y.dtype == x.dtype
    stands_for = np.asarray(quantized.codes, np.float64) * np.asarray(quantized.step, np.float64)
    exact = np.einsum(spec, np.asarray(x, np.float64), stands_for)
    tolerance = {"float32": 1e-6, "bfloat16": 1e-2}[dtype]
    np.testing.assert_allclose(
        np.asarray(y, np.float64), exact, rtol=tolerance, atol=tolerance * np.max(np.abs(exact))
    )
    # and no further from the real product than half a step per term
    real = np.einsum(spec, np.asarray(x, np.float64), w)
    terms_BT = np.sum(np.abs(np.asarray(x, np.float64)), axis=tuple(range(2, x.ndim)))
    assert np.max(np.abs(exact - real)) <= np.max(terms_BT) * np.max(quantized.step) / 2


def test_matrices_become_a_quarter_and_the_rest_stays():
    params = make_params()
    small = quantize.quantize_weights(params)
    for block, small_block in zip(params.blocks, small.blocks, strict=True):
        for name, param in nnx.to_pure_dict(nnx.state(block)).items():
            value = getattr(small_block, name).get_value()
            if name in MATRICES:
                assert isinstance(value, QuantizedWeight)
                assert value.codes.shape == param.shape and value.codes.dtype == jnp.int8
                assert num_bytes(value) < num_bytes(param) * 0.27
            else:
                np.testing.assert_array_equal(value, param)
    for name in ("embed_VD", "final_norm_D", "head_DV"):
        np.testing.assert_array_equal(getattr(small, name), getattr(params, name))


def test_codes_are_placed_like_the_weights_they_stand_for():
    """By the trailing axes of the parameter, inside one program, on a mesh as on one device."""
    mesh = sharding.make_mesh(sharding.MeshConfig(2, 2, 2))
    params = make_params()
    is_param = lambda x: isinstance(x, nnx.Variable)  # noqa: E731

    def place(param):
        axes = tuple("act_embed" if a == "embed" else a for a in param.get_metadata()["axes"])
        named = lambda x: sharding.named(mesh, axes[len(axes) - x.ndim :], x.shape)  # noqa: E731
        return param.replace(jax.tree.map(named, param.get_value()))

    shapes = jax.eval_shape(quantize.quantize_weights, params)
    shardings = jax.tree.map(place, shapes.blocks, is_leaf=is_param)
    program = jax.jit(lambda p: quantize.quantize_weights(p).blocks, out_shardings=shardings)
    with jax.set_mesh(mesh):
        placed = program(params)
    down = placed[0].down_FD[...]
    assert down.codes.addressable_shards[0].data.shape == (48, 64)
    assert down.step.addressable_shards[0].data.shape == (64,)
    assert placed[1].gate_DF[...].step.addressable_shards[0].data.shape == (48,)
    for ours, alone in zip(
        jax.tree.leaves(placed), jax.tree.leaves(quantize.quantize_weights(params).blocks),
        strict=True,
    ):  # fmt: skip
        np.testing.assert_allclose(ours, alone, rtol=1e-6)


# --- what it does to a model -------------------------------------------------------------------


def test_a_cache_token_takes_half_the_bytes_of_bfloat16():
    length, config = 4096, ModelConfig(8, 1, 8, 8, num_heads=28, num_kv_heads=4, head_dim=128)
    allocate = lambda cache: jax.eval_shape(lambda: cache.allocate(config, 2, length, "bfloat16"))  # noqa: E731
    assert num_bytes(allocate(XlaCache)) == 2 * length * 2 * 4 * 128 * 2
    assert num_bytes(allocate(Int8Cache)) == 2 * length * 2 * 4 * (128 + 4)


@pytest.fixture(params=[0.0, 100.0], ids=["plain", "outlier"])
def outlier(request):
    """Of one key channel, in spreads: none, and what Qwen2.5-7B has in two of its layers."""
    return request.param


def test_the_mismatch_of_int8_is_of_the_size_of_bfloat16s(outlier):
    """At most twice that for weights or cache, three times where a key channel stands out."""
    params = make_params("float32", outlier)
    assert np.std(token_logprobs(params)) > 2  # not a model that ignores its weights
    small = quantize.quantize_weights(params)
    found = {
        "bfloat16, nothing quantised": mismatch(make_params("bfloat16", outlier), outlier=outlier),
        "int8 weights": mismatch(small, outlier=outlier),
        "int8 cache": mismatch(params, Int8Cache, outlier),
        "both": mismatch(small, Int8Cache, outlier),
    }
    for name, value in found.items():
        print(f"outlier x {outlier:.0f}: {name}: {value:.3f}")
    rounding, *quantised = found.values()
    assert all(0.005 < value < 3 * rounding for value in quantised)
    assert found["int8 weights"] < 2 * rounding


def test_keys_are_turned_for_the_sake_of_an_outlier(monkeypatch):
    params = make_params("float32", 100.0)
    turned = mismatch(params, Int8Cache, 100.0)
    monkeypatch.setattr(cache_int8, "_turned", lambda x: x)
    decode_step.clear_cache()
    unturned = mismatch(params, Int8Cache, 100.0)
    decode_step.clear_cache()
    print(f"outlier x 100: int8 cache, keys not turned: {unturned:.3f}")
    assert turned < unturned / 3
