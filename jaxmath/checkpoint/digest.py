"""A 64-bit digest of an array's content, computed where the array lies.

Orbax keeps no checksum of array data: a flipped bit on disk loads as another number. The digest is
two sums modulo 2^32 of a hash of every element's bits and position. Integer sums do not depend on
order, so the digest is the same on every mesh, and it needs no copy to the host. The hash is a
bijection of the element, so a change of one element always shows; of many, but for 1 in 2^64. It
guards against accidents, not against forgery.
"""

from __future__ import annotations

import math

import jax
import jax.numpy as jnp
import numpy as np

Words = jax.Array | np.ndarray
UINT = {1: jnp.uint8, 2: jnp.uint16, 4: jnp.uint32, 8: jnp.uint32}  # item size → integer of it
SMALL = 2**18  # elements: up to here numpy is done sooner than a program would be compiled


def digests(leaves: dict[str, jax.Array | np.ndarray]) -> dict[str, str]:
    """16 hex digits per array. Arrays may be sharded over any mesh; PRNG keys go in as key data."""
    sums = {path: _sums(leaf) for path, leaf in leaves.items()}  # all started, then awaited
    return {path: "".join(f"{int(word):08x}" for word in pair) for path, pair in sums.items()}


def _sums(x: jax.Array | np.ndarray) -> tuple[Words, Words]:
    if isinstance(x, jax.Array) and x.sharding.memory_kind == "pinned_host":
        # Offloaded, because the device has no room for all of them: one after another.
        return jax.block_until_ready(_sums(jax.device_put(x, x.sharding.with_memory_kind(None))))
    local = not isinstance(x, jax.Array) or x.is_fully_addressable
    return _sums_on_host(np.asarray(x)) if local and x.size <= SMALL else _sums_on_device(x)


def _sums_on_host(x: np.ndarray) -> tuple[Words, Words]:
    word = np.ascontiguousarray(x).reshape(-1).view(UINT[x.dtype.itemsize]).astype(np.uint32)
    first, second = _hashes(word, np.arange(word.size, dtype=np.uint32))
    return np.sum(first, dtype=np.uint32), np.sum(second, dtype=np.uint32)


@jax.jit
def _sums_on_device(x: jax.Array) -> tuple[Words, Words]:
    x = x.astype(jnp.uint8) if x.dtype == jnp.bool_ else x
    word = jax.lax.bitcast_convert_type(x, UINT[x.dtype.itemsize]).astype(jnp.uint32)
    position = jnp.zeros(word.shape, jnp.uint32)  # not a reshaped range: it is sharded as x is
    for dim in range(word.ndim):
        stride = math.prod(word.shape[dim + 1 :]) % 2**32
        index = jax.lax.broadcasted_iota(jnp.uint32, word.shape, dim)
        position = position + index * jnp.uint32(stride)
    # One two-armed reduce: as two sums, XLA would write the hashes to memory in between.
    return jax.lax.reduce(
        _hashes(word, position),
        (jnp.uint32(0), jnp.uint32(0)),
        lambda a, b: (a[0] + b[0], a[1] + b[1]),
        range(word.ndim),
    )


def _hashes(word: Words, position: Words) -> tuple[Words, Words]:
    first = _mix(word ^ (position * np.uint32(0x9E3779B1)))
    return first, _mix(first + np.uint32(0x27D4EB2F))


def _mix(x: Words) -> Words:
    """The finalizer of MurmurHash3: a bijection of 32 bits that spreads every bit over all."""
    x = (x ^ (x >> 16)) * np.uint32(0x85EBCA6B)
    x = (x ^ (x >> 13)) * np.uint32(0xC2B2AE35)
    return x ^ (x >> 16)
