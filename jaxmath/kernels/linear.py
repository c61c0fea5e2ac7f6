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


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class AdaptedWeight:
    """base + scale * a b stands for a weight; a and b have a gradient, base has none.

    a: the axes of base that a product sums over, then the rank. b: the rank, then the other axes.
    seeds: u32 per row of the batch, where `a` sees a share of only 1 - dropout of its input.
    """

    base: jax.Array
    a: jax.Array
    b: jax.Array
    seeds: jax.Array | None
    scale: float = dataclasses.field(metadata={"static": True})
    dropout: float = dataclasses.field(metadata={"static": True})

    def __getitem__(self, index) -> AdaptedWeight:
        return jax.tree.map(lambda x: x[index], self)


def linear(spec: str, x: jax.Array, w: jax.Array | QuantizedWeight | AdaptedWeight) -> jax.Array:
    """The einsum `spec` of x and w, in the dtype of x; w may be a master in another dtype."""
    if isinstance(w, QuantizedWeight):  # codes are exact in bf16; the step waits for the sum
        y = jnp.einsum(spec, x, w.codes.astype(x.dtype))
        return (y * jnp.expand_dims(w.step, range(y.ndim - w.step.ndim))).astype(x.dtype)
    if isinstance(w, AdaptedWeight):
        operands, y_axes = spec.split("->")
        x_axes, w_axes = operands.split(",")
        summed = "".join(axis for axis in w_axes if axis in x_axes)
        rows, kept = x_axes.removesuffix(summed), w_axes.removeprefix(summed)
        low = linear(f"{x_axes},{summed}r->{rows}r", _dropped(x, w), w.a)
        change = linear(f"{rows}r,r{kept}->{y_axes}", low, w.b)
        base = jax.lax.stop_gradient(w.base).astype(x.dtype)
        return jnp.einsum(spec, x, base) + (w.scale * change).astype(x.dtype)
    return _product(spec, x, w)


def _dropped(x: jax.Array, w: AdaptedWeight) -> jax.Array:
    """x with a share of its elements zero and the others larger; each row by its own seed."""
    if not w.dropout:
        return x
    keep = 1.0 - w.dropout
    one = lambda seed: jax.random.bernoulli(jax.random.key(seed), keep, x.shape[1:])  # noqa: E731
    return jnp.where(jax.vmap(one)(w.seeds), x / keep, 0).astype(x.dtype)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _product(spec: str, x: jax.Array, w: jax.Array) -> jax.Array:
    return jnp.einsum(spec, x, w.astype(x.dtype))


def _forward(spec: str, x: jax.Array, w: jax.Array):
    return _product(spec, x, w), (x, w)


def _backward(spec: str, residuals, dy: jax.Array):
    x, w = residuals
    operands, y_axes = spec.split("->")
    x_axes, w_axes = operands.split(",")
    dx = jnp.einsum(f"{y_axes},{w_axes}->{x_axes}", dy, w.astype(x.dtype))
    dw = jnp.einsum(f"{x_axes},{y_axes}->{w_axes}", x, dy, preferred_element_type=jnp.float32)
    return dx, dw.astype(w.dtype)


_product.defvjp(_forward, _backward)
