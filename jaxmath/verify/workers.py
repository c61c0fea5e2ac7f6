"""What runs in a grading worker: batches in, verdicts out, and a timer on the item at hand."""

import math
import signal
import time
from collections.abc import Mapping
from typing import NamedTuple

from jaxmath.verify import evaluate, graders, verdict

RESPONSE, ANSWER = "response", "answer"


class Task(NamedTuple):
    """One text to grade: a whole response, or a bare answer."""

    grader: str
    kind: str
    gold: str
    text: str


def work(
    connection,
    clock,
    timeout_s: float,
    wall_timeout_s: float,
    memory_mb: int | None,
    table: Mapping[str, graders.Grader],
) -> None:
    """The life of a worker: receive a batch, send (ticket, verdict) per item, until the parent
    hangs up.

    The profiling timer counts processor time, of user and kernel, and its default action ends the
    process without the cooperation of code that is stuck; the parent knows a timeout by that death.
    `clock[0]` is the monotonic time at which the current item began, 0 between items, for the
    parent to see who sleeps. Should the parent itself be killed, the alarm does its part.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the parent's to handle
    for deadly in (signal.SIGPROF, signal.SIGALRM):  # whatever the parent made of them
        signal.signal(deadly, signal.SIG_DFL)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, (signal.SIGPROF, signal.SIGALRM))
    if memory_mb is not None:
        import resource

        limit = memory_mb * 2**20
        resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
    evaluate.context()  # imports what the first formula would otherwise have to wait for
    try:
        connection.send(None)  # ready
        while True:
            for ticket, task in connection.recv():
                signal.alarm(math.ceil(wall_timeout_s) + 5)
                signal.setitimer(signal.ITIMER_PROF, timeout_s)
                clock[0] = time.monotonic()
                result = judge(table[task.grader], task)
                clock[0] = 0.0
                signal.setitimer(signal.ITIMER_PROF, 0.0)
                connection.send((ticket, result))
            signal.alarm(0)
    except (EOFError, OSError):
        return  # the parent is gone or has closed the pool


def judge(grader: graders.Grader, task: Task) -> verdict.Verdict:
    """The grader's verdict; what it raises is an `ERROR`, for a worker must outlive one bad item
    and the pool counts them."""
    try:
        return (grader.response if task.kind == RESPONSE else grader.answer)(task.gold, task.text)
    except Exception as error:
        rule = f"{type(error).__name__}: {error}"[:200]
        return verdict.make(verdict.Outcome.ERROR, rule, gold=task.gold)
