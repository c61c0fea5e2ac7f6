"""Golden C, the clip by hand, and the two reductions."""

import jax
import jax.numpy as jnp
import numpy as np

from jaxmath.rl import policy_loss

from . import golden


def golden_tokens():
    return policy_loss.clipped_surrogate(
        golden.LOG_RATIO_BT, np.zeros_like(golden.MASK_BT), golden.ADVANTAGE_BT, clip_eps=0.2
    )


def test_golden_policy_loss():
    loss_BT, clipped_BT = golden_tokens()
    by_sequence = policy_loss.sequence_mean(jnp.asarray(golden.MASK_BT))
    by_token = policy_loss.token_mean(jnp.asarray(golden.MASK_BT))
    np.testing.assert_allclose(policy_loss.reduce(loss_BT, by_sequence), 0.230258, rtol=5e-6)
    np.testing.assert_allclose(policy_loss.reduce(loss_BT, by_token), -0.025564, rtol=3e-5)
    np.testing.assert_allclose(policy_loss.reduce(clipped_BT, by_token), 0.357143, rtol=2e-6)


def test_clip_by_hand():
    ratio = jnp.log(jnp.array([[1.5, 1.5, 0.5, 0.5, 1.1]]))
    advantage = jnp.array([[1.0, -1.0, 1.0, -1.0, 2.0]])
    loss, clipped = policy_loss.clipped_surrogate(ratio, jnp.zeros((1, 5)), advantage, clip_eps=0.2)
    np.testing.assert_allclose(loss, [[-1.2, 1.5, -0.5, 0.8, -2.2]], rtol=1e-6)
    np.testing.assert_array_equal(clipped, [[1, 0, 0, 1, 0]])


def test_a_clipped_token_has_no_gradient():
    def loss(logprob_BT):
        advantage_BT = jnp.array([[1.0, -1.0, 1.0]])
        return jnp.sum(
            policy_loss.clipped_surrogate(
                logprob_BT, jnp.zeros((1, 3)), advantage_BT, clip_eps=0.2
            )[0]
        )

    gradient = jax.grad(loss)(jnp.log(jnp.array([[1.5, 1.5, 1.0]])))
    np.testing.assert_allclose(gradient, [[0.0, 1.5, -1.0]], rtol=1e-6)


def test_reductions_weigh_sequences_or_tokens_and_ignore_empty_rows():
    mask_BT = jnp.array([[1.0, 1, 1, 1], [1, 0, 0, 0], [0, 0, 0, 0]])
    np.testing.assert_allclose(
        policy_loss.sequence_mean(mask_BT),
        [[0.125] * 4, [0.5, 0, 0, 0], [0, 0, 0, 0]],
    )
    np.testing.assert_allclose(policy_loss.token_mean(mask_BT), mask_BT / 5)


def test_what_lies_outside_the_mask_does_not_matter():
    mask_BT = jnp.asarray(golden.MASK_BT)
    loss_BT, _ = golden_tokens()
    garbage_BT = jnp.where(mask_BT > 0, loss_BT, jnp.nan)
    for reduction in policy_loss.REDUCTIONS.values():
        weight_BT = reduction(mask_BT)
        assert policy_loss.reduce(garbage_BT, weight_BT) == policy_loss.reduce(loss_BT, weight_BT)
