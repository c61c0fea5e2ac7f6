"""A model from wherever it is: a Hugging Face folder, a checkpoint of ours, or a hub id."""

from __future__ import annotations

import dataclasses
import os
import pathlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from jaxmath import config as configs
from jaxmath import sharding
from jaxmath.checkpoint import adapters, huggingface, store, trees
from jaxmath.checkpoint.errors import CheckpointError
from jaxmath.model import lora, qwen2
from jaxmath.model.config import ModelConfig

SUBTREES = ("params", "policy/params")  # where SFT runs and imports, and PRIME runs, keep the model
PRM_SUBTREES = ("prm/params", *SUBTREES)  # a PRIME run's reward model, or the one model there is
HUB_FILES = ("*.safetensors", "*.json", "*.jinja", "merges.txt")  # nothing that is code or a pickle


@dataclasses.dataclass(frozen=True)
class Source:
    """A place that holds a model. kind: "huggingface" or "checkpoint"."""

    kind: str
    folder: pathlib.Path


def find(path: str | os.PathLike) -> Source:
    """What is at `path`: a folder, or else a hub id (`owner/name`), which is downloaded.

    Raises:
      CheckpointError: neither.
    """
    folder = pathlib.Path(path)
    if (folder / "config.json").is_file():
        return Source("huggingface", folder)
    if is_checkpoint(folder):
        return Source("checkpoint", folder)
    if folder.exists():
        raise CheckpointError(
            f"{folder}: has neither config.json (Hugging Face) nor numbered steps (a checkpoint)"
        )
    name = str(path)
    if name.count("/") != 1 or name.startswith((".", "/", "~")):
        raise CheckpointError(f"{path}: no such folder, and not a hub id of the form owner/name")
    import huggingface_hub

    try:
        found = huggingface_hub.snapshot_download(name, allow_patterns=list(HUB_FILES))
    except (OSError, ValueError) as error:  # the hub's errors are of these two kinds
        reason = " ".join(str(error).split())[:200]
        raise CheckpointError(
            f"{path}: no such folder, and the hub did not give it ({reason})"
        ) from None
    return Source("huggingface", pathlib.Path(found))


def is_checkpoint(folder: pathlib.Path) -> bool:
    """True for a folder of a CheckpointStore that holds at least one step."""
    return folder.is_dir() and any(
        child.name.isdigit() and (child / "state").is_dir() for child in folder.iterdir()
    )


def load_config(path: str | os.PathLike, **how: Any) -> ModelConfig:
    """The shape of the model at `path`; `how` sets dtype, attention, remat, …."""
    source = find(path)
    if source.kind == "huggingface":
        return huggingface.load_config(source.folder, **how)
    with store.CheckpointStore(source.folder, read_only=True) as reader:
        return _config_of(reader.meta(), source.folder, **how)


def stored_dtype(path: str | os.PathLike) -> str:
    """The dtype of the parameters at `path`, as in "bfloat16"."""
    source = find(path)
    if source.kind == "huggingface":
        return huggingface.file_dtype(source.folder)
    with store.CheckpointStore(source.folder, read_only=True) as reader:
        meta, stored = reader.describe()
    return meta["base_dtype"] if adapters.KEY in meta else _model_in(reader.folder, stored)[1]


def load_model(
    path: str | os.PathLike,
    mesh: Mesh,
    dtype: Any = "float32",
    config: ModelConfig | None = None,
    step: int | None = None,
    subtrees: Sequence[str] = SUBTREES,
) -> tuple[qwen2.Qwen2, ModelConfig]:
    """The parameters on `mesh` in `dtype` (None: as stored), and the config they run with.

    Args:
      config: how to compute (attention, remat, compute dtype, …); must describe the same weights.
      step: of a checkpoint; None is the newest intact one.
      subtrees: where in a checkpoint to look for the model, the first that is there.

    Raises:
      CheckpointError: nothing usable there, or another model than `config` describes.
    """
    source = find(path)
    if source.kind == "huggingface":
        stored = huggingface.load_config(source.folder)
        config = _agree(source.folder, stored, config)
        dtype = huggingface.file_dtype(source.folder) if dtype is None else dtype
        return huggingface.load_params(source.folder, config, mesh, dtype), config
    with store.CheckpointStore(source.folder, read_only=True) as reader:
        meta = reader.meta(step)
        if adapters.PRM_KEY in meta and PRM_SUBTREES[0] in subtrees:
            return _load_merged(reader, mesh, dtype or "float32", config, step, prm=True)
        if adapters.KEY in meta:
            return _load_merged(reader, mesh, dtype, config, step)
        model, meta = restore_model(reader, mesh, config, step, subtrees)
    config = _agree(source.folder, _config_of(meta, source.folder), config)
    return (model if dtype is None else cast(model, dtype)), config


def restore_model(
    reader: store.CheckpointStore,
    mesh: Mesh,
    config: ModelConfig | None = None,
    step: int | None = None,
    subtrees: Sequence[str] = SUBTREES,
) -> tuple[qwen2.Qwen2, dict[str, Any]]:
    """The model of one step, in the dtype it is stored in, and that step's metadata.

    Optimizer states and other models beside it are not read.
    """
    meta, stored = reader.describe(step)
    subtree, dtype = _model_in(reader.folder, stored, subtrees)
    config = _agree(reader.folder, _config_of(meta, reader.folder), config)
    abstract = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, dtype), qwen2.abstract(config))
    wanted = trees.with_shardings(abstract, sharding.tree_shardings(mesh, abstract))
    restored = reader.restore(wanted, step, subtree=subtree)
    return restored.tree, restored.meta


