"""One training step means the same on every mesh, and no mesh holds more than its share."""

import dataclasses
import functools
import os
import subprocess
import sys
import textwrap

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import PartitionSpec

from jaxmath import sharding
from jaxmath.kernels import attention, logprobs
from jaxmath.model import config as model_config
from jaxmath.model import qwen2

# (data, fsdp, tensor); every size divides 8 key/value heads
MESHES = [(8, 1, 1), (1, 8, 1), (1, 1, 8), (2, 2, 2), (1, 4, 2), (2, 4, 1)]
EACH_CHANGE = [(1, 1, 8), (2, 2, 2)]

UNTIED = model_config.ModelConfig(
    vocab_size=96,
    num_layers=2,
    embed_dim=32,
    mlp_dim=64,
    num_heads=16,
    num_kv_heads=8,
    head_dim=8,
    dtype="float32",
)
TIED = dataclasses.replace(UNTIED, tie_embeddings=True)

# The programs are the real ones; only LLVM is told to hurry.
QUICK = {"xla_backend_optimization_level": 0}

OPTIMIZER = optax.adamw(1e-3, b1=0.9, b2=0.95, weight_decay=0.1)


@pytest.fixture(autouse=True)
def small_chunks(monkeypatch):
    """Several chunks in both kernels, as in a real run."""
    monkeypatch.setattr(attention, "CHUNK_QUERIES", 8)
    monkeypatch.setattr(logprobs, "CHUNK_TOKENS", 32)


def batch():
    """Eight rows of 16: full, packed, and partly padded ones."""
    tokens_BT = np.random.default_rng(0).integers(0, 96, (8, 16), np.int32)
    positions_BT = np.tile(np.arange(16, dtype=np.int32), (8, 1))
    segment_ids_BT = np.ones((8, 16), np.int32)
    segment_ids_BT[1::2, 9:], positions_BT[1::2, 9:] = 2, np.arange(7)
    segment_ids_BT[2::3, 13:] = 0
    return tokens_BT, positions_BT, segment_ids_BT


def train_step(params, opt_state, rows):
    def loss_fn(params):
        mask_BT = rows[2] > 0
        return -jnp.sum(params.token_logprobs(*rows) * mask_BT) / jnp.sum(mask_BT)

    loss, grads = jax.value_and_grad(loss_fn)(params)
    updates, opt_state = OPTIMIZER.update(grads, opt_state, params)
    return loss, grads, optax.apply_updates(params, updates), opt_state


@functools.cache
def initial(config):
    """Random parameters in host memory, made on one device."""
    init = jax.jit(lambda key: qwen2.Qwen2(config, key), compiler_options=QUICK)
    return jax.device_get(init(jax.random.key(0)))


def one_step(config, mesh):
    """The same parameters placed on `mesh`, and what `train_step` makes of them."""
    params = initial(config)
    shardings = sharding.tree_shardings(mesh, params)
    params = jax.device_put(params, shardings)
    opt_shardings = sharding.tree_shardings(mesh, jax.eval_shape(OPTIMIZER.init, params))
    opt_state = jax.jit(OPTIMIZER.init, out_shardings=opt_shardings)(params)
    rows = jax.device_put(batch(), sharding.named(mesh, ("batch", "seq"), (8, 16)))
    whole = sharding.replicated(mesh)
    out = (whole, shardings, shardings, opt_shardings)
    step = jax.jit(train_step, out_shardings=out, compiler_options=QUICK)
    with jax.set_mesh(mesh):
        return params, step(params, opt_state, rows)


@functools.cache
def on_one_device(config):
    mesh = sharding.make_mesh(sharding.MeshConfig(1, 1, 1), jax.devices()[:1])
    return jax.device_get(one_step(config, mesh)[1])


def worst(one, other) -> float:
    """Largest |difference|, over the largest |value| of the array where that is above 1."""
    pairs = zip(jax.tree.leaves(one), jax.tree.leaves(jax.device_get(other)), strict=True)
    return max(np.max(np.abs(a - b)) / max(1.0, np.max(np.abs(b))) for a, b in pairs)


