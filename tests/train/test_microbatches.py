"""Rows of micro-batches, and gradients summed over them."""

import jax.numpy as jnp
import numpy as np

from jaxmath.train import microbatches


def test_rows_are_dealt_out_in_turn():
    batch = {"a_BT": jnp.arange(12).reshape(6, 2), "b_B": jnp.arange(6)}
    parts = microbatches.split(batch, 2)
    np.testing.assert_array_equal(parts["b_B"], [[0, 2, 4], [1, 3, 5]])
    np.testing.assert_array_equal(parts["a_BT"][1], [[2, 3], [6, 7], [10, 11]])


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
