"""Where graders disagree: counts for each pair of them, and the rows."""

import collections
import itertools
from collections.abc import Mapping, Sequence
from typing import Any

from jaxmath.verify import graders, verdict

SHOWN_CHARS = 60  # of a text in a line of print
PAIR = ("both", "first", "second", "neither", "fault")  # who says right; or one of them cannot say


def check_names(names: Sequence[str]) -> None:
    """Raises:
    ValueError: fewer than two graders, one named twice, or one not known.
    """
    unknown = [name for name in names if name not in graders.GRADERS]
    if unknown or len(set(names)) != len(names) or len(names) < 2:
        known = ", ".join(graders.GRADERS)
        raise ValueError(f"an audit needs two or more different graders of {known}; got {names}")


def fields(result: verdict.Verdict) -> dict[str, Any]:
    return {"outcome": result.outcome.value, "rule": result.rule, "pred": result.pred}


class Audit:
    """Verdicts of several graders on the same rows, counted.

    outcomes: grader → outcome → rows. pairs: two graders → one of `PAIR` → rows.
    rows: of the first `max_shown` rows with a disagreement, line number and verdicts.
    """

    def __init__(self, names: tuple[str, ...], max_shown: int):
        self.names, self.max_shown = names, max_shown
        self.num_rows = self.num_disagreements = 0
        self.outcomes = {name: collections.Counter() for name in names}
        self.pairs = {pair: collections.Counter() for pair in itertools.combinations(names, 2)}
        self.rows: list[tuple[int, Mapping[str, verdict.Verdict]]] = []

    def add(self, line: int, verdicts: Mapping[str, verdict.Verdict]) -> None:
        self.num_rows += 1
        for name, result in verdicts.items():
            self.outcomes[name][result.outcome.value] += 1
        for first, second in self.pairs:
            self.pairs[first, second][_pair(verdicts[first], verdicts[second])] += 1
        judged = [result for result in verdicts.values() if not result.outcome.is_fault]
        if len({result.is_right for result in judged}) > 1:
            self.num_disagreements += 1
            if len(self.rows) < self.max_shown:
                self.rows.append((line, verdicts))

    def summary(self) -> dict[str, Any]:
        """The counts, for `json.dumps`."""
        return {
            "rows": self.num_rows,
            "disagreements": self.num_disagreements,
            "outcomes": {name: dict(counts) for name, counts in self.outcomes.items()},
            "pairs": [
                {"graders": list(pair)} | {kind: counts[kind] for kind in PAIR}
                for pair, counts in self.pairs.items()
            ],
        }

    def text(self) -> str:
        """The counts as Markdown tables, and the rows."""
        outcomes = [outcome.value for outcome in verdict.Outcome]
        lines = [f"| grader | {' | '.join(outcomes)} |", "|---" + "|---:" * len(outcomes) + "|"]
        for name, counts in self.outcomes.items():
            lines.append(f"| {name} | {' | '.join(str(counts[o]) for o in outcomes)} |")
        heads = ("both right", "only the first", "only the second", "neither", "fault")
        lines += ["", f"| first | second | {' | '.join(heads)} |", "|---|---" + "|---:" * 5 + "|"]
        for (first, second), counts in self.pairs.items():
            lines.append(f"| {first} | {second} | {' | '.join(str(counts[k]) for k in PAIR)} |")
        shown = f", the first {len(self.rows)}" if len(self.rows) < self.num_disagreements else ""
        lines += ["", f"{self.num_disagreements} of {self.num_rows} rows are disputed{shown}:"]
        for line, verdicts in self.rows:
            gold = next((v.gold for v in verdicts.values() if v.gold is not None), "")
            lines.append(f"line {line}, gold {_shown(gold)}")
            for name, result in verdicts.items():
                lines.append(
                    f"  {name:<8} {result.outcome.value:<9} {_shown(result.pred)}  ({result.rule})"
                )
        return "\n".join(lines)


def _pair(first: verdict.Verdict, second: verdict.Verdict) -> str:
    if first.outcome.is_fault or second.outcome.is_fault:
        return "fault"
    who = (first.is_right, second.is_right)
    return {(True, True): "both", (True, False): "first", (False, True): "second"}.get(
        who, "neither"
    )


def _shown(text: str | None) -> str:
    if text is None:
        return "(nothing)"
    return repr(text if len(text) <= SHOWN_CHARS else text[: SHOWN_CHARS - 1] + "…")
