"""Every entry of LOGPROBS against the reference, and the reference against NumPy."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxmath import sharding
from jaxmath.kernels import logprobs
from jaxmath.plan import hlo

FAST = sorted(set(logprobs.LOGPROBS) - {"reference"})

# (B, T, D, V), temperature
CASES = [((2, 21, 16, 37), 1.0), ((1, 1, 8, 5), 0.6), ((5, 7, 12, 64), 0.6)]

TOLERANCE = {"float32": 4e-6, "bfloat16": 1e-2}  # worst |difference| over worst |value|


@pytest.fixture(autouse=True)
def small_chunks(monkeypatch):
    monkeypatch.setattr(logprobs, "CHUNK_TOKENS", 10)
    monkeypatch.setattr(logprobs, "LEAST_TOKENS", 1)


def inputs(shape, dtype="float32"):
    B, T, D, V = shape
    rng = np.random.default_rng(0)
    hidden_BTD = jnp.asarray(rng.standard_normal((B, T, D)).astype(jnp.dtype(dtype)))
    head_DV = jnp.asarray(rng.standard_normal((D, V)).astype(jnp.dtype(dtype)))
    targets_BT = jnp.asarray(rng.integers(0, V, (B, T), np.int32))
    weight_BT2 = jnp.asarray(rng.standard_normal((B, T, 2), np.float32))
    return hidden_BTD, head_DV, targets_BT, weight_BT2


def needed(shape):
    """Rows with few, many, no and all needed positions."""
    B, T = shape[:2]
    share_B1 = np.resize([0.2, 0.8, 0.0, 1.0, 0.5], B)[:, None]
    return jnp.asarray(np.random.default_rng(1).random((B, T)) < share_B1)


def value_and_gradients(function, hidden_BTD, head_DV, targets_BT, weight_BT2, *rest, **options):
    """Of Σ weights · (log-probability, entropy): [logprob, entropy, dhidden, dhead], f32."""

    def loss(hidden_BTD, head_DV):
        found = function(hidden_BTD, head_DV, targets_BT, *rest, entropy=True, **options)
        both_BT2 = jnp.stack(found, axis=-1)
        return jnp.sum(both_BT2 * weight_BT2), found

    function_of_both = jax.jit(jax.value_and_grad(loss, (0, 1), has_aux=True))
    (_, found), gradients = function_of_both(hidden_BTD, head_DV)
    return [np.asarray(x, np.float32) for x in (*found, *gradients)]


def in_f32(hidden_BTD, head_DV, *rest, **options):
    return value_and_gradients(
        logprobs.reference,
        hidden_BTD.astype(jnp.float32),
        head_DV.astype(jnp.float32),
        *rest,
        **options,
    )


def assert_close(ours, exact, tolerance):
    names = ("logprob", "entropy", "dhidden", "dhead")
    for what, one, other in zip(names, ours, exact, strict=True):
        error = np.max(np.abs(one - other)) / max(np.max(np.abs(other)), 1e-30)
        assert error <= tolerance, f"{what}: {error:.2e}"


@pytest.mark.parametrize(("shape", "temperature"), CASES)
def test_reference_agrees_with_numpy(shape, temperature):
    hidden_BTD, head_DV, targets_BT, _ = inputs(shape)
    logits = np.asarray(hidden_BTD, np.float64) @ np.asarray(head_DV, np.float64) / temperature
    logprob_BTV = logits - np.log(np.sum(np.exp(logits), -1, keepdims=True))
    expected_BT = np.take_along_axis(logprob_BTV, np.asarray(targets_BT)[..., None], -1)[..., 0]
    entropy_BT = -np.sum(np.exp(logprob_BTV) * logprob_BTV, -1)
    score = jax.jit(logprobs.reference, static_argnames="entropy")
    ours = score(hidden_BTD, head_DV, targets_BT, temperature, entropy=True)
    np.testing.assert_allclose(ours.logprob_BT, expected_BT, rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(ours.entropy_BT, entropy_BT, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize(("shape", "temperature"), CASES)
@pytest.mark.parametrize("name", FAST)
def test_agrees_with_the_reference_in_value_and_gradients(name, shape, temperature, dtype):
    given = (*inputs(shape, dtype), temperature)
    ours = value_and_gradients(logprobs.LOGPROBS[name], *given)
    assert_close(ours, in_f32(*given), TOLERANCE[dtype])


@pytest.mark.parametrize("shape", [(5, 21, 16, 37), (3, 1, 8, 5)])
@pytest.mark.parametrize("name", FAST)
def test_positions_that_are_not_needed_give_nothing(name, shape):
    needed_BT = needed(shape)
    given = inputs(shape)
    ours = value_and_gradients(logprobs.LOGPROBS[name], *given, needed_BT=needed_BT)
    assert_close(ours, in_f32(*given, needed_BT=needed_BT), TOLERANCE["float32"])
    for x in ours[:3]:
        assert not x[~np.asarray(needed_BT)].any()
    none = value_and_gradients(
        logprobs.LOGPROBS[name], *given, needed_BT=jnp.zeros(shape[:2], bool)
    )
    assert not any(x.any() for x in none)


@pytest.mark.parametrize("name", FAST)
def test_the_head_meets_only_chunks_with_a_needed_position(name):
    """Logits of the others would be infinite, and their gradient not a number."""
    hidden_BTD, head_DV, *rest = inputs((2, 30, 16, 37))
    needed_BT = jnp.arange(30)[None] >= jnp.array([[27], [26]])  # 4 of 30: one chunk of 5 a row
    hidden_BTD = jnp.where(needed_BT[:, :, None], hidden_BTD, jnp.nan)
    hidden_BTD = hidden_BTD.at[0, 0].set(1.0).at[1, 0].set(1.0).at[0, 1].set(1.0)  # fill it up
    ours = value_and_gradients(
        logprobs.LOGPROBS[name], hidden_BTD, head_DV, *rest, needed_BT=needed_BT
    )
    clean = in_f32(jnp.nan_to_num(hidden_BTD), head_DV, *rest, needed_BT=needed_BT)
    assert_close(ours, clean, TOLERANCE["float32"])


@pytest.mark.parametrize("name", logprobs.LOGPROBS)
def test_entropy_is_computed_only_when_asked_for(name):
    function = logprobs.LOGPROBS[name]
    hidden_BTD, head_DV, targets_BT, _ = inputs((2, 21, 16, 37))
    plain = function(hidden_BTD, head_DV, targets_BT)
    both = function(hidden_BTD, head_DV, targets_BT, entropy=True)
    assert plain.entropy_BT is None
    np.testing.assert_array_equal(plain.logprob_BT, both.logprob_BT)


@pytest.mark.parametrize("name", logprobs.LOGPROBS)
def test_an_f32_head_is_rounded_to_the_dtype_of_the_hidden_states(name):
    """Master weights are f32; the product is taken in the compute dtype in every entry."""
    hidden_BTD, head_DV, targets_BT, _ = inputs((2, 21, 16, 37))
    hidden_BTD = hidden_BTD.astype(jnp.bfloat16)
    function = jax.jit(logprobs.LOGPROBS[name])
    from_f32 = function(hidden_BTD, head_DV, targets_BT).logprob_BT
    from_bf16 = function(hidden_BTD, head_DV.astype(jnp.bfloat16), targets_BT).logprob_BT
    assert from_f32.dtype == jnp.float32
    np.testing.assert_array_equal(from_f32, from_bf16)


@pytest.mark.parametrize("name", FAST)
def test_the_gradient_of_an_f32_head_is_not_rounded(name, monkeypatch):
    """Products of bf16 numbers, summed and kept in f32, in one chunk or in 128."""
    hidden_BTD, head_DV, targets_BT, _ = inputs((1, 256, 8, 3), "bfloat16")
    weight_BT2 = jnp.ones((1, 256, 2)).at[..., 1].set(0)
    given = (hidden_BTD, head_DV.astype(jnp.float32), targets_BT, weight_BT2)
    exact, errors = in_f32(*given), {}
    for chunk in (256, 2):
        monkeypatch.setattr(logprobs, "CHUNK_TOKENS", chunk)
        ours = value_and_gradients(logprobs.LOGPROBS[name], *given)
        errors[chunk] = np.sqrt(np.mean((ours[3] - exact[3]) ** 2))
    assert errors[2] <= 1.05 * errors[256]
    assert errors[256] <= 2**-9 * np.sqrt(np.mean(exact[3] ** 2))  # dz is bf16, the sum is not


@pytest.mark.parametrize("name", FAST)
def test_no_array_of_all_logits_is_made(name):
    hidden_BTD, head_DV, targets_BT, weight_BT2 = inputs((2, 25, 4, 97))

    def loss(function):
        return lambda h, w: jnp.sum(function(h, w, targets_BT).logprob_BT * weight_BT2[..., 0])

    def largest(function):
        compiled = jax.jit(jax.grad(loss(function), (0, 1))).lower(hidden_BTD, head_DV).compile()
        return compiled.memory_analysis().temp_size_in_bytes

    all_logits = 2 * 25 * 97 * 4
    assert largest(logprobs.reference) >= all_logits
    assert largest(logprobs.LOGPROBS[name]) < all_logits


@pytest.mark.parametrize("name", logprobs.LOGPROBS)
def test_temperature_may_be_traced_and_has_no_gradient(name):
    hidden_BTD, head_DV, targets_BT, _ = inputs((2, 21, 16, 37))
    function = logprobs.LOGPROBS[name]
    traced = jax.jit(function)(hidden_BTD, head_DV, targets_BT, jnp.float32(0.7)).logprob_BT
    exact = function(hidden_BTD, head_DV, targets_BT, 0.7).logprob_BT
    np.testing.assert_allclose(traced, exact, rtol=1e-5, atol=1e-6)
    total = lambda t: jnp.sum(function(hidden_BTD, head_DV, targets_BT, t).logprob_BT)  # noqa: E731
    assert jax.grad(total)(0.7) == 0


@pytest.mark.parametrize("name", FAST)
@pytest.mark.parametrize("head_axes", [logprobs.HEAD_AXES, ("embed", "table_vocab")])
def test_a_mesh_gives_the_same_and_exchanges_no_logits(name, head_axes):
    shape = (8, 21, 16, 64)
    given = (*inputs(shape), 0.6)
    options = {"needed_BT": needed(shape), "head_axes": head_axes}
    plain = value_and_gradients(logprobs.LOGPROBS[name], *given, **options)
    mesh = sharding.make_mesh(sharding.MeshConfig(data=2, fsdp=2, tensor=2))

    def total(hidden_BTD, head_DV, targets_BT, weight_BT2, temperature, needed_BT):
        found = logprobs.LOGPROBS[name](
            hidden_BTD, head_DV, targets_BT, temperature,
            needed_BT=needed_BT, entropy=True, head_axes=head_axes,
        )  # fmt: skip
        return jnp.sum(jnp.stack(found, axis=-1) * weight_BT2), found

    at = [
        sharding.named(mesh, axes)
        for axes in (("batch", "seq", "act_embed"), head_axes, ("batch", "seq"))
    ]
    places = (*at, sharding.named(mesh, ("batch", "seq", None)), sharding.replicated(mesh), at[2])
    step = jax.jit(jax.value_and_grad(total, (0, 1), has_aux=True), in_shardings=places)
    with jax.set_mesh(mesh):
        arguments = jax.device_put((*given, options["needed_BT"]), places)
        (_, found), gradients = step(*arguments)
        text = step.lower(*arguments).compile().as_text()
    assert_close([np.asarray(x) for x in (*found, *gradients)], plain, TOLERANCE["float32"])
    assert gradients[1].sharding.is_equivalent_to(at[1], 2)
    # The head is gathered once; of each chunk only numbers per token cross the mesh.
    program = hlo.parse(text)
    exchanged = [
        (computation is program.entry, array.size)
        for computation, instruction in program.reached(program.entry)
        if instruction.opcode in ("all-gather", "all-reduce")
        for array in instruction.shape
    ]
    assert max(size for outside, size in exchanged if not outside) <= 2 * 5 * 16  # of dhidden
    assert max(size for outside, size in exchanged if outside) <= 16 * 64
