"""One update: who is updated when, with what, packed or not, and that it finds a toy reward."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxmath import metrics, sharding
from jaxmath.model import qwen2
from jaxmath.rl import parts, policy_loss, prime, process_rewards, rollouts
from jaxmath.rl.config import RlConfig
from jaxmath.rl.rollouts import Group, Prompt, Sample
from jaxmath.train import state
from jaxmath.train.optimizer import OptimizerConfig

from .learner import (
    EOS,
    TINY,
    compiled,
    config,
    entropies,
    optimizers,
    params,
    rollout_batch,
    score,
    start,
    step,
    update,
    worst,
)

# --- the implicit PRM


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_process_rewards_are_exactly_zero_while_the_prm_is_its_reference(dtype):
    model = qwen2.Qwen2(dataclasses.replace(TINY, dtype=dtype), jax.random.key(3))
    rl = config(prm_update="none", prm_zero_below=0.0)
    both = optimizers(rl)
    fresh = prime.PrimeState(
        state.create(model, both["policy_optimizer"]), state.create(model, both["prm_optimizer"])
    )
    _, reported, between = step(rl, fresh, model, rollout_batch())
    assert not np.any(np.asarray(between.score_BT))
    assert not np.any(np.asarray(between.process_reward_BT))
    np.testing.assert_allclose(
        metrics.fetch(reported)["reward_model/prm_loss"], np.log(2), rtol=1e-6
    )


def test_update_after_scores_each_minibatch_with_the_prm_of_that_moment():
    rl = config()
    after, _, between = update(rl)
    descent = optimizers(rl)["prm_optimizer"]
    batch, prm = rollout_batch(), start(rl).prm

    @jax.jit
    @jax.value_and_grad
    def value_and_grad(model, rows, ref_BT):
        score_BT = process_rewards.token_scores(score(model, rows), ref_BT, rows.response_mask_BT)
        score_B = process_rewards.response_scores(score_BT)
        return jnp.mean(process_rewards.cross_entropy(score_B, rows.outcome_reward_B, beta=0.05))

    zero = process_rewards.response_scores(between.score_BT[:4])
    assert not np.any(np.asarray(zero))  # the first is scored by a PRM that has learnt nothing
    for first in range(0, 16, 4):
        rows = jax.tree.map(lambda x, first=first: x[first : first + 4], batch)
        expected_BT = score(prm.params, rows)
        np.testing.assert_allclose(
            between.prm_logprob_BT[first : first + 4], expected_BT, rtol=1e-4, atol=1e-5
        )
        value, grads = value_and_grad(prm.params, rows, score(params(), rows))
        prm, _ = state.apply_gradients(prm, grads, value, descent)
    # Adam turns rounding of tiny gradients into steps; moments are compared instead of parameters.
    assert worst(after.prm.opt_state, prm.opt_state) < 1e-5
    assert int(after.prm.step) == 4


def test_update_before_scores_everything_with_the_trained_prm():
    after, _, between = update(config(prm_update="before"))
    batch = rollout_batch()
    np.testing.assert_allclose(between.prm_logprob_BT, score(after.prm.params, batch), atol=1e-5)
    np.testing.assert_allclose(between.ref_logprob_BT, score(params(), batch), atol=1e-5)
    trained_first, _, _ = update(config())
    assert worst(after.prm.opt_state, trained_first.prm.opt_state) < 1e-6


def test_without_an_update_the_prm_stays_and_still_scores():
    after, reported, between = update(config(prm_update="none"), ref=1)
    assert worst(after.prm, start(config()).prm) == 0.0
    assert float(jnp.max(jnp.abs(between.process_reward_BT))) > 0.1
    assert "reward_model/grad_norm" not in reported and "reward_model/prm_loss" in reported


def test_with_the_policy_as_reference_old_logprobs_are_the_reference():
    batch = rollout_batch()
    _, _, between = update(config(ref_type="policy", prm_update="none"), ref=None, prm=1)
    np.testing.assert_array_equal(between.ref_logprob_BT, batch.old_logprob_BT)
    _, _, frozen = update(config(prm_update="none"), prm=1)
    np.testing.assert_allclose(between.score_BT, frozen.score_BT, atol=1e-5)


def test_whole_granularity_pays_each_response_at_its_end():
    _, _, between = update(config(prm_granularity="whole", prm_update="none"), ref=1)
    last_BT = np.asarray(process_rewards.last_token(rollout_batch().response_mask_BT))
    total_B = np.asarray(between.score_BT).sum(axis=1)
    expected_BT = last_BT * (total_B / np.abs(total_B).max())[:, None]
    np.testing.assert_allclose(between.process_reward_BT, expected_BT, rtol=1e-4, atol=1e-7)


# --- the policy


def test_four_updates_of_each_model_per_rollout_batch():
    rl = config()
    assert (rl.policy_updates, rl.prm_updates) == (4, 4)
    after, _, _ = update(rl)
    assert int(after.policy.step) == int(after.prm.step) == 4
    assert int(after.policy.opt_state[1].count) == int(after.prm.opt_state[1].count) == 4
    published = RlConfig()
    assert (published.policy_updates, published.prm_updates) == (4, 4)


@pytest.mark.parametrize(
    "loss_reduction", ["sequence_mean", pytest.param("token_mean", marks=pytest.mark.nightly)]
)
def test_any_number_of_micro_batches_gives_the_same_update(loss_reduction):
    rl = config(loss_reduction=loss_reduction, policy_minibatch_size=16, prm_minibatch_size=16)
    results = [update(dataclasses.replace(rl, microbatch_size=size), ref=1) for size in (1, 4, 16)]
    for other, reported, _ in results[1:]:
        for name in ("actor/pg_loss", "actor/grad_norm", "reward_model/prm_loss"):
            np.testing.assert_allclose(
                metrics.fetch(reported)[name],
                metrics.fetch(results[0][1])[name],
                rtol=1e-5,
                atol=1e-6,
            )
        for model in ("policy", "prm"):
            moments = [getattr(s, model).opt_state for s in (results[0][0], other)]
            assert worst(*moments) < 5e-6


def test_first_policy_gradient_is_that_of_the_whole_surrogate():
    rl = config(policy_minibatch_size=16)
    _, reported, between = update(rl, ref=1)
    batch = rollout_batch()
    mask_BT = batch.response_mask_BT

    def loss(model):
        ratio_BT = jnp.exp(score(model, batch) - batch.old_logprob_BT)
        advantage_BT = between.advantage_BT
        free, clip = advantage_BT * ratio_BT, advantage_BT * jnp.clip(ratio_BT, 0.8, 1.2)
        token_BT = -jnp.minimum(free, clip) * mask_BT
        return jnp.mean(jnp.sum(token_BT, axis=1) / jnp.sum(mask_BT, axis=1))

    value, grads = jax.jit(jax.value_and_grad(loss))(params())
    ours = metrics.fetch(reported)
    np.testing.assert_allclose(ours["actor/pg_loss"], value, rtol=1e-4, atol=1e-6)
    norm = np.sqrt(sum(float(jnp.sum(g**2)) for g in jax.tree.leaves(grads)))
    np.testing.assert_allclose(ours["actor/grad_norm"], norm, rtol=1e-4)
    np.testing.assert_allclose(ours["actor/ppo_kl"], 0.0, atol=1e-6)
    assert ours["actor/pg_clipfrac"] == 0.0
    entropy = np.asarray(entropies(params(), batch))[np.asarray(mask_BT) > 0].mean()
    np.testing.assert_allclose(ours["actor/entropy"], entropy, rtol=1e-5)


def test_the_entropy_term_is_that_of_the_whole_distribution():
    rl = config(policy_minibatch_size=16, entropy_coef=0.7)
    plain = metrics.fetch(update(config(policy_minibatch_size=16), ref=1)[1])
    _, reported, between = update(rl, ref=1)
    batch = rollout_batch()
    mask_BT = batch.response_mask_BT
    share_BT = policy_loss.REDUCTIONS[rl.loss_reduction](mask_BT, rl.max_response_tokens)

    def loss(model):
        ratio_BT = jnp.exp(score(model, batch) - batch.old_logprob_BT)
        token_BT = -between.advantage_BT * ratio_BT - 0.7 * entropies(model, batch)
        return jnp.sum(token_BT * share_BT)

    value, grads = jax.jit(jax.value_and_grad(loss))(params())
    ours = metrics.fetch(reported)
    np.testing.assert_allclose(ours["actor/pg_loss"], value, rtol=1e-4)
    assert ours["actor/pg_loss"] < plain["actor/pg_loss"]
    norm = np.sqrt(sum(float(jnp.sum(g**2)) for g in jax.tree.leaves(grads)))
    np.testing.assert_allclose(ours["actor/grad_norm"], norm, rtol=1e-4)


def test_temperature_divides_the_logits_of_the_policy_only():
    hot, _, between = update(config(temperature=2.0), ref=1)
    cold, _, other = update(config(), ref=1)
    np.testing.assert_array_equal(between.prm_logprob_BT, other.prm_logprob_BT)
    assert worst(hot.policy.params, cold.policy.params) > 1e-4


def test_first_updates_at_learning_rate_zero_fill_moments_and_move_nothing():
    quirk = {"zero_lr_updates": 4}
    rl = config(
        policy_optimizer=OptimizerConfig(1e-2, **quirk),
        prm_optimizer=OptimizerConfig(2e-2, **quirk),
    )
    after, reported, _ = update(rl, ref=1)
    before = start(rl)
    assert worst(after.policy.params, before.policy.params) == 0.0
    assert worst(after.prm.params, before.prm.params) == 0.0
    assert worst(after.policy.opt_state[1].mu, before.policy.opt_state[1].mu) > 0
    assert metrics.fetch(reported)["actor/lr"] == 0.0
    second, reported, _ = step(rl, after, params(1), rollout_batch())
    assert worst(second.policy.params, after.policy.params) > 1e-3
    np.testing.assert_allclose(metrics.fetch(reported)["actor/lr"], 1e-2, rtol=1e-6)


def test_updates_that_are_not_finite_are_skipped_and_counted():
    batch = rollout_batch()
    broken = batch._replace(old_logprob_BT=batch.old_logprob_BT.at[:, 5].set(jnp.nan))
    rl = config(policy_minibatch_size=16)
    after, reported, _ = update(rl, ref=1, batch=broken)
    ours = metrics.fetch(reported)
    assert ours["actor/skipped_updates"] == 1.0 and ours["reward_model/skipped_updates"] == 0.0
    assert worst(after.policy.params, params()) == 0.0 and int(after.policy.step) == 1
    assert worst(after.prm.params, params()) > 1e-3


# --- the whole


def test_metrics_by_hand():
    _, reported, between = update(config(), ref=1)
    ours, batch = metrics.fetch(reported), rollout_batch()
    mask = np.asarray(batch.response_mask_BT) > 0
    lengths = mask.sum(axis=1)
    advantage = np.asarray(between.advantage_BT)[mask]
    expected = {
        "critic/score/mean": batch.outcome_reward_B.mean(),
        "response_length/mean": lengths.mean(),
        "response_length/max": lengths.max(),
        "critic/advantages/mean": 0.0,
        "critic/advantages/max": advantage.max(),
        "critic/advantages/min": advantage.min(),
        "critic/returns/mean": np.asarray(between.returns_BT)[mask].mean(),
        "actor/lr": 1e-2,
        "reward_model/lr": 2e-2,
    }
    for name, value in expected.items():
        np.testing.assert_allclose(ours[name], value, rtol=1e-5, atol=1e-6, err_msg=name)
    assert 0.0 <= ours["reward_model/dpo_acc"] <= 1.0
    mismatch = metrics.fetch(compiled(config()).mismatch(batch))
    gap = np.abs(-1 - np.asarray(batch.old_logprob_BT))[mask]
    np.testing.assert_allclose(mismatch["mismatch/logprob_abs_mean"], gap.mean(), rtol=1e-5)
    np.testing.assert_allclose(mismatch["mismatch/logprob_abs_max"], gap.max(), rtol=1e-5)


def test_an_update_on_a_mesh_agrees_with_one_device():
    rl = config(tokens_per_microbatch=48, policy_minibatch_size=8, prm_minibatch_size=8)
    wanted, _, expected = update(rl, ref=1)
    mesh = sharding.make_mesh(sharding.MeshConfig(2, 2, 2))

    def put(tree):
        return jax.device_put(tree, sharding.tree_shardings(mesh, tree))

    with jax.set_mesh(mesh):
        jitted = parts.Parts(*map(jax.jit, parts.make(rl, **optimizers(rl))))
        batch = jax.device_put(rollout_batch(), sharding.replicated(mesh))
        after, _, between = prime.prime_update(
            put(start(rl)), put(params(1)), batch, config=rl, parts=jitted
        )
    assert worst(jax.device_get(between), jax.device_get(expected)) < 1e-4
    for model in ("policy", "prm"):
        moments = [jax.device_get(getattr(s, model).opt_state) for s in (after, wanted)]
        assert worst(*moments) < 1e-5


def test_equal_shapes_compile_once():
    rl = config(beta=0.06, tokens_per_microbatch=24)
    fresh = start(rl)
    for seed in (0, 1, 2):
        fresh, _, _ = step(rl, fresh, params(1), rollout_batch(seed))
    sizes = {name: fn._cache_size() for name, fn in compiled(rl)._asdict().items()}
    called = {"score", "prm", "advantages", "policy"}
    assert {name for name, size in sizes.items() if size} == called
    assert all(sizes[name] == 1 for name in called), sizes


# --- packed rows


@pytest.mark.parametrize("prm_update", ["after", pytest.param("before", marks=pytest.mark.nightly)])
@pytest.mark.parametrize("row_tokens", [None, 31])
def test_packed_rows_give_the_update_of_unpacked_ones(prm_update, row_tokens):
    rl = config(policy_minibatch_size=8, prm_minibatch_size=8, prm_update=prm_update)
    tokens = {"tokens_per_microbatch": 2 * (row_tokens or 12), "row_tokens": row_tokens}
    results = [update(each, ref=1) for each in (rl, dataclasses.replace(rl, **tokens))]
    (plain, reported, between), (packed, packed_reported, packed_between) = results
    assert worst(between, packed_between) < 1e-4
    ours, expected = metrics.fetch(packed_reported), metrics.fetch(reported)
    assert ours.keys() == expected.keys()
    for name in ours:
        np.testing.assert_allclose(ours[name], expected[name], rtol=1e-4, atol=1e-5, err_msg=name)
    for model in ("policy", "prm"):
        moments = [getattr(s, model).opt_state for s in (plain, packed)]
        assert worst(*moments) < 1e-6


def test_packed_scores_are_still_exactly_those_of_the_reference():
    rl = config(prm_update="none", prm_zero_below=0.0, tokens_per_microbatch=48)
    _, _, between = update(rl)
    assert not np.any(np.asarray(between.score_BT))


# --- they learn


PACKED_GRPO = {"prm": False, "advantage": "grpo", "tokens_per_microbatch": 24}


@pytest.mark.parametrize("fields", [{}, PACKED_GRPO], ids=["prime", "grpo"])
def test_it_finds_a_toy_reward(fields):
    """Reward 1 for a response that starts with an even token: their probability must rise."""
    rl = config(
        **fields,
        max_prompt_tokens=2,
        max_response_tokens=2,
        policy_minibatch_size=16,
        prm_minibatch_size=16,
        microbatch_size=16,
    )
    learner = start(rl)
    sample = jax.jit(
        lambda model, tokens, positions, segments, key: jax.random.categorical(
            key, model.logits(model.hidden_states(tokens, positions, segments))[:, 1]
        )
    )
    prompt = (2, 3)
    shape = np.ones((16, 2), np.int32)
    tokens, positions = shape * np.array(prompt, np.int32)[None, :], shape.cumsum(axis=1) - 1

    def hit_rate(model):
        logits = model.logits(model.hidden_states(tokens[:1], positions[:1], shape[:1]))
        return float(jnp.sum(jax.nn.softmax(logits[0, 1])[::2]))

    before = hit_rate(learner.policy.params)
    for i in range(40):
        drawn = sample(learner.policy.params, tokens, positions, shape, jax.random.key(i))
        groups = [
            Group(
                Prompt(g, prompt),
                tuple(Sample((int(t), EOS), float(t % 2 == 0)) for t in drawn[4 * g : 4 * g + 4]),
            )
            for g in range(4)
        ]
        batch = rollouts.to_batch(
            groups, max_prompt_tokens=2, max_response_tokens=2, pad_id=0, eos_ids=(EOS,)
        )
        batch = batch._replace(old_logprob_BT=score(learner.policy.params, batch))
        learner, _, _ = step(rl, learner, params() if rl.prm else None, batch)
    after = hit_rate(learner.policy.params)
    assert before < 0.6 and after > 0.9, (before, after)
