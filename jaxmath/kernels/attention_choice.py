"""Which attention a run uses: the one it names, or for "auto" the best that its devices can run.

Each is tried on a small problem against the reference, values and gradients, before it is trusted.
For devices that are not there (a compile for another machine) the problem is only traced.
"""

from __future__ import annotations

import functools
import re
import sys
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from jaxmath import sharding
from jaxmath.kernels import attention, attention_cudnn

BEST = {"gpu": "cudnn", "tpu": "splash"}
ANYWHERE = "chunked"  # where "auto" ends if the best cannot be used, and on a CPU

# Tokens of a row of the small problem: three blocks of `splash`, an odd number, padding at the end.
ENDS = (700, 701, 1030, 1040)  # of its segments: long, one token, in two blocks, short
NUM_TOKENS = 1055
TOLERANCE = 0.03  # of the largest number of an array: about eight roundings to bfloat16


class Heads(NamedTuple):
    """What of a model its attention sees. dtype: of queries, keys and values, by name."""

    num_heads: int
    num_kv_heads: int
    head_dim: int
    dtype: str


def choose(name: str, heads: Heads, mesh: Mesh, *, must: bool = True) -> str:
    """The entry of `ATTENTION` for a run on `mesh` whose config says `name`.

    Args:
      must: a named one that cannot be used is an error; else another is taken, as for "auto".
    Raises:
      ValueError: the one asked for cannot be used here; says why.
    """
    platform = mesh.devices.flat[0].platform
    wanted = BEST.get(platform, ANYWHERE) if name == attention.AUTO else name
    reason = unusable(wanted, heads, mesh)
    if reason is None:
        return wanted
    if name != attention.AUTO and must:
        raise ValueError(f"attention {name!r} cannot be used: {reason}; choose another, or auto")
    _say_once(f"attention {ANYWHERE!r}, since {wanted!r} cannot be used: {reason}")
    return ANYWHERE


@functools.cache
def _say_once(text: str) -> None:
    if jax.process_index() == 0:
        print(text, file=sys.stderr)


@functools.cache
def unusable(name: str, heads: Heads, mesh: Mesh) -> str | None:
    """Why an entry of `ATTENTION` cannot be used on `mesh`, or None where it can and agrees."""
    if name not in _REASONS:
        return None
    if reason := _REASONS[name](heads, mesh):
        return reason
    present = set(mesh.devices.flat) <= set(jax.devices())
    try:
        if present:
            error = disagreement(name, heads, mesh)
        else:
            with jax.set_mesh(mesh):
                jax.eval_shape(functools.partial(_worst_error, name, heads), 0)
            error = 0.0
    except Exception as error:  # whatever a kernel raises, the answer is the same: not here
        return " ".join(f"{type(error).__name__}: {error}".split()[:40])
    if not error <= TOLERANCE:  # also where it is NaN
        return f"its values or gradients differ from plain attention by {error:.1%}"
    return None


def disagreement(name: str, heads: Heads, mesh: Mesh) -> float:
    """The largest difference from `reference` in values and gradients, over their largest number.

    One program on all of the mesh; every process has to call it.
    """
    with jax.set_mesh(mesh):
        return float(jax.jit(functools.partial(_worst_error, name, heads))(0))


def _worst_error(name: str, heads: Heads, seed) -> jax.Array:
    # seed is an argument: without one, compiling would be running on constants.
    mesh = jax.sharding.get_abstract_mesh()
    B, T = mesh.shape["data"] * mesh.shape["fsdp"], NUM_TOKENS
    N, K, H, dtype = heads
    keys = jax.random.split(jax.random.key(seed, impl="threefry2x32"), 4)
    draw = lambda key, heads: jax.random.normal(key, (B, T, heads, H)).astype(dtype)  # noqa: E731
    qkv = (draw(keys[0], N), draw(keys[1], K), draw(keys[2], K))
    weight_BTNH = draw(keys[3], N).astype(jnp.float32)
    index_T = jnp.arange(T)
    number_T = 1 + sum((index_T >= end).astype(jnp.int32) for end in ENDS[:-1])
    segment_ids_BT = jnp.tile(jnp.where(index_T < ENDS[-1], number_T, 0)[None], (B, 1))

    def results(attend, qkv):
        def loss(qkv):
            out_BTNH = attend(*qkv, segment_ids_BT).astype(jnp.float32)
            return jnp.sum(out_BTNH * weight_BTNH), out_BTNH

        gradients, out_BTNH = jax.grad(loss, has_aux=True)(qkv)
        return out_BTNH, *(x.astype(jnp.float32) for x in gradients)

    place = lambda x: sharding.constrain(x, "batch", "seq", None, None)  # noqa: E731
    qkv, weight_BTNH = tuple(map(place, qkv)), place(weight_BTNH)
    ours = results(attention.ATTENTION[name], qkv)
    exact = results(attention.reference, tuple(x.astype(jnp.float32) for x in qkv))
    errors = [
        jnp.max(jnp.abs(one - other)) / jnp.max(jnp.abs(other))
        for one, other in zip(ours, exact, strict=True)
    ]
    return jnp.max(jnp.stack(errors))


# --- what can be said without trying ----------------------------------------------------------


def _needs_tpu(heads: Heads, mesh: Mesh) -> str | None:
    if (platform := mesh.devices.flat[0].platform) != "tpu":
        return f"the kernel needs a TPU; the devices are of type {platform}"
    return None


def _needs_gpu(heads: Heads, mesh: Mesh, least: float = 8.0) -> str | None:
    device = mesh.devices.flat[0]
    if device.platform != "gpu":
        return f"cuDNN needs an NVIDIA GPU; the devices are of type {device.platform}"
    try:
        attention_cudnn.check_dtype(heads.dtype)
    except ValueError as error:
        return str(error)
    found = re.match(r"\d+\.\d+", str(getattr(device, "compute_capability", "")))
    if found is None or float(found[0]) < least:
        has = found[0] if found else "none"
        return f"it needs compute capability {least}, and {device.device_kind} has {has}"
    return None


def _needs_hopper(heads: Heads, mesh: Mesh) -> str | None:
    return _needs_gpu(heads, mesh, least=9.0) or attention_cudnn.missing_offsets()


_REASONS = {"splash": _needs_tpu, "cudnn": _needs_gpu, "cudnn_offsets": _needs_hopper}
