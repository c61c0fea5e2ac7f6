"""A grading worker as the pool sees it: a process, the pipe to it, and what it has been sent."""

import collections
import dataclasses
import multiprocessing.connection
import multiprocessing.context
import multiprocessing.process
import os
import time
from collections.abc import Mapping
from typing import Any

from jaxmath.verify import graders, workers

STARTING, IDLE, BUSY = "starting", "idle", "busy"


@dataclasses.dataclass(eq=False)
class Worker:
    """Fields:

    clock: shared with the process; `clock[0]` is the monotonic time at which its item began, or 0.
    items: sent and not yet answered, in order.
    """

    process: multiprocessing.process.BaseProcess
    connection: multiprocessing.connection.Connection
    clock: Any
    state: str
    started_at: float
    items: collections.deque

    def kill(self) -> None:
        self.process.kill()
        self.process.join()


def num_cores() -> int:
    """Cores this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def start(
    context: multiprocessing.context.BaseContext,
    timeout_s: float,
    wall_timeout_s: float,
    memory_mb: int | None,
    table: Mapping[str, graders.Grader],
) -> Worker:
    """A new process of `workers.work`; it says so itself when it is ready."""
    ours, theirs = context.Pipe(duplex=True)
    clock = context.RawArray("d", 1)
    process = context.Process(
        target=workers.work,
        args=(theirs, clock, timeout_s, wall_timeout_s, memory_mb, table),
        daemon=True,
    )
    process.start()
    theirs.close()
    return Worker(process, ours, clock, STARTING, time.monotonic(), collections.deque())
