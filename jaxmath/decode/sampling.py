"""Logits → one token per row, with its log-probability under the distribution it was drawn from.

The order is the one of `transformers`: temperature, then the top k, then the nucleus of
probability p (Holtzman et al., arXiv:1904.09751) among those, renormalised after each.
"""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp

DROPPED = -1e30  # logit of a token that was filtered out; finite, so that no inf - inf can arise


@dataclasses.dataclass(frozen=True)
class SamplingConfig:
    """How responses are drawn.

    temperature: divides the logits; 0 is greedy.
    top_k: only the k likeliest tokens; 0 is off.
    top_p: only the likeliest tokens that together reach this probability; 1 is off.
    max_tokens: of a response, a stop token included.
    seed: of the run; a sample depends on (seed, prompt id, sample index) alone.
    """

    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0
    max_tokens: int = 1024
    seed: int = 0

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


def sample(logits_BV, keys_B, config: SamplingConfig) -> tuple[jax.Array, jax.Array]:
    """One token per row and the log of the probability it was drawn with.

    Greedy takes the largest logit, and reports its log-probability under the unfiltered softmax of
    the logits (temperature 1), which is what a confidence is usually read from.

    Args:
      logits_BV: f32.
      keys_B: typed PRNG keys, one per row: a row's draw depends on its key and its logits alone.
    Returns:
      token_B i32, logprob_B f32 (natural logarithm).
    """
    if config.temperature == 0:
        token_B = jnp.argmax(logits_BV, axis=-1).astype(jnp.int32)
        return token_B, _logprob(logits_BV, token_B)
    logits_BV = logits_BV / config.temperature
    if config.top_k == 0 and config.top_p == 1:  # the common case in training: no sort
        token_B = _draw(logits_BV, keys_B)
        return token_B, _logprob(logits_BV, token_B)
    num_kept = min(config.top_k or logits_BV.shape[-1], logits_BV.shape[-1])
    logits_BC, token_BC = jax.lax.top_k(logits_BV, num_kept)  # candidates, likeliest first
    logits_BC = nucleus(logits_BC, config.top_p)
    rank_B = _draw(logits_BC, keys_B)
    token_B = jnp.take_along_axis(token_BC, rank_B[:, None], axis=-1)[:, 0]
    return token_B.astype(jnp.int32), _logprob(logits_BC, rank_B)


def nucleus(logits_BC, top_p: float) -> jax.Array:
    """Drops the tokens behind those that reach `top_p`; rows are sorted, likeliest first."""
    if top_p == 1:
        return logits_BC
    prob_BC = jax.nn.softmax(logits_BC, axis=-1)
    before_BC = jnp.cumsum(prob_BC, axis=-1) - prob_BC  # 0 at rank 0: one token always stays
    return jnp.where(before_BC < top_p, logits_BC, DROPPED)


def _draw(logits_BV, keys_B) -> jax.Array:
    """argmax(logits + Gumbel noise) is a draw from softmax(logits) (Gumbel-max trick)."""
    shape = logits_BV.shape[1:]
    noise_BV = jax.vmap(lambda key: jax.random.gumbel(key, shape, jnp.float32))(keys_B)
    return jnp.argmax(logits_BV + noise_BV, axis=-1).astype(jnp.int32)


def _logprob(logits_BV, token_B) -> jax.Array:
    picked_B = jnp.take_along_axis(logits_BV, token_B[:, None], axis=-1)[:, 0]
    return picked_B - jax.nn.logsumexp(logits_BV, axis=-1)
