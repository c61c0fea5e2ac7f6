"""Process scores: one number for a response, out of its log-probabilities under two models.

An implicit process reward model φ and its reference say of the tokens up to t

    q_t = β Σ_{i<=t} log( π_φ(y_i | y_<i) / π_ref(y_i | y_<i) )

and of a step the difference of q at its ends (arXiv:2412.01981). Best-of-N takes the smallest, or
the sum, over the steps of a response; without a reference log π_φ stands alone. On disk are
the sums of log-probabilities per step, so every rule here can be tried without scoring again.
"""

from __future__ import annotations

import dataclasses
import math
import re
from collections.abc import Callable, Iterator, Sequence
from typing import Literal

import numpy as np

STEP = re.compile(r"\bStep \d+:")
LINE = re.compile(r"(?<=\n)[^\S\n]*(?=\S)")
PARAGRAPH = re.compile(r"(?<=\n)[^\S\n]*\n\s*(?=\S)")


def _marked(text: str) -> Iterator[int]:
    """Each "Step k:" begins a step; what stands before the first belongs to it."""
    starts = [match.start() for match in STEP.finditer(text)]
    yield from starts[1:]


def _lines(text: str) -> Iterator[int]:
    return _after(LINE, text)


def _paragraphs(text: str) -> Iterator[int]:
    return _after(PARAGRAPH, text)


def _after(mark: re.Pattern, text: str) -> Iterator[int]:
    """Ends of the marks that have text on both sides. Without the white space at the end, which a
    model may write for ever, no mark is searched for in vain."""
    begin = len(text) - len(text.lstrip())
    yield from (end for m in mark.finditer(text.rstrip()) if (end := m.end()) > begin)


# how a response is cut → where its second and later steps begin; "token" cuts at every token
SPLITS: dict[str, Callable[[str], Iterator[int]]] = {
    "step": _marked,
    "line": _lines,
    "paragraph": _paragraphs,
    "response": lambda text: iter(()),
    "token": lambda text: iter(()),
}
Split = Literal["step", "line", "paragraph", "response", "token"]


def first_tokens(split: Split, text: str, starts: Sequence[int]) -> list[int]:
    """Index of the first token of each step; every token belongs to one step, none is empty.

    Args:
      starts: character in `text` at which each token begins; `len(text)` for a stop token, which
        belongs to the last step (with "token" it is a step).
    """
    if not starts:
        return []
    if split == "token":
        return list(range(len(starts)))
    starts_T = np.asarray(starts)
    found = np.searchsorted(starts_T, np.fromiter(SPLITS[split](text), np.int64), side="left")
    return sorted({0, *(int(i) for i in found if i < len(starts) and starts[i] < len(text))})


@dataclasses.dataclass(frozen=True)
class ScoringRule:
    """How the steps of a response become its score.

    beta: factor of the log-ratios; best-of-N in arXiv:2412.01981 used 0.001. It has no say in best
      of k, but in the weights of a vote.
    value: of a step, its own reward ("difference") or q at its end ("cumulative").
    aggregate: over the steps, their "min" or their "sum".
    """

    beta: float = 0.001
    value: Literal["difference", "cumulative"] = "difference"
    aggregate: Literal["min", "sum"] = "min"

    def __post_init__(self):
        if not 0 < self.beta < math.inf:
            raise ValueError(f"beta is {self.beta}; expected a positive number")


@dataclasses.dataclass(frozen=True)
class StepLogprobs:
    """Sums of natural log-probabilities over the tokens of each step of one response."""

    benchmark: str
    id: str  # of the question
    sample: int
    prm: tuple[float, ...]
    ref: tuple[float, ...] | None  # None without a reference

    def __post_init__(self):
        for name in ("prm", "ref"):
            sums = getattr(self, name)
            if sums is not None:
                object.__setattr__(self, name, tuple(map(float, sums)))
                if not all(map(math.isfinite, sums)):
                    raise ValueError(f"field {name}: expected finite numbers, got {sums!r}")
        if self.ref is not None and len(self.ref) != len(self.prm):
            raise ValueError(f"{len(self.prm)} steps of prm, {len(self.ref)} of ref")

    @property
    def key(self) -> tuple[str, str, int]:
        return self.benchmark, self.id, self.sample


def response_score(steps: StepLogprobs, rule: ScoringRule, *, with_ref: bool) -> float | None:
    """The score of a response; None where it has no steps."""
    if not steps.prm:
        return None
    reward_S = np.array(steps.prm)
    if with_ref:
        reward_S = reward_S - np.array(steps.ref)
    value_S = rule.beta * (np.cumsum(reward_S) if rule.value == "cumulative" else reward_S)
    return float(value_S.min() if rule.aggregate == "min" else value_S.sum())
