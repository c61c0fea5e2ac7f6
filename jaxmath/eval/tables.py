"""Scores and comparisons as text: rates in percent, what could not be graded as counts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from jaxmath.eval.comparisons import Comparison, Flip
from jaxmath.eval.intervals import Estimate
from jaxmath.eval.scores import Score

MAX_SHOWN = 40  # characters of an answer in a list of flips


def scores(rows: Sequence[Score]) -> str:
    """One line per score; columns that no row has anything in are left out.

    The grader is named where any row's is not the strict one.
    """
    columns: dict[str, list[str]] = {
        "benchmark": [row.name for row in rows],
        "n": [str(row.num_questions) for row in rows],
        "k": [str(row.num_samples) for row in rows],
    }
    if any(row.grader != "strict" for row in rows):
        columns["grader"] = [row.grader for row in rows]
    columns["avg@k"] = [f"{100 * row.accuracy.value:.1f}" for row in rows]
    columns["95 % interval"] = [_limits(row.accuracy) for row in rows]
    if any(row.num_samples > 1 for row in rows):
        columns["pass@k"] = [
            _cell(row.pass_at[row.num_samples] if row.num_samples > 1 else None) for row in rows
        ]
    for heading, field in (("maj@k", "majority"), ("prm@k", "best_of"), ("vote", "weighted_vote")):
        if any(getattr(row, field) is not None for row in rows):
            columns[heading] = [_cell(getattr(row, field)) for row in rows]
    columns |= {
        "cut": [f"{100 * row.truncated:.1f}" for row in rows],
        "no answer": [f"{100 * row.no_answer:.1f}" for row in rows],
        "faults": [str(row.num_faults) for row in rows],
        "bad gold": [str(len(row.bad_golds)) for row in rows],
        "skipped": [str(row.num_skipped) for row in rows],
        "tokens": [f"{row.mean_tokens:.0f}" for row in rows],
        "median": [f"{row.median_tokens:.0f}" for row in rows],
        "p95": [f"{row.p95_tokens:.0f}" for row in rows],
    }
    return text([list(columns), *map(list, zip(*columns.values(), strict=True))])


def comparisons(rows: Mapping[str, Comparison], num_flips: int = 0) -> str:
    """One line per benchmark: both accuracies, b minus a in points; then the first flips."""
    lines = [["benchmark", "n", "a", "b", "b - a", "95 % interval", "p", "McNemar"]]
    lines[0] += ["better", "worse"]
    for name, row in rows.items():
        accuracies = [f"{100 * row.accuracy_a:.1f}", f"{100 * row.accuracy_b:.1f}"]
        limits = f"{100 * row.difference.low:+.1f} to {100 * row.difference.high:+.1f}"
        cells = [name, row.num_questions, *accuracies, f"{100 * row.difference.value:+.1f}", limits]
        mcnemar = "-" if row.mcnemar is None else _p_value(row.mcnemar)
        cells += [_p_value(row.p_value), mcnemar, row.num_better, row.num_worse]
        lines.append([str(cell) for cell in cells])
    parts = [text(lines)]
    for name, row in rows.items():
        if shown := row.flips[:num_flips]:
            parts.append(f"{name}: {len(shown)} of {len(row.flips)} questions that flipped")
            header = ["question", "gold", "a", "b"]
            parts.append(text([header, *(_flip_cells(flip) for flip in shown)]))
    return "\n".join(parts)


def text(lines: Sequence[Sequence[str]]) -> str:
    """Aligned columns: the first to the left, the others to the right."""
    widths = [max(len(line[i]) for line in lines) for i in range(len(lines[0]))]
    first = [line[0].ljust(widths[0]) for line in lines]
    rest = [
        "".join(f"  {cell:>{width}}" for cell, width in zip(line[1:], widths[1:], strict=True))
        for line in lines
    ]
    return "\n".join(a + b for a, b in zip(first, rest, strict=True))


def markdown(lines: Sequence[Sequence[str]]) -> str:
    """The same cells as a Markdown table."""
    header, *rows = [
        "| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |" for line in lines
    ]
    return "\n".join([header, "|" + "---|" * len(lines[0]), *rows])


def _flip_cells(flip: Flip) -> list[str]:
    cells = [flip.id, _short(flip.gold)]
    for side in (flip.a, flip.b):
        if len(side.outcomes) == 1:
            cells.append(f"{side.outcomes[0]}: {_short(side.preds[0])}")
        else:
            num_right = round(side.right * len(side.outcomes))
            cells.append(f"{num_right} of {len(side.outcomes)} right")
    return cells


def _short(answer: str | None) -> str:
    if answer is None:
        return "-"
    line = " ".join(answer.split())
    return line if len(line) <= MAX_SHOWN else line[: MAX_SHOWN - 1] + "…"


def _limits(estimate: Estimate) -> str:
    return f"{100 * estimate.low:.1f} to {100 * estimate.high:.1f}"


def _cell(estimate: Estimate | None) -> str:
    return "-" if estimate is None else f"{100 * estimate.value:.1f} ({_limits(estimate)})"


def _p_value(p: float) -> str:
    return f"{p:.3f}" if p >= 0.001 else "<0.001"
