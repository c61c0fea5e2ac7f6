"""`cudnn` and `cudnn_offsets`: cuDNN's flash attention on NVIDIA GPUs, in bfloat16 or float16.

    cudnn           JAX's public `jax.nn.dot_product_attention`; the segments are a boolean mask,
                    which cuDNN reads as a bias [B, 1, T, T], and blocks between segments are scored
    cudnn_offsets   JAX's private packed call, which is told where each segment starts and ends,
                    and computes nothing between them; of GPUs from Hopper on

Both see padding as one more segment, or not at all; what comes out there is dropped.
"""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp

from jaxmath.kernels import attention_shards

DTYPES = ("bfloat16", "float16")
EVEN = 2  # the backward pass with a bias wants rows of even length

# Of a row, in `cudnn_offsets`: statistics take 4 * T * N bytes for each. Rows of 4,096 tokens with
# 500 in a segment hold 8 to 10; a batch in which some row has more goes through `cudnn`.
MAX_SEGMENTS = 32


def cudnn(q_BTNH, k_BTKH, v_BTKH, segment_ids_BT, *, implementation: str = "cudnn") -> jax.Array:
    """See `kernels.attention`.

    Args:
      implementation: of `jax.nn.dot_product_attention`. "xla" computes the same on any back end,
        in any dtype, with all scores in memory.
    Raises:
      ValueError: another dtype; heads that the mesh's "tensor" axis does not divide.
    """
    if implementation == "cudnn":
        check_dtype(q_BTNH.dtype)
    rows = functools.partial(_masked_rows, implementation=implementation)
    return attention_shards.on_shards(rows, q_BTNH, k_BTKH, v_BTKH, segment_ids_BT)


def check_dtype(dtype) -> None:
    """Raises ValueError where cuDNN has no attention in `dtype`."""
    if jnp.dtype(dtype).name not in DTYPES:
        raise ValueError(
            f"cuDNN attention computes in bfloat16 or float16, not in {jnp.dtype(dtype).name}"
        )


def _masked_rows(q_BTNH, k_BTKH, v_BTKH, segment_ids_BT, implementation: str) -> jax.Array:
    T = q_BTNH.shape[1]
    extra = -T % EVEN
    if extra:
        longer = lambda x: jnp.pad(x, ((0, 0), (0, extra)) + ((0, 0),) * (x.ndim - 2))  # noqa: E731
        q_BTNH, k_BTKH, v_BTKH = longer(q_BTNH), longer(k_BTKH), longer(v_BTKH)
        segment_ids_BT = longer(segment_ids_BT)
    # Padding sees padding: a query that sees nothing would be the mean of all. Full in T and S,
    # which cuDNN's bias has to be.
    same_BTS = segment_ids_BT[:, :, None] == segment_ids_BT[:, None]
    out_BTNH = jax.nn.dot_product_attention(
        q_BTNH,
        k_BTKH,
        v_BTKH,
        mask=same_BTS[:, None],
        is_causal=True,
        implementation=implementation,
    )
    return out_BTNH[:, :T]


# --- with the place of each segment -----------------------------------------------------------


def cudnn_offsets(q_BTNH, k_BTKH, v_BTKH, segment_ids_BT, *, packed=None) -> jax.Array:
    """See `kernels.attention`. Segments are runs of one id, and ids grow along a row.

    Where that is not so, or some row of a shard has more than `MAX_SEGMENTS`, this shard's rows go
    through `cudnn` instead: slower, and the same numbers.

    Args:
      packed: (q_BTNH, k_BTKH, v_BTKH, start_BM, length_BM) → out_BTNH; cuDNN's call by default.
    Raises:
      ValueError: a JAX without it (`missing_offsets`); another dtype; heads that the mesh's
        "tensor" axis does not divide.
    """
    implementation = "xla" if packed else "cudnn"
    if packed is None:
        if reason := missing_offsets():
            raise ValueError(reason)
        check_dtype(q_BTNH.dtype)
        packed = _packed_call
    rows = functools.partial(_packed_rows, packed=packed, implementation=implementation)
    return attention_shards.on_shards(rows, q_BTNH, k_BTKH, v_BTKH, segment_ids_BT)


