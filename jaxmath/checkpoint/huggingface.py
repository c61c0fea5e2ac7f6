"""Qwen2.5 from and to a Hugging Face folder; what is written is read again and compared.

Memory: whatever the direction, one copy of the parameters and a block of a few dozen MB beside it.
Reading fills each device's shard from the rows it needs; writing puts blocks of rows at their
places in files that were laid out before.
"""

from __future__ import annotations

import functools
import json
import os
import pathlib
import shutil
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh

from jaxmath import sharding
from jaxmath.checkpoint import probe, safetensors, tokenizer_files, trees, weights
from jaxmath.checkpoint.errors import CheckpointError
from jaxmath.model import config as model_config
from jaxmath.model import qwen2
from jaxmath.model.config import ModelConfig

# --- reading ----------------------------------------------------------------------------------


def load_config(folder: str | os.PathLike, **how: Any) -> ModelConfig:
    """The model's shape from `config.json`; `how` sets dtype, attention, remat, ….

    Raises:
      CheckpointError: no such file, or a model that is not supported, by name.
    """
    path = pathlib.Path(folder) / "config.json"
    hf = tokenizer_files.read_json(path)
    try:
        return model_config.from_hf(hf, **how)
    except (ValueError, TypeError, ZeroDivisionError) as error:
        raise CheckpointError(f"{path}: {error}") from None


def open_tensors(folder: str | os.PathLike, config: ModelConfig) -> dict[str, safetensors.Tensor]:
    """The folder's tensors, exactly those of a model of this shape.

    Raises:
      CheckpointError: a damaged file, or a missing, extra or mis-shaped tensor, by name.
    """
    tensors, wanted = safetensors.read_folder(folder), weights.file_shapes(config)
    if missing := [name for name in wanted if name not in tensors]:
        raise CheckpointError(f"{folder}: lacks {trees.some(missing)}; config.json asks for it")
    if extra := [name for name in tensors if name not in wanted]:
        raise CheckpointError(
            f"{folder}: also holds {trees.some(extra)}, which a model of its config.json does not "
            "have; check tie_word_embeddings and num_hidden_layers"
        )
    for name, shape in wanted.items():
        if tensors[name].shape != shape:
            raise CheckpointError(
                f"{folder}: {name} has shape {tensors[name].shape}, config.json asks for {shape}"
            )
    return tensors


def file_dtype(folder: str | os.PathLike) -> str:
    """The one dtype of all tensors, as in "bfloat16".

    Raises:
      CheckpointError: they differ.
    """
    tensors = safetensors.read_folder(folder)
    found = sorted({str(tensor.dtype) for tensor in tensors.values()})
    if len(found) != 1:
        raise CheckpointError(
            f"{folder}: tensors are of {', '.join(found)}; say which dtype to use"
        )
    return found[0]


def load_params(
    folder: str | os.PathLike, config: ModelConfig, mesh: Mesh, dtype: Any = "float32"
) -> qwen2.Qwen2:
    """The model, each parameter born on its shards; never whole in memory twice.

    Raises:
      CheckpointError: as `open_tensors`, and for a value that is not finite (in `dtype`).
    """
    tensors = open_tensors(folder, config)
    abstract = qwen2.abstract(config)
    placement = trees.flatten(sharding.tree_shardings(mesh, abstract))
    shapes = trees.flatten(abstract)
    arrays = {}
    for weight in weights.table(config):
        read = functools.partial(weights.read_part, weight, tensors, dtype=np.dtype(dtype))
        shape, place = shapes[weight.path].shape, placement[weight.path]
        arrays[weight.path] = jax.make_array_from_callback(shape, place, read)
    return jax.tree.structure(abstract).unflatten([arrays[path] for path in shapes])


# --- writing ----------------------------------------------------------------------------------


def save(model: qwen2.Qwen2, folder: str | os.PathLike, **options: Any) -> None:
    """Writes a model in memory as a Hugging Face folder: see `export`, which has the options."""
    export(model.config, trees.flatten(model), folder, **options)