@pytest.mark.parametrize(
    ("config", "shape"),
    [
        pytest.param(UNTIED, shape, marks=() if shape in EACH_CHANGE else pytest.mark.nightly)
        for shape in MESHES
    ]
    + [(TIED, (2, 2, 2))],
    ids=lambda value: (
        "x".join(map(str, value))
        if isinstance(value, tuple)
        else ("tied" if value.tie_embeddings else "untied")
    ),
)
def test_a_training_step_agrees_with_one_device(config, shape, record_property):
    loss, grads, new_params, opt_state = on_one_device(config)
    mesh = sharding.make_mesh(sharding.MeshConfig(*shape))
    params, (our_loss, our_grads, our_params, our_state) = one_step(config, mesh)
    errors = {
        "loss": worst(loss, our_loss),
        "gradients": worst(grads, our_grads),
        "parameters": worst(new_params, our_params),
        "optimizer": worst(opt_state, our_state),
    }
    print(shape, {name: f"{error:.1e}" for name, error in errors.items()})
    record_property("errors", {name: float(error) for name, error in errors.items()})
    assert worst(new_params, params) > 1e-4  # the step moved them
    assert max(errors.values()) <= 1e-5
    # Gradients are small numbers: also against their own size.
    for a, b in zip(jax.tree.leaves(grads), jax.tree.leaves(our_grads), strict=True):
        assert np.max(np.abs(a - jax.device_get(b))) <= 1e-5 * max(np.max(np.abs(a)), 1e-3)
    for before, after in zip(jax.tree.leaves(params), jax.tree.leaves(our_params), strict=True):
        assert before.sharding.is_equivalent_to(after.sharding, before.ndim)


# --- placement --------------------------------------------------------------------------------

GOLDEN = {
    "embed_VD": PartitionSpec(None, "fsdp"),
    "layers.input_norm_D": PartitionSpec(None, None),
    "layers.wq_DNH": PartitionSpec(None, "fsdp", "tensor", None),
    "layers.bq_NH": PartitionSpec(None, "tensor", None),
    "layers.wk_DKH": PartitionSpec(None, "fsdp", "tensor", None),
    "layers.bk_KH": PartitionSpec(None, "tensor", None),
    "layers.wv_DKH": PartitionSpec(None, "fsdp", "tensor", None),
    "layers.bv_KH": PartitionSpec(None, "tensor", None),
    "layers.wo_NHD": PartitionSpec(None, "tensor", None, "fsdp"),
    "layers.mlp_norm_D": PartitionSpec(None, None),
    "layers.gate_DF": PartitionSpec(None, "fsdp", "tensor"),
    "layers.up_DF": PartitionSpec(None, "fsdp", "tensor"),
    "layers.down_FD": PartitionSpec(None, "tensor", "fsdp"),
    "final_norm_D": PartitionSpec(None),
    "head_DV": PartitionSpec("fsdp", "tensor"),
}


def by_name(tree):
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    return {jax.tree_util.keystr(path[:-1]).lstrip("."): leaf for path, leaf in leaves}


def test_parameters_lie_where_the_table_says():
    mesh = sharding.make_mesh(sharding.MeshConfig(2, 2, 2))
    shardings = by_name(sharding.tree_shardings(mesh, qwen2.abstract(UNTIED)))
    assert {name: leaf.spec for name, leaf in shardings.items()} == GOLDEN


