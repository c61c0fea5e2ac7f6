"""The optimizer, with a learning rate that is a pure function of the update count.

The learning rate is not part of the Optax chain: `train.state.apply_gradients` reads it from
`TrainState.step`, so that there is one counter, one value to log, and nothing hidden in a
checkpoint.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import optax

from jaxmath.train import directions

Schedule = Callable[[Any], jax.Array]


# Each decay maps the share of the run after warm-up, in [0, 1], to the share of the way from the
# peak learning rate (1) to the final one (0).
DECAYS: dict[str, Callable[[jax.Array], jax.Array]] = {
    "constant": jnp.ones_like,
    "linear": lambda share: 1.0 - share,
    "cosine": lambda share: 0.5 * (1.0 + jnp.cos(jnp.pi * share)),
}


@dataclasses.dataclass(frozen=True)
class OptimizerConfig:
    """The rule of `kind` (see `train.directions`), global-norm clipping and the schedule.

    Parameters and gradients are float32, and so is what `kind` keeps of them, but for the first
    moment in `first_moment_dtype`. With `offload` the moments live in the host's memory between
    updates. `ema_decay` d keeps an average of the weights besides, a ← d · a + (1 - d) · w after
    each update, from the first weights on; `convert export --ema` writes it.

    `learning_rate` is the peak; update k (from 0) uses learning_rate · λ(`ticks_per_update` · k),
    where

        λ(x) = x / W                                   for x < W, the warm-up
        λ(x) = f + (1 - f) · decay((x - W) / (S - W))  after it, and f from x = S on

    with f = `final_fraction`, S = `schedule_ticks` (null: `ticks_per_update` times the updates of
    the run) and W = `warmup_ticks`, or ⌊`warmup_fraction` · S⌋. With `ticks_per_update` 1 a tick is
    an update. Update 0 of a warm-up has learning rate 0, as in transformers' schedules.

    INTELLECT-MATH's SFT ticked its scheduler once per rank and update, with S counted before the
    data was split over the 8 ranks: linear, `ticks_per_update` 8, `schedule_ticks` 5·⌈N/16⌉ for N
    examples. Its RL ran iteration 0 at learning rate 0 while Adam's moments filled:
    `zero_lr_updates` 4.
    """

    learning_rate: float
    b1: float = 0.9
    b2: float = 0.999
    eps: float = 1e-8
    weight_decay: float = 0.0
    decayed: Literal["all", "matrices"] = "all"  # matrices: no norm weights, no biases
    clip_norm: float | None = 1.0
    schedule: str = "constant"
    warmup_ticks: int = 0
    warmup_fraction: float = 0.0
    final_fraction: float = 0.0
    schedule_ticks: int | None = None
    ticks_per_update: int = 1
    zero_lr_updates: int = 0
    kind: str = "adamw"
    first_moment_dtype: str = "float32"
    offload: bool = False
    ema_decay: float | None = None

    def __post_init__(self):
        rules = {
            "learning_rate": (self.learning_rate >= 0, "a number >= 0"),
            "b1": (0 <= self.b1 < 1, "a number in [0, 1)"),
            "b2": (0 <= self.b2 < 1, "a number in [0, 1)"),
            "eps": (self.eps > 0, "a number > 0"),
            "weight_decay": (self.weight_decay >= 0, "a number >= 0"),
            "decayed": (self.decayed in ("all", "matrices"), "all or matrices"),
            "clip_norm": (self.clip_norm is None or self.clip_norm > 0, "a number > 0, or null"),
            "schedule": (self.schedule in DECAYS, f"one of {', '.join(DECAYS)}"),
            "warmup_ticks": (self.warmup_ticks >= 0, "a count >= 0"),
            "warmup_fraction": (0 <= self.warmup_fraction < 1, "a share in [0, 1)"),
            "final_fraction": (0 <= self.final_fraction <= 1, "a share in [0, 1]"),
            "schedule_ticks": (
                self.schedule_ticks is None or self.schedule_ticks > 0,
                "a count > 0",
            ),
            "ticks_per_update": (self.ticks_per_update > 0, "a count > 0"),
            "zero_lr_updates": (self.zero_lr_updates >= 0, "a count >= 0"),
            "kind": (
                self.kind in directions.DIRECTIONS,
                f"one of {', '.join(directions.DIRECTIONS)}",
            ),
            "first_moment_dtype": (
                self.first_moment_dtype in ("float32", "bfloat16"),
                "float32 or bfloat16",
            ),
            "ema_decay": (
                self.ema_decay is None or 0 < self.ema_decay < 1,
                "a number in (0, 1), or null",
            ),
        }
        for field, (holds, expected) in rules.items():
            if not holds:
                raise ValueError(f"{field} is {getattr(self, field)!r}; expected {expected}")
        if self.warmup_ticks and self.warmup_fraction:
            raise ValueError(
                f"warmup_ticks is {self.warmup_ticks} and warmup_fraction is "
                f"{self.warmup_fraction}; set one of them to 0"
            )


class Optimizer(NamedTuple):
    """What a step needs: gradients → directions, and the length of the stride."""

    transform: optax.GradientTransformation  # clip, Adam, weight decay; learning rate not applied
    schedule: Schedule  # i32[] update count → f32[] learning rate
    offload: bool = False  # moments on the host between updates
    ema_decay: float | None = None  # of the averaged weights; None keeps none


def make_schedule(config: OptimizerConfig, total_updates: int) -> Schedule:
    """The learning rate as a function of the update count, for a run of `total_updates`.

    Raises:
      ValueError: the warm-up is not shorter than the schedule.
    """
    total = config.schedule_ticks or config.ticks_per_update * total_updates
    warmup = config.warmup_ticks or int(config.warmup_fraction * total)
    if config.schedule != "constant" and warmup >= total:
        raise ValueError(
            f"the warm-up of {warmup} ticks is not shorter than the schedule of {total}; "
            "lower warmup_ticks or warmup_fraction, or train for longer"
        )
    decay, final = DECAYS[config.schedule], config.final_fraction

    def schedule(count) -> jax.Array:
        tick = config.ticks_per_update * jnp.asarray(count, jnp.float32)  # exact below 2^24
        share = jnp.clip((tick - warmup) / max(total - warmup, 1), 0.0, 1.0)
        scale = jnp.where(
            tick < warmup, tick / max(warmup, 1), final + (1.0 - final) * decay(share)
        )
        return config.learning_rate * jnp.where(count < config.zero_lr_updates, 0.0, scale)

    return schedule


def make_optimizer(config: OptimizerConfig, total_updates: int) -> Optimizer:
    """Decay as Loshchilov & Hutter decouple it: p ← p - lr · (direction + weight_decay · p)."""
    parts = [] if config.clip_norm is None else [optax.clip_by_global_norm(config.clip_norm)]
    direction = directions.DIRECTIONS[config.kind]
    parts.append(direction(config.b1, config.b2, config.eps, config.first_moment_dtype))
    if config.weight_decay:
        mask = matrices if config.decayed == "matrices" else None
        parts.append(optax.add_decayed_weights(config.weight_decay, mask))
    schedule = make_schedule(config, total_updates)
    return Optimizer(optax.chain(*parts), schedule, config.offload, config.ema_decay)


def matrices(params: Any) -> Any:
    """For each parameter, whether weight decay "matrices" acts on it, judged by its name.

    Not by its number of dimensions: a stack of layers makes biases and norm weights look like
    matrices, and the bias of a query projection has a head and a width dimension on top.
    """

    def is_matrix(path, _):
        names = [str(getattr(part, "name", getattr(part, "key", ""))) for part in path]
        name = next(n for n in reversed(names) if n not in ("", "value"))
        return "norm" not in name and name.split("_")[0] not in ("bq", "bk", "bv")

    return jax.tree_util.tree_map_with_path(is_matrix, params)
