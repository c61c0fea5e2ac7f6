"""Updates without a PRM, with a KL, with truncated weights; a reference in bf16."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxmath import metrics
from jaxmath.model import qwen2
from jaxmath.rl import prime
from jaxmath.train import state

from .learner import (
    TINY,
    compiled,
    config,
    optimizers,
    params,
    rollout_batch,
    score,
    step,
    update,
)


def test_without_a_prm_there_is_neither_prm_nor_reference():
    rl = config(prm=False, advantage="grpo", policy_minibatch_size=16)
    assert not rl.needs_reference
    after, reported, between = update(rl, ref=None)
    assert after.prm is None and between.process_reward_BT is None
    assert int(after.policy.step) == 1
    assert not [name for name in reported if name.startswith(("reward_model", "actor/kl_ref"))]
    outcome_P4 = rollout_batch().outcome_reward_B.reshape(4, 4)
    deviation_P4 = outcome_P4 - outcome_P4.mean(axis=1, keepdims=True)
    expected_B = (deviation_P4 / (outcome_P4.std(axis=1, ddof=1, keepdims=True) + 1e-6)).ravel()
    mask_BT = np.asarray(rollout_batch().response_mask_BT)
    np.testing.assert_allclose(between.advantage_BT, expected_B[:, None] * mask_BT, atol=1e-5)


@pytest.mark.nightly
def test_the_kl_draws_the_policy_to_the_reference():
    rl = config(prm=False, advantage="grpo", policy_minibatch_size=16)
    _, free, _ = update(rl, ref=None)
    held = dataclasses.replace(rl, kl_coef=0.5, kl_estimator="k2")
    assert held.needs_reference
    _, reported, between = update(held, ref=1)
    batch, mask_BT = rollout_batch(), rollout_batch().response_mask_BT
    ref_BT = score(params(1), batch)

    def loss(model):
        logprob_BT = score(model, batch)
        token_BT = -between.advantage_BT * jnp.exp(logprob_BT - batch.old_logprob_BT)
        token_BT += 0.5 * 0.5 * (logprob_BT - ref_BT) ** 2
        return jnp.mean(jnp.sum(token_BT * mask_BT, axis=1) / jnp.sum(mask_BT, axis=1))

    value, grads = jax.jit(jax.value_and_grad(loss))(params())
    ours = metrics.fetch(reported)
    np.testing.assert_allclose(ours["actor/pg_loss"], value, rtol=1e-4)
    norm = np.sqrt(sum(float(jnp.sum(g**2)) for g in jax.tree.leaves(grads)))
    np.testing.assert_allclose(ours["actor/grad_norm"], norm, rtol=1e-4)
    d_BT = np.asarray(batch.old_logprob_BT - ref_BT)[np.asarray(mask_BT) > 0]
    np.testing.assert_allclose(ours["actor/kl_ref"], np.mean(0.5 * d_BT**2), rtol=1e-4)
    assert ours["actor/grad_norm"] != metrics.fetch(free)["actor/grad_norm"]


@pytest.mark.nightly
def test_the_reference_of_the_kl_is_at_the_temperature_of_sampling():
    rl = config(prm=False, kl_coef=0.1, kl_estimator="k1", temperature=2.0)
    batch = rollout_batch()
    hot_BT = prime.score(params(), batch, 2.0, config=rl, parts=compiled(rl))
    np.testing.assert_allclose(hot_BT, score(params(), batch, temperature=2.0), atol=1e-5)
    rl = dataclasses.replace(rl, policy_minibatch_size=16)
    _, reported, _ = update(rl, ref=0, batch=batch._replace(old_logprob_BT=hot_BT))
    assert abs(metrics.fetch(reported)["actor/kl_ref"]) < 1e-6


def test_truncated_weights_scale_the_loss_of_each_token():
    rl = config(prm=False, policy_minibatch_size=16, loss_reduction="token_mean")
    batch = rollout_batch()
    ratio_BT = np.exp(np.random.default_rng(0).normal(size=batch.tokens_BT.shape) * 0.5)
    decoder_BT = np.asarray(batch.old_logprob_BT) - np.log(ratio_BT).astype(np.float32)
    batch = batch._replace(decoder_logprob_BT=decoder_BT)
    capped = dataclasses.replace(rl, importance_cap=1.2)
    _, reported, between = update(capped, ref=None, batch=batch)
    mask_BT = np.asarray(batch.response_mask_BT)
    expected = -np.minimum(ratio_BT, 1.2) * np.asarray(between.advantage_BT)  # policy ratio 1
    np.testing.assert_allclose(
        metrics.fetch(reported)["actor/pg_loss"],
        np.sum(expected * mask_BT) / mask_BT.sum(),
        rtol=1e-4,
        atol=1e-6,
    )
    share = metrics.fetch(compiled(capped).mismatch(batch))["mismatch/truncated"]
    np.testing.assert_allclose(share, np.mean(ratio_BT[mask_BT > 0] > 1.2), rtol=1e-6)
    with pytest.raises(ValueError, match="importance_cap is 1.2"):
        update(capped, ref=None, batch=batch._replace(decoder_logprob_BT=None))


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_bf16_reference_scores_exactly_as_the_prm_it_is_a_copy_of(dtype):
    model = qwen2.Qwen2(dataclasses.replace(TINY, dtype=dtype), jax.random.key(3))
    norms = model.final_norm_D.replace(1.0 + 1e-3 * jnp.arange(16.0))  # not numbers of bf16
    model.final_norm_D = norms
    ref = jax.jit(functools.partial(prime.reference, dtype="bfloat16"))(model)
    assert ref.embed_VD.dtype == jnp.bfloat16 and ref.final_norm_D.dtype == jnp.float32
    rl = config(prm_update="none", prm_zero_below=0.0)
    both = optimizers(rl)
    fresh = prime.PrimeState(
        state.create(model, both["policy_optimizer"]), state.create(model, both["prm_optimizer"])
    )
    _, _, between = step(rl, fresh, ref, rollout_batch())
    assert not np.any(np.asarray(between.score_BT))


def test_one_response_per_prompt_is_enough_without_a_baseline():
    one = {"num_prompts": 16, "num_responses": 1, "advantage": "reinforce_pp", "prm": False}
    _, reported, between = update(config(**one), ref=None)
    assert float(jnp.max(jnp.abs(between.advantage_BT))) > 0.1
    assert metrics.fetch(reported)["actor/grad_norm"] > 0
