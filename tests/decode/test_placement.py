"""Weights on the decoder's mesh: key/value heads that are fewer than the shards."""

import jax
import numpy as np
import pytest

from jaxmath import sharding
from jaxmath.decode import placement
from jaxmath.decode.decoder import DecodeConfig, Decoder
from jaxmath.decode.requests import Request
from jaxmath.decode.sampling import SamplingConfig
from jaxmath.model import qwen2
from jaxmath.model.config import ModelConfig

MODEL = ModelConfig(
    vocab_size=128,
    num_layers=2,
    embed_dim=64,
    mlp_dim=96,
    num_heads=8,
    num_kv_heads=2,
    head_dim=16,
    dtype="float32",
)


def make_mesh(sizes):
    devices = jax.devices()[: int(np.prod(sizes))]
    return sharding.make_mesh(sharding.MeshConfig(*sizes), devices)


def with_random_biases(model):
    """Fresh biases are zero, and would hide a head in the wrong place."""
    keys = iter(jax.random.split(jax.random.key(7), 100))
    return jax.tree.map(lambda x: x + 0.1 * jax.random.normal(next(keys), x.shape), model)


def answers(sizes):
    mesh = make_mesh(sizes)
    config = DecodeConfig(max_prompt_tokens=12, slots=4, cache="xla")
    decoder = Decoder(MODEL, config, SamplingConfig(max_tokens=10), (5,), mesh)
    decoder.load(with_random_biases(qwen2.init_sharded(MODEL, jax.random.key(0), mesh)))
    rng = np.random.default_rng(3)
    requests = [Request(p, 0, tuple(rng.integers(0, 128, 3 + p).tolist())) for p in range(8)]
    return {c.prompt_id: c for c in decoder.generate(requests)}


@pytest.mark.parametrize("sizes", [(1, 1, 4), (2, 1, 4), (1, 1, 8)])
def test_more_shards_than_key_value_heads_decode_as_one_device_does(sizes):
    plain, split = answers((1, 1, 1)), answers(sizes)
    assert plain.keys() == split.keys()
    for prompt_id, completion in split.items():
        assert completion.tokens == plain[prompt_id].tokens
        np.testing.assert_allclose(completion.logprobs, plain[prompt_id].logprobs, atol=1e-5)


def test_each_shard_has_one_key_value_head():
    mesh = make_mesh((1, 1, 4))
    assert placement.decode_shape(MODEL, mesh).num_kv_heads == 4
    shapes, where = placement.abstract(MODEL, mesh)
    wk, at = shapes.blocks[0].wk_DKH.get_value(), where.blocks[0].wk_DKH.get_value()
    assert wk.shape == (64, 4, 16)
    assert at.shard_shape(wk.shape) == (64, 1, 16)
