"""Graders that misbehave on command, for the tests of the pool; the answer text is the command."""

import functools
import os
import pathlib
import re
import sys
import time

from jaxmath.verify import graders, verdict


def obey(kind: str, gold: str, text: str) -> verdict.Verdict:
    """Grade by equality, unless told to hang, die, raise, be slow, or look around."""
    command, _, argument = text.partition(" ")
    if command == "hang":
        while True:
            pass
    if command == "die":
        os._exit(3)
    if command == "hang-in-c":
        re.match("(a+)+$", "a" * 40 + "b")
    if command == "once":
        path, _, fault = argument.partition(" ")
        if not pathlib.Path(path).exists():
            pathlib.Path(path).touch()
            return obey(kind, gold, fault)
    if command == "raise":
        raise KeyError("surprise")
    if command == "recurse":
        return obey(kind, gold, text)
    if command == "allocate":
        bytearray(2**40)
    if command == "sleep":
        time.sleep(float(argument))
    if command == "modules":
        return verdict.make(verdict.Outcome.RIGHT, str("jax" in sys.modules), gold=gold)
    outcome = verdict.Outcome.RIGHT if gold == text or command != text else verdict.Outcome.WRONG
    return verdict.make(outcome, kind, gold=gold, pred=text)


def fail_to_unpickle():
    raise RuntimeError("this worker cannot start")


OBEDIENT = graders.Grader(functools.partial(obey, "response"), functools.partial(obey, "answer"))


def never(gold: str, text: str) -> verdict.Verdict:
    return verdict.make(verdict.Outcome.WRONG, "never", gold=gold, pred=text)


class Unstartable:
    """A grader whose arrival in a worker kills it."""

    def __reduce__(self):
        return fail_to_unpickle, ()
