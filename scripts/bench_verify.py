"""Judges and times the graders, and math-verify beside them where it is installed.

    python scripts/bench_verify.py CASES.jsonl                  # accuracy and throughput
    python scripts/bench_verify.py CASES.jsonl --hostile 1000 --honest 10000

CASES.jsonl has rows of `gold`, `pred`, `kind` (answer or response), `expected`, `group` and
`convention`; a bare answer is put in a box, and rows on which sensible graders differ are left out.
Prints tables in Markdown.

Throughput is measured on the responses. Every grader runs in the same pool, with the same limits;
start-up is left out. The caches of references and answers are emptied before each item, so that a
text met again costs as much as the first time. `pairs/s of work` counts processor time of the
grading alone, which does not depend on what else the machine does.

The hostile mix grades honest rows alone and then with hostile ones strewn in, and fails if that
changes the verdict of one of them, or loses one. One hostile item in fifty is not a text but an
order, on which the worker hangs, in Python or in C, dies, or runs out of memory or stack.
"""

from __future__ import annotations

import argparse
import collections
import functools
import gc
import itertools
import json
import os
import pathlib
import random
import re
import sys
import time
from collections.abc import Sequence

from jaxmath.verify import graders, pool, verdict

MATH_VERIFY = "math-verify"
MIN_CACHED = 1024  # smaller caches hold what all texts share
SEED = 7


# ── math-verify as a grader ──


def by_math_verify(gold: str, response: str) -> verdict.Verdict:
    """math-verify with its defaults; the reference is read as LaTeX."""
    import math_verify

    reference = math_verify.parse(f"${gold}$")
    right = math_verify.verify(reference, math_verify.parse(response))
    outcome = verdict.Outcome.RIGHT if right else verdict.Outcome.WRONG
    return verdict.make(outcome, "", gold=gold)


def table() -> dict[str, graders.Grader]:
    """Ours, and math-verify if it is here."""
    found = dict(graders.GRADERS)
    try:
        import math_verify  # noqa: F401
    except ImportError:
        print("math-verify is not installed: its rows are left out", file=sys.stderr)
    else:
        found[MATH_VERIFY] = graders.Grader(by_math_verify, by_math_verify)
    return found


# ── accuracy ──


def accuracy(rows: list[dict], names: Sequence[str], workers: pool.VerifierPool) -> str:
    groups = sorted({row["group"] for row in rows})
    lines = [
        "| grader | right | % | false positives | false negatives | faults | "
        + " | ".join(f"{group} ({sum(r['group'] == group for r in rows)})" for group in groups)
        + " |",
        "|---" + "|---:" * (5 + len(groups)) + "|",
    ]
    for name in names:
        results = workers.grade([(row["gold"], text_of(row)) for row in rows], name)
        graded = list(zip(rows, results, strict=True))
        right = [row for row, result in graded if result.is_right == row["expected"]]
        by_group = collections.Counter(row["group"] for row in right)
        cells = [
            f"{len(right)} of {len(rows)}",
            f"{100 * len(right) / len(rows):.1f}",
            sum(result.is_right and not row["expected"] for row, result in graded),
            sum(row["expected"] and not result.is_right for row, result in graded),
            sum(result.outcome.is_fault for result in results),
            *(by_group[group] for group in groups),
        ]
        lines.append(f"| {name} | {' | '.join(map(str, cells))} |")
    return "\n".join(lines)


def text_of(row: dict) -> str:
    return row["pred"] if row["kind"] == "response" else f"\\boxed{{{row['pred']}}}"


# ── throughput ──


class Cold:
    """A grader without its memory of texts; the rule of its verdicts is the work done, in
    seconds."""

    def __init__(self, grade: graders.Grade):
        self.grade = grade

    def __call__(self, gold: str, text: str) -> verdict.Verdict:
        for cache in caches():
            cache.cache_clear()
        start = time.process_time()
        result = self.grade(gold, text)
        return verdict.make(result.outcome, repr(time.process_time() - start), gold=gold)


