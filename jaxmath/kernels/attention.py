"""Grouped-query attention over packed rows: `ATTENTION = {"reference": …, "chunked": …}`.

Every entry has one signature and one meaning: query t sees key s when both carry the same non-zero
segment id and s <= t. A padding query (segment 0) gives zeros, and no gradient.

    out_BTNH = attend(q_BTNH, k_BTKH, v_BTKH, segment_ids_BT)

q, k and v share a floating dtype, which the result has too; scores and softmax are float32. The
scale is H ** -0.5. N is a multiple of K: query heads n*G .. n*G+G-1 share key/value head n.

    reference       all scores at once, anywhere
    chunked         some queries at a time, anywhere
    splash          on TPUs                             (kernels.attention_splash)
    cudnn           on NVIDIA GPUs, in 16 bits          (kernels.attention_cudnn)
    cudnn_offsets   likewise, which is told where segments lie

A config may also say `auto`: a run takes the best for its devices (kernels.attention_choice).
"""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp

from jaxmath.kernels import attention_cudnn, attention_splash

AUTO = "auto"

NEG_INF = -1e30  # finite: a row of -inf would make softmax 0/0

CHUNK_QUERIES = 512


def masked_attention(q_BTNH, k_BSKH, v_BSKH, mask_BTS) -> jax.Array:
    """Attention under any boolean mask; rows that see nothing give zeros. Returns out_BTNH."""
    B, T, N, H = q_BTNH.shape
    S, K = k_BSKH.shape[1:3]
    G = N // K
    # One product per key/value head, over its G query heads and their rows X, which lie together: a
    # CPU takes two thirds of the time that it takes otherwise.
    q_BKXH = q_BTNH.reshape(B, T, K, G, H).transpose(0, 2, 3, 1, 4).reshape(B, K, G * T, H)
    k_BKSH, v_BKSH = k_BSKH.swapaxes(1, 2), v_BSKH.swapaxes(1, 2)
    # f32 scores: bf16 would round differences between keys away before the softmax sees them.
    score_BKXS = jnp.einsum("BKXH,BKSH->BKXS", q_BKXH, k_BKSH, preferred_element_type=jnp.float32)
    score_BKGTS = score_BKXS.reshape(B, K, G, T, S) * H**-0.5
    score_BKGTS = jnp.where(mask_BTS[:, None, None], score_BKGTS, NEG_INF)
    prob_BKGTS = jax.nn.softmax(score_BKGTS, axis=-1)
    out_BKXH = jnp.einsum(
        "BKXS,BKSH->BKXH",
        prob_BKGTS.astype(v_BSKH.dtype).reshape(B, K, G * T, S),
        v_BKSH,
        preferred_element_type=jnp.float32,
    )
    out_BTNH = out_BKXH.reshape(B, K, G, T, H).transpose(0, 3, 1, 2, 4).reshape(B, T, N, H)
    sees_BT11 = jnp.any(mask_BTS, axis=-1)[:, :, None, None]
    return jnp.where(sees_BT11, out_BTNH, 0.0).astype(q_BTNH.dtype)


def _segment_mask(query_segment_BT, query_index_T, segment_ids_BS) -> jax.Array:
    causal_TS = query_index_T[:, None] >= jnp.arange(segment_ids_BS.shape[1])[None]
    same_BTS = query_segment_BT[:, :, None] == segment_ids_BS[:, None]
    return same_BTS & causal_TS[None] & (query_segment_BT > 0)[:, :, None]


def reference(q_BTNH, k_BTKH, v_BTKH, segment_ids_BT) -> jax.Array:
    """The plain twin: all T x T scores at once."""
    index_T = jnp.arange(q_BTNH.shape[1])
    return masked_attention(
        q_BTNH, k_BTKH, v_BTKH, _segment_mask(segment_ids_BT, index_T, segment_ids_BT)
    )


def chunked(q_BTNH, k_BTKH, v_BTKH, segment_ids_BT) -> jax.Array:
    """`CHUNK_QUERIES` queries at a time, recomputed in the backward pass: memory linear in T."""
    B, T, N, H = q_BTNH.shape
    num_chunks = -(-T // CHUNK_QUERIES)
    chunk = -(-T // num_chunks)  # equal chunks: fewer than num_chunks queries are padding
    padding = num_chunks * chunk - T
    # f32, cast back inside: the gradients of keys and values add up over the chunks in this dtype.
    k_f32, v_f32 = k_BTKH.astype(jnp.float32), v_BTKH.astype(jnp.float32)

    @jax.checkpoint
    def one(q_BCNH, segment_BC, index_C):
        mask_BCT = _segment_mask(segment_BC, index_C, segment_ids_BT)
        keys, values = k_f32.astype(k_BTKH.dtype), v_f32.astype(v_BTKH.dtype)
        return masked_attention(q_BCNH, keys, values, mask_BCT)

    def split(x_BT, *rest):  # [B, T, ...] → [chunks, B, chunk, ...]
        padded = jnp.pad(x_BT, ((0, 0), (0, padding)) + ((0, 0),) * len(rest))
        return padded.reshape(B, num_chunks, chunk, *rest).swapaxes(0, 1)

    index = jnp.arange(num_chunks * chunk).reshape(num_chunks, chunk)
    parts = (split(q_BTNH, N, H), split(segment_ids_BT), index)  # padding queries have segment 0
    out = jax.lax.map(lambda part: one(*part), parts)
    return out.swapaxes(0, 1).reshape(B, num_chunks * chunk, N, H)[:, :T]


ATTENTION = {
    "reference": reference,
    "chunked": chunked,
    "splash": attention_splash.splash,
    "cudnn": attention_cudnn.cudnn,
    "cudnn_offsets": attention_cudnn.cudnn_offsets,
}


def of(name: str) -> Callable[..., jax.Array]:
    """The entry of that name. For `auto` that no run has resolved, the one that runs anywhere."""
    return chunked if name == AUTO else ATTENTION[name]