def missing_offsets() -> str | None:
    """Why the packed call cannot be trusted in the JAX that is installed, or None."""
    if jax.__version_info__ < (0, 11, 2):  # jax-ml/jax#39521
        return (
            f"jax is {jax.__version__}, whose packed cuDNN attention multiplies the offsets of "
            "keys by the number of query heads; it needs jax 0.11.2"
        )
    return None


def segment_places(segment_ids_BT, max_segments: int) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Where the segments of a row lie: start_BM, length_BM, i32, -1 behind the last of a row.

    The third result, fits_B, is false where a row has more than `max_segments` = M of them, or its
    ids do not grow: an id could then come back, and its tokens see those of its first run.
    """
    before_BT = jnp.pad(segment_ids_BT[:, :-1], ((0, 0), (1, 0)))
    is_token_BT = segment_ids_BT > 0
    first_BT = is_token_BT & (segment_ids_BT != before_BT)
    number_BT = jnp.cumsum(first_BT, axis=1) - 1  # of the segment that a token is in

    def one(segment_T, is_token_T, first_T, number_T):
        start_M = jnp.nonzero(first_T, size=max_segments, fill_value=-1)[0].astype(jnp.int32)
        place_T = jnp.where(is_token_T, number_T, max_segments)  # dropped: not in the first M
        length_M = jnp.zeros((max_segments,), jnp.int32).at[place_T].add(1, mode="drop")
        is_used_M = start_M >= 0
        id_M = segment_T[start_M]
        grows = (id_M[1:] > id_M[:-1]) | ~is_used_M[1:]
        fits = jnp.all(grows) & (jnp.sum(first_T) <= max_segments)
        return start_M, jnp.where(is_used_M, length_M, -1), fits

    return jax.vmap(one)(segment_ids_BT, is_token_BT, first_BT, number_BT)


def _packed_rows(q_BTNH, k_BTKH, v_BTKH, segment_ids_BT, packed, implementation) -> jax.Array:
    start_BM, length_BM, fits_B = segment_places(segment_ids_BT, MAX_SEGMENTS)
    is_token_BT11 = (segment_ids_BT > 0)[:, :, None, None]

    def by_places(q_BTNH, k_BTKH, v_BTKH):
        # What the kernel leaves between segments is uninitialised, in its gradients too.
        tokens = (jnp.where(is_token_BT11, x, 0) for x in (q_BTNH, k_BTKH, v_BTKH))
        return jnp.where(is_token_BT11, packed(*tokens, start_BM, length_BM), 0)

    def by_mask(q_BTNH, k_BTKH, v_BTKH):
        return _masked_rows(q_BTNH, k_BTKH, v_BTKH, segment_ids_BT, implementation)

    usable = jnp.all(fits_B) & jnp.any(length_BM > 0)  # a batch of no token has no segment
    return jax.lax.cond(usable, by_places, by_mask, q_BTNH, k_BTKH, v_BTKH)


def _packed_call(q_BTNH, k_BTKH, v_BTKH, start_BM, length_BM) -> jax.Array:
    from jax._src.cudnn import fused_attention_stablehlo as fused  # there is no public way

    offset_BM = jnp.pad(start_BM, ((0, 0), (0, 1)), constant_values=-1)  # it wants M + 1
    return fused.dot_product_attention(
        q_BTNH,
        k_BTKH,
        v_BTKH,
        q_seqlen=length_BM,
        kv_seqlen=length_BM,
        q_offsets=offset_BM,
        kv_offsets=offset_BM,
        scale=q_BTNH.shape[-1] ** -0.5,
        mask_type=fused.MaskType.PADDING_CAUSAL,
    )
