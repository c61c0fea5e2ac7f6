"""Synthesis: only right answers are kept, and a run that was killed ends with the same bytes."""

import json
import os
import shutil

import pytest

from jaxmath import config as config_lib
from jaxmath.data import selection
from jaxmath.runs import respond, session, synth

from . import tiny


@pytest.fixture(scope="module")
def whole(data, model, tmp_path_factory):
    """(folder, report) of a run that nothing disturbed."""
    folder = tmp_path_factory.mktemp("whole") / "run"
    return folder, synth.run(tiny.synth_config(data, model, folder))


def output(folder):
    """What has to be the same: everything but where and with what it was made."""
    files = tiny.contents(folder)
    return {name: files[name] for name in files if name not in ("config.yaml", "environment.json")}


SUMMARY = "summary.json"


def shards_of(folder):
    return sorted((folder / "shards").glob("samples-*.jsonl"))


def test_every_question_has_its_samples_and_a_verdict(whole):
    folder, _ = whole
    shards = shards_of(folder)
    rows = [row for shard in shards for row in tiny.rows(shard)]
    assert [len(tiny.rows(shard)) for shard in shards] == [16, 16, 16]
    assert [(r["problem_id"], r["sample"]) for r in rows] == [
        (i, j) for i in range(24) for j in range(2)
    ]
    assert all(row["correct"] == (row["outcome"] == "right") for row in rows)


def test_only_right_and_finished_answers_are_kept(data, whole):
    folder, _ = whole
    rows = [r for path in shards_of(folder) for r in tiny.rows(path)]
    right = [r for r in rows if r["correct"] and r["finish_reason"] == "stop"]
    kept = tiny.rows(folder / "sft.jsonl")
    assert 0 < len(kept) == len(right) < len(rows)
    problems = tiny.rows(data / "train.jsonl")
    for record, row in zip(kept, right, strict=True):
        assert record.keys() == {"id", "messages", "ground_truth"}
        assert record["id"] == f"math_problem_{2 * row['problem_id'] + row['sample']}"
        problem = problems[row["problem_id"]]
        assert record["ground_truth"] == problem["answer"]
        roles = [message["role"] for message in record["messages"]]
        assert roles == ["system", "user", "assistant"]
        assert record["messages"][1]["content"] == problem["problem"]
        assert record["messages"][2]["content"] == row["response"]
        assert f"\\boxed{{{problem['answer']}}}" in row["response"]


def test_the_summary_adds_up(whole):
    folder, report = whole
    summary = json.loads((folder / SUMMARY).read_text())
    assert summary == report.summary
    assert sum(summary[fate] for fate in selection.FATES) == summary["responses"] == 48
    assert summary["kept"] == len(tiny.rows(folder / "sft.jsonl"))
    histogram = summary["questions_by_right_answers"]
    assert sum(histogram.values()) == 24
    right = sum(int(times) * count for times, count in histogram.items())
    assert summary["accuracy"] == right / 48


def test_shorter_answers_alone_can_be_kept_without_sampling_anew(data, model, whole, tmp_path):
    folder, report = whole
    shutil.copytree(folder / "shards", tmp_path / "shards")
    config = tiny.synth_config(data, model, tmp_path, filters={"max_tokens": 20})
    with tiny.cut_after(respond.Responder, "answer", 0):
        summary = synth.run(config).summary
    assert summary["kept"] < report.summary["kept"]
    assert summary["kept"] + summary["too_long"] == report.summary["kept"]


def test_a_lost_shard_is_made_again(data, model, whole, tmp_path):
    folder, _ = whole
    shutil.copytree(folder / "shards", tmp_path / "shards")
    shards_of(tmp_path)[1].unlink()
    job = json.loads((tmp_path / "shards/job.json").read_text())
    assert "output" not in job  # so that a folder may move
    synth.run(tiny.synth_config(data, model, tmp_path))
    assert output(tmp_path) == output(folder)


def test_a_run_cut_off_inside_a_shard_ends_with_the_same_rows(data, model, whole, tmp_path):
    config = tiny.synth_config(data, model, tmp_path)
    with tiny.cut_after(respond, "_response", 24), pytest.raises(tiny.Cut):
        synth.run(config)
    assert len(shards_of(tmp_path)) == 1
    with tiny.cut_after(respond, "_response", 24):  # the second shard's eight are not made again
        synth.run(config)
    assert output(tmp_path) == output(whole[0])


def test_a_finished_run_samples_nothing(data, model, whole):
    folder, report = whole
    before = output(folder)
    with tiny.cut_after(respond.Responder, "answer", 0):
        assert synth.run(tiny.synth_config(data, model, folder)).summary == report.summary
    assert output(folder) == before


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"sampling": {"temperature": 0.8, "max_tokens": 40}}, "sampling"),
        ({"seed": 1}, "seed"),
        ({"num_samples": 3}, "num_samples"),
    ],
)
def test_another_way_to_sample_is_refused(data, model, whole, changes, named):
    with pytest.raises(config_lib.ConfigError, match=f"made with another {named};"):
        synth.run(tiny.synth_config(data, model, whole[0], **changes))


def test_a_file_of_other_questions_is_refused(data, model, whole, tmp_path):
    source = tmp_path / "train.jsonl"
    source.write_bytes((data / "train.jsonl").read_bytes())
    config = tiny.synth_config(
        data, model, tmp_path / "run", data={"path": str(source), "limit": 2}
    )
    synth.run(config)
    lines = source.read_text().splitlines(keepends=True)
    source.write_text("".join(reversed(lines)))
    with pytest.raises(config_lib.ConfigError, match="made with another questions"):
        synth.run(config)


def test_a_file_is_the_old_or_the_new_one(tmp_path, monkeypatch):
    path = tmp_path / "f.json"
    session.write_atomic(path, "old")

    def no_room(*_):
        raise OSError("no space left on device")

    monkeypatch.setattr(os, "fsync", no_room)
    with pytest.raises(OSError):
        session.write_atomic(path, "new, and longer")
    assert path.read_text() == "old"
