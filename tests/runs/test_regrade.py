"""Kept samples under another grader: nothing is sampled, nothing old is lost."""

import dataclasses
import json
import shutil

import pytest

from jaxmath import __main__ as cli
from jaxmath.eval import journal
from jaxmath.eval.samples import Sample
from jaxmath.runs import evaluate, regrade, results
from jaxmath.verify import graders

from . import tiny

SAMPLES = "samples/seen.jsonl"


@pytest.fixture(scope="module")
def finished(data, model, tmp_path_factory):
    folder = tmp_path_factory.mktemp("finished") / "run"
    evaluate.run(tiny.eval_config(data, model, folder, num_samples=2))
    return folder


@pytest.fixture
def run(finished, tmp_path):
    """A copy whose first sample was graded by a verifier that erred."""
    folder = tmp_path / "run"
    shutil.copytree(finished, folder)
    rows = journal.read(Sample, folder / SAMPLES)
    lie = "wrong" if rows[0].outcome == "right" else "right"
    journal.write(folder / SAMPLES, [dataclasses.replace(rows[0], outcome=lie), *rows[1:]])
    return folder


def test_new_verdicts_stand_beside_the_old(finished, run, capsys):
    before = tiny.contents(run)
    assert cli.main(["eval", "--regrade", str(run)]) == 0
    printed = capsys.readouterr().out
    target = run / "regraded" / "strict"
    assert journal.read(Sample, target / SAMPLES) == journal.read(Sample, finished / SAMPLES)
    assert {name: data for name, data in tiny.contents(run).items() if name in before} == before
    (change,) = json.loads((target / "changes.json").read_text())
    first = journal.read(Sample, finished / SAMPLES)[0]
    assert (change["id"], change["sample"]) == (first.id, 0)
    assert change["new"]["outcome"] == first.outcome != change["old"]["outcome"]
    assert f"1 verdicts changed; {change['old']['outcome']} → {first.outcome}: 1" in printed
    summaries = [json.loads((f / "summary.json").read_text()) for f in (target, finished)]
    assert summaries[0] == summaries[1]
    assert cli.main(["eval", "--compare", str(run), str(target)]) == 0  # it is a run like others
    assert "1 of 1 questions that flipped" in capsys.readouterr().out


def contrary(gold, text):
    """Another grader: right and wrong change places."""
    result = graders.GRADERS["strict"].response(gold, text)
    swapped = {"right": "wrong", "wrong": "right"}
    outcome = type(result.outcome)(swapped.get(result.outcome, result.outcome))
    return dataclasses.replace(result, outcome=outcome)


def test_another_grader_is_named_in_folder_and_table(run, monkeypatch):
    table = dict(graders.GRADERS) | {
        "contrary": graders.Grader(contrary, graders.GRADERS["strict"].answer)
    }
    monkeypatch.setattr(graders, "GRADERS", table)
    monkeypatch.setattr(regrade.pool, "VerifierPool", lambda config: pool(config, table=table))
    report = regrade.run(str(run), grader="contrary")
    target = run / "regraded" / "contrary"
    header, row = (target / "table.txt").read_text().splitlines()
    assert header.split()[3] == "grader" and row.split()[3] == "contrary"
    assert "grader: contrary" in (target / "config.yaml").read_text()
    old = {r.key: r.outcome for r in journal.read(Sample, run / SAMPLES)}
    new = {r.key: r.outcome for r in journal.read(Sample, target / SAMPLES)}
    compared = results.compare(str(run), str(target)).splitlines()
    assert compared[-1] == "seen: a was graded by strict, b by contrary"
    flipped = [key for key in list(old)[1:] if old[key] == "right"]
    assert flipped and all(new[key] == "wrong" for key in flipped)
    assert report.summary["seen"]["accuracy"] < 1


pool = regrade.pool.VerifierPool


def test_the_gold_of_the_original_evaluation(run):
    questions = tiny.rows(run / "questions/seen.jsonl")
    questions[0]["eval_answer"] = "no such thing"
    (run / "questions/seen.jsonl").write_text("".join(json.dumps(q) + "\n" for q in questions))
    regrade.run(str(run), gold="eval_answer")
    rows = journal.read(Sample, run / "regraded/strict-eval_answer" / SAMPLES)
    assert {row.gold for row in rows if row.id == questions[0]["id"]} == {"no such thing"}
    assert all(row.outcome != "right" for row in rows[:2])
    assert [row.gold for row in rows[2::2]] == [q["answer"] for q in questions[1:]]


def test_what_was_never_sampled_stays_so(run):
    rows = journal.read(Sample, run / SAMPLES)
    skipped = dataclasses.replace(
        rows[0], outcome="no_answer", finish_reason="skipped", rule="too long", pred=None
    )
    journal.write(run / SAMPLES, [skipped, *rows[1:]])
    regrade.run(str(run))
    assert journal.read(Sample, run / "regraded/strict" / SAMPLES)[0] == skipped


def test_what_cannot_be_regraded_is_refused(run, tmp_path, capsys):
    assert cli.main(["eval", "--regrade", str(tmp_path / "nothing")]) == cli.INPUT
    assert "expected the folder of an eval" in capsys.readouterr().err
    assert cli.main(["eval", "--regrade", str(run), "--grader", "kind"]) == cli.CONFIGURATION
    assert "grader must be one of strict" in capsys.readouterr().err
