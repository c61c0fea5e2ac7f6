"""Caches and int8 products compiled for TPUs that are not there: they fit, and copy nothing."""

import functools
import importlib.util
import re

import jax
import jax.numpy as jnp
import pytest

from jaxmath import sharding
from jaxmath.decode.cache_int8 import Int8Cache
from jaxmath.decode.cache_paged import PagedCache
from jaxmath.kernels.linear import QuantizedWeight, linear
from jaxmath.model.config import ModelConfig
from jaxmath.plan import targets

pytestmark = pytest.mark.skipif(
    importlib.util.find_spec("libtpu") is None, reason='no TPU compiler; pip install "jax[tpu]"'
)

# the attention of Qwen2.5-7B
MODEL = ModelConfig(8, 1, 8, 8, num_heads=28, num_kv_heads=4, head_dim=128, dtype="bfloat16")
SLOTS, LENGTH, WIDTH = 256, 4096, 512

# target → data, fsdp, tensor: slots over the first, one key/value head a shard
MESHES = {"v5e:2x4": (2, 1, 4), "v6e:2x4": (2, 1, 4), "v4:2x2x4": (4, 1, 4)}


@pytest.fixture(autouse=True)
def settings():
    """TPU kernels multiply bfloat16 as it is; the "highest" of other tests they refuse. And what is
    compiled for absent devices can be stored, but not loaded."""
    jax.config.update("jax_enable_compilation_cache", False)
    with jax.default_matmul_precision("default"):
        yield
    jax.config.update("jax_enable_compilation_cache", True)


def make_mesh(target, sizes):
    return sharding.make_mesh(sharding.MeshConfig(*sizes), targets.devices(target))


def shape(mesh, axes, shape, dtype=MODEL.dtype):
    where = sharding.named(mesh, axes, shape)
    return jax.ShapeDtypeStruct(shape, dtype, sharding=where)


def empty(mesh, cache_class):
    """The shapes of a cache on its shards, and the bytes of one."""
    cache = jax.eval_shape(lambda: cache_class.allocate(MODEL, SLOTS, LENGTH, MODEL.dtype))
    cache = jax.tree.map(lambda x, axes: shape(mesh, axes, x.shape, x.dtype), cache, cache.axes())
    size = sum(x.size * x.dtype.itemsize for x in jax.tree.leaves(cache))
    return cache, size // mesh.size


def compiled(mesh, program, *args):
    with jax.set_mesh(mesh):
        return jax.jit(program, donate_argnums=0).lower(*args).compile()


def token(mesh):
    """q, k, v, position_B of one decode step."""
    heads = functools.partial(shape, mesh, ("batch", "kv_heads", "head_dim"))
    k_BKH = heads((SLOTS, MODEL.num_kv_heads, MODEL.head_dim))
    q_BNH = heads((SLOTS, MODEL.num_heads, MODEL.head_dim))
    return q_BNH, k_BKH, k_BKH, shape(mesh, ("batch",), (SLOTS,), jnp.int32)


def step(cache, q_BNH, k_BKH, v_BKH, position_B):
    cache = cache.write(k_BKH, v_BKH, position_B)
    return cache, cache.attend(q_BNH, position_B + 1)


@pytest.mark.parametrize("target", MESHES)
def test_a_paged_step_reads_the_cache_where_it_lies(target):
    mesh = make_mesh(target, MESHES[target])
    cache, size = empty(mesh, PagedCache)
    program = compiled(mesh, step, cache, *token(mesh))
    memory = program.memory_analysis()
    assert memory.alias_size_in_bytes == size
    assert memory.temp_size_in_bytes < size / 1000
    text = program.as_text()
    slots = SLOTS // mesh.shape["data"]
    assert re.search(rf"ragged_paged_attention\S* = bf16\[{slots},7,128\]\S* custom-call\(", text)
    assert not re.search(r" (all-\w+|collective-\w+|reduce-scatter)(-start)?\(", text)


@pytest.mark.parametrize("target", ["v5e:2x4"])
def test_all_heads_of_a_model_on_one_shard_compile_too(target):
    mesh = make_mesh(target, (8, 1, 1))
    cache, size = empty(mesh, PagedCache)
    memory = compiled(mesh, step, cache, *token(mesh)).memory_analysis()
    assert memory.temp_size_in_bytes < size / 1000


@pytest.mark.parametrize("target", MESHES)
def test_prompts_are_inserted_in_place(target):
    mesh = make_mesh(target, MESHES[target])
    cache, size = empty(mesh, PagedCache)
    rows = (8, 2 * WIDTH, MODEL.num_kv_heads, MODEL.head_dim)
    k_PTKH = shape(mesh, (None, None, "kv_heads", "head_dim"), rows)
    index_I = shape(mesh, ("batch",), (SLOTS,), jnp.int32)
    count = jax.ShapeDtypeStruct((), jnp.int32)
    insert = lambda cache, *args: cache.insert(*args, WIDTH)  # noqa: E731
    args = (cache, k_PTKH, k_PTKH, index_I, index_I, index_I, count)
    memory = compiled(mesh, insert, *args).memory_analysis()
    assert memory.alias_size_in_bytes == size
    assert memory.temp_size_in_bytes < size / 100


@pytest.mark.parametrize("target", ["v5e:2x4"])
def test_an_int8_cache_is_never_copied_into_another_dtype(target):
    mesh = make_mesh(target, MESHES[target])
    cache, size = empty(mesh, Int8Cache)

    def steps(cache, q_BNH, k_BKH, v_BKH, position_B):
        def one(i, carry):
            cache, q_BNH = carry
            return step(cache, q_BNH, k_BKH, v_BKH, position_B + i)

        return jax.lax.fori_loop(0, 32, one, (cache, q_BNH))

    memory = compiled(mesh, steps, cache, *token(mesh)).memory_analysis()
    assert memory.alias_size_in_bytes == size
    assert memory.temp_size_in_bytes < size / 2  # in bfloat16 it would be twice the size


@pytest.mark.parametrize("target", ["v5e:2x4", "v6e:2x4"])
def test_int8_weights_are_read_as_they_are(target):
    """The gate of a 7B block: 68 MB of codes, and no 136 MB of bfloat16."""
    mesh = make_mesh(target, (8, 1, 1))
    D, F = 3584, 18944
    whole = functools.partial(shape, mesh)
    codes_DF = whole((None, None), (D, F), jnp.int8)
    weight = QuantizedWeight(codes_DF, whole((None,), (F,), jnp.float32))
    x_BTD = whole(("batch", None, None), (SLOTS, 1, D))
    product = lambda x_BTD, weight: linear("BTD,DF->BTF", x_BTD, weight)  # noqa: E731
    program = compiled(mesh, product, x_BTD, weight)
    assert program.memory_analysis().temp_size_in_bytes < D * F / 50
    entry = program.as_text().partition("ENTRY")[2]
    assert f"s8[{D},{F}]" in entry and f"bf16[{D},{F}]" not in entry
