"""Evaluations: every row is asked, graded, kept and counted, however often a run is cut off."""

import json

import pytest

from jaxmath import __main__ as cli
from jaxmath import config as config_lib
from jaxmath.eval import samples
from jaxmath.runs import evaluate, respond

from . import tiny

SAMPLES = "samples/seen.jsonl"


@pytest.fixture(scope="module")
def whole(data, model, tmp_path_factory):
    """(folder, report) of a run that nothing disturbed."""
    folder = tmp_path_factory.mktemp("whole") / "run"
    return folder, evaluate.run(tiny.eval_config(data, model, folder))


def test_rows_are_questions_times_samples(data, whole):
    folder, report = whole
    rows = samples.read(folder / SAMPLES)
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
    assert "avg@k" in header and "95 % interval" in header
    assert row.split()[:4] == ["seen", "12", "2", accuracy]
    (summary,) = json.loads((folder / "summary.json").read_text())
    assert summary["accuracy"] == report.summary["seen"]["accuracy"]
    assert set(summary["pass_at"]) == {"1", "2"}


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


def test_prompts_that_are_too_long_count_as_not_right(data, model, tmp_path, monkeypatch):
    monkeypatch.setattr(evaluate, "WRITE_EVERY", 4)
    decode = tiny.DECODE | {"max_prompt_tokens": 20}
    config = tiny.eval_config(data, model, tmp_path, decode=decode)
    report = evaluate.run(config)
    rows = samples.read(tmp_path / SAMPLES)
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
        evaluate.compare(folder, folder + "/nothing")


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
        ({"init_from": None}, "model and init_from are both null"),
    ],
)
def test_a_config_that_cannot_be_is_refused(data, model, tmp_path, changes, message):
    with pytest.raises(config_lib.ConfigError, match=message):
        tiny.eval_config(data, model, tmp_path, **changes)
