"""The compiled programs: how many there are, what they copy, and what they send between devices."""

import jax
import numpy as np
import pytest

from jaxmath import sharding
from jaxmath.decode import placement, sampling
from jaxmath.decode.decoder import DecodeConfig, Decoder
from jaxmath.decode.requests import Request
from jaxmath.model import qwen2
from jaxmath.model.config import ModelConfig
from jaxmath.plan import decoding

MODEL = ModelConfig(
    vocab_size=96,
    num_layers=2,
    embed_dim=64,
    mlp_dim=96,
    num_heads=4,
    num_kv_heads=2,
    head_dim=16,
    rms_norm_eps=1.5e-6,  # a model of this file alone: nothing of it is compiled before
    dtype="float32",
)


def make_decoder(sizes=(1, 1, 1), **decode):
    devices = jax.devices()[: int(np.prod(sizes))]
    mesh = sharding.make_mesh(sharding.MeshConfig(*sizes), devices)
    return Decoder(
        MODEL, DecodeConfig(**decode), sampling.SamplingConfig(max_tokens=16), (5,), mesh
    )


def chunk_program(decoder):
    """The decode program, compiled for shapes alone."""
    return decoding.decode_chunk(decoder)


def test_programs_are_few_and_compiled_once():
    decoder = make_decoder(slots=4, max_prompt_tokens=12, chunk_tokens=5)
    model = qwen2.init_sharded(MODEL, jax.random.key(2), decoder.mesh)
    other = jax.tree.map(lambda x: x * 1.5, model)
    rng = np.random.default_rng(0)
    requests = [
        Request(p, s, tuple(rng.integers(0, 96, 1 + p % 12).tolist()))
        for p in range(16)
        for s in range(2)
    ]
    compiled = []

    def listen(event, duration, **_):
        if event.endswith("backend_compile_duration"):
            compiled.append(event)

    jax.monitoring.register_event_duration_secs_listener(listen)
    try:
        decoder.load(model)
        first = list(decoder.generate(requests))
        num_first = len(compiled)
        decoder.load(other)
        second = list(decoder.generate(requests[3:], seed=4))
    finally:
        jax.monitoring.unregister_event_duration_listener(listen)
    assert (len(first), len(second)) == (32, 29)
    # parameters, an empty state, one prefill for each of three buckets, the chunk
    assert 1 <= num_first <= 6
    assert len(compiled) == num_first, "the same shapes were compiled again"


def test_a_chunk_updates_the_cache_in_place():
    decoder = make_decoder(slots=8, max_prompt_tokens=256)
    layer_bytes = 4 * 8 * MODEL.num_kv_heads * (256 + 16) * MODEL.head_dim
    memory = chunk_program(decoder).memory_analysis()
    assert memory.alias_size_in_bytes >= 2 * MODEL.num_layers * layer_bytes
    assert memory.temp_size_in_bytes < layer_bytes


def test_parameters_are_split_over_tensor_only():
    decoder = make_decoder((2, 2, 2), slots=8, max_prompt_tokens=12)
    decoder.load(qwen2.init_sharded(MODEL, jax.random.key(0), decoder.mesh))
    params = decoder.params
    specs = {tuple(x.sharding.spec) for x in jax.tree.leaves(params)}
    assert {axis for spec in specs for axis in spec} == {None, "tensor"}
    assert params.blocks[1].gate_DF[...].addressable_shards[0].data.shape == (64, 48)


def test_heads_that_the_mesh_does_not_divide_are_refused_by_name():
    with pytest.raises(ValueError, match="kv_heads.*size 2.*tensor of size 8"):
        make_decoder((1, 1, 8), slots=8, max_prompt_tokens=12)
    mesh = sharding.make_mesh(sharding.MeshConfig(1, 1, 8))
    with pytest.raises(ValueError, match=r"blocks\[0\].bk_KH.*tensor of size 8"):
        placement.decode_params(qwen2.abstract(MODEL), mesh)
