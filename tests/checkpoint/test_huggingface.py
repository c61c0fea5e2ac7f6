"""Hugging Face folders in and out: bit for bit, open to `transformers`, and never quietly wrong."""

import json
import re
import stat

import jax
import numpy as np
import pytest

from jaxmath import sharding
from jaxmath.checkpoint import huggingface, safetensors, trees, weights
from jaxmath.checkpoint.errors import CheckpointError

from .conftest import by_hand, make_model, write_folder


def tensors_of(folder) -> dict[str, tuple]:
    found = safetensors.read_folder(folder)
    return {n: (t.dtype, t.shape, t.rows(0, t.shape[0]).tobytes()) for n, t in found.items()}


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("dtype", ["bfloat16", "float16", "float32"])
@pytest.mark.parametrize("max_shard_bytes", [10**9, 15_000])
def test_in_and_out_again_is_bit_equal(tmp_path, load, tied, dtype, max_shard_bytes, small_blocks):
    source = write_folder(tmp_path / "hf", make_model(tied), dtype, max_shard_bytes)
    model = load(source, dtype)
    assert all(x.dtype == dtype for x in jax.tree.leaves(model))
    huggingface.save(model, tmp_path / "out", dtype=dtype, max_shard_bytes=max_shard_bytes)
    assert tensors_of(tmp_path / "out") == tensors_of(source)
    sharded = len(list((tmp_path / "out").glob("*.safetensors"))) > 1
    assert sharded == (max_shard_bytes < 10**9)
    assert (tmp_path / "out" / safetensors.INDEX).exists() == sharded


def test_masters_are_float32_whatever_the_file(tmp_path, load):
    source = write_folder(tmp_path / "hf", make_model(), "bfloat16")
    model = load(source)
    for name, x in by_hand(model).items():
        expected = by_hand(make_model())[name].astype("bfloat16").astype(np.float32)
        assert np.array_equal(x, expected), name


@pytest.mark.parametrize(("data", "fsdp", "tensor"), [(1, 8, 1), (1, 4, 2), (2, 2, 2), (1, 1, 2)])
def test_every_mesh_reads_and_writes_the_same(tmp_path, data, fsdp, tensor, small_blocks):
    source = write_folder(tmp_path / "hf", make_model())
    devices = jax.devices()[: data * fsdp * tensor]
    mesh = sharding.make_mesh(sharding.MeshConfig(data, fsdp, tensor), devices)
    model = huggingface.load_params(source, make_model().config, mesh)
    expected = trees.flatten(sharding.tree_shardings(mesh, model))
    assert {k: x.sharding for k, x in trees.flatten(model).items()} == expected
    huggingface.save(model, tmp_path / "out", dtype="float32")
    assert tensors_of(tmp_path / "out") == tensors_of(source)


@pytest.mark.parametrize("tied", [False, True])
def test_transformers_opens_an_export_and_gives_our_logits(tmp_path, tied):
    torch = pytest.importorskip("torch")
    import transformers

    model = make_model(tied)
    huggingface.save(model, tmp_path / "out", dtype="float32", max_shard_bytes=15_000)
    theirs, info = transformers.AutoModelForCausalLM.from_pretrained(
        tmp_path / "out", dtype=torch.float32, output_loading_info=True
    )
    assert not info["missing_keys"] and not info["unexpected_keys"]
    tokens_BT = np.arange(1, 15)[None] % 96
    with torch.no_grad():
        expected_BTV = theirs(torch.tensor(tokens_BT)).logits.numpy()
    positions_BT = np.arange(14)[None]
    hidden = model.hidden_states(tokens_BT, positions_BT, np.ones_like(tokens_BT))
    scale = np.abs(expected_BTV).max()
    assert np.abs(np.asarray(model.logits(hidden)) - expected_BTV).max() <= 1e-5 * scale


def test_a_folder_written_by_transformers_is_read(tmp_path, load):
    torch = pytest.importorskip("torch")
    import transformers

    config = transformers.Qwen2Config(
        **{"vocab_size": 64, "hidden_size": 24, "intermediate_size": 40, "num_hidden_layers": 2},
        **{"num_attention_heads": 6, "num_key_value_heads": 2, "rope_theta": 5e5},
    )
    theirs = transformers.Qwen2ForCausalLM(config).to(torch.bfloat16)
    theirs.save_pretrained(tmp_path / "hf", max_shard_size="20KB")
    assert huggingface.load_config(tmp_path / "hf").rope_theta == 5e5
    assert huggingface.file_dtype(tmp_path / "hf") == "bfloat16"
    ours = by_hand(load(tmp_path / "hf"))
    expected = {k: v.float().numpy() for k, v in theirs.state_dict().items()}
    assert ours.keys() == expected.keys()
    assert all(np.array_equal(ours[name], expected[name]) for name in ours)


# --- what is written beside the weights -------------------------------------------------------


