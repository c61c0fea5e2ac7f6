"""The whole verb against a server: several processes, kills, all filters, card, Parquet, hub."""

import collections
import json
import os
import random
import re
import shutil
import subprocess
import sys
import time

import pytest
from decode import openai_server

from jaxmath import config as config_lib
from jaxmath.data import records, selection, shards, sources
from jaxmath.runs import respond, synth

from . import tiny

NUM_SAMPLES = 4
FOREIGN = "因此我们得到最后的答案是这个数"
LOOP = "Wait, let me compute that sum once more. " * 12


def answer(body):
    """A teacher's response: by its seed right, wrong, in a loop, half Chinese, or a repetition.

    With a character in two escaped halves, and half of one.
    """
    question = body["prompt"].rpartition("user\n")[2].partition("<|im_end|>")[0]
    numbers = re.findall(r"\d+", question)
    kind = body["seed"] % 8
    total = sum(map(int, numbers)) + (kind == 0)
    middle = {1: LOOP, 2: FOREIGN, 3: "", 4: ""}.get(kind, f"Adding gives it, by way {kind}. ")
    return f"{middle}\ud835\udc65 \udfff The sum is $\\boxed{{{total}}}$."


class Teacher(openai_server.FakeServer):
    """Takes text only, so that it can read the question."""

    def __init__(self, **fields):
        super().__init__(takes_ids=False, **fields)
        self.RequestHandlerClass = Handler


class Handler(openai_server.Handler):
    def answer(self, server, body, fault):
        if not isinstance(body["prompt"], str):
            return super().answer(server, body, fault)
        text = answer(body)
        choice = {"index": 0, "text": text, "finish_reason": "stop", "logprobs": None}
        usage = {"completion_tokens": len(text.split())}
        return self.send(200, {"choices": [choice], "usage": usage})


@pytest.fixture(scope="module")
def teacher():
    with openai_server.serving(make=Teacher, delay_s=0.02) as server:
        yield server


@pytest.fixture(scope="module")
def numina(tmp_path_factory):
    """40 questions as NuminaMath has them, among them a proof, a figure, a blank and a leak."""
    folder = tmp_path_factory.mktemp("numina")
    rows = []
    for i in range(36):
        question = f"What is ${i}+{i + 5}$?"
        rows.append((question, f"We add. So the answer is $\\boxed{{{2 * i + 5}}}$."))
    rows[7] = ("Prove that $1+1$ is even.", "As $1+1=2$, it is. $\\boxed{2}$")
    rows[8] = ("In the figure, what is $1+1$?", "$\\boxed{2}$")
    rows[9] = ("Fill in: $1+1=\\underline{\\quad}$", "$\\boxed{2}$")
    rows[10] = ("What is $1+1$ in words?", "$\\boxed{\\text{two}}$")
    rows[11] = ("What is $1+x$?", "It cannot be said.")
    lines = [
        json.dumps(
            {
                "problem": question,
                "solution": solution,
                "source": "cn_k12",
                "messages": [{"role": "user", "content": question}],
            }
        )
        for question, solution in rows
    ]
    (folder / "train.jsonl").write_text("\n".join(lines) + "\n")
    (folder / "leak.jsonl").write_text(json.dumps({"problem": "what is 20 + 25"}) + "\n")
    return folder


FILTERS = {
    "min_tokens": 4,
    "max_repeated_ngrams": 0.3,
    "max_foreign_letters": 0.2,
    "distinct": True,
    "pass_rate": [0.25, 0.9],
    "max_per_question": 2,
    "choose": "shortest",
}


def make_config(data, numina, server, output, **changes):
    fields = {
        "output": str(output),
        "tokenizer": {"path": str(data / "tokenizer")},
        "data": {"path": str(numina / "train.jsonl")},
        "engine": {
            "kind": "openai",
            "base_url": server.url,
            "model": "a-teacher",
            "concurrency": 4,
        },
        "decode": {"slots": 1, "max_prompt_tokens": 512},
        "difficulty": "s1",
        "decontaminate": {"benchmarks": {"leak": {"path": str(numina / "leak.jsonl")}}},
        "prompt_style": "plain",
        "num_samples": NUM_SAMPLES,
        "shard_questions": 4,
        "sampling": {"temperature": 0.9, "max_tokens": 50},
        "filters": FILTERS,
        "card": {"title": "Sums", "license": "apache-2.0"},
        "verify": tiny.VERIFY,
    }
    return config_lib.from_dict(synth.SynthRun, fields | changes)


def output(folder):
    files = tiny.contents(folder)
    return {name: files[name] for name in files if name not in ("config.yaml", "environment.json")}


@pytest.fixture(scope="module")
def whole(data, numina, teacher, tmp_path_factory):
    """(folder, summary) of one undisturbed worker."""
    folder = tmp_path_factory.mktemp("whole") / "run"
    return folder, synth.run(make_config(data, numina, teacher, folder)).summary


