"""Golden A, a NumPy twin on ragged data, every estimator by hand, and their properties."""

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
    shaped_B1 = advantages.leave_one_out(reward_B1, one_B1, jnp.ones(3), 3)
    np.testing.assert_allclose(shaped_B1[:, 0], [1.0, -0.5, -0.5], atol=1e-7)


def test_outcome_advantages_sum_to_zero_within_a_prompt():
    outcome_B, _, mask_BT = ragged(0)
    last_BT = process_rewards.last_token(jnp.asarray(mask_BT))
    reward_BT = outcome_B[:, None] * last_BT
    shaped_BT = advantages.leave_one_out(reward_BT, last_BT, jnp.ones(12), 4)
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


# --- the other estimators ---------------------------------------------------------------------

# One prompt, three responses of 2, 1 and 1 tokens. Means of the process rewards: 0.2, 0.6, -0.3;
# their mean 1/6 and unbiased deviation 0.450925; of the outcomes 1/3 and 0.577350.
HAND_OUTCOME_B = np.array([1, 0, 0], np.float32)
HAND_MASK_BT = np.array([[1, 1], [1, 0], [1, 0]], np.float32)
HAND_REWARD_BT = np.array([[0.3, 0.1], [0.6, 0.0], [-0.3, 0.0]], np.float32)
BY_HAND = {
    # r - mean of the others' means: 0.15, -0.05 | 0.65 | -0.7, and outcomes 1 | -0.5 | -0.5
    "rloo_paper": (1.10, 0.95, 0.15, -1.20),
    # 1.154701 + (0.133333 - 0.066667) / 0.450925, … | -0.577350 + 0.433333 / 0.450925 | …
    "grpo": (1.302545, 1.006857, 0.383637, -1.612260),
    "dr_grpo": (2 / 3 + 1 / 15, 2 / 3 - 1 / 15, 0.1, -0.8),
    "reinforce": (1.4, 1.1, 0.6, -0.3),
    # of reinforce: mean 0.7, variance 1.66 / 3
    "reinforce_pp": (0.941032, 0.537733, -0.134433, -1.344332),
    # baselines (2·1 + 0 + 0) / 4 and (2·0.2 + 0.6 - 0.3) / 4 = 0.175
    "opo": (0.55, 0.425, -0.075, -0.975),
}
OUTCOMES_BY_HAND = {
    "rloo_paper": (1, 1, -0.5, -0.5),
    "grpo": (1.154699, 1.154699, -0.577349, -0.577349),
    "dr_grpo": (2 / 3, 2 / 3, -1 / 3, -1 / 3),
    "reinforce": (1, 1, 0, 0),
    "reinforce_pp": (0.866025, 0.866025, -0.866025, -0.866025),
    "opo": (0.5, 0.5, -0.5, -0.5),
}


def by_hand(name, reward_BT=HAND_REWARD_BT, **gammas):
    _, advantage_BT = advantages.ESTIMATORS[name](
        HAND_OUTCOME_B, reward_BT, HAND_MASK_BT, num_responses=3, **gammas
    )
    assert not np.any(np.asarray(advantage_BT)[HAND_MASK_BT == 0])
    return np.asarray(advantage_BT)[HAND_MASK_BT > 0]


def test_every_estimator_is_worked_by_hand():
    assert set(advantages.ESTIMATORS) == {"rloo", *BY_HAND}
    assert BY_HAND.keys() == OUTCOMES_BY_HAND.keys()


@pytest.mark.parametrize("name", BY_HAND)
def test_combined_advantages_by_hand(name):
    np.testing.assert_allclose(by_hand(name), BY_HAND[name], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("name", OUTCOMES_BY_HAND)
def test_outcome_advantages_by_hand(name):
    np.testing.assert_allclose(by_hand(name, None), OUTCOMES_BY_HAND[name], rtol=1e-5, atol=1e-6)


def test_discounts_by_hand():
    halved = by_hand("reinforce", gamma_process=0.5)
    np.testing.assert_allclose(halved, (1 + 0.3 + 0.05, 1.1, 0.6, -0.3), rtol=1e-6)
    halved = by_hand("dr_grpo", None, gamma_outcome=0.5)
    np.testing.assert_allclose(halved, (1 / 3, 2 / 3, -1 / 3, -1 / 3), rtol=1e-6)


def test_equation_5_on_the_golden_scores():
    """The paper's process returns of Golden A; the released code's differ between the ends."""
    score_BT = jnp.where(golden.MASK_BT > 0, golden.SCORE_BT, 0.0)
    reward_BT = process_rewards.batch_norm(score_BT, beta=golden.BETA)
    zeros_B = np.zeros(4, np.float32)
    returns_BT, _ = advantages.rloo_paper(zeros_B, reward_BT, golden.MASK_BT, num_responses=4)
    expected = [1.872221, 1.277777, 1.283332, 0.488888, 0.094444]
    np.testing.assert_allclose(returns_BT[0], expected, rtol=1e-5, atol=2e-6)


@pytest.mark.parametrize("name", advantages.ESTIMATORS)
def test_no_process_rewards_are_zero_process_rewards(name):
    outcome_B, reward_BT, mask_BT = ragged(5)
    estimate = advantages.ESTIMATORS[name]
    without = estimate(outcome_B, None, mask_BT, num_responses=4)
    zero = estimate(outcome_B, np.zeros_like(reward_BT), mask_BT, num_responses=4)
    for a, b in zip(without, zero, strict=True):
        np.testing.assert_allclose(a, b, atol=1e-6)


@pytest.mark.parametrize("name", ["rloo", "grpo", "dr_grpo", "opo"])
def test_equal_outcomes_have_no_advantage(name):
    _, _, mask_BT = ragged(6)
    ones_B = np.ones(12, np.float32)
    _, advantage_BT = advantages.ESTIMATORS[name](ones_B, None, mask_BT, num_responses=4)
    assert np.max(np.abs(advantage_BT)) < 1e-6
