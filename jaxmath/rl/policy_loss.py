"""The clipped surrogate of PPO (arXiv:1707.06347, equation 7), and how tokens are averaged.

A loss is Σ weight · token loss with weights that sum to 1, so that micro-batches simply add up.
"""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp


def clipped_surrogate(
    logprob_BT, old_logprob_BT, advantage_BT, *, clip_eps: float
) -> tuple[jax.Array, jax.Array]:
    """max(-A ρ, -A clip(ρ, 1 - ε, 1 + ε)), ρ = π / π_old; and 1.0 where the clip is the larger.

    Args:
      logprob_BT, old_logprob_BT: f32, natural log; both at the temperature that was sampled from.
    Returns:
      (loss_BT, clipped_BT), f32; meaningful on response tokens only.
    """
    ratio_BT = jnp.exp(logprob_BT - old_logprob_BT)
    free_BT = -advantage_BT * ratio_BT
    clipped_BT = -advantage_BT * jnp.clip(ratio_BT, 1.0 - clip_eps, 1.0 + clip_eps)
    return jnp.maximum(free_BT, clipped_BT), (clipped_BT > free_BT).astype(jnp.float32)


def sequence_mean(response_mask_BT) -> jax.Array:
    """weight_BT of the mean over responses of token means: tokens of short responses weigh more.

    What micro-batches of one response amount to, hence PRIME's published aggregate. A row without
    response tokens is not counted.
    """
    length_B1 = jnp.sum(response_mask_BT, axis=1, keepdims=True)
    num_responses = jnp.maximum(jnp.sum(length_B1 > 0), 1)
    return response_mask_BT / jnp.maximum(length_B1, 1) / num_responses


def token_mean(response_mask_BT) -> jax.Array:
    """weight_BT of the mean over all response tokens."""
    return response_mask_BT / jnp.maximum(jnp.sum(response_mask_BT), 1)


REDUCTIONS: dict[str, Callable[[jax.Array], jax.Array]] = {
    "sequence_mean": sequence_mean,
    "token_mean": token_mean,
}


def reduce(loss_BT, weight_BT) -> jax.Array:
    """Σ weight · loss, f32[]; where the weight is 0 the loss may be anything."""
    return jnp.sum(jnp.where(weight_BT > 0, loss_BT, 0.0) * weight_BT)
