"""Evaluations: every row is asked, graded, kept and counted, however often a run is cut off."""

import dataclasses
import json
import os
import random
import signal
import subprocess
import sys
import time

import pytest

from jaxmath import __main__ as cli
from jaxmath import config as config_lib
from jaxmath.eval import journal
from jaxmath.eval.samples import Sample
from jaxmath.runs import evaluate, respond, results

from . import tiny

SAMPLES = "samples/seen.jsonl"


@pytest.fixture(scope="module")
def whole(data, model, tmp_path_factory):
    """(folder, report) of a run that nothing disturbed."""
    folder = tmp_path_factory.mktemp("whole") / "run"
    return folder, evaluate.run(tiny.eval_config(data, model, folder))


def test_rows_are_questions_times_samples(data, whole):
    folder, report = whole
    rows = journal.read(Sample, folder / SAMPLES)
    problems = tiny.rows(data / "train.jsonl")[:12]
    assert [(row.id, row.sample) for row in rows] == [
        (p["id"], i) for p in problems for i in (0, 1)
    ]
    assert [row.gold for row in rows[::2]] == [p["answer"] for p in problems]
    right = sum(row.outcome == "right" for row in rows)
    seen = report.summary["seen"]
    assert seen["rows"] == 24 and seen["accuracy"] == right / 24 > 0.2  # learnt by heart
    assert seen["low"] < seen["accuracy"] <= seen["high"]
    for row in rows:
        assert row.prompt.startswith("<|im_start|>user\n") and row.num_tokens > 0


def test_the_table_is_printed_and_kept(data, model, whole, capsys):
    folder, report = whole
    with tiny.cut_after(respond, "_response", 0):  # nothing is sampled a second time
        again = evaluate.run(tiny.eval_config(data, model, folder))
    assert again.summary == report.summary
    table = (folder / "table.txt").read_text()
    assert table in capsys.readouterr().out
    accuracy = f"{100 * report.summary['seen']['accuracy']:.1f}"
    header, row = table.splitlines()
    assert "avg@k" in header and "95 % interval" in header and "maj@k" in header
    assert row.split()[:4] == ["seen", "12", "2", accuracy]
    (summary,) = json.loads((folder / "summary.json").read_text())
    assert summary["accuracy"]["value"] == report.summary["seen"]["accuracy"]
    assert set(summary["pass_at"]) == {"1", "2"}
    assert (summary["grader"], summary["bad_golds"]) == ("strict", [])
    assert summary["majority"]["low"] <= summary["majority"]["value"]


def test_the_folder_holds_all_that_made_it(data, whole):
    folder, _ = whole
    assert tiny.rows(folder / "questions/seen.jsonl") == tiny.rows(data / "train.jsonl")[:12]
    assert config_lib.load(evaluate.EvalRun, folder / "config.yaml").verify.grader == "strict"
    packages = json.loads((folder / "environment.json").read_text())["packages"]
    assert packages["jax"] and packages["sympy"] and packages["transformers"]
    job = json.loads((folder / "samples/seen.job.json").read_text())
    assert (job["grader"], job["gold"], job["prompt_style"]) == ("strict", "answer", "plain")


def test_a_run_cut_off_with_a_torn_row_ends_with_the_same_file(
    data, model, whole, tmp_path, monkeypatch
):
    monkeypatch.setattr(evaluate, "WRITE_EVERY", 5)
    config = tiny.eval_config(data, model, tmp_path)
    with tiny.cut_after(respond, "_response", 13), pytest.raises(tiny.Cut):
        evaluate.run(config)
    path = tmp_path / SAMPLES
    written = path.read_bytes()
    assert written.count(b"\n") == 10
    path.write_bytes(written[:-20])
    asked = []
    monkeypatch.setattr(evaluate, "_row", lambda *args: asked.append(row(*args)) or asked[-1])
    evaluate.run(config)
    assert path.read_bytes() == (whole[0] / SAMPLES).read_bytes()
    assert len(asked) == 24 - 9


row = evaluate._row


SCRIPT = """
import sys
from jaxmath import config
from jaxmath.runs import evaluate

evaluate.WRITE_EVERY = 2
evaluate.run(config.load(evaluate.EvalRun, sys.argv[1]))
"""


