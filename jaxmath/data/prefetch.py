"""Batches built ahead of the step that takes them, by a thread."""

import queue
import threading
import time
from collections.abc import Callable, Iterable
from typing import Generic, TypeVar

T = TypeVar("T")


class Prefetch(Generic[T]):
    """`make(step)` of each step in turn, up to `ahead` of them made before they are asked for.

    Use as a context manager. What `make` raises is raised when its step is asked for.

    waited_s: seconds that the callers of `next` have waited.
    """

    def __init__(self, make: Callable[[int], T], steps: Iterable[int], ahead: int = 2):
        self.waited_s = 0.0
        self._made: queue.Queue = queue.Queue(maxsize=ahead)
        self._stopped = threading.Event()
        self._thread = threading.Thread(
            target=self._work, args=(make, steps), name="prefetch", daemon=True
        )

    def __enter__(self) -> "Prefetch[T]":
        self._thread.start()
        return self

    def __exit__(self, *exc_info) -> None:
        self._stopped.set()
        self._thread.join()

    def next(self) -> T:
        """The result of the next step; StopIteration after the last."""
        start = time.monotonic()
        result, error = self._made.get()
        self.waited_s += time.monotonic() - start
        if error is not None:
            self._put((None, error))  # and again, if asked again
            raise error
        return result

    def _work(self, make: Callable[[int], T], steps: Iterable[int]) -> None:
        try:
            for step in steps:
                if not self._put((make(step), None)):
                    return
        except BaseException as error:  # for the thread that asks
            self._put((None, error))
        else:
            self._put((None, StopIteration()))

    def _put(self, item: tuple) -> bool:
        """False where nobody will ask any more."""
        while not self._stopped.is_set():
            try:
                self._made.put(item, timeout=0.1)
            except queue.Full:
                continue
            return True
        return False
