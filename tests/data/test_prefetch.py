"""Order, errors at their step, and a thread that ends."""

import threading
import time

import pytest

from jaxmath.data.prefetch import Prefetch


def test_results_come_in_order_and_end():
    with Prefetch(lambda step: step**2, range(3, 6)) as ahead:
        assert [ahead.next() for _ in range(3)] == [9, 16, 25]
        for _ in range(2):
            with pytest.raises(StopIteration):
                ahead.next()


def test_an_error_waits_for_its_step():
    def make(step):
        if step == 2:
            raise ValueError("step 2")
        return step

    with Prefetch(make, range(10), ahead=5) as ahead:
        assert [ahead.next(), ahead.next()] == [0, 1]
        for _ in range(2):
            with pytest.raises(ValueError, match="step 2"):
                ahead.next()


def test_so_many_are_made_ahead_and_no_more():
    made = []
    with Prefetch(made.append, range(100), ahead=2) as ahead:
        deadline = time.monotonic() + 10
        while len(made) < 3 and time.monotonic() < deadline:
            time.sleep(0.01)
        time.sleep(0.05)
        assert made == [0, 1, 2]  # two in the queue, one at its door
        ahead.next()
    assert not any(thread.name == "prefetch" for thread in threading.enumerate())
    assert len(made) <= 4


def test_only_waiting_counts_as_waiting():
    def make(step):
        time.sleep(0.2 if step == 0 else 0)
        return step

    with Prefetch(make, range(3)) as ahead:
        ahead.next()
        assert ahead.waited_s >= 0.15
        time.sleep(0.05)
        before = ahead.waited_s
        ahead.next()
        assert ahead.waited_s - before < 0.1
