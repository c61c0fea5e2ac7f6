"""The scores INTELLECT-MATH published, and how ours stand beside them.

The table is the one of INTELLECT-MATH's report: greedy decoding, one run, a grader of their own. A
greedy run on AIME's 30 questions moves by 3.3 points per question; two reruns of one model gave
20.0 and 16.7 where 26.7 was published (PRIME-RL/PRIME, issue 63). No interval was published.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

from jaxmath.eval import intervals
from jaxmath.eval.intervals import Estimate

MARK = "published, greedy, single run"
BENCHMARKS = MappingProxyType(  # name here → heading
    {
        "math500": "MATH-500",
        "olympiadbench": "OlympiadBench",
        "aime24": "AIME 2024",
        "amc": "AMC",
        "minerva_math": "Minerva",
    }
)

# percent right, in the order of BENCHMARKS, and the average as published
PUBLISHED = MappingProxyType(
    {
        "INTELLECT-MATH (step 255)": (82.0, 49.5, 26.7, 60.2, 39.7, 51.6),
        "INTELLECT-MATH (step 47)": (81.6, 46.7, 26.7, 57.8, 37.8, 50.1),
        "Eurus-2-7B-PRIME (step 592)": (79.2, 42.1, 26.7, 57.8, 38.6, 48.9),
        "INTELLECT-MATH-SFT": (72.8, 39.1, 16.6, 45.8, 33.8, 41.6),
        "Eurus-2-7B-SFT": (65.1, 29.8, 3.3, 30.1, 32.7, 32.2),
        "Qwen2.5-Math-7B-Instruct": (79.8, 40.7, 13.3, 50.6, 34.6, 43.8),
    }
)


def rows(ours: Mapping[str, Mapping[str, tuple[str, Estimate]]]) -> list[list[str]]:
    """Cells of the report, heading first: our runs, then the published models.

    Args:
      ours: run → benchmark → (how it was measured, accuracy as a share). Benchmarks that nobody
        published are left out; a run has an average where it has all five.
    """
    lines = [["model", *BENCHMARKS.values(), "average", "how"]]
    for run, results in ours.items():
        found = {name: results[name] for name in BENCHMARKS if name in results}
        cells = [_cell(found[name][1]) if name in found else "-" for name in BENCHMARKS]
        average = "-"
        if len(found) == len(BENCHMARKS):
            average = _cell(intervals.mean_of([estimate for _, estimate in found.values()]))
        how = ", ".join(dict.fromkeys(how for how, _ in found.values()))
        lines.append([run, *cells, average, how])
    lines += [[model, *(f"{x:.1f}" for x in values), MARK] for model, values in PUBLISHED.items()]
    return lines


def _cell(estimate: Estimate) -> str:
    value, low, high = (100 * x for x in (estimate.value, estimate.low, estimate.high))
    return f"{value:.1f} ({low:.1f} to {high:.1f})"