def export(
    config: ModelConfig,
    params: Mapping[str, jax.Array],
    folder: str | os.PathLike,
    *,
    dtype: str = "bfloat16",
    tokenizer: str | os.PathLike | None = None,
    eos_ids: Sequence[int] | None = None,
    max_shard_bytes: int = 5 * 10**9,
    overwrite: bool = False,
) -> None:
    """Writes the folder that `transformers` opens: weights, configs, tokenizer; then verifies it.

    Written beside the target, compared with the source (`verify_params`), and only then renamed.

    Args:
      params: path → array, as `trees.flatten(model)`; each is asked for twice, one at a time, so a
        mapping that reads them from disk keeps the whole model out of memory.
      dtype: of the stored weights: bfloat16, float16 or float32.
      tokenizer: folder whose tokenizer, chat template and generation config are carried over.
      eos_ids: ids that end a generation; None takes them from the tokenizer folder.
      overwrite: replace an existing folder.

    Raises:
      CheckpointError: the target exists; a value is not finite in `dtype`; or the written folder
        does not give back the model: it is then left, under the name given, for inspection.
    """
    folder = pathlib.Path(folder).absolute()
    if folder.exists() and not overwrite:
        raise CheckpointError(f"{folder}: exists; choose another folder, or allow overwriting")
    if dtype not in weights.EXPONENT:
        raise CheckpointError(f"dtype is {dtype!r}; expected one of {', '.join(weights.EXPONENT)}")
    staged = folder.with_name(f".{folder.name}.{os.getpid()}.partial")
    staged.mkdir(parents=True)
    try:
        shapes, np_dtype = weights.file_shapes(config), np.dtype(dtype)
        with safetensors.Writer(staged, shapes, np_dtype, max_shard_bytes) as writer:
            for name, row, part in weights.rows_in_file(config, params, np_dtype):
                writer.write(name, row, part)
        _write_configs(staged, config, dtype, tokenizer, eos_ids)
        for path in staged.iterdir():
            path.chmod(0o644)
    except BaseException:
        shutil.rmtree(staged)
        raise
    verify_params(config, params, staged)
    if folder.exists():
        old = folder.with_name(f".{folder.name}.{os.getpid()}.old")
        os.rename(folder, old)
        os.rename(staged, folder)
        shutil.rmtree(old)
    else:
        os.rename(staged, folder)


def _write_configs(folder, config, dtype, tokenizer, eos_ids) -> None:
    generation: dict[str, Any] = {}
    if tokenizer is not None:
        tokenizer_files.copy(tokenizer, folder)
        eos_ids = tokenizer_files.find_eos_ids(tokenizer) if eos_ids is None else eos_ids
        if (folder / tokenizer_files.GENERATION).exists():
            generation = tokenizer_files.read_json(folder / tokenizer_files.GENERATION)
    ids = [int(i) for i in eos_ids or ()]
    eos = (ids[0] if len(ids) == 1 else ids) if ids else None
    pad = generation.get("pad_token_id")
    hf = model_config.to_hf(
        config, dtype=dtype, eos_token_id=ids[0] if ids else None, pad_token_id=pad
    )
    generation = {**generation, "eos_token_id": eos}
    for name, value in (("config.json", hf), (tokenizer_files.GENERATION, generation)):
        (folder / name).write_text(json.dumps(value, indent=2) + "\n")


# --- verifying --------------------------------------------------------------------------------


def verify_params(
    config: ModelConfig, params: Mapping[str, jax.Array], folder: str | os.PathLike
) -> None:
    """Re-opens an exported folder and compares it with the parameters it was written from.

    Every tensor, read back into our layout, bit for bit. Then, since WEIGHTS may itself be wrong, a
    forward pass by the Hugging Face conventions alone (`probe.reference`) against our own on what
    was read back: queries, keys, values and output of every layer, and a row of logits, to 1e-4 of
    their scale.

    Raises:
      CheckpointError: they differ; nothing is deleted.
    """
    if not load_config(folder).same_weights(config):
        raise CheckpointError(f"{folder}: config.json describes another model than the source")
    tensors = open_tensors(folder, config)
    dtype = np.dtype(file_dtype(folder))
    rows = {weight.path: weight for weight in weights.table(config)}
    for path, weight in rows.items():
        param = params[path]
        for layer, name in enumerate(weight.names()):
            source = weights.on_host(param, layer if weight.stacked else None)
            for begin, end in weight.blocks(dtype.itemsize):
                index = [slice(None)] * len(weight.axes)
                index[weight.to_file[0]] = slice(begin, end)
                expected = weights.cast(source[tuple(index)], dtype, "the model", name)
                layers = [slice(layer, layer + 1)] if weight.stacked else []
                back = weights.read_part(weight, tensors, (*layers, *index), dtype)
                if back.tobytes() != expected.tobytes():
                    raise CheckpointError(
                        f"{folder}: {name} differs from the source; do not use this export"
                    )

    def read(path: str, *index: slice) -> np.ndarray:
        return weights.read_part(rows[path], tensors, index, np.dtype(np.float32))

    pairs = zip(probe.reference(tensors, config), probe.ours(config, read), strict=True)
    for (what, theirs), (_, ours) in pairs:
        scale = float(np.max(np.abs(theirs)))
        worst = float(np.max(np.abs(theirs - ours)))
        if not worst <= 1e-4 * scale:
            raise CheckpointError(
                f"{folder}: {what} differs by {worst:.3g} (scale {scale:.3g}) from our forward "
                "pass; the files do not follow the Hugging Face layout; do not use this export"
            )
