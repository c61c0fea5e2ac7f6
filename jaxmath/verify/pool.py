"""Grading in worker processes, with a clock per item.

Each worker notes in shared memory when it began the item at hand; a thread of the parent watches
these clocks, kills a worker whose item has overrun, and starts another. Time spent in the queue is
never charged. What an item can cost: its own verdict (`timeout`), or, if it takes a worker down,
one more attempt alone on a fresh worker (then `error`). Work travels in batches and verdicts come
back one by one, so a kill loses at most the item that caused it.

Workers are spawned, not forked: a parent that runs JAX has threads, and a fork of those may
deadlock.
"""

import collections
import dataclasses
import itertools
import math
import multiprocessing
import multiprocessing.connection
import threading
import time
from collections.abc import Hashable, Iterable, Mapping

from jaxmath.verify import graders, verdict, workers

MAX_FAILED_STARTS = 3  # in a row: the environment is broken, and starting again will not mend it
START_TIMEOUT_S = 120.0
STARTING, IDLE, BUSY = "starting", "idle", "busy"


@dataclasses.dataclass(frozen=True)
class VerifyConfig:
    """How answers are graded.

    Fields:
      grader: what counts as right: a name of `graders.GRADERS`.
      num_workers: worker processes, >= 1.
      timeout_s: wall-clock limit of one item, counted from its start in a worker, > 0.
      memory_mb: address-space limit of a worker in MiB, or None for none.
      batch_size: items sent to a worker at once, >= 1.
    """

    grader: str = "strict"
    num_workers: int = 2
    timeout_s: float = 5.0
    memory_mb: int | None = 2048
    batch_size: int = 16

    def __post_init__(self):
        if self.grader not in graders.GRADERS:
            known = ", ".join(graders.GRADERS)
            raise ValueError(f"grader must be one of {known}; got {self.grader!r}")
        if self.num_workers < 1:
            raise ValueError(f"num_workers must be at least 1, got {self.num_workers}")
        if not (self.timeout_s > 0 and math.isfinite(self.timeout_s)):
            raise ValueError(f"timeout_s must be a positive number, got {self.timeout_s}")
        if self.memory_mb is not None and self.memory_mb < 256:
            raise ValueError(f"memory_mb must be at least 256 (or null), got {self.memory_mb}")
        if self.batch_size < 1:
            raise ValueError(f"batch_size must be at least 1, got {self.batch_size}")


@dataclasses.dataclass(eq=False)
class Item:
    ticket: int
    kind: str
    gold: str
    text: str
    alone: bool = False  # its worker died once: the second attempt shares a batch with nobody


@dataclasses.dataclass(eq=False)
class Worker:
    process: multiprocessing.process.BaseProcess
    connection: multiprocessing.connection.Connection
    clock: object
    state: str
    started_at: float
    items: collections.deque  # sent and not yet answered, in order


