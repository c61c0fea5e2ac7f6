"""Every entry of ATTENTION against the reference, and the reference against NumPy loops.

Kernels for TPUs and GPUs are computed as a CPU can: Pallas interprets `splash`, XLA stands in for
cuDNN, and for its packed call a function that leaves NaN where cuDNN leaves what was there.
"""

import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxmath import sharding
from jaxmath.kernels import attention, attention_cudnn, attention_splash


def or_nan(x_BTNH, is_token_BT):
    return jnp.where(is_token_BT[:, :, None, None], x_BTNH, jnp.nan)


@jax.custom_vjp
def spoil_gradient(x_BTNH, is_token_BT):
    """The same; of its gradient, what belongs to padding is NaN."""
    return x_BTNH


spoil_gradient.defvjp(
    lambda x_BTNH, is_token_BT: (x_BTNH, is_token_BT),
    lambda is_token_BT, g_BTNH: (or_nan(g_BTNH, is_token_BT), None),
)


def packed(q_BTNH, k_BTKH, v_BTKH, start_BM, length_BM):
    """What cuDNN does when it is told where segments lie."""
    index_1T1 = jnp.arange(q_BTNH.shape[1])[None, :, None]
    start_B1M, length_B1M = start_BM[:, None], length_BM[:, None]
    inside_BTM = (index_1T1 >= start_B1M) & (index_1T1 < start_B1M + length_B1M)
    number_11M = jnp.arange(1, start_BM.shape[1] + 1)[None, None]
    segment_ids_BT = jnp.sum(inside_BTM * number_11M, axis=2)
    is_token_BT = segment_ids_BT > 0
    qkv = (spoil_gradient(x, is_token_BT) for x in (q_BTNH, k_BTKH, v_BTKH))
    return or_nan(attention.reference(*qkv, segment_ids_BT), is_token_BT)


ENTRIES = {
    "reference": attention.reference,
    "chunked": attention.chunked,
    "splash": functools.partial(attention_splash.splash, interpret=True),
    "cudnn": functools.partial(attention_cudnn.cudnn, implementation="xla"),
    "cudnn_offsets": functools.partial(attention_cudnn.cudnn_offsets, packed=packed),
}
FAST = sorted(set(ENTRIES) - {"reference"})

# (B, T, N, K, H): odd lengths, 14 heads over 2 as in Qwen2.5-0.5B, one head each, one for all, 28
# over 4 as in 7B; for the kernel that asks, heads of 64 and of 128, and several blocks
SHAPES = [(2, 21, 14, 2, 8), (1, 1, 4, 4, 4), (3, 17, 6, 1, 2), (2, 37, 28, 4, 4)]
CASES = [
    *itertools.product(FAST, SHAPES, ["float32"]),
    *itertools.product(FAST, SHAPES[:1], ["bfloat16"]),
    ("splash", (2, 130, 4, 2, 64), "bfloat16"),
    ("splash", (3, 300, 2, 1, 128), "float32"),
]

# worst |difference| over worst |value|: rounding of the dtype times a small constant
TOLERANCE = {"float32": 2e-6, "bfloat16": 1e-2}
DTYPES = ["float32", pytest.param("bfloat16", marks=pytest.mark.nightly)]


@pytest.fixture(autouse=True)
def small_chunks(monkeypatch):
    """Several chunks even of short rows, the last one ragged; several blocks of long ones."""
    monkeypatch.setattr(attention, "CHUNK_QUERIES", 8)
    monkeypatch.setattr(attention_splash, "BLOCK", 128)
    monkeypatch.setattr(attention_splash, "LONG_BLOCK", 256)


def test_every_entry_is_judged_here():
    assert set(ENTRIES) == set(attention.ATTENTION)


