"""Rewards → returns → advantages. To add an estimator, add a function to `ESTIMATORS`.

    returns_BT, advantage_BT = f(outcome_reward_B, process_reward_BT, response_mask_BT,
                                 num_responses=R, gamma_outcome=…, gamma_process=…)

Every estimator treats its two sources alike: the outcome o is paid at the last response token,
process rewards r_t at every token; each is *shaped* by a baseline of its prompt's R responses, then
discounted and summed, G_t = Σ_{s≥t} γ^(s-t) shaped_s, and the two sums are added. What differs is
the baseline, and whether the sum is whitened over the batch. `process_reward_BT` None leaves the
outcome alone: the estimator as its own paper has it. Of the combined forms PRIME
(arXiv:2502.01456) gives RLOO (equation 5), GRPO (7) and REINFORCE (8); the others follow the same
pattern. In what follows r̄_j is the mean of response j's process rewards over its tokens, n = R.

Rows are contiguous by prompt: B = P · R. The mask is f32, 1 on response tokens. All outputs are f32
and 0 outside the response.
"""

from __future__ import annotations

import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp

from jaxmath.rl import process_rewards

WHITEN_EPS = 1e-8
STD_EPS = 1e-6

# shape(reward_BT, mask_BT, length_B, n) → what is summed; mask_BT is where this source pays.
Shape = Callable[[jax.Array, jax.Array, jax.Array, int], jax.Array]


def discounted_returns(reward_BT, gamma: float) -> jax.Array:
    """G_t = r_t + γ · G_{t+1}, in log T steps."""

    def join(later, earlier):  # (decay, sum) of two neighbouring stretches; the scan runs backwards
        return earlier[0] * later[0], earlier[1] + earlier[0] * later[1]

    decay_BT = jnp.full_like(reward_BT, gamma)
    return jax.lax.associative_scan(join, (decay_BT, reward_BT), reverse=True, axis=1)[1]


def whiten(x_BT, mask_BT) -> jax.Array:
    """(x - mean) / sqrt(var + 1e-8) over all masked tokens of the batch, unbiased variance."""
    num_tokens = jnp.sum(mask_BT)
    mean = jnp.sum(x_BT * mask_BT) / jnp.maximum(num_tokens, 1)
    variance = jnp.sum((x_BT - mean) ** 2 * mask_BT) / jnp.maximum(num_tokens - 1, 1)
    return (x_BT - mean) * jax.lax.rsqrt(variance + WHITEN_EPS) * mask_BT


# --- baselines --------------------------------------------------------------------------------


def raw(reward_BT, mask_BT, length_B, n: int) -> jax.Array:
    """r_t: no baseline (REINFORCE, Williams 1992)."""
    return reward_BT * mask_BT


def leave_one_out(reward_BT, mask_BT, length_B, n: int) -> jax.Array:
    """r_t · n/(n-1) - Σ_j r̄_j / (n-1), as in PRIME's released code.

    With one masked token per response it is the exact leave-one-out r_i - mean_{j≠i} r_j. With
    several it differs from the paper's equation 5, see `leave_one_out_paper`, by
    (r_t - r̄_i)/(n-1): variation within a response is amplified by n/(n-1).
    """
    baseline_B = _over_group(jnp.sum, _means(reward_BT, mask_BT), n) / (n - 1)
    return (reward_BT * (n / (n - 1)) - baseline_B[:, None]) * mask_BT


def leave_one_out_paper(reward_BT, mask_BT, length_B, n: int) -> jax.Array:
    """r_t - mean_{j≠i} r̄_j, as PRIME's equation 5 has it."""
    mean_B = _means(reward_BT, mask_BT)
    baseline_B = (_over_group(jnp.sum, mean_B, n) - mean_B) / (n - 1)
    return (reward_BT - baseline_B[:, None]) * mask_BT


def group_mean(reward_BT, mask_BT, length_B, n: int) -> jax.Array:
    """r_t - mean_j r̄_j (Dr. GRPO, arXiv:2503.20783: GRPO without dividing by a deviation)."""
    baseline_B = _over_group(jnp.mean, _means(reward_BT, mask_BT), n)
    return (reward_BT - baseline_B[:, None]) * mask_BT


