"""The one thread that owns a decoder session, and the door through which others reach it.

Event loops submit batches and get their updates and completions through a callback, which runs on
the worker's thread and must only pass them on. The worker sleeps while there is nothing to decode.
If a step fails, everything that waits is told so, and whatever comes later is refused.
"""

from __future__ import annotations

import dataclasses
import sys
import threading
import traceback
from collections.abc import Callable
from typing import Protocol

from jaxmath.decode.requests import Completion, Request, Update
from jaxmath.serve.errors import ApiError

Event = Update | Completion | ApiError
Name = tuple[int, int]


class Session(Protocol):
    """What the worker needs of `decode.queue.Session`."""

    @property
    def busy(self) -> bool: ...

    def submit(
        self, request: Request, on_update: Callable[[Update], None] | None = None
    ) -> None: ...

    def cancel(self, prompt_id: int, sample: int) -> None: ...

    def step(self) -> list[Completion]: ...


@dataclasses.dataclass(eq=False)
class Batch:
    """The requests of one call. `deliver` gets a completion for each, or one ApiError for all.

    stream: deliver updates too, each before its completion.
    """

    requests: list[Request]
    deliver: Callable[[Event], None]
    stream: bool = False
    unfinished: int = dataclasses.field(init=False)

    def __post_init__(self):
        self.unfinished = len(self.requests)


class Worker:
    """Decodes batches on a thread of its own.

    Args:
      open_session: makes the session, on that thread.
      max_waiting: requests that may be unfinished at a time; beyond them batches are refused.
    """

    def __init__(self, open_session: Callable[[], Session], max_waiting: int):
        self._open_session, self._max_waiting = open_session, max_waiting
        self._wake = threading.Condition()  # guards the fields down to `_error`
        self._arrived: list[Batch] = []
        self._cancelled: list[Batch] = []
        self._batches: set[Batch] = set()
        self._num_waiting = self._num_finished = 0
        self._stopping = False
        self._error: BaseException | None = None
        self._owners: dict[Name, Batch] = {}  # of what the session holds; the thread's own
        self._held: list[tuple[Request, Batch]] = []  # until another of the same name is done
        self._thread = threading.Thread(target=self._run, name="decoder", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def abandon(self) -> None:
        """Tells all who wait that the server is shutting down; takes no more batches."""
        self._give_up(shutting_down())

    def stop(self, timeout_s: float = 60.0) -> None:
        """Abandons what is unfinished and ends the thread, after its current step."""
        self.abandon()
        self._thread.join(timeout_s)

    @property
    def error(self) -> BaseException | None:
        """What ended the thread, if something did."""
        return self._error

    @property
    def num_waiting(self) -> int:
        """Requests that are not finished."""
        return self._num_waiting

    @property
    def num_finished(self) -> int:
        return self._num_finished

    def submit(self, batch: Batch) -> None:
        """Queues a batch.

        Raises:
          ApiError: 429 with too many unfinished requests, 503 while stopping, 500 after a crash.
        """
        with self._wake:
            if self._error is not None:
                raise _crashed()
            if self._stopping:
                raise shutting_down()
            if self._num_waiting + len(batch.requests) > self._max_waiting:
                raise ApiError(
                    429,
                    f"{self._num_waiting} responses are being made or waited for, of "
                    f"{self._max_waiting} at most; try again later",
                    headers={"Retry-After": "1"},
                )
            self._batches.add(batch)
            self._num_waiting += batch.unfinished
            self._arrived.append(batch)
            self._wake.notify()

    def cancel(self, batch: Batch) -> None:
        """Drops what is not finished of a batch; nothing of it is delivered from here on."""
        with self._wake:
            if self._forget(batch):
                self._cancelled.append(batch)
                self._wake.notify()

    # --- on the worker's thread -----------------------------------------------------------------

    def _run(self) -> None:
        try:
            session = self._open_session()
            while self._take_orders(session):
                if session.busy:
                    self._finish(session, session.step())
        except BaseException as error:  # whatever it is, those who wait must hear of it
            traceback.print_exc(file=sys.stderr)
            self._error = error
            self._give_up(_crashed())

    def _give_up(self, reason: ApiError) -> None:
        with self._wake:
            self._stopping = True
            self._wake.notify()
            left = list(self._batches)
            for batch in left:
                self._forget(batch)
        for batch in left:
            batch.deliver(reason)

    def _take_orders(self, session: Session) -> bool:
        """Waits for work, passes arrivals and cancellations on; False when it is time to stop."""
        with self._wake:
            while not (self._arrived or self._cancelled or self._stopping or session.busy):
                self._wake.wait()
            if self._stopping:
                return False
            arrived, self._arrived = self._arrived, []
            cancelled, self._cancelled = self._cancelled, []
        for batch in arrived:
            self._submit(session, [(request, batch) for request in batch.requests])
        for batch in cancelled:
            self._drop(session, batch)
        return True

    def _submit(self, session: Session, entries: list[tuple[Request, Batch]]) -> None:
        for request, batch in entries:
            if batch not in self._batches:
                continue  # cancelled or failed in the meantime
            if request.name in self._owners:
                self._held.append((request, batch))
                continue
            try:
                session.submit(request, self._pass_on(batch) if batch.stream else None)
            except ValueError as error:
                self._fail(session, batch, ApiError(400, str(error)))
                continue
            self._owners[request.name] = batch

    def _pass_on(self, batch: Batch) -> Callable[[Update], None]:
        def deliver(update: Update) -> None:
            if batch in self._batches:
                batch.deliver(update)

        return deliver

    def _finish(self, session: Session, completions: list[Completion]) -> None:
        for completion in completions:
            batch = self._owners.pop((completion.prompt_id, completion.sample))
            with self._wake:
                if batch not in self._batches:
                    continue
                batch.unfinished -= 1
                self._num_waiting -= 1
                self._num_finished += 1
                if not batch.unfinished:
                    self._batches.discard(batch)
            batch.deliver(completion)
        if completions:
            self._release_held(session)

    def _release_held(self, session: Session) -> None:
        held, self._held = self._held, []
        self._submit(session, held)

    def _fail(self, session: Session, batch: Batch, error: ApiError) -> None:
        with self._wake:
            forgotten = self._forget(batch)
        self._drop(session, batch)
        if forgotten:
            batch.deliver(error)

    def _drop(self, session: Session, batch: Batch) -> None:
        for request in batch.requests:
            if self._owners.get(request.name) is batch:
                session.cancel(*request.name)
                del self._owners[request.name]
        self._release_held(session)

    def _forget(self, batch: Batch) -> bool:
        """Takes a batch off the books; whether it was on them. Needs the lock."""
        if batch not in self._batches:
            return False
        self._batches.discard(batch)
        self._num_waiting -= batch.unfinished
        return True


def shutting_down() -> ApiError:
    return ApiError(503, "the server is shutting down", headers={"Retry-After": "5"})


def _crashed() -> ApiError:
    return ApiError(500, "the decoder has failed; the server's log says why", code="decoder_failed")
