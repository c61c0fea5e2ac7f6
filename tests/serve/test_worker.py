"""The decoder's thread: everybody gets an answer, whatever happens to it."""

import queue
import threading

import fakes
import pytest

from jaxmath.decode.requests import Completion, Request, Update
from jaxmath.decode.sampling import SamplingConfig
from jaxmath.serve.errors import ApiError
from jaxmath.serve.worker import Batch, Worker

OPTIONS = SamplingConfig(max_tokens=50)


def request(prompt_id, sample=0, text="hello"):
    return Request(prompt_id, sample, tuple(fakes.encode(text)), OPTIONS)


class Caller:
    """A batch, and what was delivered to it."""

    def __init__(self, *requests, stream=False):
        self.events = queue.SimpleQueue()
        self.batch = Batch(list(requests), self.events.put, stream)

    def next(self):
        return self.events.get(timeout=60)

    @property
    def silent(self):
        return self.events.empty()


@pytest.fixture
def session():
    return fakes.FakeSession()


@pytest.fixture
def worker(session):
    worker = Worker(lambda: session, max_waiting=10)
    worker.start()
    yield worker
    session.gate.set()
    worker.stop()


def submit(worker, *requests, stream=False):
    caller = Caller(*requests, stream=stream)
    worker.submit(caller.batch)
    return caller


def test_one_thread_touches_the_session(worker, session):
    caller = submit(worker, request(1), request(2))
    done = [caller.next(), caller.next()]
    assert {c.prompt_id for c in done} == {1, 2} and all(isinstance(c, Completion) for c in done)
    assert done[0].text == "HELLO #0"
    worker.cancel(submit(worker, request(3)).batch)
    fakes.eventually(lambda: worker.num_waiting == 0)
    assert session.threads == {"decoder"}


def test_updates_come_before_their_completion_and_only_to_streams(worker):
    plain, stream = submit(worker, request(1)), submit(worker, request(2), stream=True)
    events = [stream.next()]
    while isinstance(events[-1], Update):
        events.append(stream.next())
    assert len(events) == 4 and isinstance(events[-1], Completion)
    assert sum((u.tokens for u in events[:-1]), ()) == events[-1].tokens
    assert isinstance(plain.next(), Completion) and plain.silent


def test_it_sleeps_while_there_is_nothing_to_do(worker, session):
    submit(worker, request(1)).next()
    steps = session.num_steps
    threading.Event().wait(0.1)
    assert session.num_steps == steps


def test_a_cancelled_batch_leaves_the_session_and_hears_nothing(worker, session):
    session.gate.clear()
    gone, stays = submit(worker, request(1), request(2)), submit(worker, request(3))
    fakes.eventually(lambda: len(session.running) >= 2)
    worker.cancel(gone.batch)
    worker.cancel(gone.batch)  # twice is once
    session.gate.set()
    assert stays.next().prompt_id == 3
    assert gone.silent and worker.num_waiting == 0
    assert [what for what in session.log if what[0] == "cancel"] == [
        ("cancel", (1, 0)),
        ("cancel", (2, 0)),
    ]


def test_what_is_cancelled_before_it_began_never_reaches_the_session(worker, session):
    session.gate.clear()
    first = submit(worker, request(1))
    fakes.eventually(lambda: session.running)
    second = submit(worker, request(2))
    worker.cancel(second.batch)
    session.gate.set()
    first.next()
    fakes.eventually(lambda: not session.busy)
    assert [r.prompt_id for what, r in session.log if what == "submit"] == [1]


def test_equal_names_follow_one_another(worker, session):
    callers = [submit(worker, request(7)) for _ in range(3)]
    assert [caller.next().text for caller in callers] == ["HELLO #0"] * 3
    assert worker.num_waiting == 0 and not worker._held and not worker._owners


def test_a_cancelled_name_makes_room_for_its_like(worker, session):
    session.gate.clear()
    first, second = submit(worker, request(7)), submit(worker, request(7))
    fakes.eventually(lambda: session.running)
    worker.cancel(first.batch)
    session.gate.set()
    assert second.next().text == "HELLO #0" and first.silent


def test_a_request_the_session_refuses_ends_its_batch_alone(worker, session):
    bad = Request(1, 0, (255, 65), OPTIONS)
    caller, other = submit(worker, request(5), bad, request(6)), submit(worker, request(8))
    error = caller.next()
    assert isinstance(error, ApiError) and error.status == 400 and "255" in error.message
    assert other.next().prompt_id == 8
    assert caller.silent and worker.num_waiting == 0


def test_too_many_unfinished_requests_are_told_to_come_back(worker, session):
    session.gate.clear()
    first = submit(worker, *(request(i) for i in range(8)))
    with pytest.raises(ApiError, match="of 10 at most") as found:
        worker.submit(Caller(*(request(i) for i in range(20, 23))).batch)
    assert found.value.status == 429 and found.value.headers["Retry-After"] == "1"
    worker.cancel(first.batch)
    submit(worker, *(request(i) for i in range(30, 40)))
    session.gate.set()


def test_a_failed_step_is_told_to_all_who_wait_and_all_who_come(worker, session, capfd):
    session.gate.clear()
    callers = [submit(worker, request(1), request(2)), submit(worker, request(3), stream=True)]
    fakes.eventually(lambda: session.running)
    session.fails = RuntimeError("out of memory")
    session.gate.set()
    for caller in callers:
        error = caller.next()
        assert error.status == 500 and "memory" not in error.message and caller.silent
    with pytest.raises(ApiError) as found:
        worker.submit(Caller(request(4)).batch)
    assert found.value.status == 500
    assert isinstance(worker.error, RuntimeError) and worker.num_waiting == 0
    assert "out of memory" in capfd.readouterr().err


def test_a_session_that_cannot_be_opened_is_told_too(capfd):
    def broken():
        raise RuntimeError("no device")

    worker = Worker(broken, 10)
    caller = submit(worker, request(1))
    worker.start()
    assert caller.next().status == 500
    worker.stop()


def test_stopping_ends_the_thread_and_tells_those_who_wait(worker, session):
    session.gate.clear()
    caller = submit(worker, request(1))
    fakes.eventually(lambda: session.running)
    worker.abandon()  # the step still hangs
    assert caller.next().status == 503
    with pytest.raises(ApiError) as found:
        worker.submit(Caller(request(2)).batch)
    assert found.value.status == 503
    session.gate.set()
    worker.stop(10)
    assert not worker._thread.is_alive() and caller.silent and worker.error is None


def test_many_threads_at_once_each_get_their_own(session):
    session.chunk, worker = 50, Worker(lambda: session, 1000)
    worker.start()
    wrong = []

    def call(number):
        for i in range(20):
            caller = submit(worker, request(number * 100 + i, text=f"{number}.{i}"))
            if caller.next().text != f"{number}.{i} #0":
                wrong.append((number, i))

    threads = [threading.Thread(target=call, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    worker.stop()
    assert not wrong and worker.num_finished == 160
