"""Learning rates at the updates that matter, AdamW against its formula, decay by name."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxmath.model import qwen2
from jaxmath.model.config import ModelConfig
from jaxmath.train import optimizer
from jaxmath.train.optimizer import OptimizerConfig

TINY = ModelConfig(32, 2, 16, 32, 2, 1, 8, dtype="float32")


def test_intellect_sft_schedule_is_exact_to_the_update():
    num_examples, peak = 733_000, 5e-6
    ticks = 5 * math.ceil(num_examples / 16)
    updates = 5 * math.ceil(math.ceil(num_examples / 8) / 16)
    config = OptimizerConfig(
        peak,
        schedule="linear",
        warmup_fraction=0.03,
        ticks_per_update=8,
        schedule_ticks=ticks,
    )
    schedule = jax.jit(optimizer.make_schedule(config, updates))

    def published(update):
        warmup = math.floor(0.03 * ticks)
        x = 8 * update
        return peak * (x / warmup if x < warmup else max(0.0, (ticks - x) / (ticks - warmup)))

    assert updates == 28_635 and ticks == 229_065
    assert float(schedule(0)) == 0.0
    for update in (1, 429, 858, 859, 860, 14_000, updates - 2, updates - 1):
        # 1e-12 of slack: the last updates' rate is a small difference of large numbers.
        np.testing.assert_allclose(schedule(update), published(update), rtol=2e-6, atol=1e-12)
    assert published(858) < peak and max(map(published, range(updates))) == published(859)
    assert float(schedule(updates - 1)) == 0.0  # 8 · 28634 is past the end of the schedule


def test_warmup_ends_at_the_peak_and_linear_ends_at_the_final_fraction():
    config = OptimizerConfig(2.0, schedule="linear", warmup_ticks=4, final_fraction=0.1)
    rates = [float(optimizer.make_schedule(config, 12)(k)) for k in range(14)]
    np.testing.assert_allclose(rates[:5], [0.0, 0.5, 1.0, 1.5, 2.0], rtol=1e-6)
    np.testing.assert_allclose(rates[8], 0.2 + 1.8 * 0.5, rtol=1e-6)
    np.testing.assert_allclose(rates[12:], 0.2, rtol=1e-5)


def test_cosine_is_half_way_down_in_the_middle():
    config = OptimizerConfig(1.0, schedule="cosine")
    schedule = optimizer.make_schedule(config, 8)
    np.testing.assert_allclose(
        [float(schedule(k)) for k in (0, 2, 4, 8)],
        [1.0, 0.5 + 0.5 * math.sqrt(0.5), 0.5, 0.0],
        atol=1e-6,
    )


@pytest.mark.parametrize(
    ("schedule", "after"), [("constant", [2.0, 2.0, 2.0]), ("cosine", [2.0, 1.1, 0.2])]
)
def test_every_schedule_starts_with_its_warmup(schedule, after):
    config = OptimizerConfig(2.0, schedule=schedule, warmup_ticks=4, final_fraction=0.1)
    rates = [float(optimizer.make_schedule(config, 12)(k)) for k in (0, 1, 2, 3, 4, 8, 12)]
    np.testing.assert_allclose(rates, [0.0, 0.5, 1.0, 1.5, *after], rtol=1e-5)
    by_share = OptimizerConfig(2.0, schedule=schedule, warmup_fraction=1 / 3, final_fraction=0.1)
    again = [float(optimizer.make_schedule(by_share, 12)(k)) for k in (0, 1, 2, 3, 4, 8, 12)]
    np.testing.assert_allclose(again, rates, rtol=1e-6)


def test_first_updates_can_run_at_learning_rate_zero():
    config = OptimizerConfig(1e-6, zero_lr_updates=4)
    schedule = optimizer.make_schedule(config, 100)
    rates = [float(schedule(k)) for k in range(6)]
    np.testing.assert_allclose(rates, [0, 0, 0, 0, 1e-6, 1e-6], rtol=1e-6)
    clean = optimizer.make_schedule(OptimizerConfig(1e-6), 100)
    np.testing.assert_allclose(float(clean(0)), 1e-6, rtol=1e-6)


def test_direction_is_clipped_adam_plus_decay():
    config = OptimizerConfig(0.1, b1=0.9, b2=0.99, weight_decay=0.5, clip_norm=1.0)
    adamw = optimizer.make_optimizer(config, 10)
    params = {"w": jnp.array([2.0, -1.0])}
    state = adamw.transform.init(params)
    m = v = np.zeros(2)
    for step, grad in enumerate(([3.0, 4.0], [0.1, -0.2]), start=1):
        direction, state = adamw.transform.update({"w": jnp.array(grad)}, state, params)
        g = np.array(grad) / max(1.0, np.linalg.norm(grad))
        m, v = 0.9 * m + 0.1 * g, 0.99 * v + 0.01 * g**2
        expected = (m / (1 - 0.9**step)) / (np.sqrt(v / (1 - 0.99**step)) + 1e-8)
        np.testing.assert_allclose(direction["w"], expected + 0.5 * params["w"], atol=2e-6)


def test_decay_of_matrices_leaves_norms_and_biases_alone():
    params = qwen2.Qwen2(TINY, jax.random.key(0))
    config = OptimizerConfig(1.0, weight_decay=0.1, decayed="matrices")
    adamw = optimizer.make_optimizer(config, 1)
    grads = jax.tree.map(jnp.zeros_like, params)
    updates, _ = adamw.transform.update(grads, adamw.transform.init(params), params)
    decayed = optimizer.matrices(params)
    for name in ("wq_DNH", "wk_DKH", "wv_DKH", "wo_NHD", "gate_DF", "up_DF", "down_FD"):
        assert getattr(decayed.layers, name).get_value() is True, name
        weight = getattr(params.layers, name)[...]
        np.testing.assert_allclose(getattr(updates.layers, name)[...], 0.1 * weight, rtol=1e-6)
    for name in ("input_norm_D", "mlp_norm_D", "bq_NH", "bk_KH", "bv_KH"):
        assert getattr(decayed.layers, name).get_value() is False, name
        assert not np.any(getattr(updates.layers, name)[...]), name
    assert decayed.embed_VD.get_value() is True and decayed.head_DV.get_value() is True
    assert decayed.final_norm_D.get_value() is False
    assert not np.any(updates.final_norm_D[...])
    everything = optimizer.make_optimizer(OptimizerConfig(1.0, weight_decay=0.1), 1)
    updates, _ = everything.transform.update(grads, everything.transform.init(params), params)
    np.testing.assert_allclose(updates.final_norm_D[...], 0.1, rtol=1e-6)


def test_without_clip_the_gradient_is_used_as_it_is():
    grads = {"w": jnp.array([300.0, 400.0])}
    chains = [
        optimizer.make_optimizer(OptimizerConfig(1.0, clip_norm=clip), 1).transform
        for clip in (None, 1.0)
    ]
    free, clipped = (
        optax.tree.norm(chain.update(grads, chain.init(grads), grads)[1]) for chain in chains
    )
    assert free > 100 * clipped  # the moments, which Adam's own scaling does not hide


@pytest.mark.parametrize(
    ("fields", "named"),
    [
        ({"learning_rate": -1.0}, "learning_rate"),
        ({"b2": 1.0}, "b2"),
        ({"clip_norm": 0.0}, "clip_norm"),
        ({"schedule": "quadratic"}, "constant, linear, cosine"),
        ({"decayed": "some"}, "matrices"),
        ({"warmup_fraction": 1.0}, "warmup_fraction"),
        ({"warmup_ticks": 3, "warmup_fraction": 0.1}, "set one of them to 0"),
        ({"schedule_ticks": 0}, "schedule_ticks"),
        ({"kind": "sgd"}, "adamw, adafactor, muon"),
        ({"first_moment_dtype": "int8"}, "float32 or bfloat16"),
        ({"ema_decay": 1.0}, "ema_decay"),
    ],
)
def test_impossible_options_are_refused_by_name(fields, named):
    with pytest.raises(ValueError, match=named):
        OptimizerConfig(**{"learning_rate": 1e-3} | fields)


def test_warmup_longer_than_the_run_is_refused():
    config = OptimizerConfig(1e-3, schedule="linear", warmup_ticks=10)
    with pytest.raises(ValueError, match="not shorter than the schedule of 10"):
        optimizer.make_schedule(config, 10)
