"""Golden A's scores and losses, and what the normalisation must and must not do."""

import jax.numpy as jnp
import numpy as np
import pytest

from jaxmath.rl import process_rewards

from . import golden


def scores():
    zero_BT = jnp.zeros_like(golden.SCORE_BT)
    return process_rewards.token_scores(golden.SCORE_BT, zero_BT, golden.MASK_BT)


def test_golden_response_scores():
    np.testing.assert_allclose(
        process_rewards.response_scores(scores()), [1.125, -1.25, 0.75, -1.0], rtol=1e-6
    )


def test_golden_cross_entropy_and_pairwise_accuracy():
    score_B = process_rewards.response_scores(scores())
    loss_B = process_rewards.cross_entropy(score_B, golden.OUTCOME_B, beta=golden.BETA)
    np.testing.assert_allclose(jnp.mean(loss_B), 0.667709, rtol=2e-6)
    accuracy = process_rewards.pairwise_accuracy(score_B, golden.OUTCOME_B, num_responses=4)
    assert float(accuracy) == 1.0


def test_golden_batch_norm_divides_by_the_largest_reward_to_come():
    normalised_BT = process_rewards.batch_norm(scores(), beta=golden.BETA)
    np.testing.assert_allclose(
        golden.on_mask(normalised_BT), golden.on_mask(golden.SCORE_BT) / (1.25 + 1e-6), rtol=1e-6
    )
    assert not np.any(np.asarray(normalised_BT)[golden.MASK_BT == 0])


def test_whole_granularity_pays_the_sum_at_the_last_token():
    reward_BT = process_rewards.place(scores(), golden.MASK_BT, granularity="whole")
    expected = np.zeros((4, 5), np.float32)
    expected[np.arange(4), np.array(golden.LENGTHS) - 1] = [1.125, -1.25, 0.75, -1.0]
    np.testing.assert_allclose(reward_BT, expected, rtol=1e-6)


def test_paper_reward_is_beta_times_the_log_ratio():
    np.testing.assert_allclose(
        process_rewards.beta_scale(scores(), beta=0.05), 0.05 * np.asarray(scores()), rtol=1e-6
    )


def test_normalisation_is_blind_to_a_common_scale_and_to_beta():
    plain = process_rewards.batch_norm(scores(), beta=0.05)
    scaled = process_rewards.batch_norm(1000.0 * scores(), beta=7.0)
    np.testing.assert_allclose(plain, scaled, rtol=3e-6)


def test_ranks_that_normalise_apart_are_an_option():
    together = process_rewards.batch_norm(scores(), beta=0.05)
    apart = process_rewards.batch_norm(scores(), beta=0.05, num_groups=2)
    halves = [process_rewards.batch_norm(part, beta=0.05) for part in jnp.split(scores(), 2)]
    np.testing.assert_allclose(apart, jnp.concatenate(halves), rtol=1e-6)
    assert float(jnp.max(jnp.abs(apart - together))) > 0.01


def test_rounding_noise_is_not_blown_up_to_unit_size():
    noise_BT = 1e-7 * scores()
    assert float(jnp.max(jnp.abs(process_rewards.batch_norm(noise_BT, beta=0.05)))) > 0.01
    quiet_BT = process_rewards.batch_norm(noise_BT, beta=0.05, zero_below=1e-5)
    assert not np.any(np.asarray(quiet_BT))
    loud_BT = process_rewards.batch_norm(scores(), beta=0.05, zero_below=1e-5)
    np.testing.assert_array_equal(loud_BT, process_rewards.batch_norm(scores(), beta=0.05))


def test_equal_models_give_rewards_of_exactly_zero():
    logprob_BT = jnp.asarray(np.random.default_rng(0).normal(size=(4, 5)), jnp.float32)
    zero_BT = process_rewards.token_scores(logprob_BT, logprob_BT, golden.MASK_BT)
    assert not np.any(np.asarray(process_rewards.batch_norm(zero_BT, beta=0.05)))


@pytest.mark.parametrize("label", [0.0, 0.3, 1.0])
def test_cross_entropy_with_soft_labels(label):
    score_B = jnp.array([-3.0, 0.0, 2.5])
    p = 1 / (1 + np.exp(-0.5 * np.asarray(score_B, np.float64)))
    expected = -(label * np.log(p) + (1 - label) * np.log(1 - p))
    loss_B = process_rewards.cross_entropy(score_B, jnp.full(3, label), beta=0.5)
    np.testing.assert_allclose(loss_B, expected, rtol=1e-5)


def test_cross_entropy_is_finite_for_extreme_scores():
    loss_B = process_rewards.cross_entropy(jnp.array([-1e6, 1e6]), jnp.array([1.0, 0.0]), beta=1.0)
    np.testing.assert_allclose(loss_B, [1e6, 1e6])


def test_pairwise_accuracy_weighs_gaps_and_calls_ties_even():
    score_B = jnp.array([2.0, 1.0, 3.0, 0.0, 5.0, 5.0])
    outcome_B = jnp.array([1.0, 0.5, 0.0, 1.0, 1.0, 1.0])
    accuracy = process_rewards.pairwise_accuracy(score_B, outcome_B, num_responses=3)
    # first prompt: pair (0, 1) right with weight .5; (0, 2) wrong with 1; (1, 2) wrong with .5
    np.testing.assert_allclose(accuracy, (0.5 / 2.0 + 0.5) / 2, rtol=1e-6)


def test_last_token_of_an_empty_row_is_nowhere():
    mask_BT = jnp.array([[0.0, 1, 1, 0], [0, 0, 0, 0], [1, 0, 0, 0]])
    np.testing.assert_array_equal(
        process_rewards.last_token(mask_BT), [[0, 0, 1, 0], [0, 0, 0, 0], [1, 0, 0, 0]]
    )
