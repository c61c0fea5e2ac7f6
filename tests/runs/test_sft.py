"""Training runs: they learn, and being cut off leaves no trace."""

import json
import math

import jax
import jax.numpy as jnp
import pytest

from jaxmath import config as config_lib
from jaxmath import metrics, sharding
from jaxmath.checkpoint import adapters, source, store
from jaxmath.checkpoint.errors import CheckpointError
from jaxmath.data import batches
from jaxmath.model import lora
from jaxmath.runs import convert, session, sft

from . import tiny


@pytest.fixture(scope="module")
def whole(data, tmp_path_factory):
    """Four steps at one go."""
    folder = tmp_path_factory.mktemp("whole") / "run"
    sft.run(tiny.sft_config(data, folder))
    return folder


def cut_run(data, folder, num_steps=2):
    with tiny.cut_after(batches.SftData, "batch_at", num_steps), pytest.raises(tiny.Cut):
        sft.run(tiny.sft_config(data, folder))


def test_a_token_cache_changes_nothing_and_is_read_the_second_time(data, whole, tmp_path, capfd):
    folder = tmp_path / "tokens"
    first = tiny.sft_config(data, tmp_path / "first", token_cache=str(folder))
    sft.run(first)
    with tiny.cut_after(batches, "encode_conversations", 0):
        sft.run(tiny.sft_config(data, tmp_path / "second", token_cache=str(folder)))
    assert f"tokens are those of {folder}" in capfd.readouterr().err
    for name in ("first", "second"):
        assert tiny.saved(tmp_path / name, 4)[1] == tiny.saved(whole, 4)[1]
        assert (tmp_path / name / "rejects.jsonl").read_text() == ""


def test_the_wait_for_data_is_a_share(whole):
    shares = [row["perf/data_wait"] for row in tiny.rows(whole / "metrics.jsonl")]
    assert all(0 <= share < 1 for share in shares)


def test_adapters_run_is_cut_and_goes_on_and_exports(data, model, tmp_path):
    changes = {
        "init_from": str(model),
        "lora": {"rank": 2, "alpha": 4, "targets": ["q_proj", "down_proj"]},
        "optimizer": {"learning_rate": 1e-2, "ema_decay": 0.5},
    }
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    sft.run(tiny.sft_config(data, whole, **changes))
    with tiny.cut_after(batches.SftData, "batch_at", 3), pytest.raises(tiny.Cut):
        sft.run(tiny.sft_config(data, cut, **changes))
    sft.run(tiny.sft_config(data, cut, **changes))
    _, leaves = tiny.saved(cut, 4)
    assert leaves == tiny.saved(whole, 4)[1]
    names = {path.rpartition("/")[0] for path in leaves if path.startswith("params/")}
    assert names == {"params/layers/wq_DNH", "params/layers/down_FD"}
    with pytest.raises(ValueError, match="another base"):
        sft.run(tiny.sft_config(data, cut, **changes | {"lora": changes["lora"] | {"alpha": 8}}))

    checkpoint, mesh = cut / "checkpoints", session.make_mesh(None)
    tree = adapters.restore(store.CheckpointStore(checkpoint, read_only=True), mesh)
    base, _ = source.load_model(model / "checkpoints", mesh)
    expected = lora.merge(base, tree.tree, tree.lora)
    merged, config = source.load_model(checkpoint, mesh)
    for one, other in zip(jax.tree.leaves(merged), jax.tree.leaves(expected), strict=True):
        assert jnp.allclose(one, other, atol=1e-6)
    assert not jnp.array_equal(merged.layers.wq_DNH[...], base.layers.wq_DNH[...])
    assert source.stored_dtype(checkpoint) == "float32"

    convert.export_hf(checkpoint, tmp_path / "hf")  # compares what it wrote with the merged weights
    again, _ = source.load_model(tmp_path / "hf", mesh)
    assert jnp.allclose(again.layers.down_FD[...], merged.layers.down_FD[...], atol=1e-6)
    convert.export_hf(checkpoint, tmp_path / "ema", ema=True)
    mean, _ = source.load_model(tmp_path / "ema", mesh)
    assert not jnp.array_equal(mean.layers.down_FD[...], again.layers.down_FD[...])
    convert.export_peft(checkpoint, tmp_path / "peft")
    assert (tmp_path / "peft" / "adapter_model.safetensors").is_file()
    with pytest.raises(CheckpointError, match="cannot be read"):
        convert.export_hf(checkpoint, tmp_path / "none", base=str(tmp_path / "absent"))


def test_requests_that_a_checkpoint_cannot_meet_are_refused(whole, tmp_path):
    checkpoint = whole / "checkpoints"
    with pytest.raises(CheckpointError, match="no averaged weights"):
        convert.export_hf(checkpoint, tmp_path / "hf", ema=True)
    with pytest.raises(CheckpointError, match="without --adapters"):
        convert.export_peft(checkpoint, tmp_path / "peft")
    with pytest.raises(CheckpointError, match="--base has no use"):
        convert.export_hf(checkpoint, tmp_path / "hf", base="elsewhere")


def test_adapters_need_a_model_to_adapt(data, tmp_path):
    with pytest.raises(config_lib.ConfigError, match="init_from is null; name the model to adapt"):
        tiny.sft_config(data, tmp_path, lora={"rank": 2})


