"""The token loop as compiled for machines that are not here: copies, bytes and collectives.

Shapes are those of Qwen2.5-7B, two layers deep. Every layer is the same, and so is its code.
"""

import collections
import functools

import jax
import pytest

from jaxmath import sharding
from jaxmath.decode import caches
from jaxmath.decode.decoder import DecodeConfig, Decoder
from jaxmath.decode.sampling import SamplingConfig
from jaxmath.model.config import ModelConfig
from jaxmath.plan import decoding, hlo, targets, traffic

# Programs for absent devices cannot be loaded again, so the cache of compiled ones is no use here.
pytestmark = pytest.mark.filterwarnings("ignore:Error reading persistent compilation cache")

LAYERS = 2
QWEN_7B = ModelConfig(
    vocab_size=152064,
    num_layers=LAYERS,
    embed_dim=3584,
    mlp_dim=18944,
    num_heads=28,
    num_kv_heads=4,
    head_dim=128,
)
TINY = ModelConfig(
    vocab_size=1024,
    num_layers=LAYERS,
    embed_dim=64,
    mlp_dim=96,
    num_heads=4,
    num_kv_heads=2,
    head_dim=16,
    dtype="float32",
)
# One and two key/value heads per shard: with two, a layout that the loop does not like shows up as
# a copy of the whole cache in front of each chunk and behind it.
TPU = {"v5e, tensor=4": ("v5e:2x4", (2, 1, 4)), "v5e, tensor=2": ("v5e:2x4", (4, 1, 2))}
TARGETS = TPU | {"one H200": ("h200:1", (1, 1, 1))}

EACH_LAYER = {"BTNH,NHD->BTD": LAYERS, "BTF,FD->BTD": LAYERS}  # output projection and MLP
REST = {
    ("all-gather", "f32"): 2,  # blocks of the vocabulary: their largest logit, their mass
    ("all-reduce", "f32"): 1,  # the chosen block
    ("all-reduce", "s32"): 1,  # how many slots are done
}
XLA_REST = REST | {("all-reduce", "s32"): 2}  # and the longest sequence, to which it reads


@functools.cache
def token_loop(model, target, sizes, cache, slots, length):
    """(decoder, program, loop) of `decode_chunk` on a mesh of these sizes."""
    if target is None:
        devices = jax.devices()
    elif missing := targets.missing(target):
        pytest.skip(missing)
    else:
        devices = targets.devices(target)
    mesh = sharding.make_mesh(sharding.MeshConfig(*sizes), devices)
    config = DecodeConfig(max_prompt_tokens=length // 8, slots=slots, cache=cache)
    sampling = SamplingConfig(max_tokens=length - length // 8)
    decoder = Decoder(model, config, sampling, (5,), mesh)
    with jax.default_matmul_precision("default"):  # as in runs; the kernels know no other
        program = hlo.parse(decoding.decode_chunk(decoder).as_text())
    return decoder, program, traffic.main_loop(program)


def on_target(case, cache="xla"):
    return token_loop(QWEN_7B, *TARGETS[case], cache, slots=256, length=4096)


def layer_cache_bytes(decoder):
    return decoder.memory.cache // decoder.model.num_layers


@pytest.mark.parametrize("case", TARGETS)
def test_nothing_in_the_token_loop_writes_half_a_layers_cache(case):
    decoder, program, loop = on_target(case)
    assert traffic.large_writes(program, loop.body, layer_cache_bytes(decoder) // 2) == []


@pytest.mark.parametrize("case", TPU)
def test_a_chunk_does_not_copy_the_cache_before_or_after_its_loop(case):
    decoder, program, loop = on_target(case)
    block = layer_cache_bytes(decoder) // 16  # an array of the cache is a block of keys or values
    in_loop = traffic.large_writes(program, loop.body, block)
    everywhere = traffic.large_writes(program, program.entry, block)
    assert [write for write in everywhere if write not in in_loop] == []


@pytest.mark.parametrize("case", TARGETS)
def test_a_step_moves_at_most_a_quarter_more_than_weights_cache_and_logits(case):
    decoder, program, loop = on_target(case)
    assert traffic.accessed(program, loop.body) <= 1.25 * decoding.ideal_bytes(decoder)


@pytest.mark.parametrize("case", TPU)
def test_a_step_has_two_all_reduces_per_layer_and_a_few_small_exchanges(case):
    check_exchanges(*on_target(case), XLA_REST)


def test_on_a_cpu_too_a_step_has_two_all_reduces_per_layer():
    found = token_loop(TINY, None, (2, 2, 2), "xla", slots=16, length=128)
    check_exchanges(*found, XLA_REST)


def check_exchanges(decoder, program, loop, expected_rest):
    layers, rest = collections.Counter(), collections.Counter()
    residual = most = 0
    for exchange in traffic.collectives(program, loop):
        product = exchange.op_name.removesuffix("/dot_general").rpartition("/")[2]
        if product in EACH_LAYER:
            assert exchange.kind == "all-reduce"
            layers[product] += 1
            residual = exchange.nbytes
        else:
            rest[exchange.kind, exchange.operands[0].dtype] += 1
            most = max(most, exchange.nbytes)
    assert layers == EACH_LAYER
    assert rest == expected_rest
    block = 4 * decoder.slots // decoder.shards * -(-decoder.model.vocab_size // 128)
    assert most <= max(residual, block)


@pytest.mark.parametrize("cache", ["paged"])
def test_the_kernels_for_a_tpu_update_their_cache_in_place(cache):
    assert cache in caches.CACHES
    decoder, program, loop = on_target("v5e, tensor=4", cache)
    small = layer_cache_bytes(decoder) // 16
    assert traffic.large_writes(program, loop.body, small) == []
    assert traffic.large_writes(program, program.entry, small) == []
    check_exchanges(decoder, program, loop, REST)
