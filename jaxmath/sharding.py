"""The mesh, and the one table that pairs a logical axis with a mesh axis.

Parameters name their logical axes where they are made (`nnx.Param(value, axes=("embed", "mlp"))`);
activations are pinned with `constrain` at the borders of a block; the compiler does the rest.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from types import MappingProxyType
from typing import Any

import jax
import numpy as np
from flax import nnx
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

MESH_AXES = ("data", "fsdp", "tensor")

RULES = MappingProxyType(
    {  # the only place that pairs a logical axis with the mesh
        # logical axis   mesh axis
        "batch": ("data", "fsdp"),  # one example lives on one shard
        "lookup_batch": "data",  # the batch while the embedding's columns are still on fsdp
        "seq": None,
        "embed": "fsdp",  # weights, ZeRO-3 style
        "act_embed": None,  # the same dimension of an activation
        "heads": "tensor",
        "kv_heads": "tensor",
        "head_dim": None,
        "mlp": "tensor",
        "vocab": "tensor",
        "table_vocab": None,  # rows of the lookup table: splitting them gathers the global batch
        "norm": None,
        "lora": None,  # the rank of an adapter: too small to split
        "layers": None,  # scanned, never split
    }
)


@dataclasses.dataclass(frozen=True)
class MeshConfig:
    """Devices along each mesh axis; -1, once, takes all that are left."""

    data: int = 1
    fsdp: int = -1
    tensor: int = 1

    def __post_init__(self):
        sizes = (self.data, self.fsdp, self.tensor)
        if any(size == 0 or size < -1 for size in sizes) or sizes.count(-1) > 1:
            raise ValueError(
                f"data, fsdp, tensor are {sizes}; expected positive sizes, at most one of them -1"
            )


def make_mesh(config: MeshConfig, devices: Sequence[jax.Device] | None = None) -> Mesh:
    """A mesh with axes ("data", "fsdp", "tensor") over all devices, or over those given.

    Raises:
      ValueError: the sizes do not multiply to the number of devices.
    """
    devices = list(jax.devices() if devices is None else devices)
    sizes = [config.data, config.fsdp, config.tensor]
    known = math.prod(size for size in sizes if size != -1)
    if -1 in sizes and len(devices) % known == 0:
        sizes[sizes.index(-1)] = len(devices) // known
    if math.prod(sizes) != len(devices):
        named_sizes = ", ".join(f"{a}={s}" for a, s in zip(MESH_AXES, sizes, strict=True))
        raise ValueError(
            f"mesh {named_sizes} does not use the {len(devices)} devices present; "
            "set mesh.data, mesh.fsdp and mesh.tensor so that their product is that number"
        )
    # Axis types are spelled out: make_mesh alone would make Explicit axes, on which gathers fail.
    types = (AxisType.Auto,) * len(MESH_AXES)
    if devices == list(jax.devices()):
        return jax.make_mesh(tuple(sizes), MESH_AXES, axis_types=types)
    return Mesh(np.asarray(devices).reshape(sizes), MESH_AXES, axis_types=types)


def spec(axes: Sequence[str | None]) -> PartitionSpec:
    """Logical axes → PartitionSpec, by `RULES`.

    Raises:
      ValueError: an unknown axis, or two dimensions on one mesh axis.
    """
    entries, used = [], set()
    for axis in axes:
        if axis is not None and axis not in RULES:
            raise ValueError(f"unknown logical axis {axis!r}; known: {', '.join(RULES)}")
        entry = RULES[axis] if axis is not None else None
        names = (entry,) if isinstance(entry, str) else (entry or ())
        if used & set(names):
            raise ValueError(f"axes {tuple(axes)} put two dimensions on mesh axis {sorted(names)}")
        used |= set(names)
        entries.append(entry)
    return PartitionSpec(*entries)


def named(
    mesh: Mesh, axes: Sequence[str | None], shape: Sequence[int] | None = None, what: str = "array"
) -> NamedSharding:
    """The sharding of an array with these logical axes; checks that the mesh divides `shape`.

    Raises:
      ValueError: a dimension that its mesh axes do not divide; prints name, size and axis.
    """
    partition = spec(axes)
    if shape is not None:
        if len(shape) != len(axes):
            raise ValueError(f"{what}: shape {tuple(shape)} does not have the axes {tuple(axes)}")
        for axis, size, entry in zip(axes, shape, partition, strict=True):
            names = (entry,) if isinstance(entry, str) else (entry or ())
            shards = math.prod(mesh.shape[name] for name in names)
            if size % shards:
                raise ValueError(
                    f"{what}: axis {axis!r} has size {size}, which mesh axis "
                    f"{'x'.join(names)} of size {shards} does not divide; choose a mesh that does"
                )
    return NamedSharding(mesh, partition)


def replicated(mesh: Mesh) -> NamedSharding:
    return NamedSharding(mesh, PartitionSpec())


def tree_shardings(mesh: Mesh, tree: Any) -> Any:
    """For each array of `tree`, its NamedSharding: an `nnx.Param` by its `axes`, others whole.

    A parameter with more dimensions than `axes` names is a stack of layers: "layers" goes in front.
    Fewer key/value heads than shards stay whole on each: they cannot be split further, and are few.
    Works on optimizer states too, since moments keep the parameters' `axes`. A parameter whose
    metadata has a `memory` lies in that memory kind of its devices ("pinned_host").
    """

    tensor = mesh.shape["tensor"]

    def one(path, leaf):
        if not isinstance(leaf, nnx.Variable):
            return replicated(mesh)
        axes, shape = tuple(leaf.get_metadata()["axes"]), leaf.get_value().shape
        axes = ("layers",) * (len(shape) - len(axes)) + axes
        axes = tuple(
            None if axis == "kv_heads" and size < tensor and tensor % size == 0 else axis
            for axis, size in zip(axes, shape, strict=True)
        )
        found = named(mesh, axes, shape, jax.tree_util.keystr(path))
        memory = leaf.get_metadata().get("memory")
        return leaf.replace(found if memory is None else found.with_memory_kind(memory))

    is_variable = lambda x: isinstance(x, nnx.Variable)  # noqa: E731
    return jax.tree_util.tree_map_with_path(one, tree, is_leaf=is_variable)


def constrain(x: jax.Array, *axes: str | None) -> jax.Array:
    """Pins an activation to its logical axes on the mesh of `jax.set_mesh`; without one, `x`."""
    if jax.sharding.get_abstract_mesh().empty:
        return x
    return jax.lax.with_sharding_constraint(x, spec(axes))


def num_shards(axis: str) -> int:
    """Into how many parts the mesh of `jax.set_mesh` splits a logical axis; 1 without a mesh."""
    entry = RULES[axis]
    names = (entry,) if isinstance(entry, str) else (entry or ())
    return math.prod(jax.sharding.get_abstract_mesh().shape.get(name, 1) for name in names)
