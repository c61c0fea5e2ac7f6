"""Rewards → returns → advantages. To add an estimator, add a function to `ESTIMATORS`.

    returns_BT, advantage_BT = f(outcome_reward_B, process_reward_BT, response_mask_BT,
                                 num_responses=R, gamma_outcome=…, gamma_process=…)

Rows are contiguous by prompt: B = P · R. The mask is f32, 1 on response tokens. All outputs are f32
and 0 outside the response.
"""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp

from jaxmath.rl import process_rewards

WHITEN_EPS = 1e-8


def discounted_returns(reward_BT, gamma: float) -> jax.Array:
    """G_t = r_t + γ · G_{t+1}, in log T steps."""

    def join(later, earlier):  # (decay, sum) of two neighbouring stretches; the scan runs backwards
        return earlier[0] * later[0], earlier[1] + earlier[0] * later[1]

    decay_BT = jnp.full_like(reward_BT, gamma)
    return jax.lax.associative_scan(join, (decay_BT, reward_BT), reverse=True, axis=1)[1]


def leave_one_out(reward_BT, mask_BT, *, num_responses: int) -> jax.Array:
    """R̃_t = R_t · n/(n-1) - Σ_j μ_j / (n-1) on the mask, else 0; μ_j = mean of R_j on its mask.

    As in PRIME's released code. With one masked token per response it is the exact leave-one-out
    R_i - mean_{j≠i} R_j. With several it differs from the paper's equation 5, r_t - mean_{j≠i}
    r̄_j, by (r_t - μ_i)/(n-1): variation within a response is amplified by n/(n-1).
    """
    n = num_responses
    mean_B = jnp.sum(reward_BT * mask_BT, axis=1) / jnp.maximum(jnp.sum(mask_BT, axis=1), 1)
    baseline_P = jnp.sum(mean_B.reshape(-1, n), axis=1) / (n - 1)
    baseline_B = jnp.repeat(baseline_P, n)
    return (reward_BT * (n / (n - 1)) - baseline_B[:, None]) * mask_BT


def whiten(x_BT, mask_BT) -> jax.Array:
    """(x - mean) / sqrt(var + 1e-8) over all masked tokens of the batch, unbiased variance."""
    num_tokens = jnp.sum(mask_BT)
    mean = jnp.sum(x_BT * mask_BT) / jnp.maximum(num_tokens, 1)
    variance = jnp.sum((x_BT - mean) ** 2 * mask_BT) / jnp.maximum(num_tokens - 1, 1)
    return (x_BT - mean) * jax.lax.rsqrt(variance + WHITEN_EPS) * mask_BT


def rloo(
    outcome_reward_B,
    process_reward_BT,
    response_mask_BT,
    *,
    num_responses: int,
    gamma_outcome: float = 1.0,
    gamma_process: float = 1.0,
) -> tuple[jax.Array, jax.Array]:
    """The leave-one-out advantage of PRIME's released code: (returns_BT, advantage_BT).

    The outcome is paid at the last response token, process rewards at every token; each source has
    its own leave-one-out baseline and discount, the two returns are added, and the sum is whitened
    over the whole batch.
    """
    last_BT = process_rewards.last_token(response_mask_BT)
    sources = (
        (outcome_reward_B[:, None] * last_BT, last_BT, gamma_outcome),
        (process_reward_BT, response_mask_BT, gamma_process),
    )
    returns_BT = jnp.zeros_like(response_mask_BT)
    for reward_BT, mask_BT, gamma in sources:
        shaped_BT = leave_one_out(reward_BT, mask_BT, num_responses=num_responses)
        returns_BT += discounted_returns(shaped_BT, gamma)
    returns_BT = returns_BT * response_mask_BT  # the prompt before it only carries the sum on
    return returns_BT, whiten(returns_BT, response_mask_BT)


ESTIMATORS: dict[str, Callable[..., tuple[jax.Array, jax.Array]]] = {"rloo": rloo}
