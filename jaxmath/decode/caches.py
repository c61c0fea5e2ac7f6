"""How keys and values are kept between tokens: `CACHES = {"xla": …}`, one interface.

Chosen once per run, by name, or the best that the devices at hand can run: each is tried on a small
problem against plain attention before it is trusted.
"""

from __future__ import annotations

import functools
import sys
from collections.abc import Callable
from typing import Any, NamedTuple, Protocol

import jax
from jax.sharding import Mesh

from jaxmath.decode import cache_cudnn, cache_int8, cache_paged, cache_xla
from jaxmath.model.config import ModelConfig


class LayerCache(Protocol):
    """One layer's cache, a pytree: B slots of up to S tokens."""

    @classmethod
    def allocate(cls, config: ModelConfig, num_slots: int, length: int, dtype: Any) -> LayerCache:
        """All slots empty."""

    def axes(self) -> LayerCache:
        """The same structure with tuples of logical axes in place of arrays."""

    def insert(self, k_RTKH, v_RTKH, row_I, start_I, slot_I, count, width: int) -> LayerCache:
        """Copies `width` tokens of a packed row, from `start_I[i]` on, into slot `slot_I[i]`."""

    def write(self, k_BKH, v_BKH, position_B) -> LayerCache:
        """Puts one token of each slot at its position; one beyond the cache is dropped."""

    def attend(self, q_BNH, length_B) -> jax.Array:
        """Attention of one query per slot to its first `length_B` tokens."""


class Cache(NamedTuple):
    """kind: the class of a layer's cache.

    probe: (model, dtype) → why it cannot be used on the devices at hand, or None.
    """

    kind: type[LayerCache]
    probe: Callable[[ModelConfig, Any], str | None]


CACHES = {
    "xla": Cache(cache_xla.XlaCache, lambda model, dtype: None),  # runs everywhere
    "int8": Cache(cache_int8.Int8Cache, lambda model, dtype: None),
    "cudnn": Cache(cache_cudnn.CudnnCache, cache_cudnn.probe),
    "paged": Cache(cache_paged.PagedCache, cache_paged.probe),
}

Allocate = Callable[[ModelConfig, int, int, Any], LayerCache]  # as `LayerCache.allocate`

BEST = {"gpu": "cudnn", "tpu": "paged"}  # where nothing is asked for; on a CPU "xla"


def choose(name: str | None, model: ModelConfig, mesh: Mesh, dtype: str) -> Allocate:
    """What allocates the cache of that name, or where it is None the best that runs on `mesh`.

    Args:
      model: as the decoder computes it (`placement.decode_shape`). dtype: of weights and queries.
    Raises:
      ValueError: the cache asked for cannot be used here; says why.
    """
    # Devices that are not there (a compile for another machine) cannot be tried.
    platform = mesh.devices.flat[0].platform
    present = set(mesh.devices.flat) <= set(jax.devices())
    wanted = name or BEST.get(platform, "xla")
    reason = CACHES[wanted].probe(model, dtype) if present else None
    if reason is not None and name is not None:
        raise ValueError(f"cache {name!r} cannot be used: {reason}; choose another, or none")
    if reason is not None and jax.process_index() == 0:
        print(f"decoder: cache 'xla', since {wanted!r} cannot be used: {reason}", file=sys.stderr)
    kind = CACHES["xla" if reason else wanted].kind
    if platform == "gpu" and kind in (cache_xla.XlaCache, cache_int8.Int8Cache):
        return functools.partial(kind.allocate, block_tokens=cache_xla.GPU_BLOCK_TOKENS)
    return kind.allocate