@functools.cache
def caches() -> list:
    found = [c for c in gc.get_objects() if isinstance(c, functools._lru_cache_wrapper)]
    ours = [c for c in found if c.__module__.startswith("jaxmath.verify")]
    return [c for c in ours if (c.cache_parameters()["maxsize"] or 0) >= MIN_CACHED]


def throughput(rows: list[dict], found: dict[str, graders.Grader], num_pairs: int) -> str:
    rows = [row for row in rows if row["kind"] == "response"]
    rows = [rows[i % len(rows)] for i in range(num_pairs)]
    pairs = [(row["gold"], row["pred"]) for row in rows]
    cold = {name: graders.Grader(Cold(g.response), Cold(g.answer)) for name, g in found.items()}
    lines = [
        "| grader | pairs/s of work | pairs/s, 1 worker | pairs/s, 2 workers | per worker of 2 |",
        "|---" + "|---:" * 4 + "|",
    ]
    opened = [pool.VerifierPool(pool.VerifyConfig(num_workers=n), cold) for n in (1, 2)]
    with opened[0] as one, opened[1] as two:
        for name in found:
            rates = []
            for workers in (one, two):
                workers.grade(pairs[:64], name)  # imports, and what is made once
                start = time.monotonic()
                results = workers.grade(pairs, name)
                rates.append(len(pairs) / (time.monotonic() - start))
            judged = [float(r.rule) for r in results if not r.outcome.is_fault]
            work = len(judged) / sum(judged)
            lines.append(
                f"| {name} | {work:.0f} | {rates[0]:.0f} | {rates[1]:.0f} | {rates[1] / 2:.0f} |"
            )
    return "\n".join(lines)


# ── hostile mix ──

BOMBS = (
    "9^9^9^9^9",
    "9**9**9**9**9",
    "(10^{10})!",
    "((((5!)!)!)!)",
    r"\binom{10^9}{5\cdot10^8}",
    r"\exp(\exp(\exp(100)))",
    r"\sin(10^{1000})",
    "(x+1)^{1000000}",
    "1e999999999",
    r"\pi" * 500,
    r"2^{2^{2^{2^{2^{2^2}}}}}",
    r"\begin{matrix}" + "1&" * 1500 + r"\end{matrix}",
    r"x^{x^{x^{x^{x}}}}=1",
    "__import__('os').system('exit')",
    "(lambda: ().__class__.__base__.__subclasses__())()",
    r"\input{x}\write18{x}",
    "\x00" * 100,
    "\u202e42\u202c",
    "\ud800",
    "e\u0301" * 500,
)
REPEATED = (
    "9", "(", "{", "[", "-", "!", "1!", "^2", "^{2", r"\frac{1}{", r"\sqrt{", r"\sin ", "f(", "|x",
    "1,", ",111", "{,", "x+", "1 and ", "5 cm ", r"\pm 1", "=1", "<1", r"\text{", r"\text{a} ",
    "\\", r"\\", "$", "%", "\u00bd", "\u221a", "\uff11", "the answer is ", "answer: ", "#### ",
    r"\boxed{", r"\boxed{1}", "\n", " ", "a.", "1.", "\u7b54\u6848\u662f", "(a+)+",
)  # fmt: skip


ORDER = "\x02order: "
ORDERS = ("hang", "hang in C", "die", "allocate", "recurse")
ORDER_EVERY = 50


class Obedient:
    """A grader that follows orders."""

    def __init__(self, grade: graders.Grade):
        self.grade = grade

    def __call__(self, gold: str, text: str) -> verdict.Verdict:
        if text.startswith(ORDER):
            self.follow(text.removeprefix(ORDER))
        return self.grade(gold, text)

    def follow(self, order: str) -> None:
        while order == "hang":
            pass
        if order == "hang in C":
            re.match("(a+)+$", "a" * 60 + "b")
        if order == "die":
            os._exit(1)
        if order == "allocate":
            bytearray(2**44)
        if order == "recurse":
            self.follow(order)


