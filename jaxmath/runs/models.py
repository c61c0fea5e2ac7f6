"""Where a run's model comes from, and what is written down about it."""

from __future__ import annotations

import pathlib
import sys
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from jaxmath import config as config_lib
from jaxmath import sharding
from jaxmath.checkpoint import adapters, digest, source, store, trees
from jaxmath.data import tokenizer
from jaxmath.decode import placement
from jaxmath.model import qwen2
from jaxmath.model.config import ModelConfig
from jaxmath.model.lora import LoraConfig

TOKENIZER_FOLDER = "tokenizer"  # beside checkpoints/, in a run folder


def check_source(config: Any) -> None:
    """A run needs a shape, or a place to read it from."""
    if config.model is None and config.init_from is None:
        raise ValueError(
            "model and init_from are both null; name a model file, or what to start from"
        )


def checkpoint_path(path: str) -> str:
    """The run folder of an earlier run stands for the checkpoints in it."""
    inner = pathlib.Path(path) / "checkpoints"
    return str(inner) if inner.is_dir() else path


def model_config(config: Any) -> ModelConfig:
    """The shape, from `config.init_from` where that is given, computed as `config.model` says.

    Raises:
      ConfigError: `config.model` describes other weights than those in `init_from`.
    """
    if config.init_from is None:
        return config.model
    found = source.load_config(checkpoint_path(config.init_from))
    if config.model is None:
        return found
    if not config.model.same_weights(found):
        ours, theirs = config_lib.to_dict(config.model), config_lib.to_dict(found)
        how = ("attention", "logprobs", "remat", "dtype")
        differing = [
            f"{name} is {ours[name]} against {theirs[name]}"
            for name in ours
            if ours[name] != theirs[name] and name not in how
        ]
        raise config_lib.ConfigError(
            f"model does not fit init_from {config.init_from}: {', '.join(differing)}; "
            "set model to null to take the shape from there"
        )
    return config.model


def shape_on(config: Any, mesh: Mesh) -> ModelConfig:
    """The shape, with the attention that the run uses on `mesh`.

    A shape that `config.model` states is not compared with `config.init_from`, which spares a visit
    to the hub; `load` does that.

    Raises:
      ValueError: `config.model.attention` names one that cannot be used there.
    """
    return _on_mesh(config, config.model or model_config(config), mesh)


def _on_mesh(config: Any, shape: ModelConfig, mesh: Mesh) -> ModelConfig:
    # What a checkpoint was computed with is no wish of whoever loads it.
    return shape.on_mesh(mesh, must=config.model is not None)


def load(config: Any, mesh: Mesh, *, dtype: str | None = None) -> qwen2.Qwen2:
    """Parameters on their shards: read from `config.init_from`, or random from `config.seed`.

    dtype: of the parameters; None keeps that of the files.
    """
    shape = _on_mesh(config, model_config(config), mesh)
    if config.init_from is None:
        params = qwen2.init_sharded(shape, jax.random.key(config.seed), mesh)
        return params if dtype in (None, "float32") else cast(params, dtype)
    path = checkpoint_path(config.init_from)
    return source.load_model(path, mesh, dtype=dtype, config=shape)[0]


def decoder_weights(config: Any, mesh: Mesh) -> qwen2.DecodeParams:
    """The run's model as its decoder holds it; the loaded one is gone when this returns."""
    placed = placement.decode_params(load(config, mesh), mesh, config.decode.form)
    return jax.block_until_ready(placed)


def stored_dtype(config: Any) -> str:
    """Of the parameters in `config.init_from`."""
    return source.stored_dtype(checkpoint_path(config.init_from))


def cast(params: Any, dtype: str) -> Any:
    return jax.jit(lambda tree: jax.tree.map(lambda x: x.astype(dtype), tree))(params)


def abstract_params(config: ModelConfig, dtype: str = "float32") -> qwen2.Qwen2:
    """ShapeDtypeStructs of the parameters in `dtype`."""
    to = lambda x: jax.ShapeDtypeStruct(x.shape, jnp.dtype(dtype))  # noqa: E731
    return jax.tree.map(to, qwen2.abstract(config))


def with_shardings(tree: Any, mesh: Mesh) -> Any:
    """The abstract tree, each leaf with its sharding on `mesh`: a template to restore into."""
    place = lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s)  # noqa: E731
    return jax.tree.map(place, tree, sharding.tree_shardings(mesh, tree))


