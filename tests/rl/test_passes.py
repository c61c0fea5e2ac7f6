"""Forward passes that an update can do without, and what it computes all the same."""

import dataclasses

import jax
import numpy as np
import pytest

from jaxmath import metrics

from .learner import config, rollout_batch, update, worst

LEARNING_RATE = 1e-2  # Adam's first step is so long, whatever the gradient
ROWS = (
    {"microbatch_size": 4},
    {"microbatch_size": 8, "row_tokens": 24, "tokens_per_microbatch": 48},
)


def one_update(**options):
    return config(policy_minibatch_size=16, prm_minibatch_size=16, **options)


def both_ways(rl):
    """The update on rollouts with old log-probabilities, and on the same without."""
    batch = rollout_batch()
    return update(rl, batch=batch), update(rl, batch=batch._replace(old_logprob_BT=None))


@pytest.mark.parametrize(
    "rows, options",
    [(ROWS[0], {}), (ROWS[1], {"prm": False, "importance_cap": 1.5, "kl_coef": 0.1})],
)
def test_one_update_needs_no_old_logprobs(rows, options):
    rl = one_update(**rows, **options)
    assert rl.on_policy
    (scored, metrics_scored, _), (alone, metrics_alone, between) = both_ways(rl)
    mask_BT = np.asarray(rollout_batch().response_mask_BT)
    np.testing.assert_allclose(
        np.asarray(between.old_logprob_BT) * mask_BT,
        np.asarray(rollout_batch().old_logprob_BT) * mask_BT,
        atol=1e-5,
    )
    assert worst(scored.policy.params, alone.policy.params) < 1e-3 * LEARNING_RATE
    both = metrics.fetch(metrics_scored), metrics.fetch(metrics_alone)
    for name, value in both[0].items():
        np.testing.assert_allclose(value, both[1][name], rtol=1e-4, atol=1e-5, err_msg=name)


@pytest.mark.parametrize("options", [{"policy_minibatch_size": 8}, {"ref_type": "policy"}])
def test_several_updates_or_a_reference_that_samples_need_them(options):
    rl = dataclasses.replace(one_update(**ROWS[0]), **options)
    with pytest.raises(ValueError, match="lack old_logprob_BT"):
        update(rl, batch=rollout_batch()._replace(old_logprob_BT=None))


def test_scores_from_the_prms_own_gradient_are_those_of_a_pass_apart():
    apart = update(config(prm_minibatch_size=8, **ROWS[1]), prm=1)
    own = update(config(prm_minibatch_size=8, prm_score="gradient", **ROWS[1]), prm=1)
    mask_BT = np.asarray(rollout_batch().response_mask_BT)
    assert np.abs(np.asarray(apart[2].score_BT)).max() > 1e-2
    np.testing.assert_allclose(
        np.asarray(own[2].score_BT) * mask_BT, np.asarray(apart[2].score_BT) * mask_BT, atol=1e-5
    )
    assert worst(own[0].prm.params, apart[0].prm.params) < 1e-3 * LEARNING_RATE
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, atol=1e-4),
        own[2].advantage_BT,
        apart[2].advantage_BT,
    )


@pytest.mark.parametrize("when", ["before", "none"])
def test_scores_of_the_gradient_exist_only_where_each_minibatch_is_scored_first(when):
    with pytest.raises(ValueError, match="prm_score is 'gradient'"):
        config(prm_update=when, prm_score="gradient")
