"""Logits → one token per row, with its log-probability under the distribution it was drawn from.

The order is the one of `transformers`: repetition penalty, minimum length, logit bias; then
temperature, the top k, and of those the top p, renormalised after each. Every row has parameters
of its own; a row's token depends on its logits, bits and parameters alone.
"""

from __future__ import annotations

import dataclasses
import functools
import math
import operator
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxmath import sharding
from jaxmath.decode import draws, filters

BANNED = -np.inf  # logit of a token that must not come: no temperature brings it back
MAX_BIASES = 64  # entries of `logit_bias`
NUM_BLOCKS = 128  # of the vocabulary, for the draw; tensor shards that divide it hold whole blocks
INT32_MAX = np.iinfo(np.int32).max


@dataclasses.dataclass(frozen=True)
class SamplingConfig:
    """How responses are drawn.

    temperature: divides the logits; 0 is greedy.
    top_k: only the k likeliest tokens, and any that tie with the last of them; 0 is off.
    top_p: only the likeliest tokens that together reach this probability; 1 is off.
    max_tokens: of a response, a stop token included.
    seed: of the run; a sample depends on (seed, prompt id, sample index) alone.
    min_tokens: a stop id is not drawn before the response has this many tokens.
    repetition_penalty: divides the positive logits of tokens of the prompt and the response, and
      multiplies the negative ones (CTRL, arXiv:1909.05858); 1 is off.
    logit_bias: (token id, what is added to its logit), at most 64; -100 or less bans the token.
    stop: strings that end a response; neither they nor what follows is part of its text.
    untempered_logprobs: report also the log-probabilities of the model itself, those of the
      logits as they are: temperature 1, no filter, no penalty, no bias.
    """

    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0
    max_tokens: int = 1024
    seed: int = 0
    min_tokens: int = 0
    repetition_penalty: float = 1.0
    logit_bias: tuple[tuple[int, float], ...] = ()
    stop: tuple[str, ...] = ()
    untempered_logprobs: bool = False

    def __post_init__(self):
        if not 0 <= self.temperature < float("inf"):
            raise ValueError(
                f"temperature is {self.temperature}; expected 0 (greedy) or a positive number"
            )
        if self.top_k < 0:
            raise ValueError(f"top_k is {self.top_k}; expected 0 (off) or a number of tokens")
        if not 0 < self.top_p <= 1:
            raise ValueError(f"top_p is {self.top_p}; expected a number above 0, up to 1 (off)")
        if self.temperature == 0 and (self.top_k or self.top_p < 1):
            raise ValueError(
                f"temperature is 0 (greedy) with top_k {self.top_k} and top_p {self.top_p}, which "
                "have no effect there; set top_k to 0 and top_p to 1, or raise temperature"
            )
        if self.max_tokens < 1:
            raise ValueError(f"max_tokens is {self.max_tokens}; expected at least 1")
        if not 0 <= self.seed < 2**32:
            raise ValueError(f"seed is {self.seed}; expected 0 … 2**32 - 1")
        if not 0 <= self.min_tokens <= self.max_tokens:
            raise ValueError(
                f"min_tokens is {self.min_tokens}; expected 0 to max_tokens ({self.max_tokens})"
            )
        if not 0 < self.repetition_penalty < float("inf"):
            raise ValueError(
                f"repetition_penalty is {self.repetition_penalty}; expected a positive number, "
                "1 (off) or more to discourage repetition"
            )
        self._check_bias()
        if not all(self.stop):
            raise ValueError(f"stop is {self.stop}; an empty string would stop every response")

    def _check_bias(self):
        ids = [token for token, _ in self.logit_bias]
        if len(ids) > MAX_BIASES:
            raise ValueError(f"logit_bias has {len(ids)} entries; expected at most {MAX_BIASES}")
        if twice := sorted({token for token in ids if ids.count(token) > 1}):
            raise ValueError(f"logit_bias names token {twice[0]} twice; give each token one bias")
        for token, bias in self.logit_bias:
            if not (0 <= token < INT32_MAX and math.isfinite(bias)):
                raise ValueError(
                    f"logit_bias has ({token}, {bias}); expected a token id of the vocabulary and "
                    "a finite number (-100 or less bans the token)"
                )