def inputs(shape, dtype="float32", seed=0):
    B, T, N, K, H = shape
    rng = np.random.default_rng(seed)
    normal = lambda *shape: rng.standard_normal(shape, np.float32)  # noqa: E731
    qkv = (normal(B, T, N, H), normal(B, T, K, H), normal(B, T, K, H))
    weight_BTNH = jnp.asarray(normal(B, T, N, H))
    return tuple(jnp.asarray(x.astype(jnp.dtype(dtype))) for x in qkv), segments(B, T), weight_BTNH


def segments(B, T):
    """Row 0 is full, row 1 packs three before padding, one of one token; a third is all padding."""
    rows = np.zeros((B, T), np.int32)
    rows[0] = 1
    if B > 1:
        rows[1, : T // 3], rows[1, T // 3], rows[1, T // 3 + 1 : T - 4] = 1, 2, 3
    return jnp.asarray(rows)


@functools.partial(jax.jit, static_argnums=0)
def _value_and_gradients(attend, qkv, segment_ids_BT, weight_BTNH):
    def loss(qkv):
        out_BTNH = attend(*qkv, segment_ids_BT)
        return jnp.sum(out_BTNH.astype(jnp.float32) * weight_BTNH), out_BTNH

    gradients, out_BTNH = jax.grad(loss, has_aux=True)(qkv)
    return out_BTNH, *gradients


def value_and_gradients(attend, *arguments):
    """out_BTNH and the gradients of q, k and v, in NumPy."""
    # A function of its own: what it does depends on constants that fixtures change.
    attend = functools.partial(attend)
    return [np.asarray(x, np.float32) for x in _value_and_gradients(attend, *arguments)]


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


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", ENTRIES)
def test_a_segment_knows_nothing_of_another(name, dtype):
    """All of a segment becomes something else; values and gradients of the rest stay, to the bit.

    Rows of 150, so that the segments of `splash` share blocks, and do not.
    """
    qkv, _, weight_BTNH = inputs((2, 150, 4, 2, 8), dtype)
    segment_ids_BT = np.zeros((2, 150), np.int32)
    for segment, (start, end) in enumerate([(0, 60), (60, 61), (61, 135), (135, 141)], start=1):
        segment_ids_BT[:, start:end] = segment
    attend = functools.partial(ENTRIES[name])
    arrays = lambda qkv: [  # noqa: E731
        np.asarray(x, np.float32)
        for x in _value_and_gradients(attend, qkv, segment_ids_BT, weight_BTNH)
    ]
    before = arrays(qkv)
    for segment in range(5):
        own_BT = np.array(segment_ids_BT == segment)
        own_BT[0] = False
        after = arrays(tuple(jnp.where(own_BT[:, :, None, None], 100 - 3 * x, x) for x in qkv))
        for what, one, other in zip(("out", "dq", "dk", "dv"), before, after, strict=True):
            changed_BT = (one != other).any(axis=(2, 3))
            assert not changed_BT[~own_BT].any(), f"segment {segment} leaked into {what}"
            # One token alone has weight 1, whatever its query and key.
            if segment in (1, 3, 4) or (segment == 2 and what == "out"):
                assert changed_BT[own_BT].any()


@pytest.mark.parametrize("shape", SHAPES)
def test_reference_agrees_with_numpy_loops(shape):
    qkv, segment_ids_BT, _ = inputs(shape)
    ours = jax.jit(attention.reference)(*qkv, segment_ids_BT)
    np.testing.assert_allclose(ours, by_loops(*qkv, segment_ids_BT), atol=1e-5)


@functools.cache
def exact_of(shape, dtype):
    qkv, *rest = inputs(shape, dtype)
    return value_and_gradients(
        attention.reference, tuple(x.astype(jnp.float32) for x in qkv), *rest
    )


@pytest.mark.parametrize(("name", "shape", "dtype"), CASES)
def test_agrees_with_the_reference_in_value_and_gradients(name, shape, dtype):
    qkv, *rest = inputs(shape, dtype)
    exact = exact_of(shape, dtype)
    ours = value_and_gradients(ENTRIES[name], qkv, *rest)
    for what, one, other in zip(("out", "dq", "dk", "dv"), ours, exact, strict=True):
        error = np.max(np.abs(one - other)) / np.max(np.abs(other), initial=1.0)
        assert error <= TOLERANCE[dtype], f"{what}: {error:.2e}"


@pytest.mark.parametrize("name", ["chunked"])
def test_key_gradients_do_not_lose_bits_with_more_chunks(name, monkeypatch):
    """Sums over chunks are f32: 64 chunks of bf16 inputs are as exact as one."""
    qkv, segment_ids_BT, weight_BTNH = inputs((1, 128, 2, 1, 8), "bfloat16")
    exact = value_and_gradients(
        attention.reference, tuple(x.astype(jnp.float32) for x in qkv), segment_ids_BT, weight_BTNH
    )
    errors = {}
    for chunk in (128, 2):
        monkeypatch.setattr(attention, "CHUNK_QUERIES", chunk)
        ours = value_and_gradients(ENTRIES[name], qkv, segment_ids_BT, weight_BTNH)
        errors[chunk] = np.sqrt(np.mean((ours[3] - exact[3]) ** 2))  # dv: sums of like terms
    assert errors[2] <= 1.2 * errors[128]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", ENTRIES)
def test_padding_gives_zeros_and_takes_no_gradient(name, dtype):
    qkv, segment_ids_BT, weight_BTNH = inputs((3, 21, 14, 2, 8), dtype)
    out, *gradients = value_and_gradients(ENTRIES[name], qkv, segment_ids_BT, weight_BTNH)
    padding_BT = np.asarray(segment_ids_BT) == 0
    assert padding_BT[2].all() and padding_BT[1].any()
    for array in (out, *gradients):
        assert np.isfinite(array).all()
        assert not array[padding_BT].any()


@pytest.mark.parametrize("name", ENTRIES)
def test_keeps_the_dtype_and_shape_of_the_queries(name):
    for dtype in TOLERANCE:
        qkv, segment_ids_BT, _ = inputs((2, 21, 14, 2, 8), dtype)
        out_BTNH = jax.eval_shape(ENTRIES[name], *qkv, segment_ids_BT)
        assert out_BTNH.shape == qkv[0].shape
        assert out_BTNH.dtype == qkv[0].dtype


@pytest.mark.parametrize("name", ENTRIES)
def test_nothing_leaks_from_other_segments_the_future_or_padding(name):
    """Scrambling one token changes only later-or-equal outputs of its own segment, to the bit."""
    qkv, segment_ids_BT, _ = inputs((2, 21, 4, 2, 8))
    attend = jax.jit(ENTRIES[name])
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


@pytest.mark.parametrize("name", ["chunked"])
def test_rows_longer_than_the_default_chunk_agree(name, monkeypatch):
    monkeypatch.undo()
    length = attention.CHUNK_QUERIES + 13
    qkv, segment_ids_BT, _ = inputs((1, length, 2, 1, 4))
    ours = jax.jit(ENTRIES[name])(*qkv, segment_ids_BT)
    expected = jax.jit(attention.reference)(*qkv, segment_ids_BT)
    np.testing.assert_allclose(ours, expected, atol=1e-5)


def test_very_large_scores_stay_finite():
    (q_BTNH, k_BTKH, v_BTKH), segment_ids_BT, weight_BTNH = inputs((2, 17, 4, 2, 8))
    for name in ENTRIES:
        qkv = (q_BTNH * 1e4, k_BTKH * 1e4, v_BTKH)
        for array in value_and_gradients(ENTRIES[name], qkv, segment_ids_BT, weight_BTNH):
            assert np.isfinite(array).all()


# --- on meshes --------------------------------------------------------------------------------


@pytest.mark.parametrize("sizes", [(2, 2, 2), (1, 2, 4)])
@pytest.mark.parametrize("name", ["splash", "cudnn", "cudnn_offsets"])
def test_kernels_give_the_same_on_every_mesh(name, sizes):
    """With two key/value heads over four shards, too."""
    qkv, segment_ids_BT, weight_BTNH = inputs((4, 21, 8, 2, 8))
    expected = value_and_gradients(ENTRIES[name], qkv, segment_ids_BT, weight_BTNH)
    mesh = sharding.make_mesh(sharding.MeshConfig(*sizes))
    place = lambda x: jax.device_put(x, sharding.named(mesh, ("batch", "seq")))  # noqa: E731
    with jax.set_mesh(mesh):
        ours = value_and_gradients(
            ENTRIES[name], tuple(map(place, qkv)), place(segment_ids_BT), place(weight_BTNH)
        )
    for one, other in zip(ours, expected, strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-5, atol=1e-6)


def test_heads_that_a_mesh_does_not_divide_are_refused_by_name():
    qkv, segment_ids_BT, _ = inputs((1, 21, 14, 2, 8))
    mesh = sharding.make_mesh(sharding.MeshConfig(1, 1, 4), jax.devices()[:4])
    with (
        jax.set_mesh(mesh),
        pytest.raises(ValueError, match="14 query and 2 key/value heads cannot .* of size 4"),
    ):
        jax.eval_shape(ENTRIES["splash"], *qkv, segment_ids_BT)


# --- what the kernels are told ----------------------------------------------------------------


@pytest.mark.parametrize(
    ("num_tokens", "expected"),
    [(1, 128), (128, 128), (130, 256), (512, 512), (513, 1024), (4096, 4096), (5000, 5120)],
)
def test_rows_are_padded_to_whole_blocks(num_tokens, expected, monkeypatch):
    monkeypatch.undo()
    tiles = attention_splash.tiling(num_tokens)
    assert tiles.length == expected
    assert tiles.length % tiles.block == tiles.block % tiles.compute == tiles.compute % 128 == 0
    assert tiles.block == min(expected, 1024)


def test_places_of_segments():
    rows = [[1, 1, 2, 0, 0], [0, 4, 4, 0, 7], [0, 0, 0, 0, 0], [1, 2, 1, 0, 0], [1, 2, 3, 4, 4]]
    start_BM, length_BM, fits_B = attention_cudnn.segment_places(jnp.asarray(rows), 3)
    assert start_BM.tolist()[:3] == [[0, 2, -1], [1, 4, -1], [-1, -1, -1]]
    assert length_BM.tolist()[:3] == [[2, 1, -1], [2, 1, -1], [-1, -1, -1]]
    assert fits_B.tolist() == [True, True, True, False, False]  # 1 comes back; four segments


def test_rows_of_more_segments_than_the_packed_call_takes_go_through_the_mask(monkeypatch):
    monkeypatch.setattr(attention_cudnn, "MAX_SEGMENTS", 2)
    qkv, segment_ids_BT, weight_BTNH = inputs((3, 21, 4, 2, 8))
    ours = value_and_gradients(ENTRIES["cudnn_offsets"], qkv, segment_ids_BT, weight_BTNH)
    exact = value_and_gradients(attention.reference, qkv, segment_ids_BT, weight_BTNH)
    for one, other in zip(ours, exact, strict=True):
        np.testing.assert_allclose(one, other, atol=1e-5)


@pytest.mark.parametrize("name", ["cudnn", "cudnn_offsets"])
def test_cudnn_refuses_float32_by_name(name, monkeypatch):
    monkeypatch.setattr(attention_cudnn, "missing_offsets", lambda: None)
    qkv, segment_ids_BT, _ = inputs((1, 21, 4, 2, 8))
    with pytest.raises(ValueError, match="bfloat16 or float16, not in float32"):
        attention.ATTENTION[name](*qkv, segment_ids_BT)
