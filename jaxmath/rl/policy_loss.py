"""The clipped surrogate of PPO (arXiv:1707.06347, equation 7), its companions, and how tokens are
averaged.

A loss is Σ weight · token loss with weights that sum to 1 (to at most 1 with `constant_length`), so
that micro-batches simply add up.
"""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp


def clipped_surrogate(
    logprob_BT, old_logprob_BT, advantage_BT, *, clip_eps_low: float, clip_eps_high: float
) -> tuple[jax.Array, jax.Array]:
    """max(-A ρ, -A clip(ρ, 1 - ε_low, 1 + ε_high)), ρ = π / π_old; and 1.0 where the clip is the
    larger. PPO has one ε; DAPO (arXiv:2503.14476, section 3.1) a larger ε_high.

    Args:
      logprob_BT, old_logprob_BT: f32, natural log; both at the temperature that was sampled from.
    Returns:
      (loss_BT, clipped_BT), f32; meaningful on response tokens only.
    """
    ratio_BT = jnp.exp(logprob_BT - old_logprob_BT)
    free_BT = -advantage_BT * ratio_BT
    clipped_BT = -advantage_BT * jnp.clip(ratio_BT, 1.0 - clip_eps_low, 1.0 + clip_eps_high)
    return jnp.maximum(free_BT, clipped_BT), (clipped_BT > free_BT).astype(jnp.float32)


# --- distance to the reference ----------------------------------------------------------------

# KL(π ‖ π_ref) on a token drawn from π, of d = log π - log π_ref (Schulman, "Approximating KL
# Divergence", 2020). As metrics k1 and k3 are unbiased. As terms of a loss they differ in their
# gradients: on samples from π that of k2 is the KL's, that of k3 (GRPO's) is close to it near d = 0
# and that of k1 has mean zero.
KL_ESTIMATORS: dict[str, Callable[[jax.Array], jax.Array]] = {
    "k1": lambda d_BT: d_BT,
    "k2": lambda d_BT: 0.5 * d_BT**2,
    "k3": lambda d_BT: jnp.expm1(-d_BT) + d_BT,
}


# --- between decoder and trainer --------------------------------------------------------------


def importance_weight(old_logprob_BT, decoder_logprob_BT, *, cap: float) -> jax.Array:
    """min(π_trainer / π_decoder, cap) per token: the tokens were drawn from the decoder's numbers,
    the loss is taken with the trainer's (truncated importance sampling, Ionides 2008; Yao et al.,
    2025, for decoders that round differently). f32; meaningful on response tokens."""
    return jnp.minimum(jnp.exp(old_logprob_BT - decoder_logprob_BT), cap)


def mismatch(old_logprob_BT, decoder_logprob_BT, response_mask_BT) -> dict[str, jax.Array]:
    """How far the trainer's log-probabilities are from the decoder's, over response tokens.

    logprob_abs_mean, logprob_abs_max: of |log ρ|, nats, ρ = π_trainer / π_decoder. kl: estimate of
    KL(decoder ‖ trainer), mean of (ρ - 1) - log ρ, nats. effective_sample_size: (Σ ρ)² / (N Σ ρ²),
    1 where the two agree.
    """
    num_tokens = jnp.maximum(jnp.sum(response_mask_BT), 1)
    gap_BT = jnp.where(response_mask_BT > 0, old_logprob_BT - decoder_logprob_BT, 0.0)
    # Scaled by the largest, which cancels: no ratio overflows. Max: NaN stays NaN.
    scaled_BT = jnp.exp(gap_BT - jnp.max(gap_BT)) * response_mask_BT
    kl_BT = (jnp.expm1(gap_BT) - gap_BT) * response_mask_BT
    return {
        "logprob_abs_mean": jnp.sum(jnp.abs(gap_BT)) / num_tokens,
        "logprob_abs_max": jnp.max(jnp.abs(gap_BT)),
        "kl": jnp.sum(kl_BT) / num_tokens,
        "effective_sample_size": jnp.sum(scaled_BT) ** 2
        / jnp.maximum(num_tokens * jnp.sum(scaled_BT**2), jnp.finfo(jnp.float32).tiny),
    }


# --- averages over tokens ---------------------------------------------------------------------


def sequence_mean(response_mask_BT, max_response_tokens: int) -> jax.Array:
    """weight_BT of the mean over responses of token means: tokens of short responses weigh more.

    What micro-batches of one response amount to, hence PRIME's published aggregate. A row without
    response tokens is not counted.
    """
    length_B1 = jnp.sum(response_mask_BT, axis=1, keepdims=True)
    num_responses = jnp.maximum(jnp.sum(length_B1 > 0), 1)
    return response_mask_BT / jnp.maximum(length_B1, 1) / num_responses


def token_mean(response_mask_BT, max_response_tokens: int) -> jax.Array:
    """weight_BT of the mean over all response tokens (DAPO, arXiv:2503.14476, section 3.3)."""
    return response_mask_BT / jnp.maximum(jnp.sum(response_mask_BT), 1)


def constant_length(response_mask_BT, max_response_tokens: int) -> jax.Array:
    """weight_BT of the mean over responses of Σ_t / `max_response_tokens`: a token weighs the same
    in every response and every batch (Dr. GRPO, arXiv:2503.20783, section 3.2)."""
    num_responses = jnp.maximum(jnp.sum(jnp.any(response_mask_BT > 0, axis=1)), 1)
    return response_mask_BT / (num_responses * max_response_tokens)


REDUCTIONS: dict[str, Callable[[jax.Array, int], jax.Array]] = {
    "sequence_mean": sequence_mean,
    "token_mean": token_mean,
    "constant_length": constant_length,
}


def reduce(loss_BT, weight_BT) -> jax.Array:
    """Σ weight · loss, f32[]; where the weight is 0 the loss may be anything."""
    return jnp.sum(jnp.where(weight_BT > 0, loss_BT, 0.0) * weight_BT)