@pytest.mark.slow
def test_a_run_that_is_killed_at_any_moment_ends_with_the_same_file(data, model, whole, tmp_path):
    config = tiny.eval_config(data, model, tmp_path / "run")
    file = tmp_path / "config.yaml"
    file.write_text(config_lib.dump(config))
    process = subprocess.Popen(
        [sys.executable, "-c", SCRIPT, str(file)],
        stderr=subprocess.DEVNULL,
        env=os.environ | {"JAX_PLATFORMS": "cpu"},
        start_new_session=True,
    )
    path, deadline = tmp_path / "run" / SAMPLES, time.monotonic() + 600
    while not path.exists() and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.005)
    time.sleep(random.random() * 0.3)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    assert path.exists()
    evaluate.run(config)
    key = lambda row: dataclasses.replace(row, logprob=0.0)  # noqa: E731  of another program
    expected = journal.read(Sample, whole[0] / SAMPLES)
    assert list(map(key, journal.read(Sample, path))) == list(map(key, expected))


def test_a_gold_that_does_not_equal_itself_is_named(data, model, tmp_path, capsys):
    rows = tiny.rows(data / "train.jsonl")[:3]
    rows[1]["answer"] = "\\frac{1}{2"
    source = tmp_path / "rows.jsonl"
    source.write_text("".join(json.dumps(row) + "\n" for row in rows))
    problems = {"mine": {"path": str(source)}}
    evaluate.run(tiny.eval_config(data, model, tmp_path / "run", problems=problems))
    printed = capsys.readouterr()
    named = (
        f"mine: 1 of 3 reference answers do not equal themselves (grader strict): {rows[1]['id']}"
    )
    assert named in printed.err
    (summary,) = json.loads((tmp_path / "run/summary.json").read_text())
    (bad,) = summary["bad_golds"]
    assert (bad["id"], bad["gold"], bad["outcome"]) == (
        rows[1]["id"],
        "\\frac{1}{2",
        "unparseable_gold",
    )
    assert summary["num_unparseable_gold"] == 2


def test_the_gold_of_the_original_evaluation_is_an_option(data, model, tmp_path):
    rows = tiny.rows(data / "train.jsonl")[:2]
    rows[0]["eval_answer"] = "other"
    source = tmp_path / "rows.jsonl"
    source.write_text("".join(json.dumps(row) + "\n" for row in rows))
    problems = {"mine": {"path": str(source)}}
    config = tiny.eval_config(data, model, tmp_path / "run", problems=problems, gold="eval_answer")
    evaluate.run(config)
    golds = {row.id: row.gold for row in journal.read(Sample, tmp_path / "run/samples/mine.jsonl")}
    assert golds == {rows[0]["id"]: "other", rows[1]["id"]: rows[1]["answer"]}
    assert tiny.rows(tmp_path / "run/questions/mine.jsonl") == rows


def test_a_base_model_is_shown_examples_from_a_file(data, model, tmp_path):
    config = tiny.eval_config(
        data,
        model,
        tmp_path,
        prompt_style="base",
        few_shot={"source": str(data / "test.jsonl"), "num": 2},
        decode=tiny.DECODE | {"max_prompt_tokens": 200},
    )
    evaluate.run(config)
    rows = journal.read(Sample, tmp_path / SAMPLES)
    shown = {row.prompt.rpartition("Problem:\n")[0] for row in rows}
    (document,) = shown
    assert document.count("Problem:\n") == document.count("\n\nSolution:\n") == 2
    assert document.count("\\boxed{") == 2
    questions = [p["problem"] for p in tiny.rows(data / "train.jsonl")[:12]]
    for row, question in zip(rows[::2], questions, strict=True):
        assert row.prompt == f"{document}Problem:\n{question}\n\nSolution:\n"
        assert "<|im_start|>" not in row.prompt and "\nProblem:" not in row.response
    other = dataclasses.replace(config, few_shot=dataclasses.replace(config.few_shot, seed=1))
    with pytest.raises(config_lib.ConfigError, match="was sampled with another examples;"):
        evaluate.run(other)


