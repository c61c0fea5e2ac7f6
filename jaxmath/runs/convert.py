"""`convert import` and `convert export`: Hugging Face folder ↔ checkpoint, one copy in memory."""

from __future__ import annotations

import os
import pathlib
from typing import Any

import jax

from jaxmath import config as configs
from jaxmath import sharding
from jaxmath.checkpoint import adapters, huggingface, source, store, tokenizer_files
from jaxmath.checkpoint.errors import CheckpointError
from jaxmath.model.config import ModelConfig

TOKENIZER = "tokenizer"  # folder beside the steps of an imported checkpoint


def import_hf(
    hf_folder: str | os.PathLike, checkpoint_folder: str | os.PathLike, dtype: str | None = None
) -> dict[str, Any]:
    """Makes step 0 of a new checkpoint from a Hugging Face folder or hub id; returns its metadata.

    dtype: of the stored parameters; None keeps the file's.

    Raises:
      CheckpointError: the source cannot be used, or the target already holds a checkpoint.
    """
    target = pathlib.Path(checkpoint_folder)
    found = source.find(hf_folder)
    if found.kind != "huggingface":
        raise CheckpointError(
            f"{hf_folder}: is a checkpoint already; expected a Hugging Face folder"
        )
    if source.is_checkpoint(target):
        raise CheckpointError(f"{target}: already holds a checkpoint; choose another folder")
    config = huggingface.load_config(found.folder)
    dtype = huggingface.file_dtype(found.folder) if dtype is None else dtype
    model = huggingface.load_params(found.folder, config, _one_cpu(), dtype)
    meta = {
        "model": configs.to_dict(config),
        "source": str(hf_folder),
        "dtype": dtype,
        "eos_ids": tokenizer_files.find_eos_ids(found.folder),
        "tokenizer": None,
    }
    if tokenizer_files.present(found.folder):
        tokenizer_files.copy(found.folder, target / TOKENIZER)
        meta["tokenizer"] = TOKENIZER
    with store.CheckpointStore(target) as writer:
        writer.save(0, {"params": model}, meta)
    return meta


def export_hf(
    checkpoint_folder: str | os.PathLike,
    hf_folder: str | os.PathLike,
    dtype: str | None = None,
    step: int | None = None,
    *,
    overwrite: bool = False,
    max_shard_bytes: int = 5 * 10**9,
    ema: bool = False,
    base: str | None = None,
) -> None:
    """Writes and verifies a Hugging Face folder from a checkpoint: an import, or a run's.

    Adapters of LoRA are merged into the weights of the model they belong to.

    dtype: of the files; None keeps the checkpoint's (float32 masters, of a training run).
    step: None is the newest.
    ema: the averaged weights instead of the last ones.
    base: where the model of the adapters is now; None for where the run found it.

    Raises:
      CheckpointError: no usable checkpoint, the target exists, or the written folder does not give
        back the model.
    """
    folder = pathlib.Path(checkpoint_folder)
    if pathlib.Path(hf_folder).exists() and not overwrite:
        raise CheckpointError(f"{hf_folder}: exists; choose another folder, or allow overwriting")
    with store.CheckpointStore(folder, read_only=True) as reader:
        meta, stored = reader.describe(step)
        _check_request(folder, meta, stored, ema, base)
        if adapters.KEY in meta:
            found = adapters.restore(reader, _one_cpu(), step, ema=ema)
            model, config = source.load_base(folder, _with_base(meta, base), _one_cpu())
            params: Any = source.MergedParams(model, found.tree, found.lora)
            dtype = dtype or meta["base_dtype"]
        else:
            params = source.StoredParams(
                reader, _one_cpu(), step, ("ema",) if ema else source.SUBTREES
            )
            config, dtype = params.config, dtype or params.dtype
        tokenizer = meta.get("tokenizer")
        huggingface.export(
            config,
            params,
            hf_folder,
            dtype=dtype,
            tokenizer=folder / tokenizer if tokenizer else None,  # an absolute path stays as it is
            eos_ids=meta.get("eos_ids"),
            max_shard_bytes=max_shard_bytes,
            overwrite=overwrite,
        )


def export_peft(
    checkpoint_folder: str | os.PathLike,
    peft_folder: str | os.PathLike,
    step: int | None = None,
    *,
    overwrite: bool = False,
    ema: bool = False,
    base: str | None = None,
) -> None:
    """Writes the adapters of a LoRA run as `peft` reads them; options as those of `export_hf`.

    Raises:
      CheckpointError: no usable checkpoint, one without adapters, or the target exists.
    """
    folder = pathlib.Path(checkpoint_folder)
    with store.CheckpointStore(folder, read_only=True) as reader:
        meta, stored = reader.describe(step)
        if adapters.KEY not in meta:
            raise CheckpointError(f"{folder}: holds a whole model; export it without --adapters")
        _check_request(folder, meta, stored, ema, base)
        found = adapters.restore(reader, _one_cpu(), step, ema=ema)
    config = configs.from_dict(ModelConfig, meta["model"], f"{folder}: model")
    path = _with_base(meta, base)["base_path"]
    adapters.export(found.tree, found.lora, config, path, peft_folder, overwrite=overwrite)


def _check_request(folder, meta, stored, ema: bool, base: str | None) -> None:
    if ema and not any(path.startswith("ema/") for path in stored):
        raise CheckpointError(
            f"{folder}: holds no averaged weights; train with optimizer.ema_decay, or drop --ema"
        )
    if base is not None and adapters.KEY not in meta:
        raise CheckpointError(f"{folder}: holds no adapters, so that --base has no use; drop it")


def _with_base(meta: dict[str, Any], base: str | None) -> dict[str, Any]:
    return meta if base is None else meta | {"base_path": base}


def _one_cpu() -> jax.sharding.Mesh:
    """Host memory, also where there are accelerators: a conversion computes nothing."""
    return sharding.make_mesh(sharding.MeshConfig(), jax.local_devices(backend="cpu")[:1])