class VerifierPool:
    """Worker processes that grade; a context manager.

        with VerifierPool(VerifyConfig(num_workers=2)) as pool:
            verdicts = pool.grade([(gold, response), ...])

    or, while something else goes on: `submit(key, gold, response)`, `poll()`, at the end `drain()`.
    `num_restarts` counts the workers that were killed or died. Methods may be called from any
    thread.

    Raises:
      RuntimeError: from any method, if workers die while starting `MAX_FAILED_STARTS` times in a
        row.
    """

    def __init__(self, config: VerifyConfig, table: Mapping[str, graders.Grader] = graders.GRADERS):
        self.config = config
        self.num_restarts = 0
        self._grader = table[config.grader]
        self._context = multiprocessing.get_context("spawn")
        self._changed = threading.Condition()
        self._queue: collections.deque[Item] = collections.deque()
        self._retries: collections.deque[Item] = collections.deque()
        self._results: dict[int, verdict.Verdict] = {}
        self._keys: dict[
            int, Hashable
        ] = {}  # tickets of `submit` not yet handed out by `poll` or `drain`
        self._ready: collections.deque[int] = collections.deque()
        self._tickets = itertools.count()
        self._failed_starts = 0
        self._fault: str | None = None
        self._closing = False
        self._workers: list[Worker] = []

    def __enter__(self) -> "VerifierPool":
        self._waker, self._wakened = self._context.Pipe(duplex=True)
        self._workers = [self._start() for _ in range(self.config.num_workers)]
        self._thread = threading.Thread(target=self._run, name="verifier-pool", daemon=True)
        self._thread.start()
        return self

    def __exit__(self, *_) -> None:
        """Stops the workers at once; work not yet graded is dropped."""
        with self._changed:
            self._closing = True
        self._wake()
        self._thread.join()
        for worker in self._workers:
            self._kill(worker)
        self._waker.close()
        self._wakened.close()

    def grade(self, pairs: Iterable[tuple[str, str]]) -> list[verdict.Verdict]:
        """Verdicts of (gold, response) pairs, in their order."""
        return self._grade(workers.RESPONSE, pairs)

    def grade_answers(self, pairs: Iterable[tuple[str, str]]) -> list[verdict.Verdict]:
        """Verdicts of (gold, bare answer) pairs, in their order."""
        return self._grade(workers.ANSWER, pairs)

    def submit(self, key: Hashable, gold: str, response: str) -> None:
        """Queue one response; returns at once. Its verdict comes back from `poll` or `drain` under
        `key`."""
        with self._changed:
            ticket = self._enqueue(workers.RESPONSE, gold, response)
            self._keys[ticket] = key
        self._wake()

    def poll(self) -> list[tuple[Hashable, verdict.Verdict]]:
        """The submitted items graded since the last call, in order of completion; never waits."""
        with self._changed:
            self._check()
            return self._hand_out()

    def drain(self) -> list[tuple[Hashable, verdict.Verdict]]:
        """Waits until every submitted item is graded, and returns those not yet handed out."""
        with self._changed:
            self._changed.wait_for(lambda: self._fault or len(self._ready) == len(self._keys))
            self._check()
            return self._hand_out()

    # ── called with the lock held ──

    def _check(self) -> None:
        if self._fault:
            raise RuntimeError(self._fault)

    def _enqueue(self, kind: str, gold: str, text: str) -> int:
        self._check()
        if not (isinstance(gold, str) and isinstance(text, str)):
            raise TypeError(
                f"gold and {kind} must be str, got {type(gold).__name__}, {type(text).__name__}"
            )
        ticket = next(self._tickets)
        self._queue.append(Item(ticket, kind, gold, text))
        return ticket

    def _hand_out(self) -> list[tuple[Hashable, verdict.Verdict]]:
        done = [(self._keys.pop(ticket), self._results.pop(ticket)) for ticket in self._ready]
        self._ready.clear()
        return done

    def _finish(self, ticket: int, result: verdict.Verdict) -> None:
        self._results[ticket] = result
        if ticket in self._keys:
            self._ready.append(ticket)
        self._changed.notify_all()

    # ── callers ──

    def _grade(self, kind: str, pairs: Iterable[tuple[str, str]]) -> list[verdict.Verdict]:
        with self._changed:
            tickets = [self._enqueue(kind, gold, text) for gold, text in pairs]
        self._wake()
        with self._changed:
            # popped as they come, so that a wait over many items does not scan all of them each
            # time
            verdicts = []
            for ticket in tickets:
                self._changed.wait_for(lambda ticket=ticket: self._fault or ticket in self._results)
                self._check()
                verdicts.append(self._results.pop(ticket))
            return verdicts

    def _wake(self) -> None:
        with self._changed:
            if not self._wakened.poll():  # one pending byte is enough
                self._waker.send_bytes(b"w")

    # ── the thread that owns the workers ──

    def _run(self) -> None:
        try:
            while self._serve():
                pass
        except BaseException as error:  # else the callers would wait for ever
            with self._changed:
                self._fault = f"the verifier pool stopped: {type(error).__name__}: {error}"
                self._changed.notify_all()
            raise

    def _serve(self) -> bool:
        """One round: hand out work, wait for news, look at the clocks. False when it is time to
        stop."""
        with self._changed:
            if self._closing or self._fault:
                return False
            self._dispatch()
        timeout = self._until_next_deadline()
        by_connection = {worker.connection: worker for worker in self._workers}
        ready = multiprocessing.connection.wait([self._wakened, *by_connection], timeout)
        for connection in ready:
            if connection is self._wakened:
                self._wakened.recv_bytes()
            else:
                self._receive(by_connection[connection])
        for worker in list(self._workers):
            self._check_clock(worker)
        return True

    def _dispatch(self) -> None:
        for worker in self._workers:
            if worker.state != IDLE:
                continue
            if self._retries:
                items = [self._retries.popleft()]
            elif self._queue:
                share = math.ceil(len(self._queue) / len(self._workers))
                count = min(len(self._queue), self.config.batch_size, share)
                items = [self._queue.popleft() for _ in range(count)]
            else:
                return
            worker.items.extend(items)
            worker.state = BUSY
            # A worker that died meanwhile is noticed at its connection, with its items still
            # listed.
            try:
                worker.connection.send([(i.ticket, i.kind, i.gold, i.text) for i in items])
            except OSError:
                continue

    def _until_next_deadline(self) -> float | None:
        """Seconds until some clock may run out; None if no worker has anything to do."""
        now = time.monotonic()
        limits = []
        for worker in self._workers:
            if worker.state == STARTING:
                limits.append(worker.started_at + START_TIMEOUT_S - now)
            elif worker.state == BUSY:
                began = worker.clock[0] or now
                limits.append(began + self.config.timeout_s - now)
        return max(min(limits), 0.0) + 0.01 if limits else None

    def _receive(self, worker: Worker) -> None:
        try:
            while worker.connection.poll():
                message = worker.connection.recv()
                if message is None:
                    worker.state = IDLE
                    self._failed_starts = 0
                    continue
                ticket, result = message
                with self._changed:
                    assert worker.items.popleft().ticket == ticket
                    self._finish(ticket, result)
                if not worker.items:
                    worker.state = IDLE
        except (EOFError, OSError):
            self._bury(worker)

    def _check_clock(self, worker: Worker) -> None:
        if worker not in self._workers:
            return
        now = time.monotonic()
        if worker.state == STARTING and now > worker.started_at + START_TIMEOUT_S:
            self._bury(worker)
        began = worker.clock[0]
        if worker.state != BUSY or not began or now < began + self.config.timeout_s:
            return
        self._kill(worker)
        self._receive_leftovers(worker)
        if (
            worker.items and worker.clock[0] == began
        ):  # else it ended just in time, and the next is not to blame
            item = worker.items.popleft()
            rule = f"no verdict within {self.config.timeout_s:g} s"
            with self._changed:
                self._finish(
                    item.ticket, verdict.make(verdict.Outcome.TIMEOUT, rule, gold=item.gold)
                )
        self._replace(worker)

    def _receive_leftovers(self, worker: Worker) -> None:
        """Verdicts that a dead worker had already sent."""
        try:
            while worker.items and worker.connection.poll():
                message = worker.connection.recv()
                if message is not None:
                    with self._changed:
                        worker.items.popleft()
                        self._finish(*message)
        except (EOFError, OSError):
            return

    def _bury(self, worker: Worker) -> None:
        """A worker died by itself: its current item is tried once more, alone."""
        self._kill(worker)
        if worker.state == STARTING:
            self._failed_starts += 1
            if self._failed_starts >= MAX_FAILED_STARTS:
                with self._changed:
                    self._fault = (
                        f"{self._failed_starts} grading workers in a row died while starting (exit "
                        f"code {worker.process.exitcode}); see the traceback above. A script that "
                        "uses the pool needs an `if __name__ == '__main__':` guard"
                    )
                    self._changed.notify_all()
                return
        elif worker.items:
            item = worker.items.popleft()
            if item.alone:
                rule = f"worker died twice (exit code {worker.process.exitcode})"
                with self._changed:
                    self._finish(
                        item.ticket, verdict.make(verdict.Outcome.ERROR, rule, gold=item.gold)
                    )
            else:
                item.alone = True
                self._retries.append(item)
        self._replace(worker)

    def _replace(self, worker: Worker) -> None:
        with self._changed:
            self._queue.extendleft(reversed(worker.items))  # the rest of its batch, not to blame
        worker.connection.close()
        self.num_restarts += 1
        self._workers[self._workers.index(worker)] = self._start()

    def _start(self) -> Worker:
        ours, theirs = self._context.Pipe(duplex=True)
        clock = self._context.RawArray("d", 1)
        process = self._context.Process(
            target=workers.work,
            args=(theirs, clock, self.config.timeout_s, self.config.memory_mb, self._grader),
            daemon=True,
        )
        process.start()
        theirs.close()
        return Worker(process, ours, clock, STARTING, time.monotonic(), collections.deque())

    def _kill(self, worker: Worker) -> None:
        worker.process.kill()
        worker.process.join()
