"""Pytrees as flat dicts of plain arrays, {"params/layers/wq_DNH": array}, and their comparison.

No class of Flax or Optax gets into a checkpoint this way; typed PRNG keys travel as their key data.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import Any

import jax
import numpy as np
from flax import nnx

from jaxmath.checkpoint.errors import CheckpointError, CheckpointMismatch

Tree = Any


def flatten(tree: Tree) -> dict[str, Any]:
    """{"params/layers/wq_DNH": array}: leaves by path; an `nnx.Variable` is one leaf."""
    is_variable = lambda x: isinstance(x, nnx.Variable)  # noqa: E731
    paths = jax.tree_util.tree_flatten_with_path(tree, is_leaf=is_variable)[0]
    names = [jax.tree_util.keystr(path, simple=True, separator="/") for path, _ in paths]
    leaves = jax.tree.leaves(tree)
    assert len(set(names)) == len(names) == len(leaves), "paths must name the leaves one to one"
    return dict(zip(names, leaves, strict=True))


def with_shardings(abstract: Tree, shardings: Tree) -> Tree:
    """Shapes and dtypes of `abstract`, placed by a tree of shardings: what `restore` wants."""
    place = lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s)  # noqa: E731
    return jax.tree.map(place, abstract, shardings)


def is_key(x: Any) -> bool:
    return jax.dtypes.issubdtype(x.dtype, jax.dtypes.prng_key)


def as_arrays(leaves: dict[str, Any]) -> dict[str, jax.Array | np.ndarray]:
    return {path: x if isinstance(x, jax.Array) else np.asarray(x) for path, x in leaves.items()}


def to_data(leaves: dict[str, Any]) -> tuple[dict[str, Any], dict[str, str]]:
    """Leaves as plain arrays; for those that were PRNG keys, the name of the generator."""
    data, keys = {}, {}
    for path, x in leaves.items():
        if is_key(x):
            keys[path], x = str(jax.random.key_impl(x)), jax.random.key_data(x)
        if x.dtype.itemsize == 8 and not jax.config.jax_enable_x64:
            raise CheckpointError(
                f"{path} has dtype {x.dtype}, which JAX narrows to 32 bits when it is restored; "
                "save a 32-bit array, or keep the number in `meta`"
            )
        data[path] = x
    return data, keys


def abstract_data(x: Any) -> jax.ShapeDtypeStruct:
    """The plain array that `x` is stored as, placed as `x` is (by default: on the first device)."""
    sharding = getattr(x, "sharding", None)
    sharding = sharding or jax.sharding.SingleDeviceSharding(jax.devices()[0])
    data = jax.eval_shape(jax.random.key_data, x) if is_key(x) else x
    return jax.ShapeDtypeStruct(data.shape, data.dtype, sharding=sharding)


def from_data(data: jax.Array, stored: dict[str, Any]) -> jax.Array:
    key_impl = stored["key_impl"]
    return data if key_impl is None else jax.random.wrap_key_data(data, impl=key_impl)


def check(where: str, wanted: dict[str, Any], stored: dict[str, dict[str, Any]]) -> None:
    """Raises CheckpointMismatch unless both hold the same paths, shapes and dtypes."""
    problems = []
    if missing := sorted(set(wanted) - set(stored)):
        problems.append(f"lacks {some(missing)}")
    if extra := sorted(set(stored) - set(wanted)):
        problems.append(f"also holds {some(extra)}")
    for path in sorted(set(wanted) & set(stored)):
        x, entry = wanted[path], stored[path]
        shape = tuple(entry["shape"])
        if shape != tuple(x.shape):
            problems.append(f"{path} has shape {shape}, expected {tuple(x.shape)}")
        if entry["dtype"] != str(x.dtype):
            problems.append(f"{path} has dtype {entry['dtype']}, expected {x.dtype}")
    if problems:
        raise CheckpointMismatch(
            f"{where} does not hold the arrays wanted: {some(problems, '; ')}; "
            "use the config it was saved with"
        )


def batches(leaves: dict[str, jax.ShapeDtypeStruct], max_bytes: int) -> Iterator[dict[str, Any]]:
    """Groups of at most `max_bytes`, or one array; largest first, while there is room beside."""
    size = {path: math.prod(x.shape) * x.dtype.itemsize for path, x in leaves.items()}
    batch: dict[str, Any] = {}
    for path in sorted(leaves, key=lambda path: -size[path]):
        if batch and sum(size[p] for p in batch) + size[path] > max_bytes:
            yield batch
            batch = {}
        batch[path] = leaves[path]
    yield batch


def some(items: Sequence[str], separator: str = ", ") -> str:
    rest = f" and {len(items) - 5} more" if len(items) > 5 else ""
    return separator.join(items[:5]) + rest
