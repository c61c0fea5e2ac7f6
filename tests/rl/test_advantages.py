"""Golden A, a NumPy twin on ragged data, and the properties of leave-one-out and whitening."""

import jax.numpy as jnp
import numpy as np
import pytest

from jaxmath.rl import advantages, process_rewards

from . import golden


def golden_rloo(**gammas):
    score_BT = jnp.where(golden.MASK_BT > 0, golden.SCORE_BT, 0.0)
    reward_BT = process_rewards.batch_norm(score_BT, beta=golden.BETA)
    return advantages.rloo(golden.OUTCOME_B, reward_BT, golden.MASK_BT, num_responses=4, **gammas)


def twin(outcome_B, reward_BT, mask_BT, n, gamma_outcome, gamma_process):
    """The definition, token by token, in float64."""
    rows, length = mask_BT.shape
    returns_BT = np.zeros((rows, length))
    for first in range(0, rows, n):
        group = range(first, first + n)
        tokens = {i: np.flatnonzero(mask_BT[i]) for i in group}
        means = [np.mean([reward_BT[i, t] for t in tokens[i]]) for i in group]
        for i in group:
            others = [outcome_B[j] for j in group if j != i]
            outcome = outcome_B[i] - np.mean(others)
            for t in tokens[i]:
                total = outcome * gamma_outcome ** (tokens[i][-1] - t)
                for s in tokens[i][tokens[i] >= t]:
                    shaped = reward_BT[i, s] * n / (n - 1) - np.sum(means) / (n - 1)
                    total += shaped * gamma_process ** (s - t)
                returns_BT[i, t] = total
    valid = returns_BT[mask_BT > 0]
    advantage_BT = (returns_BT - valid.mean()) / np.sqrt(valid.var(ddof=1) + 1e-8)
    return returns_BT, advantage_BT * mask_BT


def ragged(seed, prompts=3, n=4, length=17):
    rng = np.random.default_rng(seed)
    rows = prompts * n
    start, size = rng.integers(0, 5, rows), rng.integers(1, 12, rows)
    column = np.arange(length)[None, :]
    mask_BT = (column >= start[:, None]) & (column < (start + size)[:, None])
    reward_BT = rng.normal(size=(rows, length)).astype(np.float32) * mask_BT
    return (
        rng.choice([0.0, 0.25, 1.0], rows).astype(np.float32),
        reward_BT.astype(np.float32),
        mask_BT.astype(np.float32),
    )


def test_golden_returns_and_advantages():
    returns_BT, advantage_BT = golden_rloo()
    for ours, expected in (
        (returns_BT, golden.RETURNS_BT),
        (advantage_BT, golden.ADVANTAGE_BT),
    ):
        np.testing.assert_allclose(
            golden.on_mask(ours), golden.on_mask(expected), rtol=1e-5, atol=2e-6
        )
        assert not np.any(np.asarray(ours)[golden.MASK_BT == 0])
    valid = golden.on_mask(returns_BT)
    np.testing.assert_allclose([valid.mean(), valid.var(ddof=1)], [0.555079, 2.370644], rtol=2e-6)


def test_golden_with_separate_discounts():
    returns_BT, advantage_BT = golden_rloo(gamma_process=0.9, gamma_outcome=1.0)
    expected_returns = [2.265482, 1.701154, 1.963010, 1.068778, 0.667778]
    expected_advantages = [1.209055, 0.820368, 1.000725, 0.384813, 0.108620]
    np.testing.assert_allclose(returns_BT[0], expected_returns, rtol=2e-6)
    np.testing.assert_allclose(advantage_BT[0], expected_advantages, rtol=1e-5)


