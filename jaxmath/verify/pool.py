"""Grading in worker processes, with a limit of work per item.

A worker's own timer counts the processor time of the item at hand and ends the process when it has
used up its share, be it in Python or in C: a loaded machine makes nothing time out. A thread of the
parent notices the death, and also watches the wall clock, for code that sleeps. What an item can
cost: its own verdict (`timeout`, or `error` where it took a worker down or the grader raised), and
this only after a second attempt, in a batch of its own. Work travels in batches and verdicts come
back one by one, so a dead worker loses at most the item that killed it.

Workers are spawned, not forked: a parent that runs JAX has threads, and a fork of those may
deadlock.
"""

import collections
import contextlib
import dataclasses
import itertools
import math
import multiprocessing
import multiprocessing.connection
import signal
import threading
import time
from collections.abc import Hashable, Iterable, Mapping

from jaxmath.verify import graders, process, verdict, workers

MAX_FAILED_STARTS = 3  # in a row: the environment is broken, and starting again will not mend it
START_TIMEOUT_S = 120.0
WALL_FACTOR = 30  # an item may take so many times its limit of work, on a crowded machine


@dataclasses.dataclass(frozen=True)
class VerifyConfig:
    """How answers are graded.

    Fields:
      grader: what counts as right: a name of `graders.GRADERS`.
      num_workers: worker processes, >= 1; null for one per core this process may use.
      timeout_s: limit of one item in seconds of work, that is of processor time, > 0; asleep or
        crowded out it may take `WALL_FACTOR` times as long.
      memory_mb: address-space limit of a worker in MiB, or None for none.
      batch_size: items sent to a worker at once, >= 1.
    """

    grader: str = "strict"
    num_workers: int | None = None
    timeout_s: float = 5.0
    memory_mb: int | None = 2048
    batch_size: int = 16

    def __post_init__(self):
        if self.grader not in graders.GRADERS:
            known = ", ".join(graders.GRADERS)
            raise ValueError(f"grader must be one of {known}; got {self.grader!r}")
        if self.num_workers is not None and self.num_workers < 1:
            raise ValueError(f"num_workers must be at least 1 (or null), got {self.num_workers}")
        if not (self.timeout_s > 0 and math.isfinite(self.timeout_s)):
            raise ValueError(f"timeout_s must be a positive number, got {self.timeout_s}")
        if self.memory_mb is not None and self.memory_mb < 256:
            raise ValueError(f"memory_mb must be at least 256 (or null), got {self.memory_mb}")
        if self.batch_size < 1:
            raise ValueError(f"batch_size must be at least 1, got {self.batch_size}")

    @property
    def wall_timeout_s(self) -> float:
        return self.timeout_s * WALL_FACTOR


@dataclasses.dataclass(eq=False)
class Item:
    ticket: int
    task: workers.Task
    alone: bool = False  # it failed once: the second attempt shares a batch with nobody


@dataclasses.dataclass(eq=False)
class Call:
    """A caller that waits for `num_open` verdicts."""

    num_open: int


