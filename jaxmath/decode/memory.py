"""How many slots fit: weights, cache and scratch against a memory budget, before anything compiles.

Weights and state are counted from their abstract trees, so whatever they hold is in the count;
scratch is an estimate from the largest intermediates of the two programs that use it:

    reserved + weights + slots * slot + max(slots * step, prefill)  <=  budget    on each device

where `prefill` is the scratch of `admit`, and `step` that of `decode_chunk`: they take turns.
"""

from __future__ import annotations

import dataclasses
import math
import os
import pathlib
from collections.abc import Mapping
from typing import Any, Literal

import jax
import numpy as np
from jax.sharding import Mesh

from jaxmath.kernels.attention import CHUNK_QUERIES
from jaxmath.model.config import ModelConfig

# Slots per shard beyond which a step is bound by arithmetic, so that more make it longer and no
# more efficient: FLOP/s over bytes/s is about 180 on an H200, 240 on a v5e and 560 on a v6e chip.
ENOUGH_SLOTS = {"cpu": 64, "gpu": 512, "tpu": 512}

# Bytes of devices that are not here, only compiled for: as published, by `device_kind`.
PUBLISHED = {
    "TPU v4": 32 * 2**30,
    "TPU v5 lite": 16 * 2**30,
    "TPU v5": 95 * 2**30,
    "TPU v6 lite": 32 * 2**30,
    "NVIDIA H100": 80 * 2**30,
    "NVIDIA H200": 141 * 2**30,
}


@dataclasses.dataclass(frozen=True)
class Footprint:
    """What the decoder's programs need on one device, in bytes.

    weights: parameters. slot: one sequence, cache at full length and its row of the state.
    step: scratch of a decode step, per slot. prefill: scratch of a prefill, whatever the slots.
    length: tokens that a slot holds.
    """

    weights: int
    slot: int
    step: int
    prefill: int
    length: int


