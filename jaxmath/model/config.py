"""ModelConfig: the shape of a Qwen2.5 model, from and to a Hugging Face `config.json`.

The only place where Hugging Face field names meet ours.
"""

from __future__ import annotations

import dataclasses
import math
from typing import Any

from jax.sharding import Mesh

from jaxmath.kernels import attention as attention_kernels
from jaxmath.kernels import attention_choice
from jaxmath.kernels import logprobs as logprobs_kernels

REMAT_POLICIES = ("none", "dots", "full")
DTYPES = ("bfloat16", "float32")

# ours ↔ config.json, for the fields that are plain numbers on both sides
HF_FIELDS = {
    "vocab_size": "vocab_size",
    "num_layers": "num_hidden_layers",
    "embed_dim": "hidden_size",
    "mlp_dim": "intermediate_size",
    "num_heads": "num_attention_heads",
    "num_kv_heads": "num_key_value_heads",
    "rms_norm_eps": "rms_norm_eps",
    "max_positions": "max_position_embeddings",
    "tie_embeddings": "tie_word_embeddings",
}


@dataclasses.dataclass(frozen=True)
class ModelConfig:
    """Shape of the network, and how it is computed.

    attention: entry of `kernels.attention.ATTENTION` for training and scoring; "auto": the best of
      them for a run's devices.
    logprobs: entry of `kernels.logprobs.LOGPROBS`.
    remat: what the backward pass recomputes: "full" all of a block, "dots" all but matrix
      products, "none" nothing.
    dtype: of the matrix products and activations; parameters, softmax, norms and rotary angles are
      float32 in any case.
    """

    vocab_size: int
    num_layers: int
    embed_dim: int
    mlp_dim: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    rope_theta: float = 1e6
    rms_norm_eps: float = 1e-6
    tie_embeddings: bool = False
    max_positions: int = 32768
    attention: str = attention_kernels.AUTO
    logprobs: str = "chunked"
    remat: str = "full"
    dtype: str = "bfloat16"

    def __post_init__(self):
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            if isinstance(value, int) and not isinstance(value, bool) and value < 1:
                raise ValueError(f"{field.name} is {value}; expected at least 1")
            if isinstance(value, float) and not 0 < value < math.inf:
                raise ValueError(f"{field.name} is {value}; expected a number above 0")
        if self.num_heads % self.num_kv_heads:
            raise ValueError(
                f"num_heads {self.num_heads} is not a multiple of num_kv_heads "
                f"{self.num_kv_heads}; every key/value head serves equally many query heads"
            )
        if self.head_dim % 2:
            raise ValueError(f"head_dim is {self.head_dim}; rotary embedding needs an even number")
        for name, table in (
            ("attention", (attention_kernels.AUTO, *attention_kernels.ATTENTION)),
            ("logprobs", logprobs_kernels.LOGPROBS),
            ("remat", REMAT_POLICIES),
            ("dtype", DTYPES),
        ):
            if getattr(self, name) not in table:
                raise ValueError(
                    f"{name} is {getattr(self, name)!r}; expected one of {', '.join(table)}"
                )

    @property
    def num_params(self) -> int:
        """Number of parameters; tied embeddings count once."""
        D, N, K, H = self.embed_dim, self.num_heads, self.num_kv_heads, self.head_dim
        attention = D * N * H * 2 + D * K * H * 2 + N * H + 2 * K * H
        block = attention + 3 * D * self.mlp_dim + 2 * D
        tables = self.vocab_size * D * (1 if self.tie_embeddings else 2)
        return tables + self.num_layers * block + D

    def on_mesh(self, mesh: Mesh, *, dtype: str | None = None, must: bool = True) -> ModelConfig:
        """The same with the attention that `mesh` can run: see `attention_choice.choose`.

        dtype: of queries, keys and values, where it is not `self.dtype`.
        """
        heads = (self.num_heads, self.num_kv_heads, self.head_dim, dtype or self.dtype)
        seen = attention_choice.Heads(*heads)
        name = attention_choice.choose(self.attention, seen, mesh, must=must)
        return dataclasses.replace(self, attention=name)

    def same_weights(self, other: ModelConfig) -> bool:
        """True if both describe the same parameters and function, whatever the way to compute."""
        how = {"attention": "auto", "logprobs": "chunked", "remat": "full", "dtype": "float32"}
        return dataclasses.replace(self, **how) == dataclasses.replace(other, **how)