@dataclasses.dataclass(frozen=True)
class Features:
    """What a compiled program can do; the plain draw pays for none of it.

    greedy_only: every row takes its likeliest token. filters: top-k and top-p. penalty, bias,
    min_tokens, untempered: the fields of `SamplingConfig`.
    """

    greedy_only: bool
    filters: bool
    penalty: bool
    bias: bool
    min_tokens: bool
    untempered: bool

    @classmethod
    def of(cls, *configs: SamplingConfig) -> Features:
        """The least that serves all of `configs`."""
        return cls(
            greedy_only=all(c.temperature == 0 for c in configs),
            filters=any(c.top_k > 0 or c.top_p < 1 for c in configs),
            penalty=any(c.repetition_penalty != 1 for c in configs),
            bias=any(c.logit_bias for c in configs),
            min_tokens=any(c.min_tokens > 0 for c in configs),
            untempered=any(c.untempered_logprobs for c in configs),
        )

    def missing(self, config: SamplingConfig) -> list[str]:
        """What `config` asks for and these do not offer."""
        need = Features.of(config)
        others = [field.name for field in dataclasses.fields(Features)][1:]
        missing = [name for name in others if getattr(need, name) and not getattr(self, name)]
        return missing + ["sampling"] * (self.greedy_only and not need.greedy_only)

    @classmethod
    def every(cls) -> Features:
        """What serves any request."""
        return cls(False, True, True, True, True, True)


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Params:
    """The numbers of `SamplingConfig`, a row per slot.

    temperature_B, top_p_B, penalty_B: f32. top_k_B, min_tokens_B, max_tokens_B: i32.
    bias_id_BM i32, bias_BM f32: M is 64, or 0 without the feature; an unused entry has an id
      beyond the vocabulary, a banned token the bias `BANNED`.
    """

    temperature_B: Any
    top_k_B: Any
    top_p_B: Any
    min_tokens_B: Any
    max_tokens_B: Any
    penalty_B: Any
    bias_id_BM: Any
    bias_BM: Any


def params_of(configs: Sequence[SamplingConfig], features: Features) -> Params:
    """Rows of NumPy arrays, one per config, ready to be put into slots."""
    distinct = {config: row for row, config in enumerate(dict.fromkeys(configs))}
    assert not any(features.missing(config) for config in distinct)
    row_B = np.asarray([distinct[config] for config in configs], np.int32)

    def column(name, dtype):
        values = [getattr(config, name) for config in distinct]
        if dtype is np.int32:
            values = [min(value, INT32_MAX) for value in values]
        return np.asarray(values, dtype)[row_B]

    num_biases = MAX_BIASES if features.bias else 0
    bias_id_BM = np.full((len(distinct), num_biases), INT32_MAX, np.int32)
    bias_BM = np.zeros((len(distinct), num_biases), np.float32)
    for config, row in distinct.items():
        for entry, (token, bias) in enumerate(config.logit_bias):
            bias_id_BM[row, entry] = token
            bias_BM[row, entry] = bias if bias > -100 else BANNED
    return Params(
        temperature_B=column("temperature", np.float32),
        top_k_B=column("top_k", np.int32),
        top_p_B=column("top_p", np.float32),
        min_tokens_B=column("min_tokens", np.int32),
        max_tokens_B=column("max_tokens", np.int32),
        penalty_B=column("repetition_penalty", np.float32),
        bias_id_BM=bias_id_BM[row_B],
        bias_BM=bias_BM[row_B],
    )


def sample(
    logits_BV,
    bits_B2,
    params: Params,
    features: Features,
    *,
    num_tokens_B,
    stop_ids: tuple[int, ...],
    seen_BV=None,
) -> tuple[jax.Array, jax.Array, jax.Array | None]:
    """One token per row, and the log of the probability it was drawn with.

    A row of temperature 0 takes its largest logit (the first of equal ones), and reports its
    log-probability under the unfiltered softmax at temperature 1, which is what a confidence is
    usually read from.

    The draw has two levels, a block of the vocabulary and a token of the block, with 32 random
    bits each: the 24 of a float would not do justice to 150,000 tokens.

    Args:
      logits_BV: f32, finite.
      bits_B2: u32, from `draws.bits`.
      num_tokens_B: i32, tokens the response has so far.
      seen_BV: bool, tokens of the prompt and the response; read with `features.penalty` alone.
    Returns:
      token_B i32, logprob_B f32 (natural logarithm), untempered_B f32 or None.
    """
    # A barrier: a TPU would cut the head into the same blocks, and copy all of it at every step.
    x_BV = jax.lax.optimization_barrier(
        _adjust(logits_BV, params, features, num_tokens_B, stop_ids, seen_BV)
    )
    x_BNC = _blocks(x_BV)
    C = x_BNC.shape[-1]
    # Barriers: XLA would merge the reductions of a block and of the row, and read the vocabulary
    # once for each.
    best_BN = _everywhere(jax.lax.optimization_barrier(jnp.max(x_BNC, axis=-1)))
    best_B = jnp.max(best_BN, axis=-1)
    greedy_B = params.temperature_B < jnp.finfo(jnp.float32).tiny  # a CPU takes denormals for 0
    divisor_B = jnp.where(greedy_B, 1, params.temperature_B)

    def column(a_B, like):
        return a_B.reshape(-1, *(1,) * (like.ndim - 1))

    def weight_of(x, least_B=None):
        """exp of the tempered logits, 0 for logits below `least_B`."""
        exponent = (x - column(best_B, x)) / column(divisor_B, x)
        if least_B is not None:
            # Arithmetic, not `where`: with it XLA's CPU library makes one pass of all this and the
            # sum. What is within 1e-36 of the threshold ties with it.
            least_B = jnp.maximum(least_B, jnp.finfo(jnp.float32).min)
            exponent += jnp.minimum(x - column(least_B, x), 0) * 3e38
        return jnp.exp(exponent)

    least_B = None
    if features.filters:
        least_B = filters.threshold(x_BV, params.top_k_B, params.top_p_B, weight_of)
    mass_BN = jax.lax.optimization_barrier(jnp.sum(weight_of(x_BNC, least_B), axis=-1))
    mass_BN = _everywhere(mass_BN)
    bits_B2 = jnp.where(greedy_B[:, None], 0, bits_B2)

    def pick(mass, best, bits_B):
        # The first of the likeliest is the inverse CDF at 0 of a mass that only they have.
        likeliest = (best == best_B[:, None]).astype(jnp.float32)
        return draws.pick(jnp.where(greedy_B[:, None], likeliest, mass), bits_B)

    block_B = pick(mass_BN, best_BN, bits_B2[:, 0])
    x_BC = _chosen(x_BNC, block_B)
    within_B = pick(weight_of(x_BC, least_B), x_BC, bits_B2[:, 1])
    # Logits that are NaN lead anywhere; the token at least is one of the vocabulary.
    token_B = jnp.minimum(block_B * C + within_B, x_BV.shape[-1] - 1)
    picked_B = jnp.take_along_axis(x_BC, within_B[:, None], axis=-1, mode="clip")[:, 0]
    logprob_B = (picked_B - best_B) / divisor_B - jnp.log(jnp.sum(mass_BN, axis=-1))
    return token_B, logprob_B, _logprob(logits_BV, token_B) if features.untempered else None


