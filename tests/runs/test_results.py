"""The report beside the published numbers, from folders of finished runs."""

import dataclasses
import json

import pytest

from jaxmath import __main__ as cli
from jaxmath.eval import published, scores
from jaxmath.eval.samples import Sample
from jaxmath.runs import results


def finished(folder, benchmarks, *, marks="10", temperature=0.0, grader="strict"):
    """What a run leaves: its scores and its config."""
    rows = []
    for name in benchmarks:
        samples = [
            Sample(name, f"q{i}", j, "p", "r", 5, "stop", outcome, "rule", "1", "1", -1.0)
            for i, pattern in enumerate(marks.split())
            for j, outcome in enumerate("right" if mark == "1" else "wrong" for mark in pattern)
        ]
        rows.append(dataclasses.asdict(scores.score(name, samples, grader=grader)))
    folder.mkdir()
    (folder / "summary.json").write_text(json.dumps(rows))
    (folder / "config.yaml").write_text(f"sampling: {{temperature: {temperature}}}\n")
    return str(folder)


def test_runs_stand_beside_the_published_models(tmp_path, capsys):
    greedy = finished(tmp_path / "greedy", published.BENCHMARKS, marks="1 1 0 1")
    sampled = finished(
        tmp_path / "sampled", ["aime24"], marks="1100 1000", temperature=0.3, grader="qwen"
    )
    out = tmp_path / "report.md"
    assert cli.main(["eval", "--report", greedy, sampled, "--out", str(out)]) == 0
    header, one, two, *theirs = capsys.readouterr().out.splitlines()
    assert one.split()[:2] == [greedy, "75.0"] and one.endswith("ours, greedy, single run, strict")
    assert two.endswith("ours, T=0.3, avg@4, qwen") and "37.5 (" in two
    assert len(theirs) == 6 and all("published, greedy, single run" in line for line in theirs)
    lines = out.read_text().splitlines()
    assert lines[0].startswith("| model | MATH-500 | OlympiadBench | AIME 2024 | AMC | Minerva |")
    assert lines[1] == "|" + "---|" * 8 and len(lines) == 2 + 8
    assert (
        results.report([greedy], str(tmp_path / "report.txt")) + "\n"
        == (tmp_path / "report.txt").read_text()
    )


def test_a_folder_that_holds_no_finished_run_is_refused(tmp_path, capsys):
    assert cli.main(["eval", "--report", str(tmp_path)]) == cli.INPUT
    assert "summary.json: no such file; expected the output folder" in capsys.readouterr().err
    other = finished(tmp_path / "other", ["gsm8k"])
    with pytest.raises(ValueError, match="has none of math500, olympiadbench"):
        results.report([other])


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["--flips", "3", "--report", "x"], "--flips belongs to --compare"),
        (["--out", "x"], "--out belongs to --compare or --report"),
        (["--grader", "qwen", "--compare", "a", "b"], "--grader belongs to --regrade"),
    ],
)
def test_options_that_would_have_no_effect_are_refused(argv, message, capsys):
    assert cli.main(["eval", *argv]) == cli.CONFIGURATION
    assert message in capsys.readouterr().err
