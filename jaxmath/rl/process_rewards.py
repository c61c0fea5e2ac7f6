"""The implicit process reward model: token rewards out of two language models, and its loss.

A model φ trained so that β · log(π_φ(y) / π_ref(y)) predicts whether response y is right gives,
token by token, a process reward: the log-ratio at that token (Yuan et al., arXiv:2412.01981, and
PRIME, arXiv:2502.01456). No step labels are needed, only the verdict on the whole response.
"""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp

GRANULARITIES = ("token", "whole")
NORM_EPS = 1e-6  # in the divisor of batch_norm, as released


def token_scores(prm_logprob_BT, ref_logprob_BT, response_mask_BT) -> jax.Array:
    """q_t = log π_φ(y_t | y_<t) - log π_ref(y_t | y_<t) on response tokens, 0 elsewhere; f32, nats.

    Neither β nor the sampling temperature enters.
    """
    # where, not a product: padding may hold anything.
    return jnp.where(response_mask_BT > 0, prm_logprob_BT - ref_logprob_BT, 0.0)


def response_scores(score_BT) -> jax.Array:
    """Σ_t q_t, f32[B]: the sum over tokens, not their mean, is the log-ratio of the response."""
    return jnp.sum(score_BT, axis=1)


def last_token(response_mask_BT) -> jax.Array:
    """f32 mask that is 1 on the last response token of each row, and 0 on rows without any."""
    after_BT = jnp.cumsum(response_mask_BT[:, ::-1], axis=1)[:, ::-1]  # valid tokens from t on
    return response_mask_BT * (after_BT == 1)


def place(score_BT, response_mask_BT, *, granularity: str) -> jax.Array:
    """Where the reward is paid: "token" at every token, "whole" their sum at the last one."""
    if granularity == "token":
        return score_BT
    return response_scores(score_BT)[:, None] * last_token(response_mask_BT)


def batch_norm(
    reward_BT, *, beta: float, num_groups: int = 1, zero_below: float = 0.0
) -> jax.Array:
    """r / (max |C| + 1e-6), with C_t = Σ_{s≥t} r_s the reward still to come; `beta` cancels.

    The maximum is over the whole batch. The released code takes it over the rows of one
    data-parallel rank, which makes rewards depend on the number of devices: `num_groups` ranks of
    contiguous rows reproduce it.

    Args:
      zero_below: where max |C| (nats) is less, all rewards are 0. At the start φ is the reference,
      and
        the difference of two roundings of one number would be blown up to unit size.
    """
    to_come_BT = jnp.cumsum(reward_BT[:, ::-1], axis=1)[:, ::-1]
    rows = reward_BT.shape[0] // num_groups
    peak_G = jnp.max(jnp.abs(to_come_BT).reshape(num_groups, -1), axis=1)
    scale_G = jnp.where(peak_G < zero_below, 0.0, 1.0 / (peak_G + NORM_EPS))
    return reward_BT * jnp.repeat(scale_G, rows)[:, None]


def beta_scale(
    reward_BT, *, beta: float, num_groups: int = 1, zero_below: float = 0.0
) -> jax.Array:
    """β · r, the paper's reward; batch statistics do not enter."""
    return beta * reward_BT


NORMS: dict[str, Callable[..., jax.Array]] = {"batch_norm": batch_norm, "none": beta_scale}


def cross_entropy(score_B, outcome_reward_B, *, beta: float) -> jax.Array:
    """loss_B = BCE(σ(β Σ_t q_t), outcome) in nats, f32; the outcome may be a fraction (soft label).

    Written on logits: softplus(z) - y z is finite where σ(z) rounds to 0 or 1.
    """
    z_B = beta * score_B
    return jax.nn.softplus(z_B) - outcome_reward_B * z_B


def pairwise_accuracy(score_B, outcome_reward_B, *, num_responses: int) -> jax.Array:
    """Share of pairs of one prompt's responses that the scores put in the verifier's order, f32[].

    Per prompt Σ |Δoutcome| · [(Δscore > 0) = (Δoutcome > 0)] / Σ |Δoutcome| over pairs i < j, and
    0.5 where all outcomes are equal; then the mean over prompts.
    """
    score_PR = score_B.reshape(-1, num_responses)
    outcome_PR = outcome_reward_B.reshape(-1, num_responses)
    first, second = jnp.triu_indices(num_responses, k=1)
    gap = outcome_PR[:, first] - outcome_PR[:, second]  # [P, pairs]
    same_order = (score_PR[:, first] > score_PR[:, second]) == (gap > 0)
    weight_P = jnp.sum(jnp.abs(gap), axis=1)
    right_P = jnp.sum(jnp.abs(gap) * same_order, axis=1)
    return jnp.mean(jnp.where(weight_P > 0, right_P / jnp.maximum(weight_P, 1e-9), 0.5))
