"""WEIGHTS: our parameters and the safetensors names of Qwen2, one table read in both directions.

A parameter's name ends in its axes ("DNH"), and the table gives the axes of the file's tensor in
its order, with merged ones together ("NH D"). That says which permutation and reshape lead from one
to the other, and which rows of a file a shard needs.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator, Mapping
from typing import Any

import jax
import numpy as np

from jaxmath.checkpoint import safetensors
from jaxmath.checkpoint.errors import CheckpointError
from jaxmath.model.config import ModelConfig

BLOCK_BYTES = 16 * 2**20
LAYER = "model.layers.{layer}."
WEIGHTS = {
    # ours; its suffix names its axes   safetensors name                        axes there, grouped
    "embed_VD": ("model.embed_tokens.weight", "V D"),
    "layers/input_norm_D": (LAYER + "input_layernorm.weight", "D"),
    "layers/wq_DNH": (LAYER + "self_attn.q_proj.weight", "NH D"),
    "layers/bq_NH": (LAYER + "self_attn.q_proj.bias", "NH"),
    "layers/wk_DKH": (LAYER + "self_attn.k_proj.weight", "KH D"),
    "layers/bk_KH": (LAYER + "self_attn.k_proj.bias", "KH"),
    "layers/wv_DKH": (LAYER + "self_attn.v_proj.weight", "KH D"),
    "layers/bv_KH": (LAYER + "self_attn.v_proj.bias", "KH"),
    "layers/wo_NHD": (LAYER + "self_attn.o_proj.weight", "D NH"),
    "layers/mlp_norm_D": (LAYER + "post_attention_layernorm.weight", "D"),
    "layers/gate_DF": (LAYER + "mlp.gate_proj.weight", "F D"),
    "layers/up_DF": (LAYER + "mlp.up_proj.weight", "F D"),
    "layers/down_FD": (LAYER + "mlp.down_proj.weight", "D F"),
    "final_norm_D": ("model.norm.weight", "D"),
    "head_DV": ("lm_head.weight", "V D"),  # absent where embeddings are tied
}
EXPONENT = {"bfloat16": 0x7F80, "float16": 0x7C00, "float32": 0x7F800000}  # all ones: inf or NaN


@dataclasses.dataclass(frozen=True)
class Weight:
    """One row of WEIGHTS, with the sizes of a model filled in."""

    path: str
    name: str
    groups: tuple[str, ...]
    sizes: dict[str, int]

    @property
    def axes(self) -> str:
        """Our axes of one layer, in our order."""
        return self.path.rpartition("_")[2]

    @property
    def to_file(self) -> tuple[int, ...]:
        """The permutation from our order of axes to the file's."""
        return tuple(self.axes.index(axis) for axis in "".join(self.groups))

    @property
    def split_shape(self) -> tuple[int, ...]:
        """The file's axes in the file's order, not yet merged into groups."""
        return tuple(self.sizes[axis] for axis in "".join(self.groups))

    @property
    def file_shape(self) -> tuple[int, ...]:
        return tuple(math.prod(self.sizes[axis] for axis in group) for group in self.groups)

    @property
    def lead_rows(self) -> int:
        """Rows of the file's tensor per step of its first axis."""
        return math.prod(self.sizes[axis] for axis in self.groups[0][1:])

    @property
    def stacked(self) -> bool:
        """True where ours has a leading axis L, and the file one tensor per layer."""
        return self.path.startswith("layers/")

    def names(self) -> list[str]:
        """The safetensors names, one per layer, or one."""
        if not self.stacked:
            return [self.name]
        return [self.name.format(layer=layer) for layer in range(self.sizes["L"])]

    def blocks(self, itemsize: int, first: int = 0, last: int | None = None):
        """Ranges of the file's first axis from `first` to `last`, of about BLOCK_BYTES each."""
        last = self.split_shape[0] if last is None else last
        step = max(1, BLOCK_BYTES // (math.prod(self.split_shape[1:]) * itemsize))
        return ((begin, min(begin + step, last)) for begin in range(first, last, step))


def table(config: ModelConfig) -> list[Weight]:
    """The rows of WEIGHTS that a model of this shape has, largest first.

    Largest first, so that the space a large array needs beside itself is taken while little else is
    in memory.
    """
    sizes = {
        **{"L": config.num_layers, "V": config.vocab_size, "D": config.embed_dim},
        **{"F": config.mlp_dim, "N": config.num_heads, "K": config.num_kv_heads},
        "H": config.head_dim,
    }
    rows = [
        Weight(path, name, tuple(groups.split()), sizes)
        for path, (name, groups) in WEIGHTS.items()
        if path != "head_DV" or not config.tie_embeddings
    ]
    return sorted(rows, key=lambda w: -math.prod(w.split_shape) * len(w.names()))


def file_shapes(config: ModelConfig) -> dict[str, tuple[int, ...]]:
    """Every tensor name of a model with its shape in the file: table, layers, norm, head."""
    shapes = {name: w.file_shape for w in table(config) for name in w.names()}
    stage = {"model.norm.weight": 1, "lm_head.weight": 2}

    def place(name: str) -> tuple:
        layer = name.split(".")[2] if name.startswith("model.layers.") else "-1"
        return stage.get(name, 0), int(layer), name

    return {name: shapes[name] for name in sorted(shapes, key=place)}


# --- both directions --------------------------------------------------------------------------


def read_part(
    weight: Weight,
    tensors: Mapping[str, safetensors.Tensor],
    index: tuple[slice, ...],
    dtype: np.dtype,
) -> np.ndarray:
    """The part `index` of our array, from the rows of the files that hold it."""
    names = weight.names()
    if weight.stacked:
        names, index = names[index[0]], index[1:]
    in_file = [index[i].indices(weight.sizes[weight.axes[i]])[:2] for i in weight.to_file]
    (first, last), rest = in_file[0], tuple(slice(*bounds) for bounds in in_file[1:])
    shape = [slice_.stop - slice_.start for slice_ in (slice(first, last), *rest)]
    inverse = np.argsort(weight.to_file)
    out = _aligned_empty((len(names), *(shape[i] for i in inverse)), dtype)
    for layer, name in enumerate(names):
        view, tensor = out[layer].transpose(weight.to_file), tensors[name]
        for begin, end in weight.blocks(tensor.dtype.itemsize, first, last):
            rows = tensor.rows(begin * weight.lead_rows, end * weight.lead_rows)
            part = rows.reshape(end - begin, *weight.split_shape[1:])[:, *rest]
            view[begin - first : end - first] = cast(part, dtype, tensor.file, name)
    return out if weight.stacked else out[0]


def rows_in_file(
    config: ModelConfig, params: Mapping[str, jax.Array], dtype: np.dtype
) -> Iterator[tuple[str, int, np.ndarray]]:
    """(name, first row, rows) of every tensor, block by block, as they stand in the files."""
    for weight in table(config):
        param = params[weight.path]
        for layer, name in enumerate(weight.names()):
            view = on_host(param, layer if weight.stacked else None).transpose(weight.to_file)
            for begin, end in weight.blocks(dtype.itemsize):
                part = view[begin:end].reshape(-1, *weight.file_shape[1:])
                yield name, begin * weight.lead_rows, cast(part, dtype, "the model", name)


def on_host(param: jax.Array, layer: int | None) -> np.ndarray:
    """An array, or one layer of it, on the host; on a CPU device that holds it whole, no copy.

    Raises:
      CheckpointError: parts of it are on other hosts.
    """
    if not param.is_fully_addressable:
        raise CheckpointError(
            f"the parameters are spread over {jax.process_count()} processes; save a checkpoint "
            "and export that from one process"
        )
    shards = [s for s in param.addressable_shards if s.replica_id == 0]
    parts = [s.data if layer is None else s.data[layer] for s in shards]
    if len(parts) == 1:
        return np.asarray(parts[0])
    skip = 0 if layer is None else 1
    out = np.empty(param.shape[skip:], param.dtype)
    for shard, part in zip(shards, parts, strict=True):
        out[shard.index[skip:]] = part
    return out


def _aligned_empty(shape: tuple[int, ...], dtype: np.dtype) -> np.ndarray:
    """An uninitialised array on a 64-byte boundary: what JAX on a CPU takes over without a copy."""
    size = math.prod(shape) * dtype.itemsize
    raw = np.empty(size + 64, np.uint8)
    start = -raw.ctypes.data % 64
    return raw[start : start + size].view(dtype).reshape(shape)


def cast(x: np.ndarray, dtype: np.dtype, where: Any, name: str) -> np.ndarray:
    with np.errstate(over="ignore"):
        cast = x.astype(dtype, copy=False)
    bits = cast.view(f"u{dtype.itemsize}") & EXPONENT[str(dtype)]
    if (bits == EXPONENT[str(dtype)]).any():
        raise CheckpointError(f"{where}: {name} has a value that is not finite in {dtype}")
    return cast
