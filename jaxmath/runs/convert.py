"""`convert import` and `convert export`: Hugging Face folder ↔ checkpoint, one copy in memory."""

from __future__ import annotations

import os
import pathlib
from typing import Any

import jax

from jaxmath import config as configs
from jaxmath import sharding
from jaxmath.checkpoint import huggingface, source, store, tokenizer_files
from jaxmath.checkpoint.errors import CheckpointError

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
) -> None:
    """Writes and verifies a Hugging Face folder from a checkpoint: an import, or a run's.

    dtype: of the files; None keeps the checkpoint's (float32 masters, of a training run).
    step: None is the newest.

    Raises:
      CheckpointError: no usable checkpoint, the target exists, or the written folder does not give
        back the model.
    """
    folder = pathlib.Path(checkpoint_folder)
    if pathlib.Path(hf_folder).exists() and not overwrite:
        raise CheckpointError(f"{hf_folder}: exists; choose another folder, or allow overwriting")
    with store.CheckpointStore(folder, read_only=True) as reader:
        params = source.StoredParams(reader, _one_cpu(), step)
        tokenizer = params.meta.get("tokenizer")
        huggingface.export(
            params.config,
            params,
            hf_folder,
            dtype=dtype or params.dtype,
            tokenizer=folder / tokenizer if tokenizer else None,  # an absolute path stays as it is
            eos_ids=params.meta.get("eos_ids"),
            max_shard_bytes=max_shard_bytes,
            overwrite=overwrite,
        )


def _one_cpu() -> jax.sharding.Mesh:
    """Host memory, also where there are accelerators: a conversion computes nothing."""
    return sharding.make_mesh(sharding.MeshConfig(), jax.local_devices(backend="cpu")[:1])
