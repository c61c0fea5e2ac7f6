"""How long the phases of a step take, how much work that is, and how much memory it needs."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator, Sequence

import jax
import numpy as np
from jax.sharding import Mesh

from jaxmath.model.config import ModelConfig

# Dense bf16 FLOP/s by the start of JAX's device_kind, from the makers' data sheets; the first that
# fits. A CPU has no such figure.
PEAK_FLOPS = (
    ("TPU v4", 275e12),
    ("TPU v5 lite", 197e12),
    ("TPU v5e", 197e12),
    ("TPU v5", 459e12),
    ("TPU v6", 918e12),
    ("NVIDIA A100", 312e12),
    ("NVIDIA H100 PCIe", 756e12),
    ("NVIDIA H100", 989e12),
    ("NVIDIA H200", 989e12),
    ("NVIDIA B200", 2250e12),
)


class Phases:
    """Seconds of a step by phase.

        with phases("gen"): …

    `wait` is the time in which no phase ran: the host chose prompts, packed rows, moved them.
    """

    def __init__(self):
        self.start = time.monotonic()
        self.seconds: dict[str, float] = {}

    @contextlib.contextmanager
    def __call__(self, name: str) -> Iterator[None]:
        start = time.monotonic()
        yield
        self.add(name, time.monotonic() - start)

    def add(self, name: str, seconds: float) -> None:
        self.seconds[name] = self.seconds.get(name, 0.0) + seconds

    def total(self, *names: str) -> float:
        """Seconds of these phases together; those that did not run took none."""
        return sum(self.seconds.get(name, 0.0) for name in names)

    def metrics(self) -> dict[str, float]:
        """`timing_s/NAME` of every phase, of `wait`, and of the whole `step` so far."""
        step = time.monotonic() - self.start
        rest = max(step - sum(self.seconds.values()), 0.0)
        times = self.seconds | {"wait": rest, "step": step}
        return {f"timing_s/{name}": seconds for name, seconds in times.items()}


def forward_flops(model: ModelConfig, lengths: Sequence[int] | np.ndarray) -> float:
    """FLOPs of one forward pass over causal sequences of these lengths; padding is no work.

    2 per token and weight of a matrix product (the head's included, the lookup of embeddings not),
    and 2 · layers · heads · head_dim · length² for scores and weighted values, halved by causality.
    """
    lengths = np.asarray(lengths, np.float64)
    vectors = model.num_layers * (  # norms and biases: no products
        2 * model.embed_dim + (model.num_heads + 2 * model.num_kv_heads) * model.head_dim
    )
    weights = model.num_params - vectors - model.embed_dim
    if not model.tie_embeddings:
        weights -= model.vocab_size * model.embed_dim
    attention = 2.0 * model.num_layers * model.num_heads * model.head_dim * np.sum(lengths**2)
    return float(2.0 * weights * np.sum(lengths) + attention)


def peak_flops(mesh: Mesh) -> float | None:
    """FLOP/s of all devices together at their peak; None where it is not known."""
    kind = mesh.devices.flat[0].device_kind
    known = (peak for start, peak in PEAK_FLOPS if kind.startswith(start))
    peak = next(known, None)
    return None if peak is None else peak * mesh.size


def memory_metrics() -> dict[str, float]:
    """`memory/peak_gib`: high-water mark of this process's fullest device, where it keeps one."""
    stats = [device.memory_stats() or {} for device in jax.local_devices()]
    peaks = [found["peak_bytes_in_use"] for found in stats if "peak_bytes_in_use" in found]
    return {"memory/peak_gib": max(peaks) / 2**30} if peaks else {}
