"""Golden C, the clip by hand, the distances to reference and decoder, and the reductions."""

import jax
import jax.numpy as jnp
import numpy as np

from jaxmath.rl import policy_loss

from . import golden


def golden_tokens():
    return policy_loss.clipped_surrogate(
        golden.LOG_RATIO_BT,
        np.zeros_like(golden.MASK_BT),
        golden.ADVANTAGE_BT,
        clip_eps_low=0.2,
        clip_eps_high=0.2,
    )


def test_golden_policy_loss():
    loss_BT, clipped_BT = golden_tokens()
    by_sequence = policy_loss.sequence_mean(jnp.asarray(golden.MASK_BT), 5)
    by_token = policy_loss.token_mean(jnp.asarray(golden.MASK_BT), 5)
    np.testing.assert_allclose(policy_loss.reduce(loss_BT, by_sequence), 0.230258, rtol=5e-6)
    np.testing.assert_allclose(policy_loss.reduce(loss_BT, by_token), -0.025564, rtol=3e-5)
    np.testing.assert_allclose(policy_loss.reduce(clipped_BT, by_token), 0.357143, rtol=2e-6)


def test_clip_by_hand():
    ratio = jnp.log(jnp.array([[1.5, 1.5, 0.5, 0.5, 1.1]]))
    advantage = jnp.array([[1.0, -1.0, 1.0, -1.0, 2.0]])
    loss, clipped = policy_loss.clipped_surrogate(
        ratio, jnp.zeros((1, 5)), advantage, clip_eps_low=0.2, clip_eps_high=0.2
    )
    np.testing.assert_allclose(loss, [[-1.2, 1.5, -0.5, 0.8, -2.2]], rtol=1e-6)
    np.testing.assert_array_equal(clipped, [[1, 0, 0, 1, 0]])


def test_a_clipped_token_has_no_gradient():
    def loss(logprob_BT):
        advantage_BT = jnp.array([[1.0, -1.0, 1.0]])
        return jnp.sum(
            policy_loss.clipped_surrogate(
                logprob_BT, jnp.zeros((1, 3)), advantage_BT, clip_eps_low=0.2, clip_eps_high=0.2
            )[0]
        )

    gradient = jax.grad(loss)(jnp.log(jnp.array([[1.5, 1.5, 1.0]])))
    np.testing.assert_allclose(gradient, [[0.0, 1.5, -1.0]], rtol=1e-6)


def test_reductions_weigh_sequences_or_tokens_and_ignore_empty_rows():
    mask_BT = jnp.array([[1.0, 1, 1, 1], [1, 0, 0, 0], [0, 0, 0, 0]])
    np.testing.assert_allclose(
        policy_loss.sequence_mean(mask_BT, 4),
        [[0.125] * 4, [0.5, 0, 0, 0], [0, 0, 0, 0]],
    )
    np.testing.assert_allclose(policy_loss.token_mean(mask_BT, 4), mask_BT / 5)


def test_a_constant_length_weighs_every_token_alike_in_every_batch():
    mask_BT = jnp.array([[1.0, 1, 1, 1], [1, 0, 0, 0], [0, 0, 0, 0]])
    np.testing.assert_allclose(policy_loss.constant_length(mask_BT, 8), mask_BT / 16)
    np.testing.assert_allclose(policy_loss.constant_length(mask_BT[1:], 8), mask_BT[1:] / 8)


def test_the_clip_may_be_higher_above():
    ratio = jnp.log(jnp.array([[1.25, 1.5, 0.7, 0.9]]))
    advantage = jnp.array([[1.0, 1.0, -1.0, -1.0]])
    loss, clipped = policy_loss.clipped_surrogate(
        ratio, jnp.zeros((1, 4)), advantage, clip_eps_low=0.2, clip_eps_high=0.28
    )
    np.testing.assert_allclose(loss, [[-1.25, -1.28, 0.8, 0.9]], rtol=1e-6)
    np.testing.assert_array_equal(clipped, [[0, 1, 1, 0]])


