"""`splash`: JAX's block-sparse flash attention for TPUs, forward and backward in VMEM.

The kernel (jax/experimental/pallas/ops/tpu/splash_attention) computes one row: a static causal
mask, whose upper blocks it skips, and-ed with equal segment ids. No query may see nothing, so
padding keeps its own id, 0: a padding query sees itself, and what comes out is dropped.
"""

from __future__ import annotations

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jaxmath.kernels import attention_shards

LANES = 128  # of a vector register: the kernel reads multiples of it
BLOCK = 512  # a row longer than this is padded to a multiple of it …
LONG_BLOCK = 1024  # … and computed by so many queries and keys at a time, where they divide it


class Tiling(NamedTuple):
    """How a row is cut. length: with padding. block: queries, and keys, of a step of the kernel.

    compute: of a block's keys, so many are scored at once.
    """

    length: int
    block: int
    compute: int


def tiling(num_tokens: int) -> Tiling:
    """For rows of so many tokens."""
    if num_tokens <= BLOCK:
        length = -(-num_tokens // LANES) * LANES
        return Tiling(length, length, length)
    length = -(-num_tokens // BLOCK) * BLOCK
    block = LONG_BLOCK if length % LONG_BLOCK == 0 else BLOCK
    return Tiling(length, block, BLOCK)


def splash(q_BTNH, k_BTKH, v_BTKH, segment_ids_BT, *, interpret: bool = False) -> jax.Array:
    """See `kernels.attention`. Keys and values never meet a [T, T] array in memory.

    Args:
      interpret: computes the same without a TPU, slowly.
    Raises:
      ValueError: heads that the mesh's "tensor" axis does not divide.
    """
    rows = functools.partial(_rows, interpret=interpret)
    return attention_shards.on_shards(rows, q_BTNH, k_BTKH, v_BTKH, segment_ids_BT)


def _rows(q_BTNH, k_BTKH, v_BTKH, segment_ids_BT, interpret: bool) -> jax.Array:
    B, T, N, H = q_BTNH.shape
    tiles = tiling(T)
    # Tokens that make the row whole are padding at its end, which no query before them sees.
    pad = lambda x, *rest: jnp.pad(x, ((0, 0), (0, tiles.length - T), *rest))  # noqa: E731
    heads_first = lambda x_BTNH: pad(x_BTNH, (0, 0), (0, 0)).swapaxes(1, 2)  # noqa: E731
    # The kernel knows no scale. f32: rounded once.
    q_BTNH = (q_BTNH.astype(jnp.float32) * H**-0.5).astype(q_BTNH.dtype)
    kernel, ids = _kernel(N, tiles, interpret)
    one = lambda q_NTH, k_KTH, v_KTH, segment_T: kernel(  # noqa: E731
        q_NTH, k_KTH, v_KTH, ids(segment_T, segment_T)
    )
    arrays = (heads_first(q_BTNH), heads_first(k_BTKH), heads_first(v_BTKH), pad(segment_ids_BT))
    return jax.vmap(one)(*arrays).swapaxes(1, 2)[:, :T]


def _kernel(num_heads: int, tiles: Tiling, interpret: bool) -> tuple[Any, Any]:
    """The kernel of a row, and the class of its segment ids."""
    # Imported here: loading Pallas takes a second, and only a TPU needs it.
    from jax.experimental.pallas.ops.tpu import splash_attention as kernels

    block, compute = tiles.block, tiles.compute
    mask = kernels.CausalMask((tiles.length, tiles.length))
    kernel = kernels.make_splash_mha(
        kernels.MultiHeadMask([mask] * num_heads),
        block_sizes=kernels.BlockSizes(
            block_q=block,
            block_kv=block,
            block_kv_compute=compute,
            block_q_dkv=block,
            block_kv_dkv=block,
            block_kv_dkv_compute=compute,
            # Two kernels go backward. One alone scores once instead of twice, but writes a gradient
            # of all queries per block of keys, in 16 bits, whose sum costs more (compiled for v4,
            # v5e and v6e), in memory too.
            block_q_dq=block,
            block_kv_dq=block,
        ),
        head_shards=1,  # the mesh is split outside
        q_seq_shards=1,
        interpret=interpret,
    )
    return kernel, kernels.SegmentIds
