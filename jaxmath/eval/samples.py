"""samples.jsonl: one row per sampled and graded response, written as an evaluation goes along.

A run appends rows in whatever order responses finish (`eval.journal`). A sample depends on (seed,
question, sample index) alone, so a file that was resumed holds the same rows.
"""

from __future__ import annotations

import dataclasses
import math

from jaxmath.verify.verdict import Outcome

# "skipped": the prompt was too long for the model; nothing was sampled, yet the row counts
FINISH_REASONS = ("stop", "length", "skipped")


@dataclasses.dataclass(frozen=True)
class Sample:
    """One response to one question, and what the verifier said of it."""

    benchmark: str
    id: str  # of the question, unique inside its benchmark
    sample: int  # 0 … k-1
    prompt: str  # as the model saw it, chat template included
    response: str
    num_tokens: int  # of the response, its stop token included
    finish_reason: str  # one of FINISH_REASONS; "length": cut at the token limit
    outcome: str  # one of verify.verdict.Outcome
    rule: str  # the verifier's rule that decided
    pred: str | None  # the extracted answer, None where there was none
    gold: str
    logprob: float  # natural log, summed over the response's tokens

    def __post_init__(self):
        for field in dataclasses.fields(self):
            value, kinds = getattr(self, field.name), _KINDS[str(field.type)]
            if not isinstance(value, kinds) or isinstance(value, bool):
                raise ValueError(f"field {field.name}: got {value!r}, expected {field.type}")
        for name, allowed in (("finish_reason", FINISH_REASONS), ("outcome", tuple(Outcome))):
            if (value := getattr(self, name)) not in allowed:
                raise ValueError(f"field {name}: got {value!r}, expected {', '.join(allowed)}")
        if self.sample < 0 or self.num_tokens < 0:
            raise ValueError(f"sample {self.sample}, num_tokens {self.num_tokens}: expected >= 0")
        if not math.isfinite(self.logprob):
            raise ValueError(f"field logprob: got {self.logprob}, expected a finite number")

    @property
    def key(self) -> tuple[str, str, int]:
        """What names a sample: (benchmark, question id, sample index)."""
        return self.benchmark, self.id, self.sample


_KINDS = {"str": str, "int": int, "float": (int, float), "str | None": (str, type(None))}
