"""Every entry of ATTENTION against the reference, and the reference against NumPy loops."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxmath.kernels import attention

FAST = sorted(set(attention.ATTENTION) - {"reference"})

# (B, T, N, K, H): odd lengths, 14 heads over 2 as in Qwen2.5-0.5B, one head each, one for all
SHAPES = [(2, 21, 14, 2, 8), (1, 1, 4, 4, 4), (3, 17, 6, 1, 2)]

# worst |difference| over worst |value|: rounding of the dtype times a small constant
TOLERANCE = {"float32": 2e-6, "bfloat16": 1e-2}


@pytest.fixture(autouse=True)
def small_chunks(monkeypatch):
    """Several chunks even of short rows, the last one ragged."""
    monkeypatch.setattr(attention, "CHUNK_QUERIES", 8)


def inputs(shape, dtype="float32", seed=0):
    B, T, N, K, H = shape
    rng = np.random.default_rng(seed)
    normal = lambda *shape: rng.standard_normal(shape, np.float32)  # noqa: E731
    qkv = (normal(B, T, N, H), normal(B, T, K, H), normal(B, T, K, H))
    weight_BTNH = jnp.asarray(normal(B, T, N, H))
    return tuple(jnp.asarray(x.astype(jnp.dtype(dtype))) for x in qkv), segments(B, T), weight_BTNH


def segments(B, T):
    """Row 0 is full, row 1 packs two segments before padding, a third is all padding."""
    rows = np.zeros((B, T), np.int32)
    rows[0] = 1
    if B > 1:
        rows[1, : T // 3], rows[1, T // 3 : T - 4] = 1, 2
    return jnp.asarray(rows)


def value_and_gradients(attend, qkv, segment_ids_BT, weight_BTNH):
    def loss(qkv):
        out_BTNH = attend(*qkv, segment_ids_BT)
        return jnp.sum(out_BTNH.astype(jnp.float32) * weight_BTNH), out_BTNH

    (_, out_BTNH), gradients = jax.jit(jax.value_and_grad(loss, has_aux=True))(qkv)
    return [np.asarray(x, np.float32) for x in (out_BTNH, *gradients)]


def by_loops(q_BTNH, k_BTKH, v_BTKH, segment_ids_BT):
    q, k, v = (np.asarray(x, np.float64) for x in (q_BTNH, k_BTKH, v_BTKH))
    segment = np.asarray(segment_ids_BT)
    B, T, N, H = q.shape
    out = np.zeros_like(q)
    for b, t, n in itertools.product(range(B), range(T), range(N)):
        head = n // (N // k.shape[2])
        seen = [s for s in range(t + 1) if segment[b, s] == segment[b, t] != 0]
        if seen:
            score = k[b, seen, head] @ q[b, t, n] / np.sqrt(H)
            weight = np.exp(score - score.max())
            out[b, t, n] = weight / weight.sum() @ v[b, seen, head]
    return out


@pytest.mark.parametrize("shape", SHAPES)
def test_reference_agrees_with_numpy_loops(shape):
    qkv, segment_ids_BT, _ = inputs(shape)
    ours = jax.jit(attention.reference)(*qkv, segment_ids_BT)
    np.testing.assert_allclose(ours, by_loops(*qkv, segment_ids_BT), atol=1e-5)


@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("name", FAST)
def test_agrees_with_the_reference_in_value_and_gradients(name, shape, dtype):
    qkv, *rest = inputs(shape, dtype)
    exact = value_and_gradients(
        attention.reference, tuple(x.astype(jnp.float32) for x in qkv), *rest
    )
    ours = value_and_gradients(attention.ATTENTION[name], qkv, *rest)
    for what, one, other in zip(("out", "dq", "dk", "dv"), ours, exact, strict=True):
        error = np.max(np.abs(one - other)) / np.max(np.abs(other), initial=1.0)
        assert error <= TOLERANCE[dtype], f"{what}: {error:.2e}"


@pytest.mark.parametrize("name", FAST)
def test_key_gradients_do_not_lose_bits_with_more_chunks(name, monkeypatch):
    """Sums over chunks are f32: 64 chunks of bf16 inputs are as exact as one."""
    qkv, segment_ids_BT, weight_BTNH = inputs((1, 128, 2, 1, 8), "bfloat16")
    exact = value_and_gradients(
        attention.reference, tuple(x.astype(jnp.float32) for x in qkv), segment_ids_BT, weight_BTNH
    )
    errors = {}
    for chunk in (128, 2):
        monkeypatch.setattr(attention, "CHUNK_QUERIES", chunk)
        ours = value_and_gradients(attention.ATTENTION[name], qkv, segment_ids_BT, weight_BTNH)
        errors[chunk] = np.sqrt(np.mean((ours[3] - exact[3]) ** 2))  # dv: sums of like terms
    assert errors[2] <= 1.2 * errors[128]


@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("name", attention.ATTENTION)
def test_padding_gives_zeros_and_takes_no_gradient(name, dtype):
    qkv, segment_ids_BT, weight_BTNH = inputs((3, 21, 14, 2, 8), dtype)
    out, *gradients = value_and_gradients(
        attention.ATTENTION[name], qkv, segment_ids_BT, weight_BTNH
    )
    padding_BT = np.asarray(segment_ids_BT) == 0
    assert padding_BT[2].all() and padding_BT[1].any()
    for array in (out, *gradients):
        assert np.isfinite(array).all()
        assert not array[padding_BT].any()


@pytest.mark.parametrize("name", attention.ATTENTION)
def test_keeps_the_dtype_and_shape_of_the_queries(name):
    for dtype in TOLERANCE:
        qkv, segment_ids_BT, _ = inputs((2, 21, 14, 2, 8), dtype)
        out_BTNH = jax.eval_shape(attention.ATTENTION[name], *qkv, segment_ids_BT)
        assert out_BTNH.shape == qkv[0].shape
        assert out_BTNH.dtype == qkv[0].dtype


@pytest.mark.parametrize("name", attention.ATTENTION)
def test_nothing_leaks_from_other_segments_the_future_or_padding(name):
    """Scrambling one token changes only later-or-equal outputs of its own segment, to the bit."""
    qkv, segment_ids_BT, _ = inputs((2, 21, 4, 2, 8))
    attend = jax.jit(attention.ATTENTION[name])
    before = np.asarray(attend(*qkv, segment_ids_BT))
    segment = np.asarray(segment_ids_BT)
    index = np.arange(segment.shape[1])
    for t in (0, 3, 6, 7, 12, 16, 17, 20):
        scrambled = (x.at[1, t].set(100.0 + t) for x in qkv)
        after = np.asarray(attend(*scrambled, segment_ids_BT))
        allowed = (segment[1] == segment[1, t]) & (segment[1] > 0) & (index >= t)
        changed = (before != after).any(axis=(2, 3))
        assert not changed[0].any()
        assert not changed[1, ~allowed].any(), f"token {t} leaked"
        assert changed[1].any() == (segment[1, t] > 0)


@pytest.mark.parametrize("name", FAST)
def test_rows_longer_than_the_default_chunk_agree(name, monkeypatch):
    monkeypatch.undo()
    length = attention.CHUNK_QUERIES + 13
    qkv, segment_ids_BT, _ = inputs((1, length, 2, 1, 4))
    ours = jax.jit(attention.ATTENTION[name])(*qkv, segment_ids_BT)
    expected = jax.jit(attention.reference)(*qkv, segment_ids_BT)
    np.testing.assert_allclose(ours, expected, atol=1e-5)


def test_very_large_scores_stay_finite():
    (q_BTNH, k_BTKH, v_BTKH), segment_ids_BT, weight_BTNH = inputs((2, 17, 4, 2, 8))
    for name in attention.ATTENTION:
        qkv = (q_BTNH * 1e4, k_BTKH * 1e4, v_BTKH)
        for array in value_and_gradients(
            attention.ATTENTION[name], qkv, segment_ids_BT, weight_BTNH
        ):
            assert np.isfinite(array).all()