class VerifierPool:
    """Worker processes that grade; a context manager.

        with VerifierPool(VerifyConfig(num_workers=2)) as pool:
            verdicts = pool.grade([(gold, response), ...])

    or, while something else goes on: `submit(key, gold, response)`, `poll()`, at the end `drain()`.
    `num_restarts` counts the workers that were killed or died, `num_retries` the items that were
    tried a second time. Methods may be called from any thread.

    Args:
      table: the graders by name, for the workers; picklable.
    Raises:
      RuntimeError: from any method, if workers die while starting `MAX_FAILED_STARTS` times in a
        row.
    """

    def __init__(self, config: VerifyConfig, table: Mapping[str, graders.Grader] = graders.GRADERS):
        self.config = config
        self.num_restarts = 0
        self.num_retries = 0
        self._table = dict(table)
        self._context = multiprocessing.get_context("spawn")
        self._changed = threading.Condition()
        self._queue: collections.deque[Item] = collections.deque()
        self._retries: collections.deque[Item] = collections.deque()
        self._results: dict[int, verdict.Verdict] = {}
        self._keys: dict[int, Hashable] = {}  # of `submit`: tickets not yet handed out
        self._calls: dict[int, Call] = {}  # by ticket
        self._ready: collections.deque[int] = collections.deque()
        self._tickets = itertools.count()
        self._failed_starts = 0
        self._fault: str | None = None
        self._closing = False
        self._workers: list[process.Worker] = []

    def __enter__(self) -> "VerifierPool":
        self._waker, self._wakened = self._context.Pipe(duplex=True)
        self._workers = [
            self._start() for _ in range(self.config.num_workers or process.num_cores())
        ]
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
            worker.kill()
        self._waker.close()
        self._wakened.close()

    def grade(
        self, pairs: Iterable[tuple[str, str]], grader: str | None = None
    ) -> list[verdict.Verdict]:
        """Verdicts of (gold, response) pairs, in their order; `grader` instead of the config's."""
        return self._grade(workers.RESPONSE, pairs, grader)

    def grade_answers(
        self, pairs: Iterable[tuple[str, str]], grader: str | None = None
    ) -> list[verdict.Verdict]:
        """Verdicts of (gold, bare answer) pairs, in their order."""
        return self._grade(workers.ANSWER, pairs, grader)

    def submit(self, key: Hashable, gold: str, response: str) -> None:
        """Queues one response; `poll` or `drain` returns its verdict under `key`."""
        with self._changed:
            ticket = self._enqueue(
                workers.Task(self.config.grader, workers.RESPONSE, gold, response)
            )
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

    def _enqueue(self, task: workers.Task) -> int:
        self._check()
        if not (isinstance(task.gold, str) and isinstance(task.text, str)):
            kinds = f"{type(task.gold).__name__}, {type(task.text).__name__}"
            raise TypeError(f"gold and {task.kind} must be str, got {kinds}")
        ticket = next(self._tickets)
        self._queue.append(Item(ticket, task))
        return ticket

    def _hand_out(self) -> list[tuple[Hashable, verdict.Verdict]]:
        done = [(self._keys.pop(ticket), self._results.pop(ticket)) for ticket in self._ready]
        self._ready.clear()
        return done

    def _finish(self, ticket: int, result: verdict.Verdict) -> None:
        """Keeps a verdict; those who wait are woken once, when theirs are complete."""
        if ticket in self._keys:
            self._results[ticket] = result
            self._ready.append(ticket)
            complete = len(self._ready) == len(self._keys)
        elif ticket in self._calls:  # else of a call that was refused halfway
            self._results[ticket] = result
            call = self._calls.pop(ticket)
            call.num_open -= 1
            complete = not call.num_open
        else:
            return
        if complete:
            self._changed.notify_all()

    # ── callers ──

    def _grade(
        self, kind: str, pairs: Iterable[tuple[str, str]], grader: str | None
    ) -> list[verdict.Verdict]:
        name = self.config.grader if grader is None else grader
        if name not in self._table:
            raise ValueError(f"grader must be one of {', '.join(self._table)}; got {name!r}")
        with self._changed:
            tickets = [self._enqueue(workers.Task(name, kind, *pair)) for pair in pairs]
            call = Call(len(tickets))
            self._calls |= dict.fromkeys(tickets, call)
        self._wake()
        with self._changed:
            self._changed.wait_for(lambda: self._fault or not call.num_open)
            self._check()
            return [self._results.pop(ticket) for ticket in tickets]

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
            batches = self._dispatch()
        # Outside the lock: a long text takes its time through a pipe, and nobody is to wait for it.
        for worker, items in batches:
            # A worker that died meanwhile is noticed at its connection, its items still listed.
            with contextlib.suppress(OSError):
                worker.connection.send([(item.ticket, item.task) for item in items])
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

    def _dispatch(self) -> list[tuple[process.Worker, list[Item]]]:
        """What each idle worker is to be sent; called with the lock held."""
        batches = []
        for worker in self._workers:
            if worker.state != process.IDLE:
                continue
            if self._retries:
                items = [self._retries.popleft()]
            elif self._queue:
                share = math.ceil(len(self._queue) / len(self._workers))
                count = min(len(self._queue), self.config.batch_size, share)
                items = [self._queue.popleft() for _ in range(count)]
            else:
                break
            worker.items.extend(items)
            worker.state = process.BUSY
            batches.append((worker, items))
        return batches

    def _until_next_deadline(self) -> float | None:
        """Seconds until some clock may run out; None if no worker has anything to do."""
        now = time.monotonic()
        limits = []
        for worker in self._workers:
            if worker.state == process.STARTING:
                limits.append(worker.started_at + START_TIMEOUT_S - now)
            elif worker.state == process.BUSY:
                began = worker.clock[0] or now
                limits.append(began + self.config.wall_timeout_s - now)
        return max(min(limits), 0.0) + 0.01 if limits else None

    def _receive(self, worker: process.Worker) -> None:
        try:
            while worker.connection.poll():
                message = worker.connection.recv()
                if message is None:
                    worker.state = process.IDLE
                    self._failed_starts = 0
                    continue
                self._accept(worker, *message)
                if not worker.items:
                    worker.state = process.IDLE
        except (EOFError, OSError):
            self._bury(worker)

    def _accept(self, worker: process.Worker, ticket: int, result: verdict.Verdict) -> None:
        """A verdict that a worker has sent; an error of its grader is not yet the last word."""
        item = worker.items.popleft()
        assert item.ticket == ticket
        if result.outcome is verdict.Outcome.ERROR:
            self._fail(item, result.outcome, result.rule)
        else:
            with self._changed:
                self._finish(ticket, result)

    def _fail(self, item: Item, outcome: verdict.Outcome, rule: str) -> None:
        """An item came to nothing: it is tried once more, alone, and then it is a fault."""
        with self._changed:
            if item.alone:
                self._finish(item.ticket, verdict.make(outcome, rule, gold=item.task.gold))
                return
            item.alone = True
            self.num_retries += 1
            self._retries.append(item)

    def _check_clock(self, worker: process.Worker) -> None:
        if worker not in self._workers:
            return
        now = time.monotonic()
        if worker.state == process.STARTING and now > worker.started_at + START_TIMEOUT_S:
            self._bury(worker)
        began = worker.clock[0]
        if worker.state != process.BUSY or not began or now < began + self.config.wall_timeout_s:
            return
        worker.kill()
        self._receive_leftovers(worker)
        # else it ended just in time, and the next is not to blame
        blamed = worker.items.popleft() if worker.items and worker.clock[0] == began else None
        self._replace(worker)
        if blamed:
            rule = f"no verdict within {self.config.wall_timeout_s:g} s by the clock, twice"
            self._fail(blamed, verdict.Outcome.TIMEOUT, rule)

    def _receive_leftovers(self, worker: process.Worker) -> None:
        """Verdicts that a dead worker had already sent."""
        try:
            while worker.items and worker.connection.poll():
                message = worker.connection.recv()
                if message is not None:
                    self._accept(worker, *message)
        except (EOFError, OSError):
            return

    def _bury(self, worker: process.Worker) -> None:
        """A worker died by itself: of its timer, or of what its current item did to it."""
        worker.kill()
        if worker.state == process.STARTING:
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
        blamed = worker.items.popleft() if worker.items else None
        self._replace(worker)
        if blamed and worker.process.exitcode == -signal.SIGPROF:
            rule = f"no verdict within {self.config.timeout_s:g} s of work, twice"
            self._fail(blamed, verdict.Outcome.TIMEOUT, rule)
        elif blamed:
            rule = f"worker died twice (exit code {worker.process.exitcode})"
            self._fail(blamed, verdict.Outcome.ERROR, rule)

    def _replace(self, worker: process.Worker) -> None:
        with self._changed:
            self._queue.extendleft(reversed(worker.items))  # the rest of its batch, not to blame
        worker.connection.close()
        self.num_restarts += 1
        self._workers[self._workers.index(worker)] = self._start()

    def _start(self) -> process.Worker:
        return process.start(
            self._context,
            self.config.timeout_s,
            self.config.wall_timeout_s,
            self.config.memory_mb,
            self._table,
        )