# --- checkpoints ------------------------------------------------------------------------------


def meta(
    config: Any, mesh: Mesh, tokens: tokenizer.Tokenizer, folder: pathlib.Path
) -> dict[str, Any]:
    """What a checkpoint says about itself; also saves the tokenizer beside the checkpoints."""
    if jax.process_index() == 0:
        tokens.save(folder / TOKENIZER_FOLDER)
    return {
        "model": config_lib.to_dict(model_config(config)),
        "tokenizer": f"../{TOKENIZER_FOLDER}",  # relative to the checkpoint folder
        "eos_ids": list(tokens.eos_ids),
        "pad_id": tokens.pad_id,
        "config": config_lib.to_dict(config),
        "mesh": dict(mesh.shape),
    }


def config_of(meta: dict[str, Any]) -> ModelConfig:
    return config_lib.from_dict(ModelConfig, meta["model"], "checkpoint")


def base_meta(init_from: str, base: qwen2.Qwen2, lora: LoraConfig, digest: str) -> dict[str, Any]:
    """What the checkpoint of adapters says of the model they belong to, whose `digest` it is."""
    path = checkpoint_path(init_from)
    return {
        "base": {"digest": digest, "lora": config_lib.to_dict(lora)},
        "base_path": str(pathlib.Path(path).absolute()) if pathlib.Path(path).exists() else path,
        "base_dtype": str(base.embed_VD[...].dtype),
    }


def restore_or(
    checkpoints: store.CheckpointStore,
    abstract: Callable[[], Any],
    initial: Callable[[], Any],
    meta: dict[str, Any],
) -> tuple[Any, int]:
    """The newest intact checkpoint and its step, or the initial state and 0.

    Raises:
      ValueError: the checkpoint belongs to another model or other data.
    """
    if checkpoints.latest_step() is None:
        return initial(), 0
    restored = checkpoints.restore(abstract())
    _check_same_run(checkpoints, restored.meta, meta)
    num_arrays = len(jax.tree.leaves(restored.tree))
    print(
        f"restored step {restored.step} from {checkpoints.folder}: {num_arrays} arrays, "
        f"saved on mesh {restored.meta.get('mesh')}",
        file=sys.stderr,
    )
    return restored.tree, restored.step


def _check_same_run(checkpoints: store.CheckpointStore, saved: Any, ours: Any) -> None:
    # How the model is computed may change on resume; what it is, and what it learns from, may not.
    same = {"model": config_of(saved).same_weights(config_of(ours))}
    same |= {what: saved.get(what) == ours.get(what) for what in ("data", "reference", "base")}
    prm = [about.get(adapters.PRM_KEY, {}).get("base") for about in (saved, ours)]
    same["reward model"] = prm[0] == prm[1]
    if changed := [what for what, is_same in same.items() if not is_same]:
        raise ValueError(
            f"{checkpoints.folder} was written by a run with another {' and '.join(changed)} than "
            "this one's; go on with the same, or use another output folder"
        )


def digest_of(params: Any) -> str:
    """Digest of all parameters, the same on every mesh."""
    return config_lib.fingerprint(digest.digests(trees.flatten(params)))


# --- plans ------------------------------------------------------------------------------------


def check_rows(mesh: Mesh, rows: int, what: str) -> None:
    """Raises ConfigError where the batch axes of the mesh do not divide the rows."""
    shards = mesh.shape["data"] * mesh.shape["fsdp"]
    if rows % shards:
        raise config_lib.ConfigError(
            f"{what}: {rows} is not a multiple of the {shards} shards of the batch (mesh data x "
            "fsdp); change the mesh or the batch"
        )


def plan(config: Any, mesh: Mesh) -> dict[str, Any]:
    """Facts about the model and the mesh for `--dry-run`."""
    shape = config.model or model_config(config)  # a stated shape spares a visit to the hub
    return {
        "mesh": ", ".join(f"{axis}={size}" for axis, size in mesh.shape.items()),
        "devices": f"{mesh.size} x {mesh.devices.flat[0].device_kind}",
        "parameters": f"{shape.num_params:,}",
        "f32 weights, GiB": f"{shape.num_params * 4 / 2**30:.2f}",
    }
