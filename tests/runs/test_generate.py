"""Prompts in, text out."""

import dataclasses

import pytest

from jaxmath import __main__ as cli
from jaxmath import config as config_lib
from jaxmath.runs import generate

from . import tiny


def test_every_question_of_a_file_is_answered(data, model, tmp_path):
    report = generate.run(tiny.generate_config(data, model, tmp_path, num_samples=2))
    rows = tiny.rows(tmp_path / "responses.jsonl")
    problems = tiny.rows(data / "train.jsonl")[:6]
    assert report.summary == {"responses": 12}
    assert [(row["id"], row["sample"]) for row in rows] == [
        (problem["id"], sample) for problem in problems for sample in (0, 1)
    ]
    assert [row["prompt"] for row in rows[::2]] == [problem["problem"] for problem in problems]
    assert [row["response"] for row in rows[::2]] == [row["response"] for row in rows[1::2]]
    right = [
        f"\\boxed{{{p['answer']}}}" in r["response"]
        for p, r in zip(problems, rows[::2], strict=True)
    ]
    assert sum(right) >= 3  # learnt by heart


def test_one_question_is_answered_on_the_command_line(data, model, tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("JAX_COMPILATION_CACHE_DIR", "as the session has it")
    question = tiny.rows(data / "train.jsonl")[0]["problem"]
    file = tmp_path / "generate.yaml"
    config = tiny.generate_config(data, model, tmp_path / "run")
    file.write_text(config_lib.dump(config))
    assert cli.main(["generate", str(file), "--prompt", question, "data=null"]) == 0
    printed = capsys.readouterr().out.rstrip("\n")
    generate.run(config)
    assert printed == tiny.rows(tmp_path / "run/responses.jsonl")[0]["response"] != ""


def test_text_comes_in_pieces_that_add_up(data, model, tmp_path):
    config = tiny.generate_config(data, model, tmp_path)
    config = dataclasses.replace(
        config, decode=dataclasses.replace(config.decode, chunk_tokens=3), num_samples=2
    )
    generate.run(config)
    row = tiny.rows(tmp_path / "responses.jsonl")[0]
    pieces = []
    generate.answer(config, row["prompt"], pieces.append)
    assert "".join(pieces) == row["response"] != ""
    assert sum(piece != "" for piece in pieces) > 2


def test_responses_are_on_disk_as_soon_as_they_end(data, model, tmp_path, monkeypatch):
    config = tiny.generate_config(data, model, tmp_path, num_samples=2)
    seen = []

    def count(self, *_):
        path = tmp_path / "responses.jsonl"
        seen.append(len(path.read_text().splitlines()))

    monkeypatch.setattr(generate.Progress, "update", count)
    generate.run(config)
    assert seen == list(range(12))


def test_a_question_that_does_not_fit_is_an_error(data, model, tmp_path):
    config = tiny.generate_config(data, model, tmp_path)
    with pytest.raises(ValueError, match="tokens, more than 48; raise max_prompt_tokens"):
        generate.answer(config, "1 + 1 + " * 40, print)
    with pytest.raises(config_lib.ConfigError, match="data is null"):
        generate.run(tiny.generate_config(data, model, tmp_path, data=None))
