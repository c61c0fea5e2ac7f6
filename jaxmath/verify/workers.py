"""What runs in a grading worker: batches in, verdicts out, a clock that says when the item at hand
began."""

import math
import signal
import time

from jaxmath.verify import evaluate, graders, verdict

RESPONSE, ANSWER = "response", "answer"


def work(
    connection, clock, timeout_s: float, memory_mb: int | None, grader: graders.Grader
) -> None:
    """The life of a worker: receive a batch, send (ticket, verdict) per item, until the parent
    hangs up.

    `clock[0]` is the monotonic time at which the current item began, 0 between items. Should the
    parent be killed, the alarm ends a worker that is stuck: its default action needs no cooperation
    from the stuck code.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the parent's to handle
    if memory_mb is not None:
        import resource

        limit = memory_mb * 2**20
        resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
    evaluate.context()  # imports what the first formula would otherwise have to wait for
    try:
        connection.send(None)  # ready
        while True:
            for ticket, kind, gold, text in connection.recv():
                signal.alarm(math.ceil(timeout_s) + 5)
                clock[0] = time.monotonic()
                try:
                    result = (grader.response if kind == RESPONSE else grader.answer)(gold, text)
                except (
                    Exception
                ) as error:  # counted by its outcome; the worker must outlive one bad item
                    rule = f"{type(error).__name__}: {error}"[:200]
                    result = verdict.make(verdict.Outcome.ERROR, rule, gold=gold)
                clock[0] = 0.0
                connection.send((ticket, result))
            signal.alarm(0)
    except (EOFError, OSError):
        return  # the parent is gone or has closed the pool
