"""The other optimizers: against their formulas, in bytes, and through a checkpoint."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxmath import sharding
from jaxmath.checkpoint import store
from jaxmath.data.batches import SftBatch
from jaxmath.model import qwen2
from jaxmath.model.config import ModelConfig
from jaxmath.train import optimizer, sft, state
from jaxmath.train.optimizer import OptimizerConfig

TINY = ModelConfig(48, 2, 32, 48, 4, 2, 8, dtype="float32", remat="none")
# Every side at least 128, so that Adafactor factors each matrix.
WIDE = ModelConfig(512, 3, 128, 256, 4, 2, 64, dtype="float32")
BLOCK_MATRICES = 128 * 256 * 2 + 128 * 128 * 2 + 3 * 128 * 256  # wq, wo; wk, wv; gate, up, down


def transform(**options):
    config = OptimizerConfig(**{"learning_rate": 1e-2, "clip_norm": None} | options)
    return optimizer.make_optimizer(config, 10).transform


def state_bytes(**options):
    fresh = functools.partial(state.create, optimizer=make(**options))
    opt_state = jax.eval_shape(fresh, qwen2.abstract(WIDE)).opt_state
    return sum(x.size * x.dtype.itemsize for x in jax.tree.leaves(opt_state))


def make(**options):
    return optimizer.make_optimizer(OptimizerConfig(**{"learning_rate": 1e-2} | options), 10)


def test_bytes_of_the_state():
    num_params, matrices = WIDE.num_params, 3 * BLOCK_MATRICES
    small = 64  # counters and Muon's coefficients
    assert 0 <= state_bytes() - 8 * num_params < small
    assert 0 <= state_bytes(first_moment_dtype="bfloat16") - 6 * num_params < small
    assert 0 <= state_bytes(offload=True) - 8 * num_params < small
    muon = 4 * matrices + 8 * (num_params - matrices)
    assert 0 <= state_bytes(kind="muon") - muon < small
    # Rows and columns: wq, wo; wk, wv; gate, up, down in each layer; then embedding and head.
    sides = 3 * (2 * (128 + 256) + 2 * (128 + 128) + 3 * (128 + 256)) + 2 * (512 + 128)
    vectors = num_params - matrices - 2 * 512 * 128
    factored = state_bytes(kind="adafactor", b1=0.0)
    assert 0 <= factored - 4 * (sides + vectors) < 256  # and a placeholder or two for each of 15
    assert factored < 0.03 * state_bytes()
    averaged = state_bytes(kind="adafactor", first_moment_dtype="bfloat16") - factored
    assert 0 <= averaged - 2 * num_params < small


def test_adafactor_is_the_factored_root_mean_square_of_each_layer():
    rng = np.random.default_rng(0)
    model = qwen2.abstract(WIDE)
    grads = jax.tree.map(lambda p: jnp.asarray(rng.normal(size=p.shape), jnp.float32), model)
    g = np.asarray(grads.layers.wq_DNH[...]).reshape(3, 128, 256)
    g = g * np.array([1.0, 100.0, 0.01])[:, None, None] * rng.uniform(0.5, 2, (3, 128, 1))
    grads.layers.wq_DNH.set_value(jnp.asarray(g.reshape(3, 128, 4, 64), jnp.float32))
    rule = transform(kind="adafactor", b1=0.0)
    found, _ = jax.jit(lambda g: rule.update(g, rule.init(g), g))(grads)
    row, column = (g**2).mean(2, keepdims=True), (g**2).mean(1, keepdims=True)
    expected = g / np.sqrt(row * column / row.mean(1, keepdims=True))
    expected /= np.maximum(1, np.sqrt((expected**2).mean((1, 2), keepdims=True)))
    ours = np.asarray(found.layers.wq_DNH[...]).reshape(3, 128, 256)
    np.testing.assert_allclose(ours, expected, rtol=1e-4, atol=1e-5)
    bias = np.asarray(grads.layers.bq_NH[...])  # not factored: g / |g| at the first update
    np.testing.assert_allclose(found.layers.bq_NH[...], np.sign(bias), rtol=1e-5)


def test_muon_is_the_orthogonalised_gradient_of_each_layer():
    """Five times s ← 3.4445 s - 4.775 s³ + 2.0315 s⁵ on the singular values, then 0.2 · √longer."""
    model = qwen2.Qwen2(TINY, jax.random.key(0))
    rule = transform(kind="muon", b1=0.0)
    found, _ = jax.jit(lambda g: rule.update(g, rule.init(g), g))(model)
    for name, rows, columns in (("wo_NHD", 32, 32), ("down_FD", 48, 32), ("wk_DKH", 32, 16)):
        for layer in range(2):
            g = np.asarray(getattr(model.layers, name)[...][layer]).reshape(rows, columns)
            u, s, v = np.linalg.svd(g / np.linalg.norm(g), full_matrices=False)
            for _ in range(5):
                s = 3.4445 * s - 4.775 * s**3 + 2.0315 * s**5
            expected = 0.2 * np.sqrt(max(rows, columns)) * (u * s) @ v
            ours = np.asarray(getattr(found.layers, name)[...][layer]).reshape(rows, columns)
            np.testing.assert_allclose(ours, expected, atol=2e-3, err_msg=name)
            assert 0.1 < np.sqrt((ours**2).mean()) < 0.25  # as long as a direction of Adam's
    adam = transform(b1=0.0)
    others, _ = jax.jit(lambda g: adam.update(g, adam.init(g), g))(model)
    for name in ("embed_VD", "head_DV", "final_norm_D"):
        np.testing.assert_allclose(getattr(found, name)[...], getattr(others, name)[...], rtol=1e-5)


def batch():
    rng = np.random.default_rng(0)
    tokens_BT = rng.integers(1, TINY.vocab_size, (8, 12)).astype(np.int32)
    ones_BT = np.ones_like(tokens_BT)
    positions_BT = np.broadcast_to(np.arange(12, dtype=np.int32)[None], tokens_BT.shape)
    return SftBatch(tokens_BT, positions_BT, ones_BT, (positions_BT > 0).astype(np.float32))


@pytest.mark.parametrize(
    "options",
    [
        {"first_moment_dtype": "bfloat16", "offload": True, "ema_decay": 0.9},
        pytest.param(
            {"kind": "adafactor", "weight_decay": 0.1, "decayed": "matrices"},
            marks=pytest.mark.nightly,
        ),
        pytest.param(
            {"kind": "muon", "first_moment_dtype": "bfloat16", "offload": True},
            marks=pytest.mark.nightly,
        ),
    ],
    ids=lambda options: options.get("kind", "adamw"),
)
def test_saved_and_restored_it_goes_on_bit_for_bit(options, tmp_path):
    rule = make(**options)
    mesh = sharding.make_mesh(sharding.MeshConfig(data=2, fsdp=2, tensor=2))
    abstract = jax.eval_shape(lambda m: state.create(m, rule), qwen2.abstract(TINY))
    shardings = sharding.tree_shardings(mesh, abstract)
    rows = sharding.named(mesh, ("batch", "seq"))
    data = jax.device_put(batch(), rows)
    with jax.set_mesh(mesh), store.CheckpointStore(tmp_path) as checkpoints:
        create = jax.jit(
            lambda key: state.create(qwen2.Qwen2(TINY, key), rule), out_shardings=shardings
        )
        step = jax.jit(
            functools.partial(sft.sft_step, optimizer=rule, num_microbatches=2),
            in_shardings=(shardings, rows),
            out_shardings=(shardings, sharding.replicated(mesh)),
            donate_argnums=0,
        )
        trained, losses = create(jax.random.key(0)), []
        for k in range(4):
            if k == 2:
                checkpoints.save(2, trained, {})
                checkpoints.wait()
            trained, metrics = step(trained, data)
            losses.append(metrics["sft/loss"].value())
        place = lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s)  # noqa: E731
        resumed = checkpoints.restore(jax.tree.map(place, abstract, shardings)).tree
        for k in range(2):
            resumed, metrics = step(resumed, data)
            assert metrics["sft/loss"].value() == losses[2 + k]
    assert losses[3] < losses[0] and step._cache_size() == 1
    for one, other in zip(jax.tree.leaves(trained), jax.tree.leaves(resumed), strict=True):
        assert one.dtype == other.dtype and np.array_equal(np.asarray(one), np.asarray(other))
    moments = [x for x in jax.tree.leaves(trained.opt_state) if x.size > 1000]
    kind = "pinned_host" if options.get("offload") else "device"
    assert moments and {x.sharding.memory_kind for x in moments} == {kind}
    assert not any(x.is_fully_replicated for x in moments)
    assert {x.sharding.memory_kind for x in jax.tree.leaves(trained.params)} == {"device"}


def test_the_average_follows_the_weights():
    rule = make(ema_decay=0.75, clip_norm=None)
    before = state.create({"w": jnp.array([1.0, 2.0])}, rule)
    after, _ = state.apply_gradients(before, {"w": jnp.array([1.0, -1.0])}, jnp.float32(1), rule)
    expected = 0.75 * np.array([1.0, 2.0]) + 0.25 * np.asarray(after.params["w"])
    np.testing.assert_allclose(after.ema["w"], expected, rtol=1e-6)
    skipped, _ = state.apply_gradients(after, {"w": jnp.array([jnp.nan, 0])}, jnp.float32(1), rule)
    np.testing.assert_array_equal(skipped.ema["w"], after.ema["w"])