def standardised(reward_BT, mask_BT, length_B, n: int) -> jax.Array:
    """(r_t - mean_j r̄_j) / (std_j r̄_j + 1e-6), unbiased deviation, as verl has it.

    GRPO, arXiv:2402.03300, section 4.1.2 (outcomes); PRIME's equation 7 (both).
    """
    mean_B = _means(reward_BT, mask_BT)
    std_B = _over_group(functools.partial(jnp.std, ddof=1), mean_B, n)
    return group_mean(reward_BT, mask_BT, length_B, n) / (std_B[:, None] + STD_EPS)


def length_weighted(reward_BT, mask_BT, length_B, n: int) -> jax.Array:
    """r_t - Σ_j |y_j| r̄_j / Σ_j |y_j|: the baseline of least variance where the squared gradient
    grows with the length (OPO, arXiv:2505.23585)."""
    weighted_B = _over_group(jnp.sum, length_B * _means(reward_BT, mask_BT), n)
    baseline_B = weighted_B / jnp.maximum(_over_group(jnp.sum, length_B, n), 1)
    return (reward_BT - baseline_B[:, None]) * mask_BT


def _means(reward_BT, mask_BT) -> jax.Array:
    """r̄_B; of the outcome, whose mask has one token, the outcome itself."""
    return jnp.sum(reward_BT * mask_BT, axis=1) / jnp.maximum(jnp.sum(mask_BT, axis=1), 1)


def _over_group(fn: Callable[..., jax.Array], x_B, n: int) -> jax.Array:
    """`fn` over each prompt's responses, repeated for each of them."""
    return jnp.repeat(fn(x_B.reshape(-1, n), axis=1), n)


# --- estimators -------------------------------------------------------------------------------


def estimate(
    outcome_reward_B,
    process_reward_BT,
    response_mask_BT,
    *,
    num_responses: int,
    gamma_outcome: float = 1.0,
    gamma_process: float = 1.0,
    shape: Shape,
    whitened: bool = False,
) -> tuple[jax.Array, jax.Array]:
    """(returns_BT, advantage_BT): Σ_{s≥t} γ^(s-t) shape(reward)_s of both sources, and that sum,
    whitened over all response tokens of the batch where asked."""
    last_BT = process_rewards.last_token(response_mask_BT)
    sources = [(outcome_reward_B[:, None] * last_BT, last_BT, gamma_outcome)]
    if process_reward_BT is not None:
        sources.append((process_reward_BT, response_mask_BT, gamma_process))
    length_B = jnp.sum(response_mask_BT, axis=1)
    returns_BT = jnp.zeros_like(response_mask_BT)
    for reward_BT, mask_BT, gamma in sources:
        shaped_BT = shape(reward_BT, mask_BT, length_B, num_responses)
        returns_BT += discounted_returns(shaped_BT, gamma)
    returns_BT = returns_BT * response_mask_BT  # the prompt before it only carries the sum on
    return returns_BT, whiten(returns_BT, response_mask_BT) if whitened else returns_BT


Estimator = Callable[..., tuple[jax.Array, jax.Array]]


def _estimator(shape: Shape, whitened: bool = False) -> Estimator:
    return functools.partial(estimate, shape=shape, whitened=whitened)


rloo = _estimator(leave_one_out, whitened=True)  # PRIME's released code
rloo_paper = _estimator(leave_one_out_paper)  # PRIME, equation 5; nothing is whitened there
grpo = _estimator(standardised)  # PRIME, equation 7; its outcome part is GRPO
dr_grpo = _estimator(group_mean)  # with loss_reduction constant_length it is Dr. GRPO
reinforce = _estimator(raw)  # PRIME, equation 8
reinforce_pp = _estimator(raw, whitened=True)  # REINFORCE++ (arXiv:2501.03262), the KL in the loss
opo = _estimator(length_weighted)

ESTIMATORS: dict[str, Estimator] = {
    "rloo": rloo,
    "rloo_paper": rloo_paper,
    "grpo": grpo,
    "dr_grpo": dr_grpo,
    "reinforce": reinforce,
    "reinforce_pp": reinforce_pp,
    "opo": opo,
}
WITHOUT_BASELINE = ("reinforce", "reinforce_pp")  # these also take one response per prompt
