"""Attention kernels that the partitioner cannot look into: each shard has its rows and heads."""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp

from jaxmath import sharding


def on_shards(
    attend: Callable[..., jax.Array], q_BTNH, k_BTKH, v_BTKH, segment_ids_BT
) -> jax.Array:
    """`attend` on the mesh of `jax.set_mesh`, or as it is without one; zeros for padding queries.

    Rows lie on ("data", "fsdp") and heads on "tensor", as `sharding.RULES` says. Where there are
    fewer key/value heads than shards, each is repeated, so that every shard has one; the gradients
    of its copies add up.

    Args:
      attend: (q_BTNH, k_BTKH, v_BTKH, segment_ids_BT) → out_BTNH of some rows and heads; what it
        gives for padding queries does not matter, and takes no gradient.
    Raises:
      ValueError: heads that the "tensor" axis does not divide.
    """
    mesh = jax.sharding.get_abstract_mesh()
    if not mesh.empty:
        repeats = _repeats(q_BTNH.shape[2], k_BTKH.shape[2], mesh.shape["tensor"])
        if repeats > 1:
            k_BTKH, v_BTKH = (jnp.repeat(x, repeats, axis=2) for x in (k_BTKH, v_BTKH))
        heads = sharding.spec(("batch", "seq", "heads", "head_dim"))
        attend = jax.shard_map(
            attend,
            in_specs=(heads, heads, heads, sharding.spec(("batch", "seq"))),
            out_specs=heads,
            check_vma=False,  # Pallas and cuDNN calls do not say over which axes they vary
        )
    out_BTNH = attend(q_BTNH, k_BTKH, v_BTKH, segment_ids_BT)
    return jnp.where((segment_ids_BT > 0)[:, :, None, None], out_BTNH, 0)


def _repeats(num_heads: int, num_kv_heads: int, shards: int) -> int:
    """How often each key/value head is repeated, so that `shards` divides them."""
    if num_heads % shards or (num_kv_heads % shards and shards % num_kv_heads):
        raise ValueError(
            f"{num_heads} query and {num_kv_heads} key/value heads cannot be split over mesh axis "
            f"tensor of size {shards}; choose a size that divides both, or that divides the query "
            "heads and is a multiple of the key/value heads"
        )
    return max(1, shards // num_kv_heads)
