"""Adapters of LoRA on disk: those in a checkpoint, and PEFT's folder of them.

A run with LoRA saves its adapters alone. What it says of the frozen model, where it was and in
which dtype, is in the metadata: `base` (digest and config, which a resumed run must share),
`base_path`, `base_dtype`; a PRIME run says it of its reward model, under `prm_adapters`.

PEFT's tensors are [rank, in] and [out, rank], one pair per layer and module, named after the weight
they belong to. Which of our axes are "in" and "out" is said by `weights.WEIGHTS`.
"""

from __future__ import annotations

import json
import os
import pathlib
import shutil
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.sharding import Mesh

from jaxmath import config as configs
from jaxmath import sharding
from jaxmath.checkpoint import store, trees, weights
from jaxmath.checkpoint.errors import CheckpointError
from jaxmath.model import lora
from jaxmath.model.config import ModelConfig

KEY = "base"  # in the metadata of adapters, and of nothing else
PRM_KEY = "prm_adapters"  # in that of a PRIME run whose reward model is adapters: the same of them
PREFIX = "base_model.model."
CONFIG, TENSORS = "adapter_config.json", "adapter_model.safetensors"


class Restored(NamedTuple):
    """tree: the adapters, f32. lora: how they were made. meta: of the step."""

    tree: lora.Adapters
    lora: lora.LoraConfig
    meta: dict[str, Any]


def restore(
    reader: store.CheckpointStore,
    mesh: Mesh,
    step: int | None = None,
    *,
    ema: bool = False,
    prm: bool = False,
) -> Restored:
    """The adapters of a step, or their average, on `mesh`; with `prm` those of the reward model."""
    meta = reader.meta(step)
    if prm:
        meta = meta | meta[PRM_KEY]
    where = f"{reader.folder}: "
    config = configs.from_dict(ModelConfig, meta["model"], where + "model")
    made = configs.from_dict(lora.LoraConfig, meta[KEY]["lora"], where + "lora")
    abstract = jax.eval_shape(lambda key: lora.init(made, config, key), jax.random.key(0))
    wanted = trees.with_shardings(abstract, sharding.tree_shardings(mesh, abstract))
    subtree = ("prm/" if prm else "") + ("ema" if ema else "params")
    tree = reader.restore(wanted, step, subtree=subtree).tree
    return Restored(tree, made, meta)


def tensors(tree: lora.Adapters, config: ModelConfig) -> dict[str, np.ndarray]:
    """PEFT's tensors by their names in its file."""
    rows = {weight.path.removeprefix("layers/"): weight for weight in weights.table(config)}
    found = {}
    for name, pair in tree["layers"].items():
        weight = rows[name]
        out, summed = weight.groups
        # Ours are stacked and in the order of our axes: [L, in…, rank] and [L, rank, out…].
        in_order = [weight.axes.replace(out, "").index(axis) for axis in summed]
        out_order = [weight.axes.replace(summed, "").index(axis) for axis in out]
        for layer, file_name in enumerate(weight.names()):
            module = PREFIX + file_name.removesuffix(".weight")
            a = np.asarray(pair["a"][...][layer])
            b = np.asarray(pair["b"][...][layer])
            rank = a.shape[-1]
            a_in_R = a.transpose(*in_order, a.ndim - 1).reshape(-1, rank)
            b_out_R = b.transpose(*(i + 1 for i in out_order), 0).reshape(-1, rank)
            found[f"{module}.lora_A.weight"] = np.ascontiguousarray(a_in_R.T)
            # Contiguous: the writer takes the bytes as they lie.
            found[f"{module}.lora_B.weight"] = np.ascontiguousarray(b_out_R)
    return found


def peft_config(made: lora.LoraConfig, base_path: str) -> dict[str, Any]:
    """The fields of PEFT's LoraConfig that decide what its adapters compute."""
    return {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": base_path,
        "r": made.rank,
        "lora_alpha": made.alpha,
        "lora_dropout": made.dropout,
        "target_modules": sorted(made.targets),
        "bias": "none",
        "fan_in_fan_out": False,
        "use_rslora": False,
        "use_dora": False,
        "init_lora_weights": True,
        "inference_mode": True,
        "modules_to_save": None,
    }


def export(
    tree: lora.Adapters,
    made: lora.LoraConfig,
    config: ModelConfig,
    base_path: str,
    folder: str | os.PathLike,
    *,
    overwrite: bool = False,
) -> None:
    """Writes the folder that `peft.PeftModel.from_pretrained` opens over the model of `base_path`.

    Raises:
      CheckpointError: the folder exists, or a value is not finite.
    """
    import safetensors.numpy

    folder = pathlib.Path(folder).absolute()
    if folder.exists() and not overwrite:
        raise CheckpointError(f"{folder}: exists; choose another folder, or allow overwriting")
    found = tensors(tree, config)
    if bad := [name for name, x in found.items() if not np.isfinite(x).all()]:
        raise CheckpointError(f"the adapters have values that are not finite: {trees.some(bad)}")
    staged = folder.with_name(f".{folder.name}.{os.getpid()}.partial")
    staged.mkdir(parents=True)
    try:
        safetensors.numpy.save_file(found, staged / TENSORS, metadata={"format": "pt"})
        text = json.dumps(peft_config(made, base_path), indent=2) + "\n"
        (staged / CONFIG).write_text(text, encoding="utf-8")
        if folder.exists():
            shutil.rmtree(folder)
        os.rename(staged, folder)
    except BaseException:
        shutil.rmtree(staged, ignore_errors=True)
        raise
