"""What grading one answer comes to: an outcome, the rule that decided, and the texts compared."""

import dataclasses
import enum


class Outcome(enum.StrEnum):
    """Only `RIGHT` is a reward; `TIMEOUT` and `ERROR` are faults of ours and say nothing of the
    answer."""

    RIGHT = "right"
    WRONG = "wrong"
    NO_ANSWER = "no_answer"
    UNPARSEABLE_GOLD = "unparseable_gold"
    TIMEOUT = "timeout"
    ERROR = "error"

    @property
    def is_fault(self) -> bool:
        """True where the answer was not judged: the sample is to be left out, not scored 0."""
        return self in (Outcome.UNPARSEABLE_GOLD, Outcome.TIMEOUT, Outcome.ERROR)


MAX_SHOWN_CHARS = 500  # of a prediction kept in its verdict; a response may be a megabyte


@dataclasses.dataclass(frozen=True)
class Verdict:
    """One graded answer.

    Fields:
      outcome: one of `Outcome`.
      rule: which rule decided, e.g. "same number", "no box"; for a fault, what happened.
      pred: the final answer found in the response, cut at `MAX_SHOWN_CHARS`; None if none was
        found.
      gold: the reference answer as given, cut likewise.
    """

    outcome: Outcome
    rule: str
    pred: str | None = None
    gold: str | None = None

    @property
    def is_right(self) -> bool:
        return self.outcome is Outcome.RIGHT


def make(outcome: Outcome, rule: str, *, gold: str, pred: str | None = None) -> Verdict:
    """A `Verdict` whose texts are short enough to log and to send between processes."""
    shown = None if pred is None else pred[:MAX_SHOWN_CHARS]
    return Verdict(outcome, rule, shown, gold[:MAX_SHOWN_CHARS])
