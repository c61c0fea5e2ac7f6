"""The report beside INTELLECT-MATH's numbers."""

import pytest

from jaxmath.eval import benchmarks, intervals, published
from jaxmath.eval.intervals import Estimate

HOW = "ours, greedy, single run, strict"


def test_published_averages_are_those_of_their_rows():
    for model, (*values, average) in published.PUBLISHED.items():
        assert len(values) == len(published.BENCHMARKS), model
        assert average == pytest.approx(sum(values) / 5, abs=0.06), model


def test_published_benchmarks_are_ours():
    assert set(published.BENCHMARKS) <= set(benchmarks.BENCHMARKS)
    olympiad = [values[1] for values in published.PUBLISHED.values()]
    for num_right, value in zip(
        (334, 284, 264), (olympiad[0], olympiad[2], olympiad[3]), strict=True
    ):
        assert value == pytest.approx(100 * num_right / 675, abs=0.05)  # whole questions of 675


def test_ours_stand_first_with_intervals_and_theirs_are_marked():
    results = {name: (HOW, Estimate(0.5, 0.4, 0.6)) for name in published.BENCHMARKS}
    header, ours, *theirs = published.rows({"runs/eval": results})
    assert header == ["model", *published.BENCHMARKS.values(), "average", "how"]
    assert ours[:2] == ["runs/eval", "50.0 (40.0 to 60.0)"] and ours[-1] == HOW
    mean = intervals.mean_of([Estimate(0.5, 0.4, 0.6)] * 5)
    assert ours[-2] == f"50.0 ({100 * mean.low:.1f} to {100 * mean.high:.1f})"
    assert len(theirs) == 6
    assert all(line[-1] == "published, greedy, single run" for line in theirs)
    assert theirs[0][:2] == ["INTELLECT-MATH (step 255)", "82.0"]


def test_a_run_without_all_five_has_no_average():
    results = {"amc": (HOW, Estimate(0.5, 0.4, 0.6)), "gsm8k": (HOW, Estimate(1, 1, 1))}
    _, ours, *_ = published.rows({"run": results})
    assert ours == ["run", "-", "-", "-", "50.0 (40.0 to 60.0)", "-", "-", HOW]