def start(config, file):
    file.write_text(config_lib.dump(config))
    return subprocess.Popen(
        [sys.executable, "-m", "jaxmath", "synth", str(file)],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        env=os.environ | {"JAX_PLATFORMS": "cpu"},
    )


def rows_on_disk(folder):
    paths = [*folder.glob("shards/journals/*"), *folder.glob("shards/samples-*.jsonl")]
    count = 0
    for path in paths:
        try:
            count += path.read_bytes().count(b"\n")
        except FileNotFoundError:  # a journal whose shard has just become whole
            continue
    return count


@pytest.mark.nightly
def test_two_processes_killed_and_a_third_end_with_the_same_bytes(
    data, numina, teacher, whole, tmp_path
):
    config = make_config(data, numina, teacher, tmp_path / "run")
    draw = random.Random()  # any moment will do, so every run of the test tries others
    workers = [start(config, tmp_path / f"{i}.yaml") for i in range(2)]
    deadline = time.monotonic() + 240
    for worker, count in zip(workers, sorted(draw.sample(range(1, 90), 2)), strict=True):
        while rows_on_disk(tmp_path / "run") < count:
            assert worker.poll() is None and time.monotonic() < deadline, worker.communicate()[1]
            time.sleep(0.002)
        worker.kill()
        worker.communicate()
    assert not (tmp_path / "run/sft.jsonl").exists()
    last = start(config, tmp_path / "last.yaml")
    _, errors = last.communicate(timeout=300)
    assert last.returncode == 0, errors
    assert output(tmp_path / "run") == output(whole[0])


def test_questions_are_counted_by_what_kept_them_out(whole):
    assert whole[1]["questions"] == {
        "rows": 36,
        "without_answer": 1,
        "figure": 1,
        "proof": 1,
        "blank": 1,
        "answer_without_digit": 1,
        "choice": 0,
        "contaminated": 1,
        "prompt_too_long": 0,
        "sampled": 30,
    }
    (match,) = tiny.rows(whole[0] / "contamination.jsonl")
    assert (match["question_id"], match["benchmark"]) == ("train:21", "leak")
    assert (match["rule"], match["left_out"]) == ("same text", True)


def test_every_response_has_one_fate(whole):
    folder, summary = whole
    found = [row for path in folder.glob("shards/samples-*.jsonl") for row in tiny.rows(path)]
    assert len(found) == summary["responses"] == 30 * NUM_SAMPLES
    assert len({(row["problem_id"], row["sample"]) for row in found}) == len(found)
    assert sum(summary[fate] for fate in selection.FATES) == len(found)
    for fate in ("kept", "wrong", "repetitive", "foreign", "duplicate", "over_limit", "pass_rate"):
        assert summary[fate] > 0, fate
    assert summary["wrong"] == sum(row["outcome"] == "wrong" for row in found)
    kept = tiny.rows(folder / "sft.jsonl")
    assert summary["kept"] == len(kept)
    per_question = collections.Counter(record["messages"][1]["content"] for record in kept)
    assert max(per_question.values()) == 2
    for record in kept:
        assert LOOP not in record["messages"][2]["content"]
        assert FOREIGN not in record["messages"][2]["content"]


def test_half_a_character_does_not_stop_a_run(whole):
    found = tiny.rows(whole[0] / "sft.jsonl")
    assert all("\U0001d465 \ufffd The sum" in row["messages"][2]["content"] for row in found)


def test_parquet_holds_the_same_records(whole):
    folder, _ = whole
    rows = [row for _, row in sources.rows(str(folder / "sft.parquet"), "train", None)]
    assert rows == tiny.rows(folder / "sft.jsonl")
    read = records.read_conversations(records.DataConfig(str(folder / "sft.parquet")))
    assert read[0].messages[-1]["role"] == "assistant"


def test_the_manifest_and_the_card_say_what_was_done(whole):
    folder, summary = whole
    manifest = json.loads((folder / "shards/manifest.json").read_text())
    assert (manifest["num_done"], manifest["rows"]) == (9, summary["responses"])
    text = (folder / "README.md").read_text()
    assert text.startswith("---\nlicense: apache-2.0\n") and "path: sft.parquet" in text
    assert (
        f"{summary['kept']} conversations: questions of train.jsonl (train), answered by a-t"
        in text
    )
    assert f"jaxmath.verify {synth.session.code_digest('verify')}" in text
    assert "| contaminated | 1 |" in text and "| leak | 1 |" in text
    assert str(folder) not in text and "num_workers" not in text


