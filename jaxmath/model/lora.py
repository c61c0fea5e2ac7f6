"""LoRA (arXiv:2106.09685): a frozen model, and two thin matrices beside some of its weights.

    y = x W + (alpha / rank) · (dropout(x) A) B        A: [in, rank], B: [rank, out], B = 0 at first

Adapters are a tree of their own, {"layers": {"wq_DNH": {"a": …, "b": …}}}, stacked along L as the
weights are. `attach` gives a `Qwen2` that computes with them, `merge` one that has them in its
weights.
"""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from jaxmath.kernels.linear import AdaptedWeight
from jaxmath.model import qwen2
from jaxmath.model.config import ModelConfig

TARGETS = {  # the names of Hugging Face's modules, as PEFT has them, to ours
    "q_proj": "wq_DNH",
    "k_proj": "wk_DKH",
    "v_proj": "wv_DKH",
    "o_proj": "wo_NHD",
    "gate_proj": "gate_DF",
    "up_proj": "up_DF",
    "down_proj": "down_FD",
}
Adapters = dict[str, dict[str, dict[str, nnx.Param]]]


@dataclasses.dataclass(frozen=True)
class LoraConfig:
    """targets: weights with adapters, by the names of `TARGETS`. dropout: share of a target's
    inputs that the adapter does not see. base_dtype: of the frozen model; None keeps that of its
    files."""

    rank: int = 16
    alpha: float = 32.0
    targets: tuple[str, ...] = tuple(TARGETS)
    dropout: float = 0.0
    base_dtype: str | None = None

    def __post_init__(self):
        if self.rank < 1:
            raise ValueError(f"rank is {self.rank}; expected at least 1")
        if self.alpha <= 0:
            raise ValueError(f"alpha is {self.alpha}; expected a number > 0")
        unknown = [name for name in self.targets if name not in TARGETS]
        if unknown or not self.targets or len(set(self.targets)) < len(self.targets):
            raise ValueError(
                f"targets are {', '.join(self.targets) or 'none'}; expected one or more of "
                f"{', '.join(TARGETS)}, each once"
            )
        if not 0 <= self.dropout < 1:
            raise ValueError(f"dropout is {self.dropout}; expected a share in [0, 1)")
        if self.base_dtype not in (None, "float32", "bfloat16"):
            raise ValueError(
                f"base_dtype is {self.base_dtype!r}; expected float32, bfloat16 or null"
            )

    @property
    def scale(self) -> float:
        return self.alpha / self.rank


def init(lora: LoraConfig, config: ModelConfig, key: jax.Array) -> Adapters:
    """Adapters in f32 that change nothing yet: A uniform in ±1/√in, as PEFT draws it, and B = 0."""
    layers = qwen2.abstract(config).layers
    adapters = {}
    for number, target in enumerate(sorted(lora.targets)):
        name = TARGETS[target]
        param = getattr(layers, name)
        axes, shape = tuple(param.get_metadata()["axes"]), param.get_value().shape[1:]
        split = num_summed(axes)
        bound = 1 / math.sqrt(math.prod(shape[:split]))
        num_layers, rank = config.num_layers, lora.rank
        a = jax.random.uniform(
            jax.random.fold_in(key, number),
            (num_layers, *shape[:split], rank),
            minval=-bound,
            maxval=bound,
        )
        b = jnp.zeros((num_layers, rank, *shape[split:]))
        adapters[name] = {
            "a": nnx.Param(a, axes=(*axes[:split], "lora")),
            "b": nnx.Param(b, axes=("lora", *axes[split:])),
        }
    return {"layers": adapters}


def num_summed(axes: tuple[str, ...]) -> int:
    """How many of a matrix's axes its input has: it maps embed to the rest, or the rest to it."""
    return 1 if axes[0] == "embed" else len(axes) - 1


def attach(
    base: qwen2.Qwen2, adapters: Adapters, lora: LoraConfig, seeds_B: jax.Array | None = None
) -> qwen2.Qwen2:
    """`base` computing with the adapters; only they have a gradient.

    Args:
      seeds_B: u32, one per row of the batch, of the dropout; None computes without.
    """
    drop = lora.dropout if seeds_B is not None else 0.0

    def one(number, param, pair):
        seeds_LB = _layer_seeds(seeds_B, number, base.config.num_layers) if drop else None
        return AdaptedWeight(
            param.get_value(), pair["a"][...], pair["b"][...], seeds_LB, lora.scale, drop
        )

    return _replaced(base, adapters, one)


def merge(base: qwen2.Qwen2, adapters: Adapters, lora: LoraConfig) -> qwen2.Qwen2:
    """W + scale · A B, in the dtype of W; the sum is made in f32."""

    def one(_, param, pair):
        return merged(param.get_value(), pair["a"][...], pair["b"][...], lora.scale)

    return _replaced(base, adapters, one)


def merged(weight: jax.Array, a: jax.Array, b: jax.Array, scale: float) -> jax.Array:
    """One stack of weights with its adapters in it; f32 inside, dtype of `weight` outside."""
    num_layers, rank = a.shape[0], a.shape[-1]
    a_LIR = a.reshape(num_layers, -1, rank)
    b_LRO = b.reshape(num_layers, rank, -1)
    delta_LIO = jnp.einsum("LIR,LRO->LIO", a_LIR, b_LRO, precision="highest")
    delta = delta_LIO.reshape(weight.shape)
    return (weight.astype(jnp.float32) + scale * delta).astype(weight.dtype)


def _replaced(base: qwen2.Qwen2, adapters: Adapters, fn: Any) -> qwen2.Qwen2:
    pairs = adapters["layers"]
    number = {name: i for i, name in enumerate(sorted(pairs))}

    def one(path, param):
        name = path[-1].name if hasattr(path[-1], "name") else path[-1].key
        return param.replace(fn(number[name], param, pairs[name])) if name in pairs else param

    is_variable = lambda x: isinstance(x, nnx.Variable)  # noqa: E731
    return jax.tree_util.tree_map_with_path(one, base, is_leaf=is_variable)


def _layer_seeds(seeds_B: jax.Array, target: int, num_layers: int) -> jax.Array:
    """seeds_LB, u32: for every layer and row its own."""

    def one(layer, seed):
        key = jax.random.fold_in(jax.random.fold_in(jax.random.key(seed), target), layer)
        return jax.random.bits(key, dtype=jnp.uint32)

    layers_L = jnp.arange(num_layers)
    return jax.vmap(lambda layer: jax.vmap(lambda seed: one(layer, seed))(seeds_B))(layers_L)
