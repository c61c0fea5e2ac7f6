"""How keys and values are kept between tokens: `CACHES = {"xla": …}`, one interface.

Chosen once per run, by name, or the best that the devices at hand can run.
"""

from __future__ import annotations

from typing import Any, Protocol

import jax
from jax.sharding import Mesh

from jaxmath.decode import cache_xla
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


CACHES: dict[str, type[LayerCache]] = {"xla": cache_xla.XlaCache}


def choose(name: str | None, shape: ModelConfig, mesh: Mesh, dtype: str) -> type[LayerCache]:
    """The cache of that name, or where it is None the best that can run on `mesh`."""
    return CACHES[name or "xla"]