def from_hf(hf: dict[str, Any], **how: Any) -> ModelConfig:
    """A Hugging Face `config.json` of type qwen2 → ModelConfig.

    Reads both spellings of the rotary base: `rope_theta` (transformers 4) and
    `rope_parameters.rope_theta` (transformers 5). `how` sets attention, remat, dtype, ….

    Raises:
      ValueError: another model type, or a feature that is not implemented, by name.
    """
    if (model_type := hf.get("model_type")) != "qwen2":
        raise ValueError(
            f"model_type is {model_type!r}; only 'qwen2' (Qwen2, Qwen2.5) is supported"
        )
    layer_types = hf.get("layer_types") or ()
    if hf.get("use_sliding_window") or any(kind != "full_attention" for kind in layer_types):
        raise ValueError(
            "the model uses sliding-window attention (use_sliding_window or layer_types), which is "
            "not implemented; Qwen2.5 checkpoints set use_sliding_window to false"
        )
    if (act := hf.get("hidden_act", "silu")) != "silu":
        raise ValueError(f"hidden_act is {act!r}; only 'silu' is supported")
    if hf.get("attention_dropout"):
        raise ValueError(f"attention_dropout is {hf['attention_dropout']}; only 0 is supported")
    if hf.get("quantization_config"):
        raise ValueError(
            "the weights are quantized (quantization_config), which is not implemented; use the "
            "checkpoint in bfloat16"
        )
    given = {**_HF_DEFAULTS, **{name: value for name, value in hf.items() if value is not None}}
    if missing := [name for name in HF_FIELDS.values() if name not in given]:
        raise ValueError(f"config.json lacks {', '.join(missing)}; add the model's own values")
    fields = {ours: given[name] for ours, name in HF_FIELDS.items()}
    head_dim = hf.get("head_dim") or hf["hidden_size"] // hf["num_attention_heads"]
    return ModelConfig(**fields, head_dim=head_dim, rope_theta=_rope_theta(hf), **how)


def to_hf(
    config: ModelConfig, *, dtype: str, eos_token_id=None, pad_token_id=None
) -> dict[str, Any]:
    """ModelConfig → the `config.json` that transformers 4 and 5 both read correctly.

    dtype: of the stored weights. eos_token_id: one id or a list, as in `generation_config.json`.
    """
    hf = {name: getattr(config, ours) for ours, name in HF_FIELDS.items()}
    return {
        "architectures": ["Qwen2ForCausalLM"],
        "model_type": "qwen2",
        **hf,
        "head_dim": config.head_dim,
        "hidden_act": "silu",
        "attention_dropout": 0.0,
        "initializer_range": 0.02,
        "use_cache": True,
        "use_sliding_window": False,
        "sliding_window": None,
        "max_window_layers": config.num_layers,
        # Both spellings: transformers 4 reads only the first, and silently takes 10000 without it.
        "rope_theta": config.rope_theta,
        "rope_parameters": {"rope_theta": config.rope_theta, "rope_type": "default"},
        "bos_token_id": None,
        "eos_token_id": eos_token_id,
        "pad_token_id": pad_token_id,
        "torch_dtype": dtype,
        "dtype": dtype,
    }


_HF_DEFAULTS = {
    "rms_norm_eps": 1e-6,
    "max_position_embeddings": 32768,
    "tie_word_embeddings": False,
}


def _rope_theta(hf: dict[str, Any]) -> float:
    nested = [hf[name] for name in ("rope_parameters", "rope_scaling") if hf.get(name)]
    for rope in nested:
        kind = rope.get("rope_type", rope.get("type", "default"))
        if kind != "default":
            raise ValueError(
                f"rotary embedding of type {kind!r} is not implemented; only 'default' is"
            )
    stated = [rope.get("rope_theta") for rope in (hf, *nested)]
    stated = sorted({float(theta) for theta in stated if theta is not None})
    if not stated:
        raise ValueError(
            "config.json has neither rope_theta nor rope_parameters.rope_theta; add the value the "
            "model was trained with (Qwen2.5: 1000000.0, Qwen2.5-Math: 10000.0)"
        )
    if len(stated) > 1:
        raise ValueError(
            f"config.json states rope_theta and rope_parameters.rope_theta as "
            f"{' and '.join(map(str, stated))}; make them equal"
        )
    return stated[0]
