"""Sums and counts → metrics.jsonl with one row for each step, whatever was cut off before."""

import json
import math
import sys

import jax
import jax.numpy as jnp
import pytest

from jaxmath import metrics


def writer(folder, **options):
    return metrics.MetricWriter(folder, **{"tensorboard": False, "echo": None, **options})


def write_steps(folder, steps, **options):
    sink = writer(folder, **options)
    for step in steps:
        sink.write(step, {"sft/loss": jnp.float32(step)})
    sink.close()
    return [row["step"] for row in metrics.read_rows(folder / "metrics.jsonl")]


def test_means_of_unequal_parts_add_up_to_the_mean_of_all():
    total = metrics.Mean(6.0, 3) + metrics.Mean(0.0, 1)
    assert total.value() == 1.5
    assert math.isnan(metrics.Mean(0.0, 0).value())


def test_a_mean_passes_through_compiled_code():
    step = jax.jit(lambda mean, x: mean + metrics.Mean(x, 1.0))
    assert step(metrics.Mean(1.0, 1.0), 2.0).value() == 1.5


def test_fetch_turns_means_and_scalars_into_floats():
    values = metrics.fetch({"a": metrics.Mean(jnp.float32(3), jnp.int32(2)), "b": jnp.int32(4)})
    assert values == {"a": 1.5, "b": 4.0}
    assert all(type(value) is float for value in values.values())


def test_a_row_holds_the_step_and_the_values(tmp_path):
    sink = writer(tmp_path)
    returned = sink.write(3, {"sft/loss": metrics.Mean(1.0, 4), "sft/lr": 2.0})
    assert returned == {"sft/loss": 0.25, "sft/lr": 2.0}
    rows = metrics.read_rows(tmp_path / "metrics.jsonl")  # before closing: rows are flushed
    assert rows == [{"step": 3, "sft/loss": 0.25, "sft/lr": 2.0}]
    sink.close()


def test_resuming_drops_the_rows_that_will_be_written_again(tmp_path):
    assert write_steps(tmp_path, [1, 2, 3, 4]) == [1, 2, 3, 4]
    assert write_steps(tmp_path, [3, 4, 5], resume_step=2) == [1, 2, 3, 4, 5]
    assert write_steps(tmp_path, [1]) == [1]


def test_a_torn_last_row_is_dropped(tmp_path):
    write_steps(tmp_path, [1, 2])
    path = tmp_path / "metrics.jsonl"
    for torn in ('{"step": 3, "sft/lo', '{"step": 3', "{"):
        path.write_text('{"step": 1}\n{"step": 2}\n' + torn)
        assert [row["step"] for row in metrics.read_rows(path)] == [1, 2]
        assert write_steps(tmp_path, [3], resume_step=2) == [1, 2, 3]


def test_a_number_that_is_not_finite_is_text_so_that_the_file_stays_json(tmp_path):
    sink = writer(tmp_path)
    sink.write(1, {"a": jnp.nan, "b": jnp.inf, "c": -jnp.inf, "d": metrics.Mean(0.0, 0)})
    sink.close()

    def refuse(constant):
        raise AssertionError(f"{constant} is not JSON")

    text = (tmp_path / "metrics.jsonl").read_text()
    row = json.loads(text, parse_constant=refuse)
    assert row == {"step": 1, "a": "nan", "b": "inf", "c": "-inf", "d": "nan"}
    assert math.isnan(float(row["a"]))


def test_the_printed_line_shows_the_chosen_values_in_order(tmp_path):
    lines = []
    sink = writer(tmp_path, show=("sft/loss", "absent", "perf/tokens_per_s"), echo=lines.append)
    sink.write(7, {"perf/tokens_per_s": 1234.56, "sft/loss": 0.5, "sft/other": 1.0})
    sink.close()
    assert lines == ["step 7 sft/loss 0.5 perf/tokens_per_s 1235"]


def test_a_line_goes_to_stderr_unless_told_otherwise(tmp_path, capsys):
    sink = metrics.MetricWriter(tmp_path, show=("a",), tensorboard=False)
    sink.write(1, {"a": 2.0})
    sink.close()
    assert capsys.readouterr() == ("", "step 1 a 2\n")


def test_tensorboard_event_files_hold_every_value(tmp_path):
    sink = writer(tmp_path, tensorboard=True)
    sink.write(1, {"sft/loss": 2.0})
    sink.close()
    (event_file,) = (tmp_path / "tensorboard").iterdir()
    assert "tfevents" in event_file.name
    assert b"sft/loss" in event_file.read_bytes()


def test_asking_for_wandb_without_the_package_says_so(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "wandb", None)
    with pytest.raises(ValueError, match="wandb is not installed; pip install wandb, or set it"):
        writer(tmp_path, wandb_project="math")