def _load_merged(
    reader: store.CheckpointStore,
    mesh: Mesh,
    dtype: Any,
    config: ModelConfig | None,
    step: int | None,
    *,
    prm: bool = False,
) -> tuple[qwen2.Qwen2, ModelConfig]:
    """The frozen model with the adapters of a step in its weights, those of the reward model with
    `prm`; merged in f32. A reward model's few steps are lost where they are rounded to bfloat16."""
    found = adapters.restore(reader, mesh, step, prm=prm)
    base, config = load_base(reader.folder, found.meta, mesh, config)
    merge = jax.jit(lambda base, tree: lora.merge(base, tree, found.lora), donate_argnums=0)
    merged = merge(cast(base, "float32"), found.tree)
    return cast(merged, found.meta["base_dtype"] if dtype is None else dtype), config


def load_base(
    folder: pathlib.Path, meta: dict[str, Any], mesh: Mesh, config: ModelConfig | None = None
) -> tuple[qwen2.Qwen2, ModelConfig]:
    """The frozen model that the adapters in `folder` belong to, in the dtype they were trained on.

    Raises:
      CheckpointError: it is not where it was.
    """
    wanted = config or _config_of(meta, folder)
    try:
        return load_model(meta["base_path"], mesh, meta["base_dtype"], wanted)
    except CheckpointError as error:
        raise CheckpointError(
            f"{folder}: holds adapters of {meta['base_path']}, which cannot be read ({error}); "
            "put that model back, or name it with --base"
        ) from None


class StoredParams(Mapping[str, jax.Array]):
    """The parameters in one step, read from disk one at a time when asked for.

    Args:
      subtrees: where in the step to look for them, the first that is there.
    """

    def __init__(
        self,
        reader: store.CheckpointStore,
        mesh: Mesh,
        step: int | None = None,
        subtrees: Sequence[str] = SUBTREES,
    ):
        self.step = reader.latest_step() if step is None else step
        self.meta, stored = reader.describe(self.step)
        self.subtree, self.dtype = _model_in(reader.folder, stored, subtrees)
        self.config = _config_of(self.meta, reader.folder)
        self._reader = reader
        abstract = qwen2.abstract(self.config)
        placement = sharding.tree_shardings(mesh, abstract)
        self._wanted = trees.flatten(trees.with_shardings(abstract, placement))

    def __getitem__(self, path: str) -> jax.Array:
        x = self._wanted[path]
        like = jax.ShapeDtypeStruct(x.shape, self.dtype, sharding=x.sharding)
        return self._reader.restore(like, self.step, subtree=f"{self.subtree}/{path}").tree

    def __iter__(self) -> Iterator[str]:
        return iter(self._wanted)

    def __len__(self) -> int:
        return len(self._wanted)


class MergedParams(Mapping[str, jax.Array]):
    """The parameters of a frozen model, its adapters merged into each when it is asked for.

    A merged weight is f32, whatever the dtype of the model: it is rounded once, by what writes it.
    """

    def __init__(self, base: qwen2.Qwen2, tree: lora.Adapters, config: lora.LoraConfig):
        self._base, self._pairs, self._scale = trees.flatten(base), tree["layers"], config.scale

    def __getitem__(self, path: str) -> jax.Array:
        weight = self._base[path]
        if (pair := self._pairs.get(path.removeprefix("layers/"))) is None:
            return weight
        weight = weight.astype(jnp.float32)
        return lora.merged(weight, pair["a"][...], pair["b"][...], self._scale)

    def __iter__(self) -> Iterator[str]:
        return iter(self._base)

    def __len__(self) -> int:
        return len(self._base)


def _model_in(
    folder: pathlib.Path, stored: dict[str, dict[str, Any]], subtrees: Sequence[str] = SUBTREES
) -> tuple[str, str]:
    """Where in a step the model is, and the dtype of its parameters."""
    for subtree in subtrees:
        if (entry := stored.get(f"{subtree}/embed_VD")) is not None:
            return subtree, entry["dtype"]
    raise CheckpointError(f"{folder}: holds no model under {' or '.join(subtrees)}")


def cast(model: qwen2.Qwen2, dtype: Any) -> qwen2.Qwen2:
    """The same parameters in another dtype, array by array; the old ones are given up."""
    convert = jax.jit(lambda x: x.astype(jnp.dtype(dtype)))
    leaves, structure = jax.tree.flatten(model)
    for i, x in enumerate(leaves):
        if x.dtype != jnp.dtype(dtype):
            leaves[i] = jax.block_until_ready(convert(x))
            x.delete()
    return structure.unflatten(leaves)


def _config_of(meta: dict[str, Any], folder: pathlib.Path, **how: Any) -> ModelConfig:
    if "model" not in meta:
        raise CheckpointError(f"{folder}: the checkpoint's metadata has no `model` config")
    return configs.from_dict(ModelConfig, {**meta["model"], **how}, f"{folder}: model")


def _agree(folder: pathlib.Path, stored: ModelConfig, wanted: ModelConfig | None) -> ModelConfig:
    if wanted is None or wanted.same_weights(stored):
        return wanted or stored
    differ = [
        f"{field.name} is {getattr(stored, field.name)} there, {getattr(wanted, field.name)} here"
        for field in dataclasses.fields(stored)
        if not dataclasses.replace(
            stored, **{field.name: getattr(wanted, field.name)}
        ).same_weights(stored)
    ]
    raise CheckpointError(
        f"{folder}: holds another model than the config: {trees.some(differ, '; ')}"
    )
