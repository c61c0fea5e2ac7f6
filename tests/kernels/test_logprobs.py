"""Every entry of LOGPROBS against the reference, and the reference against NumPy."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxmath.kernels import logprobs

FAST = sorted(set(logprobs.LOGPROBS) - {"reference"})

# (B, T, D, V), temperature
CASES = [((2, 21, 16, 37), 1.0), ((1, 1, 8, 5), 0.6), ((5, 7, 12, 64), 0.6)]

TOLERANCE = {"float32": 2e-6, "bfloat16": 1e-2}  # worst |difference| over worst |value|


@pytest.fixture(autouse=True)
def small_chunks(monkeypatch):
    monkeypatch.setattr(logprobs, "CHUNK_TOKENS", 10)


def inputs(shape, dtype="float32"):
    B, T, D, V = shape
    rng = np.random.default_rng(0)
    hidden_BTD = jnp.asarray(rng.standard_normal((B, T, D)).astype(jnp.dtype(dtype)))
    head_DV = jnp.asarray(rng.standard_normal((D, V)).astype(jnp.dtype(dtype)))
    targets_BT = jnp.asarray(rng.integers(0, V, (B, T), np.int32))
    weight_BT = jnp.asarray(rng.standard_normal((B, T), np.float32))
    return hidden_BTD, head_DV, targets_BT, weight_BT


def value_and_gradients(function, hidden_BTD, head_DV, targets_BT, weight_BT, temperature):
    def loss(hidden_BTD, head_DV):
        logprob_BT = function(hidden_BTD, head_DV, targets_BT, temperature)
        return jnp.sum(logprob_BT * weight_BT), logprob_BT

    function_of_both = jax.jit(jax.value_and_grad(loss, (0, 1), has_aux=True))
    (_, logprob_BT), gradients = function_of_both(hidden_BTD, head_DV)
    return [np.asarray(x, np.float32) for x in (logprob_BT, *gradients)]


@pytest.mark.parametrize(("shape", "temperature"), CASES)
def test_reference_agrees_with_numpy(shape, temperature):
    hidden_BTD, head_DV, targets_BT, _ = inputs(shape)
    logits = np.asarray(hidden_BTD, np.float64) @ np.asarray(head_DV, np.float64) / temperature
    all_logprobs = logits - np.log(np.sum(np.exp(logits), -1, keepdims=True))
    expected = np.take_along_axis(all_logprobs, np.asarray(targets_BT)[..., None], -1)[..., 0]
    ours = jax.jit(logprobs.reference)(hidden_BTD, head_DV, targets_BT, temperature)
    np.testing.assert_allclose(ours, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize(("shape", "temperature"), CASES)
@pytest.mark.parametrize("name", FAST)
def test_agrees_with_the_reference_in_value_and_gradients(name, shape, temperature, dtype):
    hidden_BTD, head_DV, *rest = inputs(shape, dtype)
    exact = value_and_gradients(
        logprobs.reference,
        hidden_BTD.astype(jnp.float32),
        head_DV.astype(jnp.float32),
        *rest,
        temperature,
    )
    ours = value_and_gradients(logprobs.LOGPROBS[name], hidden_BTD, head_DV, *rest, temperature)
    for what, one, other in zip(("logprob", "dhidden", "dhead"), ours, exact, strict=True):
        error = np.max(np.abs(one - other)) / np.max(np.abs(other))
        assert error <= TOLERANCE[dtype], f"{what}: {error:.2e}"


@pytest.mark.parametrize("name", logprobs.LOGPROBS)
def test_an_f32_head_is_rounded_to_the_dtype_of_the_hidden_states(name):
    """Master weights are f32; the product is taken in the compute dtype in every entry."""
    hidden_BTD, head_DV, targets_BT, _ = inputs((2, 21, 16, 37))
    hidden_BTD = hidden_BTD.astype(jnp.bfloat16)
    function = jax.jit(logprobs.LOGPROBS[name])
    from_f32 = function(hidden_BTD, head_DV, targets_BT)
    from_bf16 = function(hidden_BTD, head_DV.astype(jnp.bfloat16), targets_BT)
    assert from_f32.dtype == jnp.float32
    np.testing.assert_array_equal(from_f32, from_bf16)


@pytest.mark.parametrize("name", FAST)
def test_the_head_gradient_adds_up_in_f32_over_chunks(name, monkeypatch):
    hidden_BTD, head_DV, *rest = inputs((1, 256, 8, 3), "bfloat16")
    weight = (rest[0], jnp.ones_like(rest[1]))
    exact = value_and_gradients(
        logprobs.reference,
        hidden_BTD.astype(jnp.float32),
        head_DV.astype(jnp.float32),
        *weight,
        1.0,
    )
    errors = {}
    for chunk in (256, 2):
        monkeypatch.setattr(logprobs, "CHUNK_TOKENS", chunk)
        ours = value_and_gradients(logprobs.LOGPROBS[name], hidden_BTD, head_DV, *weight, 1.0)
        errors[chunk] = np.sqrt(np.mean((ours[2] - exact[2]) ** 2))
    assert errors[2] <= 1.2 * errors[256]


@pytest.mark.parametrize("name", FAST)
def test_no_array_of_all_logits_is_made(name):
    hidden_BTD, head_DV, targets_BT, weight_BT = inputs((2, 25, 4, 97))

    def loss(function):
        return lambda h, w: jnp.sum(function(h, w, targets_BT) * weight_BT)

    def largest(function):
        compiled = jax.jit(jax.grad(loss(function), (0, 1))).lower(hidden_BTD, head_DV).compile()
        return compiled.memory_analysis().temp_size_in_bytes

    all_logits = 2 * 25 * 97 * 4
    assert largest(logprobs.reference) >= all_logits
    assert largest(logprobs.LOGPROBS[name]) < all_logits


@pytest.mark.parametrize("name", logprobs.LOGPROBS)
def test_temperature_may_be_traced(name):
    hidden_BTD, head_DV, targets_BT, _ = inputs((2, 21, 16, 37))
    function = jax.jit(logprobs.LOGPROBS[name])
    traced = function(hidden_BTD, head_DV, targets_BT, jnp.float32(0.7))
    np.testing.assert_allclose(
        traced, logprobs.LOGPROBS[name](hidden_BTD, head_DV, targets_BT, 0.7), rtol=1e-5, atol=1e-6
    )
