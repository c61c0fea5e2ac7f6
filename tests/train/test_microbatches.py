"""Splitting and joining rows."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxmath.train import microbatches


@pytest.mark.parametrize("n", [1, 2, 3, 6])
def test_merge_undoes_split(n):
    batch = {"a_BT": jnp.arange(12).reshape(6, 2), "b_B": jnp.arange(6)}
    parts = microbatches.split(batch, n)
    assert parts["b_B"].shape == (n, 6 // n)
    jax.tree.map(np.testing.assert_array_equal, microbatches.merge(parts), batch)


def test_rows_are_dealt_out_in_turn():
    np.testing.assert_array_equal(microbatches.split(jnp.arange(6), 2), [[0, 2, 4], [1, 3, 5]])


def test_over_rows_keeps_the_order_of_rows():
    x_BT = jnp.arange(12.0).reshape(6, 2)
    np.testing.assert_array_equal(microbatches.over_rows(jnp.square, x_BT, 3), x_BT**2)


def test_gradients_of_bf16_parameters_are_summed_in_f32():
    params = jnp.ones((), jnp.bfloat16)
    rows_B = jnp.array([256.0] + [1.0] * 7)
    value, count, grads = microbatches.sum_and_grad(
        lambda p, x_B: (jnp.sum(p.astype(jnp.float32) * x_B), jnp.float32(x_B.size)),
        params,
        rows_B,
        8,
    )
    assert float(value) == 263.0 and float(count) == 8.0
    assert grads.dtype == jnp.float32 and float(grads) == 263.0  # bf16: 256 + 1 is 256