def test_parameters_and_moments_are_born_as_shards():
    mesh = sharding.make_mesh(sharding.MeshConfig(1, 4, 2))
    params = qwen2.init_sharded(UNTIED, jax.random.key(0), mesh)
    shapes = {n: x.addressable_shards[0].data.shape for n, x in by_name(params).items()}
    assert shapes["embed_VD"] == (96, 32 // 4)
    assert shapes["layers.wq_DNH"] == (2, 32 // 4, 16 // 2, 8)
    assert shapes["layers.down_FD"] == (2, 64 // 2, 32 // 4)
    assert shapes["head_DV"] == (32 // 4, 96 // 2)
    assert worst(initial(UNTIED), params) <= 1e-7  # one seed, one model, whatever the mesh
    # and while they are made: the program that makes them has no buffer for a whole table
    config = dataclasses.replace(UNTIED, vocab_size=8192)
    shardings = sharding.tree_shardings(mesh, qwen2.abstract(config))
    make = jax.jit(lambda key: qwen2.Qwen2(config, key), out_shardings=shardings)
    memory = make.lower(jax.random.key(0)).compile().memory_analysis()
    assert memory.temp_size_in_bytes + memory.output_size_in_bytes < 4 * config.num_params


def test_a_mesh_that_does_not_divide_the_heads_is_refused_before_compiling():
    mesh = sharding.make_mesh(sharding.MeshConfig(1, 1, 8))
    config = dataclasses.replace(UNTIED, num_heads=6, num_kv_heads=3)
    with pytest.raises(ValueError, match=r"[bw][kv]_D?KH.*'kv_heads' has size 3.*tensor of size 8"):
        qwen2.init_sharded(config, jax.random.key(0), mesh)


# --- what the compiler says -------------------------------------------------------------------

COMPILE = """
    import sys
    import jax
    jax.config.update("jax_num_cpu_devices", 8)
    from jaxmath import sharding
    from model import test_sharding_agreement as here
    from jaxmath.model import qwen2

    def training(config, shape):
        mesh = sharding.make_mesh(sharding.MeshConfig(*shape))
        place = lambda x, where: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=where)
        put = lambda tree: jax.tree.map(place, tree, sharding.tree_shardings(mesh, tree))
        params = put(qwen2.abstract(config))
        opt_state = put(jax.eval_shape(here.OPTIMIZER.init, params))
        rows = tuple(place(x, sharding.named(mesh, ("batch", "seq"))) for x in here.batch())
        out = jax.tree.map(lambda x: x.sharding, (params, params, opt_state))
        step = jax.jit(here.train_step, out_shardings=(sharding.replicated(mesh), *out))
        with jax.set_mesh(mesh):
            step.lower(params, opt_state, rows).compile(here.QUICK)

    def forgotten_constraint():
        mesh = sharding.make_mesh(sharding.MeshConfig(2, 2, 2))
        place = lambda shape, dtype, axes: jax.ShapeDtypeStruct(
            shape, dtype, sharding=sharding.named(mesh, axes)
        )
        table = place((96, 64), "float32", ("vocab", "embed"))
        tokens = place((8, 16), "int32", ("batch", "seq"))
        look_up = lambda table, tokens: sharding.constrain(table[tokens], "batch", None, None)
        with jax.set_mesh(mesh):
            jax.jit(look_up).lower(table, tokens).compile()

"""


def stderr_of(body: str, root) -> str:
    """What a fresh process without a compilation cache writes to stderr."""
    env = {k: v for k, v in os.environ.items() if not k.startswith(("TF_CPP", "JAX_COMPILATION"))}
    env["PYTHONPATH"] = os.pathsep.join([str(root), str(root / "tests")])
    code = textwrap.dedent(COMPILE) + textwrap.dedent(body)
    done = subprocess.run(
        [sys.executable, "-c", code], env=env, cwd=root, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    return done.stderr


REMATERIALIZATION = "Involuntary full rematerialization"


def test_the_compiler_reports_a_forgotten_constraint(root):
    """So that the test below is known to be able to fail."""
    assert REMATERIALIZATION in stderr_of("forgotten_constraint()", root)


def test_training_needs_no_involuntary_rematerialization(root):
    body = """
        for config, shape in ((here.UNTIED, (2, 2, 2)), (here.TIED, (2, 2, 2)),
                              (here.UNTIED, (1, 4, 2)), (here.TIED, (2, 4, 1))):
            training(config, shape)
    """
    assert REMATERIALIZATION not in stderr_of(body, root)
