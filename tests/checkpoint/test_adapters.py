"""PEFT's folder: names, shapes and values; and `peft` itself, where it is installed."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import load_file

from jaxmath.checkpoint import adapters, huggingface, trees, weights
from jaxmath.checkpoint.errors import CheckpointError
from jaxmath.model import lora, qwen2
from jaxmath.model.config import ModelConfig

TINY = ModelConfig(64, 2, 32, 48, 4, 2, 8, dtype="float32", remat="none")
ALL = lora.LoraConfig(rank=3, alpha=6.0)


@pytest.fixture(scope="module")
def pair():
    """A model and adapters that change it."""
    tree = lora.init(ALL, TINY, jax.random.key(1))
    for n, found in enumerate(tree["layers"].values()):
        noise = jax.random.normal(jax.random.key(n), found["b"][...].shape)
        found["b"] = found["b"].replace(0.1 * noise)
    return qwen2.Qwen2(TINY, jax.random.key(0)), tree


def test_the_files_are_those_that_peft_reads(pair, tmp_path):
    _, tree = pair
    adapters.export(tree, ALL, TINY, "owner/base", tmp_path / "peft")
    config = json.loads((tmp_path / "peft" / "adapter_config.json").read_text())
    assert (config["peft_type"], config["task_type"]) == ("LORA", "CAUSAL_LM")
    assert (config["r"], config["lora_alpha"]) == (3, 6.0)
    assert config["target_modules"] == sorted(lora.TARGETS)
    assert config["base_model_name_or_path"] == "owner/base"
    found = load_file(tmp_path / "peft" / "adapter_model.safetensors")
    sides = {  # module: (in, out)
        "self_attn.q_proj": (32, 32),
        "self_attn.k_proj": (32, 16),
        "self_attn.v_proj": (32, 16),
        "self_attn.o_proj": (32, 32),
        "mlp.gate_proj": (32, 48),
        "mlp.up_proj": (32, 48),
        "mlp.down_proj": (48, 32),
    }
    expected = {}
    for layer in range(2):
        for module, (summed, out) in sides.items():
            name = f"base_model.model.model.layers.{layer}.{module}"
            expected[f"{name}.lora_A.weight"] = (3, summed)
            expected[f"{name}.lora_B.weight"] = (out, 3)
    assert {name: x.shape for name, x in found.items()} == expected
    assert {x.dtype for x in found.values()} == {np.dtype(np.float32)}
    for name, x in adapters.tensors(tree, TINY).items():
        np.testing.assert_array_equal(found[name], x)


def test_their_product_is_what_merging_adds_to_the_weights_of_the_file(pair):
    model, tree = pair
    merged = trees.flatten(lora.merge(model, tree, ALL))
    plain = trees.flatten(model)
    found = adapters.tensors(tree, TINY)
    rows = lambda params: {  # noqa: E731
        name: part for name, _, part in weights.rows_in_file(TINY, params, np.dtype(np.float32))
    }
    after, before = rows(merged), rows(plain)
    changed = [name for name in after if not np.array_equal(after[name], before[name])]
    assert len(changed) == 14
    for name in changed:
        module = adapters.PREFIX + name.removesuffix(".weight")
        a_RI, b_OR = found[f"{module}.lora_A.weight"], found[f"{module}.lora_B.weight"]
        np.testing.assert_allclose(after[name] - before[name], 2.0 * b_OR @ a_RI, atol=1e-6)


def test_a_folder_is_not_overwritten_unasked(pair, tmp_path):
    _, tree = pair
    with pytest.raises(CheckpointError, match="exists; choose another"):
        adapters.export(tree, ALL, TINY, "owner/base", tmp_path)
    adapters.export(tree, ALL, TINY, "owner/base", tmp_path, overwrite=True)
    assert (tmp_path / adapters.TENSORS).exists()
    tree["layers"]["wq_DNH"]["b"] = tree["layers"]["wq_DNH"]["b"].replace(
        jnp.full_like(tree["layers"]["wq_DNH"]["b"][...], jnp.nan)
    )
    with pytest.raises(CheckpointError, match="not finite: .*q_proj.lora_B"):
        adapters.export(tree, ALL, TINY, "owner/base", tmp_path / "other")
    assert not (tmp_path / "other").exists()


def test_peft_computes_the_same_logits(tmp_path):
    peft = pytest.importorskip("peft", reason="peft is not installed; pip install peft")
    import torch
    import transformers

    model, tree = qwen2.Qwen2(TINY, jax.random.key(0)), lora.init(ALL, TINY, jax.random.key(1))
    for n, found in enumerate(tree["layers"].values()):
        noise = jax.random.normal(jax.random.key(n), found["b"][...].shape)
        found["b"] = found["b"].replace(0.1 * noise)
    base, folder, whole = tmp_path / "base", tmp_path / "peft", tmp_path / "merged"
    huggingface.save(model, base, dtype="float32")
    huggingface.save(lora.merge(model, tree, ALL), whole, dtype="float32")
    adapters.export(tree, ALL, TINY, str(base), folder)

    tokens_BT = np.random.default_rng(0).integers(0, 64, (2, 12)).astype(np.int32)
    attached = lora.attach(model, tree, ALL)
    positions_BT = np.broadcast_to(np.arange(12, dtype=np.int32)[None], tokens_BT.shape)
    hidden_BTD = attached.hidden_states(tokens_BT, positions_BT, np.ones_like(tokens_BT))
    ours = np.asarray(attached.logits(hidden_BTD))

    def load(path):
        return transformers.AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32)

    for theirs in (load(whole), peft.PeftModel.from_pretrained(load(base), folder)):
        with torch.no_grad():
            logits_BTV = theirs(torch.tensor(tokens_BT, dtype=torch.long)).logits.numpy()
        np.testing.assert_allclose(logits_BTV, ours, atol=1e-4)
