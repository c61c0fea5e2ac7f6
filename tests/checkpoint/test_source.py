"""One function finds a model: Hugging Face folder, checkpoint of any run, or hub id."""

import dataclasses
import json

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxmath import config as configs
from jaxmath import sharding
from jaxmath.checkpoint import huggingface, safetensors, source, trees
from jaxmath.checkpoint.errors import CheckpointError, CheckpointMismatch
from jaxmath.checkpoint.store import CheckpointStore
from jaxmath.runs import convert

from .conftest import make_model, write_folder


def same(a, b) -> bool:
    a, b = trees.flatten(a), trees.flatten(b)
    return a.keys() == b.keys() and all(np.array_equal(a[k], b[k]) for k in a)


def tensors_of(folder) -> dict[str, bytes]:
    found = safetensors.read_folder(folder)
    return {name: t.rows(0, t.shape[0]).tobytes() for name, t in found.items()}


def prime_state(model, prm):
    tx = optax.adamw(1e-3)
    half = lambda params: {"step": jnp.int32(3), "params": params, "opt_state": tx.init(params)}  # noqa: E731
    return {"policy": half(model), "prm": half(prm)}


def save_run(folder, tree, model, step=3, **meta):
    with CheckpointStore(folder) as store:
        store.save(step, tree, {"model": configs.to_dict(model.config), **meta})


@pytest.mark.parametrize("dtype", ["bfloat16", "float16", "float32"])
@pytest.mark.parametrize("tied", [False, True])
def test_import_then_export_is_bit_equal(tmp_path, dtype, tied):
    folder = write_folder(tmp_path / "hf", make_model(tied), dtype, max_shard_bytes=30_000)
    meta = convert.import_hf(folder, tmp_path / "ckpt")
    assert (meta["dtype"], meta["eos_ids"], meta["tokenizer"]) == (dtype, [95], None)
    convert.export_hf(tmp_path / "ckpt", tmp_path / "out", max_shard_bytes=30_000)
    assert tensors_of(tmp_path / "out") == tensors_of(folder)
    assert huggingface.file_dtype(tmp_path / "out") == dtype
    generation = json.loads((tmp_path / "out" / "generation_config.json").read_text())
    assert generation["eos_token_id"] == 95


def test_import_carries_the_tokenizer_to_the_export(tmp_path, shared):
    folder = write_folder(tmp_path / "hf", make_model())
    for path in (shared / "data" / "tokenizer" / "qwen2.5").iterdir():
        (folder / path.name).write_bytes(path.read_bytes())
    (folder / "generation_config.json").write_text('{"eos_token_id": [94, 95], "top_p": 0.8}')
    convert.import_hf(folder, tmp_path / "ckpt")
    convert.export_hf(tmp_path / "ckpt", tmp_path / "out")
    for name in ("tokenizer.json", "tokenizer_config.json"):
        assert (tmp_path / "out" / name).read_bytes() == (folder / name).read_bytes()
    generation = json.loads((tmp_path / "out" / "generation_config.json").read_text())
    assert generation["eos_token_id"][:2] == [94, 95] and generation["top_p"] == 0.8


def test_the_folder_that_the_script_makes_is_imported(tmp_path, root, monkeypatch):
    import runpy

    script = str(root / "scripts" / "make_hf_model.py")
    folder = str(tmp_path / "hf")
    argv = [script, folder, "--size", "tiny", "--max-shard-size", "100KB", "--seed", "3"]
    monkeypatch.setattr("sys.argv", argv)
    runpy.run_path(script, run_name="__main__")
    assert (tmp_path / "hf" / safetensors.INDEX).exists()
    convert.import_hf(folder, tmp_path / "ckpt")
    convert.export_hf(tmp_path / "ckpt", tmp_path / "out")
    assert tensors_of(tmp_path / "out") == tensors_of(folder)


def test_an_export_may_change_the_dtype(tmp_path):
    folder = write_folder(tmp_path / "hf", make_model(), "float32")
    convert.import_hf(folder, tmp_path / "ckpt")
    convert.export_hf(tmp_path / "ckpt", tmp_path / "out", dtype="bfloat16")
    expected = safetensors.read_folder(folder)
    for name, tensor in safetensors.read_folder(tmp_path / "out").items():
        wanted = expected[name].rows(0, tensor.shape[0]).astype(tensor.dtype)
        assert tensor.dtype == "bfloat16"
        assert np.array_equal(tensor.rows(0, tensor.shape[0]), wanted)


def test_targets_that_hold_something_are_refused(tmp_path):
    folder = write_folder(tmp_path / "hf", make_model())
    convert.import_hf(folder, tmp_path / "ckpt")
    with pytest.raises(CheckpointError, match="already holds a checkpoint"):
        convert.import_hf(folder, tmp_path / "ckpt")
    with pytest.raises(CheckpointError, match="expected a Hugging Face folder"):
        convert.import_hf(tmp_path / "ckpt", tmp_path / "other")
    with pytest.raises(CheckpointError, match="exists"):
        convert.export_hf(tmp_path / "ckpt", folder)


