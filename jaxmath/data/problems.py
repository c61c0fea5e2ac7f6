"""Graded maths problems with worked solutions, written by templates from a seed.

They stand in for a real data set where there is no accelerator: short enough, and worked in steps
small enough, that a model of a million parameters learns most of them in minutes, hard enough at
the upper levels that it does not learn all. Each line of a solution does one small operation and is
true by itself; the last line is the answer in a box. Levels run from 1 (one or two operations on
small numbers) to 5 (several operations, larger numbers, fractional answers).
"""

import dataclasses
import math
import random
from collections.abc import Callable
from fractions import Fraction

from jaxmath.data.records import Problem

LEVELS = (1, 2, 3, 4, 5)
SOURCE = "jaxmath problems"

NAMES = ("Ann", "Ben", "Eva", "Jim", "Kim", "Leo", "Mia", "Sam")
THINGS = ("pens", "cards", "eggs", "coins", "books", "shells", "apples", "stamps")

Draft = tuple[str, list[str], Fraction | int]  # problem, steps, answer


def generate(
    num_train: int,
    num_test: int,
    seed: int,
    levels: tuple[int, ...] = LEVELS,
    terse_fraction: float = 0.0,
) -> tuple[list[Problem], list[Problem]]:
    """Train and test problems, no text twice in either or in both; the same seed gives the same.

    Of the training solutions a share of `terse_fraction` states the answer without the steps, as
    many do in data sets written by people.

    Levels and templates are drawn uniformly. `extra` of each problem holds `level` and `template`.

    Raises:
      ValueError: an unknown level, or more problems asked for than the templates can write.
    """
    if not levels or not set(levels) <= set(LEVELS):
        raise ValueError(f"levels are {levels}, expected some of {LEVELS}")
    rng = random.Random(seed)
    seen: set[str] = set()
    # Test first: its mix of levels stays uniform even where training drains the small cells.
    test = _draw(rng, "test", num_test, levels, seen)
    train = _draw(rng, "train", num_train, levels, seen)
    return [_terse(p) if rng.random() < terse_fraction else p for p in train], test


def _terse(problem: Problem) -> Problem:
    return dataclasses.replace(problem, solution=problem.solution.splitlines()[-1])


def _draw(rng, split: str, num: int, levels, seen: set[str]) -> list[Problem]:
    problems, misses = [], 0
    while len(problems) < num:
        level, name = rng.choice(levels), rng.choice(list(TEMPLATES))
        problem, steps, answer = TEMPLATES[name](rng, level)
        if problem in seen:
            misses += 1
            if misses > 1000:
                raise ValueError(
                    f"no new problem of levels {levels} after {len(seen)}; ask for fewer problems "
                    "or for more levels"
                )
            continue
        misses = 0
        seen.add(problem)
        answer_text = latex(answer)
        problems.append(
            Problem(
                id=f"problems/{split}/{len(problems):05d}",
                problem=problem,
                answer=answer_text,
                solution="\n".join([*steps, f"\\boxed{{{answer_text}}}"]),
                source=SOURCE,
                extra={"level": level, "template": name},
            )
        )
    return problems


def latex(value: Fraction | int) -> str:
    """An integer as digits, a fraction as \\frac{…}{…} with its sign in front."""
    value = Fraction(value)
    if value.denominator == 1:
        return str(value.numerator)
    sign = "-" if value < 0 else ""
    return f"{sign}\\frac{{{abs(value.numerator)}}}{{{value.denominator}}}"


def _chain(rng: random.Random, level: int) -> Draft:
    """Sums and differences from left to right; below level 5 nothing goes under zero."""
    num_terms, first, largest = {
        1: (3, 9, 9),
        2: (4, 9, 9),
        3: (3, 50, 9),
        4: (3, 60, 30),
        5: (4, 99, 60),
    }[level]
    total = rng.randint(2, first)
    text, steps = str(total), []
    for _ in range(num_terms - 1):
        term = rng.randint(1, largest)
        sign = "-" if rng.random() < 0.5 and (level == 5 or term <= total) else "+"
        before, total = total, total + term if sign == "+" else total - term
        text += f"{sign}{term}"
        steps.append(f"{before}{sign}{term}={total}")
    return f"Compute {text}.", steps, total