def hostile(generator: random.Random, number: int) -> tuple[str, str]:
    """(gold, response) of one hostile item."""
    if number % ORDER_EVERY == 0:
        return "5", ORDER + ORDERS[number // ORDER_EVERY % len(ORDERS)]
    kind = generator.randrange(4)
    if kind == 0:
        text = generator.choice(BOMBS)
    else:
        length = generator.choice((50, 500, 3000, 100_000, 1_000_000))
        part = generator.choice(REPEATED)
        text = part * (length // len(part))
    wrapped = text if kind == 3 else f"so \\boxed{{{text}}}"
    return generator.choice(("5", r"\sqrt{2}", "(1,2)", "x+1", r"\{1,2\}")), wrapped


def mix(
    rows: list[dict], num_hostile: int, num_honest: int, grader: str, timeout_s: float
) -> tuple[str, bool]:
    """A line of figures, and whether every honest verdict stood."""
    generator = random.Random(SEED)
    honest = [rows[i % len(rows)] for i in range(num_honest)]
    honest = [(row["gold"], text_of(row)) for row in honest]
    places = set(generator.sample(range(num_hostile + num_honest), num_hostile))
    calm, numbers = iter(honest), itertools.count()
    pairs = [
        hostile(generator, next(numbers)) if place in places else next(calm)
        for place in range(num_hostile + num_honest)
    ]
    config = pool.VerifyConfig(num_workers=2, grader=grader, timeout_s=timeout_s)
    obedient = {n: graders.Grader(*map(Obedient, g)) for n, g in graders.GRADERS.items()}
    with pool.VerifierPool(config, obedient) as workers:
        alone = workers.grade(honest)
        start = time.monotonic()
        mixed = workers.grade(pairs)
        seconds = time.monotonic() - start
        restarts = workers.num_restarts
    kept = [result for place, result in enumerate(mixed) if place not in places]
    changed = sum(a != b for a, b in zip(alone, kept, strict=True))
    outcomes = collections.Counter(mixed[place].outcome.value for place in sorted(places))
    counted = ", ".join(f"{count} {name}" for name, count in outcomes.most_common())
    line = (
        f"| {grader} | {num_honest} | {num_hostile} | {changed} | {counted} | {restarts} | "
        f"{seconds:.0f} |"
    )
    return line, changed == 0 and len(mixed) == len(pairs)


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("cases", metavar="CASES.jsonl")
    parser.add_argument("--graders", help="names with commas; default: all")
    parser.add_argument("--pairs", type=int, default=2000, help="for the throughput")
    parser.add_argument("--hostile", type=int, metavar="N", help="the mix instead, with N hostile")
    parser.add_argument("--honest", type=int, default=10_000, help="honest rows of the mix")
    parser.add_argument("--timeout-s", type=float, default=5.0)
    arguments = parser.parse_args(argv)
    with pathlib.Path(arguments.cases).open(encoding="utf-8") as source:
        rows = [row for row in map(json.loads, source) if not row["convention"]]
    if arguments.hostile:
        print("| grader | honest | hostile | honest changed | hostile outcomes | restarts | s |")
        print("|---" + "|---:" * 3 + "|---" + "|---:" * 2 + "|")
        names = arguments.graders.split(",") if arguments.graders else list(graders.GRADERS)
        stood = True
        for name in names:
            line, fine = mix(rows, arguments.hostile, arguments.honest, name, arguments.timeout_s)
            print(line, flush=True)
            stood &= fine
        return 0 if stood else 1
    found = table()
    if arguments.graders:
        found = {name: found[name] for name in arguments.graders.split(",")}
    with pool.VerifierPool(pool.VerifyConfig(num_workers=2), found) as workers:
        print(accuracy(rows, list(found), workers), flush=True)
    print()
    print(throughput(rows, found, arguments.pairs))
    return 0


if __name__ == "__main__":
    sys.exit(main())