def test_prompts_that_are_too_long_count_as_not_right(data, model, tmp_path, monkeypatch):
    monkeypatch.setattr(evaluate, "WRITE_EVERY", 4)
    decode = tiny.DECODE | {"max_prompt_tokens": 20}
    config = tiny.eval_config(data, model, tmp_path, decode=decode)
    report = evaluate.run(config)
    rows = journal.read(Sample, tmp_path / SAMPLES)
    skipped = [row for row in rows if row.finish_reason == "skipped"]
    assert len(rows) == 24 and 0 < len(skipped) < 24
    assert all("tokens, more than 20" in row.rule and row.response == "" for row in skipped)
    (summary,) = json.loads((tmp_path / "summary.json").read_text())
    assert summary["num_skipped"] == len(skipped)
    assert report.summary["seen"]["accuracy"] == sum(r.outcome == "right" for r in rows) / 24

    before = (tmp_path / SAMPLES).read_bytes()
    evaluate.run(config)
    assert (tmp_path / SAMPLES).read_bytes() == before


def test_greedy_twice_gives_equal_bytes(data, model, tmp_path):
    files = []
    for name in ("a", "b"):
        config = tiny.eval_config(
            data,
            model,
            tmp_path / name,
            num_samples=1,
            sampling={"temperature": 0.0, "max_tokens": 40},
            seed=len(files),  # which has no say here
        )
        evaluate.run(config)
        files.append((tmp_path / name / SAMPLES).read_bytes())
    assert files[0] == files[1] and files[0].count(b"\n") == 12


def test_a_run_compared_with_itself_differs_by_nothing(whole, capsys):
    folder = str(whole[0])
    assert cli.main(["eval", "--compare", folder, folder]) == 0
    header, row = capsys.readouterr().out.splitlines()
    assert "b - a" in header and row.startswith("seen") and " +0.0 " in row
    with pytest.raises(ValueError, match="expected the output folder of an eval"):
        results.compare(folder, folder + "/nothing")


def test_flips_go_to_the_terminal_and_to_a_file(whole, tmp_path, capsys):
    rows = journal.read(Sample, whole[0] / SAMPLES)
    other = tmp_path / "other"
    (other / "samples").mkdir(parents=True)
    changed = [dataclasses.replace(r, outcome="wrong", pred="0", rule="r") for r in rows[:4]]
    journal.write(other / SAMPLES, [*changed, *rows[4:]])
    flipped = [q for q in (0, 2) if any(r.outcome == "right" for r in rows[q : q + 2])]
    assert flipped
    out = tmp_path / "flips.json"
    command = ["eval", "--compare", str(whole[0]), str(other), "--flips", "1", "--out", str(out)]
    assert cli.main(command) == 0
    assert f"seen: 1 of {len(flipped)} questions that flipped" in capsys.readouterr().out
    found = json.loads(out.read_text())["benchmarks"]["seen"]["flips"]
    assert {flip["id"] for flip in found} == {rows[q].id for q in flipped}
    assert found[0]["b"]["outcomes"] == ["wrong", "wrong"] and found[0]["a"]["right"] > 0


def test_another_way_to_ask_is_refused_half_way(data, model, whole):
    config = tiny.eval_config(data, model, whole[0], seed=1)
    with pytest.raises(config_lib.ConfigError, match="was sampled with another seed;"):
        evaluate.run(config)
    assert config_lib.load(evaluate.EvalRun, whole[0] / "config.yaml").seed == 0


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"benchmarks": ["math501"]}, "'math501' is not known; choose from math500"),
        ({"problems": {}}, "benchmarks and problems are empty"),
        ({"sampling": {"temperature": 0.0}}, "the same response every time"),
        ({"prompt_style": "polite"}, "prompt style is 'polite'"),
        ({"few_shot": -1}, "few_shot is -1; expected 0 or more"),
        ({"few_shot": 4}, r"problems \(seen\) have no examples of their own; name a file"),
        ({"gold": "golden"}, "gold: got 'golden', expected one of answer, eval_answer"),
        ({"num_samples": 1, "prm": {"init_from": "x"}}, "leaves nothing to choose from"),
        ({"init_from": None}, "model and init_from are both null"),
    ],
)
def test_a_config_that_cannot_be_is_refused(data, model, tmp_path, changes, message):
    with pytest.raises(config_lib.ConfigError, match=message):
        tiny.eval_config(data, model, tmp_path, **changes)
