"""JSONL of samples: what is written comes back, whatever moment the run was cut off at."""

import dataclasses
import json

import pytest

from jaxmath.eval import journal
from jaxmath.eval.samples import Sample
from jaxmath.verify.verdict import Outcome


def _sample(id="q1", sample=0, **changes):
    row = Sample(
        benchmark="math500",
        id=id,
        sample=sample,
        prompt="1 + 1?",
        response="It is \\boxed{2}.",
        num_tokens=9,
        finish_reason="stop",
        outcome="right",
        rule="exact",
        pred="2",
        gold="2",
        logprob=-1.25,
    )
    return dataclasses.replace(row, **changes)


ROWS = [_sample("q2"), _sample("q1", 1), _sample("q1", 0, pred=None, outcome="no_answer")]


def test_rows_come_back_as_they_were_appended(tmp_path):
    path = tmp_path / "samples.jsonl"
    journal.append(path, ROWS[:1])
    journal.append(path, ROWS[1:])
    assert journal.read(Sample, path) == ROWS
    assert journal.read_done(Sample, path) == (ROWS, 0)


@pytest.mark.parametrize("text", ["π ≈ 3", "a\nb\r\u2028\x85c", "\ud800 alone", "\x00", '"\\'])
def test_any_response_text_survives(tmp_path, text):
    path = tmp_path / "samples.jsonl"
    journal.append(path, [_sample(response=text), _sample("q2")])
    assert journal.read(Sample, path)[0].response == text
    assert len(journal.read(Sample, path)) == 2


def test_no_file_is_no_rows(tmp_path):
    assert journal.read_done(Sample, tmp_path / "samples.jsonl") == ([], 0)


def test_a_run_killed_at_any_byte_keeps_every_whole_row(tmp_path):
    path = tmp_path / "samples.jsonl"
    journal.append(path, [_sample("q1", response="é"), _sample("q2", response="è")])
    data = path.read_bytes()
    first = data.index(b"\n") + 1
    for size in range(len(data)):
        path.write_bytes(data[:size])
        done, num_cut = journal.read_done(Sample, path)
        whole = 1 if size >= first else 0
        assert [s.id for s in done] == ["q1"][:whole]
        assert num_cut == size - whole * first
        assert path.read_bytes() == data[: whole * first]


def test_after_the_cut_appending_goes_on_cleanly(tmp_path):
    path = tmp_path / "samples.jsonl"
    journal.append(path, ROWS)
    path.write_bytes(path.read_bytes()[:-10])
    done, num_cut = journal.read_done(Sample, path)
    assert done == ROWS[:2] and num_cut > 0
    journal.append(path, ROWS[2:])
    assert journal.read(Sample, path) == ROWS


def test_a_last_line_of_zeros_is_a_torn_write(tmp_path):
    path = tmp_path / "samples.jsonl"
    journal.append(path, ROWS)
    path.write_bytes(path.read_bytes() + b"\x00" * 50 + b"\n")
    assert journal.read_done(Sample, path) == (ROWS, 51)


def test_damage_in_the_middle_is_an_error_and_changes_nothing(tmp_path):
    path = tmp_path / "samples.jsonl"
    journal.append(path, ROWS)
    lines = path.read_bytes().split(b"\n")
    path.write_bytes(b"\n".join([lines[0], lines[1][:-5], lines[2], b'{"torn']))
    before = path.read_bytes()
    with pytest.raises(ValueError, match=r"samples.jsonl:2: not a row of samples"):
        journal.read_done(Sample, path)
    assert path.read_bytes() == before


@pytest.mark.parametrize(
    "change, reason",
    [
        ({"num_tokens": "9"}, "num_tokens"),
        ({"num_tokens": True}, "num_tokens"),
        ({"num_tokens": -1}, "expected >= 0"),
        ({"finish_reason": "eos"}, "expected stop, length, skipped"),
        (
            {"outcome": "correct"},
            "expected right, wrong, no_answer, unparseable_gold, timeout, error",
        ),
        ({"pred": 2}, "pred"),
        ({"surprise": 1}, "surprise"),
    ],
)
def test_a_row_of_another_kind_is_refused_with_its_line(tmp_path, change, reason):
    path = tmp_path / "samples.jsonl"
    path.write_text(json.dumps({**dataclasses.asdict(_sample()), **change}) + "\n")
    with pytest.raises(ValueError, match=f"samples.jsonl:1: .*{reason}"):
        journal.read(Sample, path)


def test_a_verdict_s_outcome_is_written_as_its_name(tmp_path):
    path = tmp_path / "samples.jsonl"
    journal.append(path, [_sample(outcome=Outcome.TIMEOUT)])
    assert json.loads(path.read_text())["outcome"] == "timeout"
    assert journal.read(Sample, path) == [_sample(outcome="timeout")]


def test_a_logprob_that_is_not_finite_is_refused():
    with pytest.raises(ValueError, match="logprob: got nan"):
        _sample(logprob=float("nan"))


def test_the_same_sample_twice_is_an_error(tmp_path):
    path = tmp_path / "samples.jsonl"
    journal.append(path, [_sample(), _sample("q2"), _sample()])
    with pytest.raises(ValueError, match=r":3: sample 0 of math500 q1 stands already on line 1"):
        journal.read(Sample, path)


def test_writing_sorts_so_that_equal_runs_are_equal_files(tmp_path):
    one, two = tmp_path / "one.jsonl", tmp_path / "two.jsonl"
    journal.append(one, ROWS)
    journal.append(two, reversed(ROWS))
    for path in (one, two):
        journal.write(path, journal.read(Sample, path))
    assert one.read_bytes() == two.read_bytes()
    assert [s.key[1:] for s in journal.read(Sample, one)] == [("q1", 0), ("q1", 1), ("q2", 0)]
    assert sorted(p.name for p in tmp_path.iterdir()) == ["one.jsonl", "two.jsonl"]