@pytest.mark.parametrize("kind", ["sft", "prime"])
def test_the_model_of_a_run_is_found_beside_its_optimizers(tmp_path, one_device, kind):
    model, prm = make_model(seed=1), make_model(seed=2)
    tree = prime_state(model, prm)
    save_run(tmp_path / "run", tree if kind == "prime" else tree["policy"], model)
    loaded, config = source.load_model(tmp_path / "run", one_device)
    assert config == model.config and same(loaded, model)
    convert.export_hf(tmp_path / "run", tmp_path / "out")
    huggingface.verify_params(model.config, trees.flatten(model), tmp_path / "out")


@pytest.mark.parametrize("kind", ["huggingface", "checkpoint"])
def test_load_model_reads_either_kind_onto_any_mesh_in_any_dtype(tmp_path, kind):
    model = make_model()
    folder = write_folder(tmp_path / "hf", model)
    if kind == "checkpoint":
        folder = tmp_path / "ckpt"
        convert.import_hf(tmp_path / "hf", folder)
    mesh = sharding.make_mesh(sharding.MeshConfig(fsdp=4, tensor=2))
    wanted = dataclasses.replace(model.config, dtype="bfloat16", remat="none")
    loaded, config = source.load_model(folder, mesh, "bfloat16", wanted)
    assert config == loaded.config == wanted
    assert same(loaded, jax.tree.map(lambda x: x.astype(jnp.bfloat16), model))
    expected = trees.flatten(sharding.tree_shardings(mesh, loaded))
    assert all(x.sharding == expected[path] for path, x in trees.flatten(loaded).items())
    with_dtype = source.load_config(folder, dtype="bfloat16")
    assert with_dtype.same_weights(model.config) and with_dtype.dtype == "bfloat16"
    other = dataclasses.replace(model.config, rope_theta=1e6)
    with pytest.raises(CheckpointError, match=r"rope_theta is 10000\.0 there, 1000000\.0 here"):
        source.load_model(folder, mesh, config=other)


def test_load_model_falls_back_from_a_damaged_step_and_an_export_does_not(tmp_path, one_device):
    old, new = make_model(seed=1), make_model(seed=2)
    run = tmp_path / "run"
    save_run(run, {"params": old}, old, step=1)
    save_run(run, {"params": new}, new, step=2)
    for file in (run / "2" / "state").rglob("d/*"):
        data = bytearray(file.read_bytes())
        data[len(data) // 2] ^= 4
        file.write_bytes(data)
    assert same(source.load_model(run, one_device)[0], old)
    assert sorted(p.name for p in run.iterdir() if p.name.isdigit()) == ["1", "2"]  # a reader
    with pytest.raises(CheckpointError, match="step 2"):
        convert.export_hf(run, tmp_path / "out")
    convert.export_hf(run, tmp_path / "out", step=1)
    huggingface.verify_params(old.config, trees.flatten(old), tmp_path / "out")


def test_a_hub_id_is_downloaded_without_code_or_pickles(tmp_path, monkeypatch):
    import huggingface_hub

    folder, asked = write_folder(tmp_path / "hf", make_model()), {}

    def download(name, allow_patterns):
        asked.update(name=name, patterns=allow_patterns)
        return str(folder)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", download)
    assert source.find("Qwen/Qwen2.5-0.5B") == source.Source("huggingface", folder)
    assert asked["name"] == "Qwen/Qwen2.5-0.5B"
    assert not any(p.endswith((".py", ".bin", ".pt", "*")) for p in asked["patterns"])


@pytest.mark.parametrize(
    ("path", "message"),
    [
        ("none", "no such folder, and not a hub id"),
        ("./a/b", "no such folder, and not a hub id"),
        ("empty", "has neither config.json"),
    ],
)
def test_nothing_there_is_one_clear_error(tmp_path, monkeypatch, path, message):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "empty").mkdir()
    with pytest.raises(CheckpointError, match=message):
        source.find(path)


def test_a_checkpoint_without_a_model_says_what_is_missing(tmp_path, one_device):
    with CheckpointStore(tmp_path / "a") as store:
        store.save(0, {"x": jnp.zeros(3)}, {"model": {}})
    with CheckpointStore(tmp_path / "b") as store:
        store.save(0, {"params": make_model()}, {})
    with pytest.raises(CheckpointError, match="holds no model under params or policy/params"):
        source.load_model(tmp_path / "a", one_device)
    with pytest.raises(CheckpointError, match="no `model` config"):
        source.load_model(tmp_path / "b", one_device)


def test_a_config_of_another_size_does_not_match_the_arrays(tmp_path, one_device):
    model = make_model()
    wrong = dataclasses.replace(model.config, mlp_dim=41)
    with CheckpointStore(tmp_path) as store:
        store.save(0, {"params": model}, {"model": configs.to_dict(wrong)})
    with pytest.raises(CheckpointMismatch, match="gate_DF has shape"):
        source.load_model(tmp_path, one_device)