def test_tokenizer_configs_and_every_eos_id_are_carried(tmp_path, shared):
    tokenizer = tmp_path / "tokenizer"
    tokenizer.mkdir()
    for path in (shared / "data" / "tokenizer" / "qwen2.5").iterdir():
        (tokenizer / path.name).write_bytes(path.read_bytes())
    (tokenizer / "chat_template.jinja").write_text("{{ messages }}")
    (tokenizer / "evil.py").write_text("raise SystemExit")
    generation = {"eos_token_id": [151645, 151643], "temperature": 0.7, "pad_token_id": 151643}
    (tokenizer / "generation_config.json").write_text(json.dumps(generation))
    out = tmp_path / "out"
    huggingface.save(make_model(), out, dtype="float32", tokenizer=tokenizer)
    for name in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja"):
        assert (out / name).read_bytes() == (tokenizer / name).read_bytes()
    assert not (out / "evil.py").exists()
    written = json.loads((out / "generation_config.json").read_text())
    assert written == generation
    config = json.loads((out / "config.json").read_text())
    assert (config["eos_token_id"], config["pad_token_id"]) == (151645, 151643)
    assert config["rope_theta"] == config["rope_parameters"]["rope_theta"] == 10000.0
    assert all(stat.S_IMODE(path.stat().st_mode) == 0o644 for path in out.iterdir())


def test_an_existing_target_is_kept_unless_overwriting_is_allowed(tmp_path):
    out = tmp_path / "out"
    huggingface.save(make_model(seed=1), out, dtype="float32")
    before = tensors_of(out)
    with pytest.raises(CheckpointError, match="exists"):
        huggingface.save(make_model(seed=2), out, dtype="float32")
    assert tensors_of(out) == before
    huggingface.save(make_model(seed=2), out, dtype="float32", overwrite=True)
    assert tensors_of(out) != before
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


@pytest.mark.parametrize(
    ("value", "dtype"), [(np.nan, "bfloat16"), (np.inf, "float32"), (1e6, "float16")]
)
def test_values_that_are_not_finite_are_not_exported(tmp_path, value, dtype):
    model = make_model()
    model.layers.up_DF[...] = model.layers.up_DF[...].at[1, 2, 3].set(value)
    with pytest.raises(CheckpointError, match=r"layers\.1\.mlp\.up_proj.*not finite in " + dtype):
        huggingface.save(model, tmp_path / "out", dtype=dtype)
    assert not list(tmp_path.iterdir())


# --- an export that is wrong is noticed -------------------------------------------------------


def change_row(path, **fields):
    """WEIGHTS with one row's name or axes changed: a mistake that both directions share."""
    name, axes = weights.WEIGHTS[path]
    row = (fields.get("name", name), fields.get("axes", axes))
    return lambda patch: patch.setitem(weights.WEIGHTS, path, row)


def change_rows(change):
    """`rows_in_file` with a mistake that only the writer makes."""

    def apply(patch):
        right = weights.rows_in_file
        patch.setattr(weights, "rows_in_file", lambda *args: map(change, right(*args)))

    return apply


def swap_layers(entry):
    name, row, part = entry
    other = {"0": "1", "1": "0"}
    return re.sub(r"layers\.([01])\.", lambda m: f"layers.{other[m[1]]}.", name), row, part


def drop_bias(entry):
    name, row, part = entry
    return name, row, part * (not name.endswith("bias"))


def swap_gate_and_up(patch):
    gate, up = weights.WEIGHTS["layers/gate_DF"], weights.WEIGHTS["layers/up_DF"]
    patch.setitem(weights.WEIGHTS, "layers/gate_DF", up)
    patch.setitem(weights.WEIGHTS, "layers/up_DF", gate)


def swap_layers_in_both(patch):
    right = weights.Weight.names
    wrong = lambda self: right(self)[::-1]  # noqa: E731
    patch.setattr(weights.Weight, "names", wrong)


MUTATIONS = {
    "layers swapped by the writer": change_rows(swap_layers),
    "bias dropped by the writer": change_rows(drop_bias),
    "layers in reverse": swap_layers_in_both,
    "query transposed": change_row("layers/wq_DNH", axes="D NH"),
    "output transposed": change_row("layers/wo_NHD", axes="NH D"),
    "rope dimensions permuted": change_row("layers/wk_DKH", axes="HK D"),
    "bias permuted": change_row("layers/bq_NH", axes="HN"),
    "gate and up swapped": swap_gate_and_up,
}


@pytest.mark.parametrize("scale", [0.3, 0.02])  # 0.02: a model that was never trained
@pytest.mark.parametrize("mutation", MUTATIONS)
def test_a_mutated_exporter_is_caught_and_deletes_nothing(tmp_path, monkeypatch, mutation, scale):
    model = make_model(scale=scale)
    with monkeypatch.context() as patch:
        MUTATIONS[mutation](patch)
        with pytest.raises(CheckpointError, match="differs"):
            huggingface.save(model, tmp_path / "out", dtype="float32")
    assert not (tmp_path / "out").exists()
    (staged,) = tmp_path.iterdir()
    assert len(safetensors.read_folder(staged)) == len(by_hand(model))


def test_verify_compares_with_the_source_and_not_only_with_itself(tmp_path):
    model = make_model()
    huggingface.save(model, tmp_path / "out", dtype="bfloat16")
    huggingface.verify_params(model.config, trees.flatten(model), tmp_path / "out")
    model.layers.bk_KH[...] = model.layers.bk_KH[...].at[2, 1, 3].add(0.01)
    with pytest.raises(CheckpointError, match=r"layers\.2\.self_attn\.k_proj\.bias differs"):
        huggingface.verify_params(model.config, trees.flatten(model), tmp_path / "out")
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    for theta in ("rope_theta", "rope_parameters"):
        config[theta] = {"rope_theta": 1e6} if theta == "rope_parameters" else 1e6
    (tmp_path / "out" / "config.json").write_text(json.dumps(config))
    with pytest.raises(CheckpointError, match=r"config\.json describes another model"):
        huggingface.verify_params(model.config, trees.flatten(model), tmp_path / "out")
