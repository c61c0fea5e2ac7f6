"""The guard against numbers that are not finite."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxmath.train import optimizer, state
from jaxmath.train.optimizer import OptimizerConfig

ADAMW = optimizer.make_optimizer(OptimizerConfig(0.1, schedule="linear"), 10)


def fresh():
    return state.create({"w": jnp.array([1.0, 2.0]), "b": jnp.array(3.0)}, ADAMW)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("where", ["gradient", "loss"])
def test_a_step_that_is_not_finite_is_skipped_and_counted(bad, where):
    apply = jax.jit(lambda s, g, loss: state.apply_gradients(s, g, loss, ADAMW))
    grads = {"w": jnp.array([0.5, -0.5]), "b": jnp.array(1.0)}
    before, _ = apply(fresh(), grads, jnp.float32(1.0))
    broken = {"w": jnp.array([bad, 0.0]), "b": jnp.array(1.0)} if where == "gradient" else grads
    loss = jnp.float32(bad if where == "loss" else 1.0)
    after, report = apply(before, broken, loss)
    assert float(report["skipped"]) == 1.0 and int(after.step) == 2
    for old, new in zip(
        jax.tree.leaves((before.params, before.opt_state)),
        jax.tree.leaves((after.params, after.opt_state)),
        strict=True,
    ):
        np.testing.assert_array_equal(old, new)
    healed, report = apply(after, grads, jnp.float32(1.0))
    assert float(report["skipped"]) == 0.0 and int(healed.step) == 3
    assert np.all(np.isfinite(healed.params["w"])) and not np.array_equal(
        healed.params["w"], after.params["w"]
    )
    np.testing.assert_allclose(report["lr"], 0.1 * 0.8, rtol=1e-6)  # update 2 of 10: time went on


def test_reported_norm_is_before_clipping():
    grads = {"w": jnp.array([3.0, 0.0]), "b": jnp.array(4.0)}
    _, report = state.apply_gradients(fresh(), grads, jnp.float32(0.0), ADAMW)
    np.testing.assert_allclose(report["grad_norm"], 5.0, rtol=1e-6)
    np.testing.assert_allclose(report["lr"], 0.1, rtol=1e-6)