def test_the_hub_gets_the_rows_and_the_card_and_nobody_sees_the_token(
    data, numina, teacher, whole, monkeypatch, capfd
):
    import datasets
    import huggingface_hub

    folder, summary = whole
    config = make_config(data, numina, teacher, folder, push_to_hub={"repo": "me/sums"})
    monkeypatch.delenv("HF_TOKEN", raising=False)
    with pytest.raises(ValueError, match="HF_TOKEN is empty or not set"):
        synth.run(config)
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    calls = []

    def push(table, repo, *, private, token):
        calls.append((repo, private, token, len(table), table.column_names))

    def upload(api, *, path_or_fileobj, path_in_repo, repo_id, repo_type):
        calls.append((repo_id, repo_type, path_in_repo, api.token, path_or_fileobj.decode()))

    def refuse(table, repo, *, private, token):
        raise OSError(f"403 for Bearer {token}")

    monkeypatch.setattr(datasets.Dataset, "push_to_hub", refuse)
    monkeypatch.setattr(huggingface_hub.HfApi, "upload_file", upload)
    before = output(folder)
    with pytest.raises(ValueError, match=r"OSError: 403 for Bearer \[token\]"):
        synth.run(config)
    assert output(folder) == before and calls == []

    monkeypatch.setattr(datasets.Dataset, "push_to_hub", push)
    with tiny.cut_after(respond.RemoteResponder, "answer", 0):
        synth.run(config)
        synth.run(config)  # what is there is not sent again
    columns = ["id", "messages", "ground_truth"]
    assert calls[0] == ("me/sums", True, "hf_secret", summary["kept"], columns)
    assert calls[1][:4] == ("me/sums", "dataset", "README.md", "hf_secret")
    assert "path: data/train-*" in calls[1][4] and len(calls) == 2
    (folder / "pushed.json").unlink()
    written = "".join(path.read_text() for path in folder.glob("*.*") if path.suffix != ".parquet")
    assert "hf_secret" not in written + "".join(capfd.readouterr())


def test_a_stricter_choice_of_questions_needs_no_new_samples(
    data, numina, teacher, whole, tmp_path
):
    config = make_config(data, numina, teacher, tmp_path / "run", difficulty="none", filters={})
    first = synth.run(config).summary
    assert first["questions"]["sampled"] == 34
    strict = make_config(data, numina, teacher, tmp_path / "run")
    with tiny.cut_after(respond.RemoteResponder, "answer", 0):
        later = synth.run(strict).summary
    assert later["question_left_out"] == 4 * NUM_SAMPLES
    del later["question_left_out"], later["responses"]
    assert later == {name: whole[1][name] for name in later}
    kept = (tmp_path / "run/sft.jsonl").read_bytes()
    assert kept == (whole[0] / "sft.jsonl").read_bytes()


def test_a_laxer_choice_of_questions_is_refused(data, numina, teacher, whole):
    config = make_config(data, numina, teacher, whole[0], difficulty="none")
    with pytest.raises(config_lib.ConfigError, match=r"without 4 questions .*first: train:8"):
        synth.run(config)


def test_a_damaged_shard_is_named_and_sampled_again(data, numina, teacher, whole, tmp_path, capfd):
    config = make_config(data, numina, teacher, tmp_path / "run")
    synth.run(config)
    path = sorted((tmp_path / "run/shards").glob("samples-*.jsonl"))[2]
    path.write_bytes(path.read_bytes()[:-40])
    synth.run(config)
    assert f"{path}: has" in capfd.readouterr().err
    assert output(tmp_path / "run") == output(whole[0])


def test_everything_can_be_graded_again(data, numina, teacher, whole, tmp_path):
    folder = tmp_path / "run"
    shutil.copytree(whole[0], folder)
    store = shards.Shards(folder / "shards", 9)
    other = store.record(3)
    spoilt = [row | {"correct": True, "outcome": "right"} for row in store.rows(other)]
    (folder / "shards/samples-00003.json").unlink()
    (folder / "shards" / other.file).unlink()
    facts = other.facts | {"grading": {"grader": "kind"}}
    store.commit(3, {shards.name_of(row): row for row in spoilt}, facts)
    with pytest.raises(config_lib.ConfigError, match=r"graded with \{'grader': 'kind'\}, not with"):
        synth.run(make_config(data, numina, teacher, folder))
    with tiny.cut_after(respond.RemoteResponder, "answer", 0):
        summary = synth.run(make_config(data, numina, teacher, folder, regrade=True)).summary
    assert summary == whole[1]
    for name in ("sft.jsonl", "sft.parquet"):
        assert (folder / name).read_bytes() == (whole[0] / name).read_bytes()


def test_wrong_answers_can_be_kept_and_are_marked(data, numina, teacher, whole, tmp_path):
    folder = tmp_path / "run"
    shutil.copytree(whole[0], folder)
    config = make_config(data, numina, teacher, folder, filters={"right": False})
    with tiny.cut_after(respond.RemoteResponder, "answer", 0):
        summary = synth.run(config).summary
    assert summary["kept"] == summary["responses"]
    marks = collections.Counter(row["correct"] for row in tiny.rows(folder / "sft.jsonl"))
    assert 0 < marks[False] < marks[True]
    rows = [row for _, row in sources.rows(str(folder / "sft.parquet"), "train", None)]
    assert rows == tiny.rows(folder / "sft.jsonl")