@pytest.mark.parametrize("gammas", [(1.0, 1.0), (0.95, 0.9), (1.0, 0.0)])
@pytest.mark.parametrize("seed", range(4))
def test_equals_the_plain_twin_on_ragged_data(seed, gammas):
    outcome_B, reward_BT, mask_BT = ragged(seed)
    expected = twin(outcome_B, reward_BT, mask_BT, 4, *gammas)
    ours = advantages.rloo(
        outcome_B,
        reward_BT,
        mask_BT,
        num_responses=4,
        gamma_outcome=gammas[0],
        gamma_process=gammas[1],
    )
    for a, b in zip(ours, expected, strict=True):
        np.testing.assert_allclose(a, b, rtol=2e-5, atol=2e-5)


def test_leave_one_out_by_hand():
    reward_B1, one_B1 = jnp.array([[1.0], [0.0], [0.0]]), jnp.ones((3, 1))
    shaped_B1 = advantages.leave_one_out(reward_B1, one_B1, num_responses=3)
    np.testing.assert_allclose(shaped_B1[:, 0], [1.0, -0.5, -0.5], atol=1e-7)


def test_outcome_advantages_sum_to_zero_within_a_prompt():
    outcome_B, _, mask_BT = ragged(0)
    last_BT = process_rewards.last_token(jnp.asarray(mask_BT))
    shaped_BT = advantages.leave_one_out(outcome_B[:, None] * last_BT, last_BT, num_responses=4)
    np.testing.assert_allclose(
        jnp.sum(shaped_BT, axis=1).reshape(-1, 4).sum(axis=1), 0.0, atol=1e-6
    )


def test_permuting_prompts_permutes_the_advantages():
    outcome_B, reward_BT, mask_BT = ragged(1)
    order = np.concatenate([np.arange(8, 12), np.arange(0, 4), np.arange(4, 8)])
    straight = advantages.rloo(outcome_B, reward_BT, mask_BT, num_responses=4)[1]
    permuted = advantages.rloo(outcome_B[order], reward_BT[order], mask_BT[order], num_responses=4)[
        1
    ]
    np.testing.assert_allclose(permuted, straight[order], atol=1e-6)


def test_advantages_are_invariant_to_padding():
    outcome_B, reward_BT, mask_BT = ragged(2)
    straight = advantages.rloo(outcome_B, reward_BT, mask_BT, num_responses=4)[1]
    wide = [np.pad(x, ((0, 0), (3, 9))) for x in (reward_BT, mask_BT)]
    padded = advantages.rloo(outcome_B, *wide, num_responses=4)[1]
    np.testing.assert_allclose(padded[:, 3:-9], straight, atol=1e-6)
    assert not np.any(padded[:, :3]) and not np.any(padded[:, -9:])


def test_advantages_are_invariant_to_a_common_reward_scale():
    outcome_B, reward_BT, mask_BT = ragged(3)
    straight = advantages.rloo(outcome_B, reward_BT, mask_BT, num_responses=4)[1]
    scaled = advantages.rloo(5 * outcome_B, 5 * reward_BT, mask_BT, num_responses=4)[1]
    np.testing.assert_allclose(scaled, straight, atol=1e-5)


def test_whitened_tokens_have_mean_zero_and_unit_variance():
    x_BT, _, mask_BT = ragged(4)[1], None, ragged(4)[2]
    white = np.asarray(advantages.whiten(x_BT, mask_BT))[mask_BT > 0]
    np.testing.assert_allclose([white.mean(), white.var(ddof=1)], [0.0, 1.0], atol=1e-5)


def test_equal_returns_whiten_to_zero():
    ones_BT = jnp.ones((4, 5))
    assert not np.any(np.asarray(advantages.whiten(ones_BT, ones_BT)))


@pytest.mark.parametrize("gamma", [0.0, 0.5, 0.9, 1.0])
def test_discounted_returns_follow_the_recursion(gamma):
    reward_BT = np.random.default_rng(0).normal(size=(3, 13)).astype(np.float32)
    expected = np.zeros((3, 14))
    for t in reversed(range(13)):
        expected[:, t] = reward_BT[:, t] + gamma * expected[:, t + 1]
    np.testing.assert_allclose(
        advantages.discounted_returns(reward_BT, gamma), expected[:, :-1], rtol=1e-5, atol=1e-6
    )
