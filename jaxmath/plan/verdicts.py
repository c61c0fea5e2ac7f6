"""Does a run fit its devices, and how long does a step take: the costs of its programs added up.

A `Job` is a run as planned: what stays in memory between programs, and the programs. Each program
finds those parts in memory that are not its own arguments, so its peak is added to theirs.
"""

from __future__ import annotations

import collections
import dataclasses
import functools
from collections.abc import Callable, Mapping
from typing import Any

import jax
from flax import nnx

from jaxmath.decode import memory
from jaxmath.plan import programs
from jaxmath.plan.chips import Chip

IN_HOST_MEMORY = ("pinned_host", "unpinned_host")


@dataclasses.dataclass(frozen=True)
class Job:
    """One run on one mesh.

    parts: resident arrays by name → bytes per device. host: those that lie in the memory of the
      devices' host between their uses, likewise. step: what a step is, in words; tokens: that
      it works on, over all devices. refusals: why it cannot run at all, before any compilation.
    notes: what the estimate assumes.
    """

    parts: Mapping[str, int]
    programs: tuple[programs.Program, ...]
    step: str
    tokens: int
    refusals: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
    host: Mapping[str, int] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass(frozen=True)
class Row:
    """A program of the job, measured. total: bytes per device while it runs, others included."""

    program: programs.Program
    cost: programs.Cost
    bound: programs.Bound
    beside: int

    @property
    def total(self) -> int:
        return self.cost.peak + self.beside


@dataclasses.dataclass(frozen=True)
class Plan:
    """All that `jaxmath plan` knows of a run on a target."""

    job: Job
    chip: Chip
    num_devices: int
    rows: tuple[Row, ...]

    @functools.cached_property
    def fullest(self) -> Row | None:
        return max(self.rows, key=lambda row: row.total, default=None)

    @property
    def is_complete(self) -> bool:
        """Whether every program of the run has been compiled."""
        compiled = [row for row in self.rows if not row.cost.full]
        return not self.job.refusals and len(compiled) == len(self.job.programs)

    @property
    def fits(self) -> bool:
        return self.is_complete and not self.too_large

    @property
    def too_large(self) -> tuple[Row, ...]:
        return tuple(r for r in self.rows if r.cost.full or r.total > self.chip.memory)

    @property
    def bound_s(self) -> float:
        """Seconds of a step in which every program runs at its bound."""
        return sum(row.program.runs * row.bound.seconds for row in self.rows)

    def to_dict(self) -> dict[str, Any]:
        """Plain numbers, for `--json`; bytes, seconds and FLOPs, per device and turn."""
        return {
            "chip": dataclasses.asdict(self.chip),
            "num_devices": self.num_devices,
            "fits": self.fits,
            "refusals": list(self.job.refusals),
            "parts": dict(self.job.parts),
            "host_parts": dict(self.job.host),
            "programs": [_row_dict(row, self.num_devices) for row in self.rows],
            "step": {
                "what": self.job.step,
                "tokens": self.job.tokens,
                "bound_s": self.bound_s,
                "estimate_s": self.bound_s / programs.REACHED,
                "notes": list(self.job.notes),
            },
        }


def measure(
    job: Job,
    chip: Chip,
    num_devices: int,
    *,
    stop_when_full: bool = False,
    on_row: Callable[[str], None] = lambda name: None,
) -> Plan:
    """Compiles the job's programs one after the other.

    A program that continues one that was refused for its memory is left out.

    Args:
      stop_when_full: leave the rest out as soon as one does not fit.
      on_row: called with the name of each program before it is compiled.
    """
    rows: list[Row] = []
    refused: set[str] = set()
    for program in job.programs:
        if program.after in refused:
            continue
        on_row(program.name)
        cost = programs.cost(program)
        beside = sum(job.parts[name] for name in program.beside)
        rows.append(Row(program, cost, programs.Bound.of(cost, chip), beside))
        if cost.full:
            refused.add(program.name)
        if stop_when_full and (cost.full or rows[-1].total > chip.memory):
            break
    return Plan(job, chip, num_devices, tuple(rows))


def device_bytes(tree: Any) -> int:
    """Bytes on one device of an abstract tree that says where its arrays lie; not those in the
    host's memory."""
    return _bytes(tree, on_host=False)


def host_bytes(tree: Any) -> int:
    """Bytes in the host's memory for one device, of such a tree."""
    return _bytes(tree, on_host=True)


def _bytes(tree: Any, *, on_host: bool) -> int:
    is_variable = lambda x: isinstance(x, nnx.Variable)  # noqa: E731
    found = []
    for leaf in jax.tree.leaves(tree, is_leaf=is_variable):
        # A GPU that is not here forgets what its shardings say of memory; a moment says it itself.
        said = leaf.get_metadata().get("memory") if is_variable(leaf) else None
        found += [
            x
            for x in jax.tree.leaves(leaf)
            if ((said or x.sharding.memory_kind) in IN_HOST_MEMORY) == on_host
        ]
    return memory.device_bytes(found, [x.sharding for x in found])


def _row_dict(row: Row, num_devices: int) -> dict[str, Any]:
    cost, bound = row.cost, row.bound
    return {
        "name": row.program.name,
        "arguments": cost.arguments,
        "results": cost.results,
        "temporaries": cost.temporaries,
        "beside": row.beside,
        "peak": row.total,
        "refused": cost.full,
        "flops": cost.flops,
        "xla_flops_loops_once": cost.xla_flops,
        "model_flops": row.program.model_flops / num_devices,
        "bytes_moved": cost.moved,
        "exchanges": _exchanges(cost.work.counts, cost.work.received),
        "bound_s": bound.seconds,
        "bound_by": bound.by,
        "turns_per_step": row.program.runs,
        "compile_s": round(cost.compile_s, 2),
    }


def _exchanges(counts: collections.Counter, received: collections.Counter) -> dict[str, Any]:
    return {kind: {"count": n, "bytes_received": received[kind]} for kind, n in counts.items()}