def record_of(folder):
    return json.loads((folder / "environment.json").read_text())


def untimed(row):
    return {name: value for name, value in row.items() if not name.startswith("perf/")}


def test_four_steps_equal_two_save_restore_two(data, whole, tmp_path, capfd):
    cut_run(data, tmp_path, num_steps=3)  # the third step is lost: it was not saved
    capfd.readouterr()
    sft.run(tiny.sft_config(data, tmp_path))
    assert "restored step 2" in capfd.readouterr().err
    meta, leaves = tiny.saved(tmp_path, 4)
    assert leaves == tiny.saved(whole, 4)[1]
    assert {"step", "params/embed_VD"} <= leaves.keys() and meta["step"] == 4
    assert any(path.startswith("opt_state/") for path in leaves)
    ours, theirs = (tiny.rows(folder / "metrics.jsonl") for folder in (tmp_path, whole))
    assert [row["step"] for row in ours] == [1, 2, 3, 4]
    assert [untimed(row) for row in ours] == [untimed(row) for row in theirs]


def test_a_run_goes_on_on_another_mesh(data, whole, tmp_path, monkeypatch):
    cut_run(data, tmp_path)
    mesh = sharding.make_mesh(sharding.MeshConfig(data=2, fsdp=2, tensor=2))
    monkeypatch.setattr(session, "make_mesh", lambda config: mesh)
    sft.run(tiny.sft_config(data, tmp_path))
    ours, theirs = (tiny.rows(folder / "metrics.jsonl") for folder in (tmp_path, whole))
    assert [row["sft/loss"] for row in ours] == pytest.approx(
        [row["sft/loss"] for row in theirs], rel=1e-5
    )
    assert tiny.saved(tmp_path, 4)[0]["mesh"] == {"data": 2, "fsdp": 2, "tensor": 2}


def test_a_finished_run_has_nothing_left_to_do(data, whole):
    before = tiny.checkpoints(whole), (whole / "metrics.jsonl").read_bytes()
    with tiny.cut_after(batches.SftData, "batch_at", 0):
        report = sft.run(tiny.sft_config(data, whole))
    after = tiny.checkpoints(whole), (whole / "metrics.jsonl").read_bytes()
    assert after == before
    assert report.summary["steps"] == 4
    assert report.summary["loss"] == tiny.rows(whole / "metrics.jsonl")[-1]["sft/loss"]


def test_other_data_or_another_model_is_refused(data, whole):
    before = tiny.checkpoints(whole)
    fewer = {"path": str(data / "train.jsonl"), "limit": 150}
    with pytest.raises(ValueError, match="another data"):
        sft.run(tiny.sft_config(data, whole, data=fewer))
    with pytest.raises(ValueError, match="layers/gate_DF has shape"):
        sft.run(tiny.sft_config(data, whole, model=tiny.MODEL | {"mlp_dim": 128}))
    assert tiny.checkpoints(whole) == before
    # The record is that of the run that was made, not of the one that was refused.
    assert config_lib.load(sft.SftRun, whole / "config.yaml") == tiny.sft_config(data, whole)


def test_the_loss_falls(model):
    losses = [row["sft/loss"] for row in tiny.rows(model / "metrics.jsonl")]
    assert len(losses) == 150 and losses[0] == pytest.approx(math.log(512), rel=0.1)
    assert losses[-1] < 0.1


def test_the_run_folder_says_how_it_was_made(data, whole):
    config = config_lib.load(sft.SftRun, whole / "config.yaml")
    assert config == tiny.sft_config(data, whole)
    assert record_of(whole)["config_fingerprint"] == config_lib.fingerprint(config)
    record = record_of(whole)
    assert record["verb"] == "sft" and record["seed"] == 42
    assert record["packages"]["jax"] == jax.__version__ and record["device_kind"] == "cpu"
    assert list((whole / "tensorboard").iterdir()) and (whole / "tokenizer").is_dir()


def test_a_folder_of_another_verb_is_refused(data, model, whole):
    with pytest.raises(ValueError, match="holds a run of 'sft', not of 'eval'"):
        session.open_folder(tiny.eval_config(data, model, whole), "eval")


def test_several_steps_make_one_row_of_metrics():
    def step(loss, weight, lr, skipped):
        return {
            "sft/loss": metrics.Mean(loss * weight, weight),
            "sft/lr": lr,
            "sft/num_tokens": weight,
            "sft/skipped_updates": skipped,
        }

    combined = sft.combine([step(2.0, 10.0, 0.1, 0.0), step(5.0, 20.0, 0.2, 1.0)])
    assert metrics.fetch(combined) == pytest.approx(
        {"sft/loss": 4.0, "sft/lr": 0.2, "sft/num_tokens": 30.0, "sft/skipped_updates": 1.0}
    )


def test_microbatches_have_to_divide_the_mesh(data, tmp_path, monkeypatch):
    mesh = sharding.make_mesh(sharding.MeshConfig())
    monkeypatch.setattr(session, "make_mesh", lambda config: mesh)
    with pytest.raises(config_lib.ConfigError, match="4 is not a multiple of the 8 shards"):
        sft.run(tiny.sft_config(data, tmp_path, num_microbatches=4))