@dataclasses.dataclass(frozen=True)
class MemoryPlan:
    """How a device's memory is used; sizes are bytes on one device.

    slots: over all devices, a multiple of `shards`, the shards of the batch.
    limit: what keeps `slots` from being larger; "throughput": more would not decode faster.
    """

    footprint: Footprint
    budget: int
    reserved: int
    shards: int
    slots: int
    limit: Literal["memory", "queue", "configured", "throughput"]

    @property
    def cache(self) -> int:
        return self.slots // self.shards * self.footprint.slot

    @property
    def scratch(self) -> int:
        return max(self.slots // self.shards * self.footprint.step, self.footprint.prefill)

    @property
    def free(self) -> int:
        return self.budget - self.reserved - self.footprint.weights - self.cache - self.scratch

    def table(self) -> str:
        """The plan in a few lines, for people."""
        need, here = self.footprint, self.slots // self.shards
        program = "of a prefill" if self.scratch == need.prefill else "of a step"
        rows = [
            ("budget", self.budget, ""),
            ("reserved", self.reserved, "in use by others"),
            ("weights", need.weights, ""),
            ("cache", self.cache, f"{here} slots of {need.length} tokens"),
            ("scratch", self.scratch, program),
            ("free", self.free, ""),
        ]
        lines = [f"  {name:<9}{size / 2**30:9.3f}  {note}".rstrip() for name, size, note in rows]
        token = need.slot / need.length / 2**10
        return "\n".join(
            [
                "memory of the decoder, GiB per device",
                *lines,
                f"{self.slots} slots ({here} on each of {self.shards} shards), limited by "
                f"{self.limit}; {token:,.1f} KiB per cached token and device",
            ]
        )


def plan(
    footprint: Footprint,
    mesh: Mapping[str, int],
    *,
    budget: int,
    reserved: int = 0,
    slots: int | None = None,
    queue: int | None = None,
    enough: int = ENOUGH_SLOTS["gpu"],
) -> MemoryPlan:
    """The number of slots that fit, or a check of the number wanted.

    Args:
      mesh: devices along each axis, `Mesh.shape`.
      budget: bytes on a device for all of it. reserved: bytes of it that others hold, a trainer's
        weights for example.
      slots: as configured; None takes as many as fit.
      queue: requests there will ever be, where that is known. enough: most slots per shard.
    Raises:
      ValueError: not one sequence per shard fits, or not the configured slots; carries the table.
    """
    shards = mesh["data"] * mesh["fsdp"]
    make = lambda slots, limit: MemoryPlan(footprint, budget, reserved, shards, slots, limit)  # noqa: E731
    left = budget - reserved - footprint.weights
    fits = min(
        left // max(footprint.slot + footprint.step, 1),
        (left - footprint.prefill) // max(footprint.slot, 1),
    )
    if fits < 1:
        raise ValueError(
            "not even one sequence fits into the memory budget: shorten max_prompt_tokens or "
            "max_tokens, split the model over more devices (mesh.tensor), or raise "
            f"decode.memory_fraction\n{make(shards, 'memory').table()}"
        )
    if slots is not None:
        wanted = make(slots, "configured")
        if -(-slots // shards) > fits:
            raise ValueError(
                f"{slots} slots do not fit into the memory budget; lower decode.slots to "
                f"{fits * shards} or leave it out\n{wanted.table()}"
            )
        return wanted
    most = math.inf if queue is None else -(-queue // shards)
    here, limit = min((fits, "memory"), (enough, "throughput"), (max(most, 1), "queue"))
    return make(here * shards, limit)


def footprint(
    model: ModelConfig,
    mesh: Mapping[str, int],
    *,
    weights: int,
    state: tuple[int, int],
    length: int,
    rows: int,
    row_tokens: int,
    lanes: int = 1,
) -> Footprint:
    """What decoding takes on one device.

    Args:
      weights: `device_bytes` of the parameters.
      state: `device_bytes` of the state with one slot per shard, and with two.
      length: tokens a slot holds. rows, row_tokens: of the largest prefill, over all devices.
      lanes: numbers that a row of memory holds, to which heads are filled up; 128 on a TPU.
    """
    one, two = state
    constant = one - (two - one)  # arrays that do not grow with the slots
    head = model.head_dim
    return Footprint(
        weights=weights + max(constant, 0),
        slot=(two - one) * -(-head // lanes) * lanes // head,
        step=_step_scratch(model, mesh, length),
        prefill=_prefill_scratch(model, mesh, rows, row_tokens),
        length=length,
    )


def _step_scratch(model: ModelConfig, mesh: Mapping[str, int], length: int) -> int:
    """Bytes per slot: f32 logits and what sampling makes of them, or a layer's f32 scores."""
    logits = 4 * model.vocab_size // mesh["tensor"]
    scores = 4 * model.num_heads * length // mesh["tensor"]
    return 2 * max(logits, scores)


def _prefill_scratch(model: ModelConfig, mesh: Mapping[str, int], rows: int, tokens: int) -> int:
    """Bytes: keys and values of all rows and layers, and the widest activations of a layer."""
    item = 2 if model.dtype == "bfloat16" else 4
    tensor, shards = mesh["tensor"], mesh["data"] * mesh["fsdp"]
    here = -(-rows // shards)
    kept = 2 * model.num_layers * model.num_kv_heads * model.head_dim * rows * tokens * item
    mlp = 3 * here * tokens * model.mlp_dim * item
    scores = 2 * 4 * here * model.num_heads * min(tokens, CHUNK_QUERIES) * tokens
    return (kept + max(mlp, scores)) // tensor


def device_bytes(shapes: Any, shardings: Any) -> int:
    """Bytes of a tree of arrays on one device, from their shapes and `NamedSharding`s."""
    return sum(
        math.prod(where.shard_shape(x.shape)) * x.dtype.itemsize
        for x, where in zip(jax.tree.leaves(shapes), jax.tree.leaves(shardings), strict=True)
    )


# --- the machine ------------------------------------------------------------------------------


def device_budget(memory_fraction: float, mesh: Mesh) -> int:
    """Bytes per device that may be used: a fraction of what its allocator can hand out.

    CPU devices share the host's memory that is free now.
    """
    devices = mesh.local_devices
    limits = [stats["bytes_limit"] for d in devices if (stats := _stats(d))]
    whole = min(limits) if limits else host_bytes() // len(devices)
    return int(_agreed(whole) * memory_fraction)


def bytes_in_use(mesh: Mesh) -> int:
    """Bytes already held on the fullest device; 0 on a CPU, whose budget leaves them out."""
    return max(_stats(device).get("bytes_in_use", 0) for device in mesh.local_devices)


def _stats(device: jax.Device) -> Mapping[str, int]:
    """What its allocator says; nothing on a CPU.

    Raises:
      ValueError: a device that is not here, of a kind that is not known.
    """
    try:
        return device.memory_stats() or {}
    except jax.errors.JaxRuntimeError:  # a device to compile for
        if device.device_kind not in PUBLISHED:
            raise ValueError(
                f"{device.device_kind} is not here, and its memory is not known; known are "
                f"{', '.join(PUBLISHED)}"
            ) from None
        return {"bytes_limit": PUBLISHED[device.device_kind]}


def host_bytes(root: pathlib.Path = pathlib.Path("/")) -> int:
    """Free memory of the host, or what its container may still take."""
    meminfo = root / "proc/meminfo"
    if not meminfo.exists():  # not Linux
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    fields = dict(line.split(":") for line in meminfo.read_text().splitlines())
    free = int(fields["MemAvailable"].split()[0]) * 1024
    limit, used = (root / "sys/fs/cgroup" / f"memory.{what}" for what in ("max", "current"))
    if limit.exists() and (most := limit.read_text().strip()) != "max":
        free = min(free, int(most) - int(used.read_text()))
    return free


def _agreed(nbytes: int) -> int:
    """The least over all processes: they must run the same program."""
    if jax.process_count() == 1:
        return nbytes
    from jax.experimental import multihost_utils

    # In MiB: a 32-bit JAX would cut bytes short.
    return int(np.min(multihost_utils.process_allgather(np.int32(nbytes >> 20)))) << 20
