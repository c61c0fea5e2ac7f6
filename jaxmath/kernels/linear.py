"""Products of activations with weights, whose weight gradients stay in float32.

    y = linear("BTD,DF->BTF", x_BTD, w_DF)

is `jnp.einsum(spec, x, w.astype(x.dtype))` with its own gradient rule. Autodiff of the einsum would
round dw to the dtype of the activations before it meets the float32 master; here it is accumulated
and kept in float32. It is also computed in the layout of `w`, where autodiff would compute its
transpose: on a CPU that alone halves the time of an MLP's backward pass.
"""

from __future__ import annotations

import dataclasses
import functools

import jax
import jax.numpy as jnp


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class QuantizedWeight:
    """codes * step stands for a weight; has no gradient. codes: its shape, int8. step: f32, one per
    output channel, in the trailing axes of the weight that the product keeps."""

    codes: jax.Array
    step: jax.Array

    def __getitem__(self, index) -> QuantizedWeight:  # what `param[...]` asks of its value
        return jax.tree.map(lambda x: x[index], self)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def linear(spec: str, x: jax.Array, w: jax.Array | QuantizedWeight) -> jax.Array:
    """The einsum `spec` of x and w, in the dtype of x; w may be a master in another dtype."""
    if isinstance(w, QuantizedWeight):  # codes are exact in bf16; the step waits for the sum
        y = jnp.einsum(spec, x, w.codes.astype(x.dtype))
        return (y * jnp.expand_dims(w.step, range(y.ndim - w.step.ndim))).astype(x.dtype)
    return jnp.einsum(spec, x, w.astype(x.dtype))


def _forward(spec: str, x: jax.Array, w: jax.Array):
    return linear(spec, x, w), (x, w)


def _backward(spec: str, residuals, dy: jax.Array):
    x, w = residuals
    operands, y_axes = spec.split("->")
    x_axes, w_axes = operands.split(",")
    dx = jnp.einsum(f"{y_axes},{w_axes}->{x_axes}", dy, w.astype(x.dtype))
    dw = jnp.einsum(f"{x_axes},{y_axes}->{w_axes}", x, dy, preferred_element_type=jnp.float32)
    return dx, dw.astype(w.dtype)


linear.defvjp(_forward, _backward)
