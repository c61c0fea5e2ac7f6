"""Small Hugging Face folders, as `transformers` would write them, for the tests of this room."""

import json
import pathlib

import jax
import numpy as np
import pytest

from jaxmath import sharding
from jaxmath.checkpoint import huggingface, trees, weights
from jaxmath.model import config as model_config
from jaxmath.model import qwen2
from jaxmath.model.config import ModelConfig

SHAPE = {  # 3 query heads per key/value head, D == N * H: a transposed wq has the same shape
    "vocab_size": 96,
    "num_layers": 3,
    "embed_dim": 24,
    "mlp_dim": 40,
    "num_heads": 6,
    "num_kv_heads": 2,
    "head_dim": 4,
    "rope_theta": 10000.0,
    "dtype": "float32",
}


@pytest.fixture(scope="session")
def one_device():
    return sharding.make_mesh(sharding.MeshConfig(), jax.devices()[:1])


def make_model(tied: bool = False, seed: int = 0, scale: float = 0.3) -> qwen2.Qwen2:
    """A model with every parameter random, biases and norms too, large enough to matter."""
    config = ModelConfig(**SHAPE, tie_embeddings=tied)
    rng = np.random.default_rng(seed)

    abstract = qwen2.abstract(config)
    params = [
        jax.numpy.asarray(rng.normal("norm" in path, scale, x.shape).astype(np.float32))
        for path, x in trees.flatten(abstract).items()
    ]
    return jax.tree.structure(abstract).unflatten(params)


def write_folder(
    folder: pathlib.Path, model: qwen2.Qwen2, dtype: str = "float32", max_shard_bytes: int = 10**9
) -> pathlib.Path:
    """A folder by `safetensors` itself: tensors named and laid out by hand, not by our table."""
    from safetensors.numpy import save_file

    config = model.config
    tensors = {name: x.astype(np.dtype(dtype)) for name, x in by_hand(model).items()}
    folder.mkdir(parents=True)
    shards, size = [{}], 0
    for name, x in tensors.items():
        if shards[-1] and size + x.nbytes > max_shard_bytes:
            shards.append({})
            size = 0
        shards[-1][name] = np.ascontiguousarray(x)
        size += x.nbytes
    weight_map = {}
    for i, shard in enumerate(shards):
        file = f"model-{i + 1:05d}-of-{len(shards):05d}.safetensors"
        file = "model.safetensors" if len(shards) == 1 else file
        save_file(shard, folder / file, metadata={"format": "pt"})
        weight_map |= dict.fromkeys(shard, file)
    if len(shards) > 1:
        index = {"metadata": {}, "weight_map": weight_map}
        (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    hf = model_config.to_hf(config, dtype=dtype, eos_token_id=95)
    (folder / "config.json").write_text(json.dumps(hf))
    return folder


def by_hand(model: qwen2.Qwen2) -> dict[str, np.ndarray]:
    """Hugging Face names and layouts, written out."""
    c, layers = model.config, model.layers
    D, NH, KH = c.embed_dim, c.num_heads * c.head_dim, c.num_kv_heads * c.head_dim
    a = lambda param: np.asarray(param[...])  # noqa: E731
    out = {"model.embed_tokens.weight": a(model.embed_VD)}
    for i in range(c.num_layers):
        p = f"model.layers.{i}."
        out[p + "input_layernorm.weight"] = a(layers.input_norm_D)[i]
        for name, w, b, size in (
            ("q", layers.wq_DNH, layers.bq_NH, NH),
            ("k", layers.wk_DKH, layers.bk_KH, KH),
            ("v", layers.wv_DKH, layers.bv_KH, KH),
        ):
            out[p + f"self_attn.{name}_proj.weight"] = a(w)[i].reshape(D, size).T
            out[p + f"self_attn.{name}_proj.bias"] = a(b)[i].reshape(size)
        out[p + "self_attn.o_proj.weight"] = a(layers.wo_NHD)[i].reshape(NH, D).T
        out[p + "post_attention_layernorm.weight"] = a(layers.mlp_norm_D)[i]
        out[p + "mlp.gate_proj.weight"] = a(layers.gate_DF)[i].T
        out[p + "mlp.up_proj.weight"] = a(layers.up_DF)[i].T
        out[p + "mlp.down_proj.weight"] = a(layers.down_FD)[i].T
    out["model.norm.weight"] = a(model.final_norm_D)
    if model.head_DV is not None:
        out["lm_head.weight"] = a(model.head_DV).T
    return out


@pytest.fixture
def small_blocks(monkeypatch):
    """Blocks of a few hundred bytes, so that small tensors are read and written in many."""
    monkeypatch.setattr(weights, "BLOCK_BYTES", 300)


@pytest.fixture
def hf_folder(tmp_path):
    """An untied f32 folder in several shards."""
    return write_folder(tmp_path / "hf", make_model(), max_shard_bytes=30_000)


@pytest.fixture
def load(one_device):
    def load(folder, dtype="float32"):
        config = huggingface.load_config(folder, dtype="float32")
        return huggingface.load_params(folder, config, one_device, dtype)

    return load
