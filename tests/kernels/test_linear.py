"""`linear` is the einsum; only its weight gradients are better than autodiff's."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxmath.kernels.linear import linear

# every form of product in a block
CASES = [
    ("BTD,DNH->BTNH", (2, 7, 12), (12, 3, 4)),
    ("BTNH,NHD->BTD", (2, 7, 3, 4), (3, 4, 12)),
    ("BTD,DF->BTF", (2, 7, 12), (12, 5)),
    ("BTD,DF->BTF", (1, 1, 4), (4, 1)),
]


def inputs(x_shape, w_shape, dtype):
    rng = np.random.default_rng(0)
    x = jnp.asarray(rng.standard_normal(x_shape).astype(jnp.dtype(dtype)))
    return x, jnp.asarray(rng.standard_normal(w_shape, np.float32))


def value_and_gradients(product, x, w):
    def loss(x, w):
        y = product(x, w)
        return jnp.sum(jnp.sin(y.astype(jnp.float32))), y

    (_, y), (dx, dw) = jax.jit(jax.value_and_grad(loss, (0, 1), has_aux=True))(x, w)
    return y, dx, dw


@pytest.mark.parametrize(("spec", "x_shape", "w_shape"), CASES)
def test_value_and_gradients_are_those_of_the_einsum(spec, x_shape, w_shape):
    x, w = inputs(x_shape, w_shape, "float32")
    ours = value_and_gradients(lambda x, w: linear(spec, x, w), x, w)
    plain = value_and_gradients(lambda x, w: jnp.einsum(spec, x, w), x, w)
    for one, other in zip(ours, plain, strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-5, atol=1e-5)


def test_bf16_activations_keep_their_dtype_and_the_master_gets_an_f32_gradient():
    spec, *shapes = CASES[0]
    x, w = inputs(*shapes, "bfloat16")
    y, dx, dw = value_and_gradients(lambda x, w: linear(spec, x, w), x, w)
    assert (y.dtype, dx.dtype, dw.dtype) == (jnp.bfloat16, jnp.bfloat16, jnp.float32)
    # not merely f32 in type: bits that bf16 would have rounded away are there
    assert np.any(dw != dw.astype(jnp.bfloat16).astype(jnp.float32))


def test_weights_in_the_compute_dtype_get_gradients_in_it():
    spec, *shapes = CASES[2]
    x, w = inputs(*shapes, "bfloat16")
    *_, dw = value_and_gradients(lambda x, w: linear(spec, x, w), x, w.astype(jnp.bfloat16))
    assert dw.dtype == jnp.bfloat16


def test_the_weight_gradient_is_closer_to_exact_than_autodiff():
    spec, *shapes = CASES[2]
    x, w = inputs(*shapes, "bfloat16")
    weight = jnp.asarray(np.random.default_rng(1).standard_normal((2, 7, 5)).astype("bfloat16"))

    def gradient(product, x):
        # a linear loss: y rounds the same way in both, so only dw differs
        return jax.jit(jax.grad(lambda w: jnp.sum((product(x, w) * weight).astype(jnp.float32))))(w)

    exact = jnp.einsum("BTD,BTF->DF", x.astype(jnp.float32), weight.astype(jnp.float32))
    ours = gradient(lambda x, w: linear(spec, x, w), x)
    plain = gradient(lambda x, w: jnp.einsum(spec, x, w.astype(x.dtype)), x)
    assert np.max(np.abs(ours - exact)) <= 1e-5
    assert np.max(np.abs(plain - exact)) > 1e-3
