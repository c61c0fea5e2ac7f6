"""Optimizer moments in the host's memory, brought to the devices for the length of an update.

An offloaded moment says so in its metadata (`memory="pinned_host"`), so that `sharding` places it,
a checkpoint restores it and a compiled step takes it there; `axes` mean what they mean on a device.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
from flax import nnx

from jaxmath import sharding

MEMORY = "pinned_host"


def mark(opt_state: Any) -> Any:
    """The same state, its moments said to live on the host; `sharding.tree_shardings` does it."""
    return _each(opt_state, lambda x: x.replace(x.get_value(), memory=MEMORY))


def bring(opt_state: Any) -> Any:
    """Inside a compiled step: a marked state on its devices, and no longer marked."""

    def one(x):
        plain = type(x)(x.get_value(), axes=x.get_metadata()["axes"])
        return plain if x.get_metadata().get("memory") is None else _moved(plain)

    return _each(opt_state, one)


def take_back(opt_state: Any) -> Any:
    """Inside a compiled step: the new state marked, and on its way to the host."""
    return _each(mark(opt_state), _moved)


def _each(tree: Any, fn: Callable[[nnx.Variable], nnx.Variable]) -> Any:
    """`fn` of every moment; counters and factored statistics, which are small, stay."""
    is_variable = lambda x: isinstance(x, nnx.Variable)  # noqa: E731
    return jax.tree.map(lambda x: fn(x) if is_variable(x) else x, tree, is_leaf=is_variable)


def _moved(variable: nnx.Variable) -> nnx.Variable:
    """The variable in the memory that its metadata names, on the mesh of `jax.set_mesh`."""
    mesh = jax.sharding.get_abstract_mesh()
    if mesh.empty:  # nothing was placed
        return variable
    memory = variable.get_metadata().get("memory") or "device"
    where = sharding.tree_shardings(mesh, variable).get_value().with_memory_kind(memory)
    return variable.replace(jax.device_put(variable.get_value(), where))
