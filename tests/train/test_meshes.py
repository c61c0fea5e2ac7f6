"""Loss, gradients and updated parameters are the same on every mesh."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxmath import sharding
from jaxmath.data.batches import SftBatch
from jaxmath.model import qwen2
from jaxmath.model.config import ModelConfig
from jaxmath.train import optimizer, sft, state
from jaxmath.train.optimizer import OptimizerConfig

SHAPES = [(1, 8, 1), (8, 1, 1), (2, 4, 1), (1, 4, 2), (2, 2, 2), (4, 1, 2)]
CONFIG = ModelConfig(40, 2, 32, 48, 4, 2, 8, dtype="float32")
# A large eps: Adam's first step is lr · sign(g), which turns the rounding of a gradient that is
# nearly zero into a full step.
ADAMW = optimizer.make_optimizer(OptimizerConfig(1e-2, eps=1e-3, weight_decay=0.1), 10)


def batch():
    rng = np.random.default_rng(0)
    tokens_BT = rng.integers(1, CONFIG.vocab_size, (16, 12)).astype(np.int32)
    lengths_B1 = rng.integers(4, 13, (16, 1))
    column_1T = np.arange(12)[None, :]
    segment_ids_BT = (column_1T < lengths_B1).astype(np.int32)
    weights_BT = ((column_1T > 0) * segment_ids_BT).astype(np.float32)
    return SftBatch(
        tokens_BT, (column_1T * segment_ids_BT).astype(np.int32), segment_ids_BT, weights_BT
    )


def updated(sizes):
    """(params, moments, loss, gradient norm) after one step on this mesh, on the host."""
    count = sizes[0] * sizes[1] * sizes[2]
    mesh = sharding.make_mesh(sharding.MeshConfig(*sizes), jax.devices()[:count])
    abstract = jax.eval_shape(lambda m: state.create(m, ADAMW), qwen2.abstract(CONFIG))
    shardings = sharding.tree_shardings(mesh, abstract)
    rows = sharding.named(mesh, ("batch", "seq"))
    with jax.set_mesh(mesh):
        create = jax.jit(
            lambda key: state.create(qwen2.Qwen2(CONFIG, key), ADAMW), out_shardings=shardings
        )
        step = jax.jit(
            functools.partial(sft.sft_step, optimizer=ADAMW, num_microbatches=2),
            in_shardings=(shardings, rows),
            out_shardings=(shardings, sharding.replicated(mesh)),
            donate_argnums=0,
        )
        fresh = create(jax.random.key(0))
        after, metrics = step(fresh, jax.device_put(batch(), rows))
    assert all(leaf.is_deleted() for leaf in jax.tree.leaves(fresh.params))  # donated
    if sizes[1] > 1:
        assert not after.params.layers.gate_DF[...].sharding.is_fully_replicated
        assert not after.opt_state[1].mu.layers.gate_DF[...].sharding.is_fully_replicated
    return jax.device_get(
        (after.params, after.opt_state[1].mu, metrics["sft/loss"].total, metrics["sft/grad_norm"])
    )


@pytest.fixture(scope="module")
def one_device():
    return updated((1, 1, 1))


@pytest.mark.parametrize(
    "sizes",
    [pytest.param(s, marks=() if s == (2, 2, 2) else pytest.mark.nightly) for s in SHAPES],
    ids=lambda sizes: "x".join(map(str, sizes)),
)
def test_an_update_agrees_with_one_device(sizes, one_device):
    for ours, expected in zip(
        jax.tree.leaves(updated(sizes)), jax.tree.leaves(one_device), strict=True
    ):
        assert float(jnp.max(jnp.abs(ours - expected) / (1 + jnp.abs(expected)))) < 1e-5