def _adjust(logits_BV, params: Params, features: Features, num_tokens_B, stop_ids, seen_BV):
    """Repetition penalty, minimum length and logit bias; logits of temperature 1."""
    if not (features.penalty or features.bias or features.min_tokens):
        return logits_BV
    if features.penalty:
        penalty_B1 = params.penalty_B[:, None]
        less_BV = jnp.where(logits_BV < 0, logits_BV * penalty_B1, logits_BV / penalty_B1)
        logits_BV = jnp.where(seen_BV, less_BV, logits_BV)
    if features.min_tokens and stop_ids:
        id_V = jnp.arange(logits_BV.shape[-1])
        stops_V = functools.reduce(operator.or_, (id_V == stop for stop in stop_ids))
        early_B = num_tokens_B < params.min_tokens_B
        logits_BV = jnp.where(early_B[:, None] & stops_V[None], BANNED, logits_BV)
    if features.bias:  # last, in place; no finite bias lifts what is banned
        add = jax.vmap(lambda row_V, id_M, bias_M: row_V.at[id_M].add(bias_M, mode="drop"))
        logits_BV = add(logits_BV, params.bias_id_BM, params.bias_BM)
    # A barrier: several passes read the result, none should compute it again.
    return jax.lax.optimization_barrier(logits_BV)


def _blocks(x_BV) -> jax.Array:
    """[B, NUM_BLOCKS, ⌈V / NUM_BLOCKS⌉], blocks of neighbours; filled up with `BANNED`."""
    V = x_BV.shape[-1]
    padding = ((0, 0), (0, -V % NUM_BLOCKS))
    return jnp.pad(x_BV, padding, constant_values=BANNED).reshape(
        -1, NUM_BLOCKS, -(-V // NUM_BLOCKS)
    )


def _chosen(x_BNC, block_B) -> jax.Array:
    """x_BC, block `block_B` of each row."""
    mesh = jax.sharding.get_abstract_mesh()
    if mesh.empty or mesh.shape["tensor"] == 1:
        return jnp.take_along_axis(x_BNC, block_B[:, None, None], axis=1, mode="clip")[:, 0]
    # Blocks lie on several devices. The partitioner would gather all logits to index them; a sum
    # in which only one block counts sends that block alone.
    own_BN1 = (jnp.arange(x_BNC.shape[1])[None] == block_B[:, None])[..., None]
    return _everywhere(jnp.sum(jnp.where(own_BN1, x_BNC, 0), axis=1))


def _everywhere(x_BN) -> jax.Array:
    """On every tensor shard: running sums over shards would pass numbers around one by one."""
    return sharding.constrain(x_BN, "batch", None)


def _logprob(logits_BV, token_B) -> jax.Array:
    picked_B = jnp.take_along_axis(logits_BV, token_B[:, None], axis=-1, mode="clip")[:, 0]
    return picked_B - jax.nn.logsumexp(logits_BV, axis=-1)
