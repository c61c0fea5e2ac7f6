"""A cache for TPUs: JAX's ragged paged attention, whose reads stop at each slot's length.

The kernel (jax/experimental/pallas/ops/tpu/ragged_paged_attention) reads pages of tokens by a page
table. Slots here are dense, so slot b owns pages b * S / PAGE_TOKENS and following, and the table
is the identity: [B, S, C, H] is [pages, PAGE_TOKENS, C, H] without moving a byte. C = 2 K heads lie
as [k0, v0, k1, v1, …], as the kernel wants them.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp

from jaxmath import sharding
from jaxmath.decode import cache_probe, cache_rows
from jaxmath.model.config import ModelConfig

AXES = ("batch", "seq", "kv_heads", "head_dim")  # K and V of a head stay on one shard

PAGE_TOKENS = 128
BLOCK_PAGES = 4  # read together: a length is rounded up to 512 tokens, a shard's head is 128 KiB
BLOCK_QUERIES = 8  # slots per grid step; each is scored for all of them, so few


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class PagedCache:
    """One layer: kv_BSCH, in bfloat16 or float32; S is a multiple of PAGE_TOKENS."""

    kv_BSCH: jax.Array

    @classmethod
    def allocate(cls, config: ModelConfig, num_slots: int, length: int, dtype: Any) -> PagedCache:
        """Zeros, for sequences of `length` tokens, which is rounded up to whole pages.

        Raises:
          ValueError: a head_dim that the kernel cannot read.
        """
        if reason := _unreadable(config):
            raise ValueError(f"cache 'paged': {reason}; use cache 'xla'")
        S = -(-length // PAGE_TOKENS) * PAGE_TOKENS
        shape = (num_slots, S, 2 * config.num_kv_heads, config.head_dim)
        return cls(jnp.zeros(shape, dtype))

    def axes(self) -> PagedCache:
        """Logical axes in place of the arrays, for `sharding.named`."""
        return PagedCache(AXES)

    def insert(self, k_PTKH, v_PTKH, row_I, start_I, slot_I, count, width: int) -> PagedCache:
        """See `cache_rows.insert`."""
        rows = PagedCache(_side_by_side(k_PTKH, v_PTKH))
        return cache_rows.insert(self, rows, row_I, start_I, slot_I, count, width, axes=AXES)

    def write(self, k_BKH, v_BKH, position_B) -> PagedCache:
        """See `cache_rows.write`."""
        token = PagedCache(_side_by_side(k_BKH, v_BKH))
        return cache_rows.write(self, token, position_B, axes=AXES)

    def attend(self, q_BNH, length_B) -> jax.Array:
        """out_BNH: one query per slot over its first `length_B` tokens."""
        arrays = (q_BNH, self.kv_BSCH, length_B)
        if jax.sharding.get_abstract_mesh().empty:
            return _attend(*arrays)
        # The partitioner cannot look into a kernel: each shard attends with its slots and heads.
        axes = (("batch", "heads", "head_dim"), AXES, ("batch",))
        specs = tuple(sharding.spec(a) for a in axes)
        return jax.shard_map(_attend, in_specs=specs, out_specs=specs[0], check_vma=False)(*arrays)


def _side_by_side(k, v) -> jax.Array:
    """[…, K, H] twice → […, 2 K, H], heads as k0, v0, k1, v1, …"""
    *before, K, H = k.shape
    return jnp.stack((k, v), axis=-2).reshape(*before, 2 * K, H)


def _attend(q_BNH, kv_BSCH, length_B) -> jax.Array:
    # Imported here: loading Pallas takes a second, and only a TPU needs it.
    from jax.experimental.pallas.ops.tpu import ragged_paged_attention as kernels

    B, S, C, H = kv_BSCH.shape
    pages = S // PAGE_TOKENS
    return kernels.ragged_paged_attention(
        q_BNH,
        kv_BSCH.reshape(B * pages, PAGE_TOKENS, C, H),
        cache_rows.seen_lengths(length_B, S),
        jnp.arange(B * pages, dtype=jnp.int32).reshape(B, pages),
        jnp.arange(B + 1, dtype=jnp.int32),  # one query per slot
        jnp.array([B], jnp.int32),
        sm_scale=H**-0.5,
        # Named: the kernel's own table asks the device, and its default reads 16k tokens at once.
        num_kv_pages_per_block=min(BLOCK_PAGES, pages),
        num_queries_per_block=min(BLOCK_QUERIES, B),
    )


def _unreadable(config: ModelConfig) -> str | None:
    if config.head_dim % 128:
        return f"head_dim is {config.head_dim}, and the kernel reads multiples of 128"
    return None


def probe(config: ModelConfig, dtype: Any) -> str | None:
    """Why this cache cannot be used here, or None where it can and agrees with plain attention."""
    if jax.default_backend() != "tpu":
        return f"the kernel needs a TPU; the devices here are of type {jax.default_backend()}"
    return _unreadable(config) or cache_probe.disagreement(PagedCache, config, dtype)
