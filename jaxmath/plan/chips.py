"""What one device of each target can do: arithmetic, memory, links.

All per device, as published, in FLOP/s (bfloat16, dense), bytes/s and bytes:

* TPU: arithmetic and memory bandwidth from Google's pages on the architecture of v4, v5e, v5p and
  v6e (cloud.google.com/tpu). Links: one way, per link 45 GB/s (v4, v5e) and 90 GB/s (v5p, v6e), six
  on a torus of three dimensions and four on one of two ("How to Scale Your Model", on TPUs).
  Memory is what XLA grants a program of the nominal 32, 16, 95 and 32 GB: its own error names it.
* H100, H200 SXM: NVIDIA's data sheets; NVLink 4 is 900 GB/s in both directions together. Memory is
  0.95 of the card's, which is to be granted by XLA_PYTHON_CLIENT_MEM_FRACTION=0.95.
* cpu: orders of magnitude of one core, so that a plan for CPU devices reads like the others; memory
  is that of this machine, shared by the devices.

The links count as if all of them were busy in every exchange, which is the best case.
"""

from __future__ import annotations

import dataclasses

from jaxmath.decode import memory
from jaxmath.plan import targets

GIB = 2**30


@dataclasses.dataclass(frozen=True)
class Chip:
    """name: of the device, for people. flops, bandwidth, links: per second; memory: bytes."""

    name: str
    flops: float
    bandwidth: float
    links: float
    memory: int


CHIPS = {
    "v4": Chip("TPU v4", 275e12, 1.228e12, 6 * 45e9, int(30.75 * GIB)),
    "v5e": Chip("TPU v5e", 197e12, 0.819e12, 4 * 45e9, int(15.75 * GIB)),
    "v5p": Chip("TPU v5p", 459e12, 2.765e12, 6 * 90e9, int(95.74 * GIB)),
    "v6e": Chip("TPU v6e", 918e12, 1.640e12, 4 * 90e9, int(31.25 * GIB)),
    "h100": Chip("NVIDIA H100", 989e12, 3.35e12, 450e9, 76 * GIB),
    "h200": Chip("NVIDIA H200", 989e12, 4.8e12, 450e9, int(0.95 * 141 * GIB)),
}


def of(target: str) -> Chip:
    """The chip of `v5e:2x4`, `cpu:8`, ….

    Raises:
      ValueError: an unknown target.
    """
    which = targets.kind(target)
    if which != "cpu":
        return CHIPS[which]
    here = memory.host_bytes() // int(target.partition(":")[2])
    return Chip("CPU device", 50e9, 10e9, 10e9, here)
