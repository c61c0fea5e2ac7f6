"""`export` as a stage of a recipe: Hugging Face folder out, re-opened with `transformers`."""

from __future__ import annotations

import dataclasses
import importlib.util
import pathlib
from typing import Any

import jax
import numpy as np

from jaxmath import sharding
from jaxmath.checkpoint import source
from jaxmath.data import tokenizer
from jaxmath.model import qwen2
from jaxmath.runs import convert, models, session

TEXT = "What is 12 + 30? 12 + 30 = 42, so the answer is \\boxed{42}."
TOLERANCE = 1e-3  # of logits in float32, over matrix products in another order


@dataclasses.dataclass(frozen=True)
class ExportRun:
    """checkpoint: of `sft` or `prime`. dtype: of the written weights; null keeps the stored one."""

    output: str
    checkpoint: str
    dtype: str | None = None

    def __post_init__(self):
        if self.dtype not in (None, "float32", "bfloat16", "float16"):
            raise ValueError(f"dtype is {self.dtype!r}; expected float32, bfloat16 or float16")


def run(config: ExportRun) -> session.Report:
    """Exports, then opens the folder as a user of `transformers` would and compares."""
    folder = pathlib.Path(config.output) / "huggingface"
    if not folder.exists():
        convert.export_hf(models.checkpoint_path(config.checkpoint), str(folder), config.dtype)
    return session.Report(reopen(folder), (str(folder),))


def reopen(folder: pathlib.Path) -> dict[str, Any]:
    """Config, tokenizer and, where PyTorch is installed, logits as `transformers` has them.

    Raises:
      ValueError: `transformers` reads something else than we wrote.
    """
    import transformers

    hf_config = transformers.AutoConfig.from_pretrained(folder)
    hf_tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    shape = dataclasses.replace(source.load_config(folder), dtype="float32")
    if (hf_config.vocab_size, hf_config.rope_parameters["rope_theta"]) != (
        shape.vocab_size,
        shape.rope_theta,
    ):
        raise ValueError(f"{folder}: transformers reads another config: {hf_config}")
    ids = tokenizer.Tokenizer(tokenizer.TokenizerConfig(str(folder))).encode(TEXT)
    if hf_tokenizer(TEXT, add_special_tokens=False)["input_ids"] != ids:
        raise ValueError(f"{folder}: transformers' tokenizer gives other ids for {TEXT!r}")
    if importlib.util.find_spec("torch") is None:
        return {"transformers": "config and tokenizer agree; PyTorch absent, logits not compared"}

    import torch

    torch_model = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    with torch.no_grad():
        theirs = torch_model(torch.tensor([ids])).logits.numpy()
    mesh = sharding.make_mesh(sharding.MeshConfig(data=1, fsdp=1), jax.devices()[:1])
    model, _ = source.load_model(folder, mesh, "float32", shape)
    ours = np.asarray(_logits(model, np.asarray([ids], np.int32)))
    worst = float(np.abs(ours - theirs).max())
    if not worst <= TOLERANCE:
        raise ValueError(
            f"{folder}: logits of transformers and of jaxmath differ by {worst:.2g}, more than "
            f"{TOLERANCE}; the export is wrong and was left where it is"
        )
    return {"transformers": f"config, tokenizer and logits agree, worst difference {worst:.1e}"}


def _logits(model: qwen2.Qwen2, tokens_BT: np.ndarray) -> jax.Array:
    positions_BT = np.broadcast_to(np.arange(tokens_BT.shape[1])[None], tokens_BT.shape)

    @jax.jit
    def logits(model):
        hidden_BTD = model.hidden_states(tokens_BT, positions_BT, np.ones_like(tokens_BT))
        return model.logits(hidden_BTD)

    with jax.default_matmul_precision("highest"):
        return logits(model)