def _products(rng: random.Random, level: int) -> Draft:
    """Products inside sums, the product of a larger number split into tens and ones."""
    a, b, c, d = (rng.randint(2, 9) for _ in range(4))
    if level == 1:
        a, b = rng.randint(2, 5), rng.randint(2, 5)
        steps = [f"{a}*{b}={a * b}", f"{a * b}+{c}={a * b + c}"]
        sign = rng.choice("+-") if d <= a * b + c else "+"
        return _expression(f"{a}*{b}+{c}", steps, a * b + c, sign, d)
    if level == 2:
        c, d = rng.randint(2, 5), rng.randint(2, 5)
        sign = rng.choice("+-") if c * d <= a * b else "+"
        steps = [f"{a}*{b}={a * b}", f"{c}*{d}={c * d}"]
        return _expression(f"{a}*{b}", steps, a * b, sign, c * d, f"{c}*{d}")
    if level == 3:
        b = rng.randint(1, 8)
        c = rng.randint(1, 9 - b)
        steps = [f"{b}+{c}={b + c}", f"{a}*{b + c}={a * (b + c)}"]
        sign = rng.choice("+-") if d <= a * (b + c) else "+"
        return _expression(f"{a}*({b}+{c})", steps, a * (b + c), sign, d)
    ten = 10 * rng.randint(1, 3 if level == 4 else 9)
    product = (ten + b) * a
    steps = [f"{ten}*{a}={ten * a}", f"{b}*{a}={b * a}", f"{ten * a}+{b * a}={product}"]
    if level == 4:
        return _expression(f"{ten + b}*{a}", steps, product, rng.choice("+-"), d)
    steps.append(f"{c}*{d}={c * d}")
    return _expression(f"{ten + b}*{a}", steps, product, rng.choice("+-"), c * d, f"{c}*{d}")


def _expression(
    text: str, steps: list[str], left: int, sign: str, right: int, right_text: str = ""
) -> Draft:
    """Compute `text`, worth `left`, plus or minus `right`, written as `right_text` if given."""
    total = left + right if sign == "+" else left - right
    problem = f"Compute {text}{sign}{right_text or right}."
    return problem, [*steps, f"{left}{sign}{right}={total}"], total


