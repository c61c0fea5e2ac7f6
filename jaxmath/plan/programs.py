"""A program of a run, compiled for devices that are not here, and what it takes on one of them.

    memory    arguments + results that are not written over arguments + temporaries, at the fullest
    time      at least the longest of: arithmetic / FLOP/s, bytes moved / bandwidth of the memory,
              bytes received / bandwidth of the links

The bound is what a perfect program of these instructions would take; see `REACHED` for what is
reached in practice.
"""

from __future__ import annotations

import dataclasses
import re
import time
from collections.abc import Callable

import jax

from jaxmath.plan import hlo, traffic, work
from jaxmath.plan.chips import Chip

# Share of the bound that good programs reach: training at 40 to 55 % of the peak, decoders at 40 to
# 70 % of the bandwidth. An estimate of a step divides by it.
REACHED = 0.5

_TPU_FULL = re.compile(r"Used ([\d.]+)([KMG]) of ([\d.]+)([KMG]) hbm")
_UNITS = {"K": 2**10, "M": 2**20, "G": 2**30}


@dataclasses.dataclass(frozen=True)
class Program:
    """What to compile, and where it stands in the run.

    compile: does it. holds: names of the resident parts that are its arguments. beside: of those
      that lie in memory while it runs without being its arguments.
    model_flops: arithmetic that the model itself asks for, over all devices, per turn.
    runs: how often a step runs it, in turns. is_loop: a turn is one of its main loop's, which ends
      when the data say so, as in decoding.
    after: the program without which this one cannot be compiled.
    """

    name: str
    compile: Callable[[], jax.stages.Compiled]
    holds: tuple[str, ...]
    beside: tuple[str, ...]
    model_flops: float
    runs: float
    is_loop: bool = False
    after: str | None = None


@dataclasses.dataclass(frozen=True)
class Cost:
    """Of one device. Bytes: arguments, results (not over arguments), temporaries, peak of all.

    flops, moved, work: of one turn. xla_flops: as XLA counts, each loop's body once.
    compile_s: seconds. full: the compiler refused it for its memory; only `peak` is then known.
    """

    arguments: int
    results: int
    temporaries: int
    peak: int
    flops: float
    xla_flops: float
    moved: float
    work: work.Work
    compile_s: float
    full: bool = False


@dataclasses.dataclass(frozen=True)
class Bound:
    """Least seconds of one turn, and the resource that sets them."""

    seconds: float
    by: str

    @classmethod
    def of(cls, cost: Cost, chip: Chip) -> Bound:
        seconds = {
            "arithmetic": cost.flops / chip.flops,
            "memory": cost.moved / chip.bandwidth,
            "links": cost.work.total_received / chip.links,
        }
        by = max(seconds, key=seconds.__getitem__)
        return cls(seconds[by], by)


def cost(program: Program) -> Cost:
    """Compiles the program and reads its numbers."""
    start = time.perf_counter()
    try:
        compiled = program.compile()
    except jax.errors.JaxRuntimeError as error:
        if (peak := refused_peak(str(error))) is None:
            raise
        seconds = time.perf_counter() - start
        return Cost(0, 0, 0, peak, 0.0, 0.0, 0.0, work.Work(), seconds, full=True)
    seconds = time.perf_counter() - start
    text = hlo.parse(compiled.as_text())
    body = traffic.main_loop(text).body if program.is_loop else text.entry
    done = work.of(text, body)
    memory = compiled.memory_analysis()
    results = memory.output_size_in_bytes - memory.alias_size_in_bytes
    arguments, temporaries = memory.argument_size_in_bytes, memory.temp_size_in_bytes
    return Cost(
        arguments=arguments,
        results=results,
        temporaries=temporaries,
        peak=arguments + results + temporaries,
        flops=done.flops,
        xla_flops=_xla_flops(compiled),
        moved=traffic.accessed(text, body),
        work=done,
        compile_s=seconds,
    )


def refused_peak(message: str) -> int | None:
    """Bytes that a TPU program needs, from the error that refuses it; None: another error.

    "Ran out of memory in memory space hbm. Used 20.50G of 15.75G hbm."
    """
    found = _TPU_FULL.search(message)
    return int(float(found[1]) * _UNITS[found[2]]) if found else None


def _xla_flops(compiled: jax.stages.Compiled) -> float:
    found = compiled.cost_analysis() or {}
    return float(found.get("flops", 0.0))
