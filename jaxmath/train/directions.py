"""DIRECTIONS: what turns a clipped gradient into the direction of an update, before its length.

`adamw` keeps two moments for every parameter. `adafactor` keeps a row and a column of the second
moment of a matrix instead of the whole, and `muon` one moment of a matrix. Both see each parameter
as Optax expects a matrix, whatever the layout of the model: see `over_matrices`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax
from flax import nnx
from optax import contrib

# (b1, b2, eps, dtype of the first moment) → gradients to directions
Direction = Callable[[float, float, float, str], optax.GradientTransformation]

# From here on a matrix has a factored second moment: both sides at least so long.
MIN_FACTORED = 128
# Muon's directions get the root mean square that Adam's have: one learning rate serves both.
MUON_RMS = 0.2


def adamw(b1: float, b2: float, eps: float, dtype: str) -> optax.GradientTransformation:
    """Adam (arXiv:1412.6980): m̂ / (√v̂ + ε). `dtype` of m; v, whose root divides, stays float32."""
    return optax.scale_by_adam(b1=b1, b2=b2, eps=eps, mu_dtype=dtype)


def adafactor(b1: float, b2: float, eps: float, dtype: str) -> optax.GradientTransformation:
    """Adafactor (arXiv:1804.04235) for a learning rate of its own: g / √v̂, clipped, averaged.

    v̂ of a matrix is the product of its row and column means, with decay 1 - t^-0.8 (its section
    7.2). Each matrix's direction is divided by max(1, its root mean square) (section 6). `b1` 0
    keeps no moment; else the directions, not the gradients, are averaged. `b2` and `eps` have no
    place in it, nor is the direction scaled by the size of the parameter.
    """
    parts = [
        optax.scale_by_factored_rms(min_dim_size_to_factor=MIN_FACTORED),
        optax.stateless(lambda updates, params: _clip_each(updates)),
    ]
    if b1:
        parts.append(optax.ema(b1, accumulator_dtype=dtype))
    return over_matrices(optax.chain(*parts))


def muon(b1: float, b2: float, eps: float, dtype: str) -> optax.GradientTransformation:
    """Muon: momentum `b1`, orthogonalised, times 0.2 · √(longer side) (arXiv:2502.16982, eq. 4).

    For the matrices of the blocks. Embedding, head, norms and biases go by `adamw`.
    """
    sides = lambda tree: jax.tree.map(lambda _: contrib.MuonDimensionNumbers(-2, -1), tree)  # noqa: E731
    length = lambda u, _: MUON_RMS * max(u.shape[-2:]) ** 0.5 * u  # noqa: E731
    orthogonal = optax.chain(
        contrib.scale_by_muon(beta=b1, mu_dtype=dtype, weight_dimension_numbers=sides),
        optax.stateless_with_tree_map(length),
    )
    rest = adamw(b1, b2, eps, dtype)
    labels = {"matrices": "muon", "tables": "adam", "vectors": "adam"}
    return over_matrices(optax.partition({"muon": orthogonal, "adam": rest}, labels))


DIRECTIONS: dict[str, Direction] = {"adamw": adamw, "adafactor": adafactor, "muon": muon}


def over_matrices(inner: optax.GradientTransformation) -> optax.GradientTransformation:
    """`inner` on {"matrices", "tables", "vectors"}: {path: array}, each array seen as it acts.

    A matrix is [in, out] or, stacked, [L, in, out]: heads and their width are one side. Tables are
    those with a side of the vocabulary. Vectors are the rest, [n] or [L, n]. A statistic of the
    shape of its parameter gets that parameter's layout and axes, so that it is sharded as it is;
    others, such as factored moments, are whole on every device.
    """

    def init(params):
        leaves = _leaves(params)
        return _laid_out(inner.init(_grouped(leaves)), leaves)

    def update(grads, state, params):
        leaves = _leaves(params)
        updates, state = inner.update(
            _grouped(_leaves(grads)), _seen(state, leaves), _grouped(leaves)
        )
        flat = {path: x for group in updates.values() for path, x in group.items()}
        found = [_as_parameter(flat[path], leaf) for path, leaf in leaves.items()]
        structure = jax.tree.structure(params, is_leaf=_is_variable)
        return structure.unflatten(found), _laid_out(state, leaves)

    return optax.GradientTransformation(init, update)


def _is_variable(x: Any) -> bool:
    return isinstance(x, nnx.Variable)


def _leaves(tree: Any) -> dict[str, Any]:
    """Path → `nnx.Variable`, or array where there is none."""
    paths = jax.tree_util.tree_flatten_with_path(tree, is_leaf=_is_variable)[0]
    return {jax.tree_util.keystr(path, simple=True, separator="/"): leaf for path, leaf in paths}


def _axes(leaf: Any) -> tuple[str | None, ...]:
    if not _is_variable(leaf):
        return (None,) * leaf.ndim
    return tuple(leaf.get_metadata()["axes"])


def _grouped(leaves: dict[str, Any]) -> dict[str, dict[str, jax.Array]]:
    groups: dict[str, dict[str, jax.Array]] = {"matrices": {}, "tables": {}, "vectors": {}}
    for path, leaf in leaves.items():
        axes = _axes(leaf)
        table = {"vocab", "table_vocab"} & set(axes)
        sides = len(axes) - axes.count("head_dim")
        group = "tables" if table else "matrices" if sides == 2 else "vectors"
        groups[group][path] = _as_matrix(leaf)
    return groups


def _as_matrix(leaf: Any) -> jax.Array:
    """The array with "head_dim" merged into the side before it."""
    x, axes = (leaf.get_value() if _is_variable(leaf) else leaf), _axes(leaf)
    stacked = x.ndim - len(axes)
    shape = list(x.shape[:stacked])
    for axis, size in zip(axes, x.shape[stacked:], strict=True):
        if axis == "head_dim":
            shape[-1] *= size
        else:
            shape.append(size)
    return x.reshape(shape)


def _as_parameter(x: jax.Array, leaf: Any) -> Any:
    return leaf.replace(x.reshape(leaf.get_value().shape)) if _is_variable(leaf) else x


def _laid_out(state: Any, leaves: dict[str, Any]) -> Any:
    shapes = {path: _shape_as_matrix(leaf) for path, leaf in leaves.items()}

    def one(path, x):
        return _as_parameter(x, leaves[path]) if x.shape == shapes[path] else x

    return _over_dicts(state, leaves, one)


def _seen(state: Any, leaves: dict[str, Any]) -> Any:
    return _over_dicts(state, leaves, lambda _, x: _as_matrix(x) if _is_variable(x) else x)


def _shape_as_matrix(leaf: Any) -> tuple[int, ...]:
    return jax.eval_shape(_as_matrix, leaf).shape


def _over_dicts(state: Any, leaves: dict[str, Any], fn: Callable[[str, Any], Any]) -> Any:
    """`fn(path, x)` of every x that `state` keeps for a parameter."""

    def holds_paths(node):
        return isinstance(node, dict) and bool(node) and node.keys() <= leaves.keys()

    def each(node):
        return {path: fn(path, x) for path, x in node.items()} if holds_paths(node) else node

    return jax.tree.map(each, state, is_leaf=holds_paths)


def _clip_each(updates: dict[str, dict[str, jax.Array]]) -> dict[str, dict[str, jax.Array]]:
    """Every matrix and vector over max(1, its root mean square), layer by layer."""

    def clip(x, sides):
        axes = tuple(range(max(x.ndim - sides, 0), x.ndim))
        return x / jnp.maximum(1.0, jnp.sqrt(jnp.mean(x**2, axis=axes, keepdims=True)))

    sides = {"matrices": 2, "tables": 2, "vectors": 1}
    return {
        group: {path: clip(x, sides[group]) for path, x in arrays.items()}
        for group, arrays in updates.items()
    }