def _fraction(rng: random.Random, level: int) -> Draft:
    """Fractions: equal denominators, one a multiple, a product, unlike ones, three terms."""
    if level == 3:
        a, b, c, d = (rng.randint(2, 9) for _ in range(4))
        steps = [f"{a}*{c}={a * c}", f"{b}*{d}={b * d}", *_reduce(a * c, b * d)]
        return f"Compute {a}/{b}*{c}/{d}.", steps, Fraction(a * c, b * d)
    first = rng.randint(2, {1: 12, 2: 5, 4: 6, 5: 4}[level])
    multiple = first * rng.randint(2, 3)
    other = rng.randint(2, 6)
    bottoms = {
        1: (first, first),
        2: (first, multiple),
        4: (first, other),
        5: (first, multiple, rng.choice((first, multiple))),
    }[level]
    common = math.lcm(*bottoms)
    tops = [rng.randint(1, 9) for _ in bottoms]
    signs = ["+", *(rng.choice("+-") for _ in bottoms[1:])]
    fractions = [f"{top}/{bottom}" for top, bottom in zip(tops, bottoms, strict=True)]
    text = "".join(sign + fraction for sign, fraction in zip(signs, fractions, strict=True))
    scaled = [top * common // bottom for top, bottom in zip(tops, bottoms, strict=True)]
    steps = [
        f"{fraction}={new}/{common}"
        for fraction, new, bottom in zip(fractions, scaled, bottoms, strict=True)
        if bottom != common
    ]
    total = scaled[0]
    for sign, term in zip(signs[1:], scaled[1:], strict=True):
        before, total = total, total + term if sign == "+" else total - term
        steps.append(f"{before}{sign}{term}={total}")
    steps.extend(_reduce(total, common))
    return f"Compute {text.removeprefix('+')}.", steps, Fraction(total, common)


def _reduce(top: int, bottom: int) -> list[str]:
    """The step that brings top/bottom to lowest terms, if it is not in them."""
    value = Fraction(top, bottom)
    return [] if value.denominator == bottom else [f"{top}/{bottom}={value}"]


def _equation(rng: random.Random, level: int) -> Draft:
    """Linear equations in x, from x+a=b to a(x+b)=cx+d with fractional answers."""
    if level == 1:
        x, shift = rng.randint(1, 40), rng.randint(1, 20)
        sign, back, right = _shifted(rng, x, shift)
        return f"Solve x{sign}{shift}={right}.", [f"x={right}{back}{shift}={x}"], x
    a, x, shift = rng.randint(2, 9), rng.randint(2, 9), rng.randint(1, 9)
    if level == 2:
        sign, back, right = _shifted(rng, a * x, shift)
        steps = [f"{a}x={right}{back}{shift}={a * x}", f"x={a * x}/{a}={x}"]
        return f"Solve {a}x{sign}{shift}={right}.", steps, x
    if level == 3:
        sign, back, inside = _shifted(rng, rng.randint(1, 12), shift)
        x = inside - shift if sign == "+" else inside + shift
        steps = [f"x{sign}{shift}={a * inside}/{a}={inside}", f"x={inside}{back}{shift}={x}"]
        return f"Solve {a}(x{sign}{shift})={a * inside}.", steps, x
    c, a = rng.randint(2, 5), rng.randint(2, 6)
    left = a + c
    if level == 4:
        d = a * x + shift
        steps = [f"{left}x-{c}x={a}x", f"{a}x={d}-{shift}={a * x}", f"x={a * x}/{a}={x}"]
        return f"Solve {left}x+{shift}={c}x+{d}.", steps, x
    expanded = left * shift
    d = expanded + rng.randint(1 - expanded, 40)
    value = Fraction(d - expanded, a)
    steps = [
        f"{left}*{shift}={expanded}",
        f"{left}x-{c}x={a}x",
        f"{a}x={d}-{expanded}={d - expanded}",
        f"x={d - expanded}/{a}" + (f"={value}" if value.denominator != a else ""),
    ]
    return f"Solve {left}(x+{shift})={c}x+{d}.", steps, value


def _shifted(rng: random.Random, value: int, shift: int) -> tuple[str, str, int]:
    """A sign, its opposite, and value ± shift by that sign, not below zero."""
    if rng.random() < 0.5 and shift <= value:
        return "-", "+", value - shift
    return "+", "-", value + shift


def _word(rng: random.Random, level: int) -> Draft:
    """Small stories of one to four steps."""
    name, thing = rng.choice(NAMES), rng.choice(THINGS)
    a, b, c, d = (rng.randint(2, 9) for _ in range(4))
    if level == 1:
        start, more = rng.randint(2, 30), rng.randint(2, 9)
        if rng.random() < 0.5:
            text = f"{name} has {start} {thing} and gets {more} more. How many {thing} now?"
            return text, [f"{start}+{more}={start + more}"], start + more
        text = f"{name} had {start + more} {thing} and lost {more}. How many {thing} are left?"
        return text, [f"{start + more}-{more}={start}"], start
    if level == 2:
        start, a = rng.randint(1, 9), rng.randint(2, 5)
        text = f"{name} has {start} {thing} and buys {a} bags of {b}. How many {thing} now?"
        return text, [f"{a}*{b}={a * b}", f"{start}+{a * b}={start + a * b}"], start + a * b
    if level == 3:
        paid = a * b + rng.randint(1, 20)
        text = f"{name} buys {a} {thing} at {b} dollars each and pays {paid}. How much change?"
        return text, [f"{a}*{b}={a * b}", f"{paid}-{a * b}={paid - a * b}"], paid - a * b
    if level == 4:
        first = rng.randint(1, a * b - 1)
        start = first + d
        steps = [
            f"{start}-{d}={first}",
            f"{first}+{a * b - first}={a * b}",
            f"{a * b}/{a}={b}",
        ]
        text = (
            f"{name} has {start} {thing}, loses {d}, finds {a * b - first} and "
            f"shares them among {a}. How many each?"
        )
        return text, steps, b
    start = rng.randint(1, 30)
    first, second = a * b, c * d
    total = start + first
    if rng.random() < 0.5 and second <= total:
        last, verb, sign = total - second, "sells", "-"
    else:
        last, verb, sign = total + second, "buys", "+"
    steps = [
        f"{a}*{b}={first}",
        f"{c}*{d}={second}",
        f"{start}+{first}={total}",
        f"{total}{sign}{second}={last}",
    ]
    text = (
        f"{name} has {start} {thing}, gets {a} bags of {b} and {verb} {c} bags of {d}. "
        f"How many {thing} now?"
    )
    return text, steps, last


TEMPLATES: dict[str, Callable[[random.Random, int], Draft]] = {
    "chain": _chain,
    "products": _products,
    "fraction": _fraction,
    "equation": _equation,
    "word": _word,
}