def test_kl_estimators_by_hand_and_in_the_mean():
    d = jnp.log(jnp.array([0.5, 2.0]))  # π / π_ref
    by_hand = {
        "k1": (-0.693147, 0.693147),
        "k2": (0.2402265, 0.2402265),
        "k3": (2 - 1 - 0.693147, 0.5 - 1 + 0.693147),
    }
    for name, expected in by_hand.items():
        np.testing.assert_allclose(policy_loss.KL_ESTIMATORS[name](d), expected, rtol=2e-6)
    policy, ref = np.array([0.5, 0.3, 0.2]), np.array([0.2, 0.3, 0.5])
    kl = np.sum(policy * np.log(policy / ref))
    for name in ("k1", "k3"):
        values = policy_loss.KL_ESTIMATORS[name](jnp.log(policy / ref))
        np.testing.assert_allclose(np.sum(policy * np.asarray(values)), kl, rtol=1e-5)


def test_the_gradient_of_k2_is_that_of_the_kl_and_of_k1_nothing():
    """Expected gradients over the exact distribution of a softmax policy."""
    ref = jnp.log(jnp.array([0.2, 0.3, 0.5]))
    logits = jnp.array([0.3, -0.2, 0.1])
    drawn = jax.nn.softmax(logits)  # samples come from the policy as it is now

    def kl(logits):
        logp = jax.nn.log_softmax(logits)
        return jnp.sum(jnp.exp(logp) * (logp - ref))

    def estimated(name):
        def expected(logits):
            d = jax.nn.log_softmax(logits) - ref
            return jnp.sum(drawn * policy_loss.KL_ESTIMATORS[name](d))

        return jax.grad(expected)(logits)

    np.testing.assert_allclose(estimated("k2"), jax.grad(kl)(logits), atol=1e-6)
    np.testing.assert_allclose(estimated("k1"), jnp.zeros(3), atol=1e-6)


def test_importance_weights_are_truncated_at_the_cap():
    old = jnp.log(jnp.array([[0.5, 0.5, 0.5]]))
    decoder = jnp.log(jnp.array([[0.5, 1.0, 0.1]]))
    weight = policy_loss.importance_weight(old, decoder, cap=2.0)
    np.testing.assert_allclose(weight, [[1.0, 0.5, 2.0]], rtol=1e-6)


def test_mismatch_by_hand():
    old = jnp.log(jnp.array([[0.5, 0.25, 1e-9], [0.2, 1e-9, 1.0]]))
    decoder = jnp.log(jnp.array([[0.5, 0.5, 1.0], [0.1, 1.0, 1e-9]]))
    mask = jnp.array([[1.0, 1, 0], [1, 0, 0]])
    found = policy_loss.mismatch(old, decoder, mask)  # ratios 1, 1/2, 2
    np.testing.assert_allclose(found["logprob_abs_mean"], 2 * np.log(2) / 3, rtol=1e-6)
    np.testing.assert_allclose(found["logprob_abs_max"], np.log(2), rtol=1e-6)
    np.testing.assert_allclose(found["kl"], 0.5 / 3, rtol=1e-5)  # (ρ - 1) - log ρ; the logs cancel
    np.testing.assert_allclose(found["effective_sample_size"], 3.5**2 / (3 * 5.25), rtol=1e-6)
    same = policy_loss.mismatch(old, old, mask)
    assert float(same["effective_sample_size"]) == 1.0 and float(same["kl"]) == 0.0
    broken = policy_loss.mismatch(old.at[0, 0].set(jnp.nan), decoder, mask)
    assert np.isnan(broken["logprob_abs_mean"]) and np.isnan(broken["logprob_abs_max"])


def test_what_lies_outside_the_mask_does_not_matter():
    mask_BT = jnp.asarray(golden.MASK_BT)
    loss_BT, _ = golden_tokens()
    garbage_BT = jnp.where(mask_BT > 0, loss_BT, jnp.nan)
    for reduction in policy_loss.REDUCTIONS.values():
        weight_BT = reduction(mask_BT, 5)
        assert policy_loss.reduce(garbage_BT, weight_BT) == policy_loss.reduce(loss_BT, weight_BT)
