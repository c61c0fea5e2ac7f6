"""A PRM of adapters beside the reference: it starts as that, and only the adapters learn."""

import dataclasses

import jax
import numpy as np
import pytest

from jaxmath.model import lora, qwen2
from jaxmath.rl import prime, process_rewards
from jaxmath.train import state

from .learner import TINY, config, optimizers, params, rollout_batch, score, step

ADAPTERS = lora.LoraConfig(rank=2, alpha=4.0, targets=("q_proj", "down_proj"))


def learner(rl, model):
    both = optimizers(rl)
    adapters = lora.init(rl.prm_lora, model.config, jax.random.key(5))
    return prime.PrimeState(
        state.create(model, both["policy_optimizer"]), state.create(adapters, both["prm_optimizer"])
    )


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_fresh_adapters_are_the_reference_bit_for_bit(dtype):
    model = qwen2.Qwen2(dataclasses.replace(TINY, dtype=dtype), jax.random.key(3))
    ref = prime.reference(model, dtype)
    rl = config(prm_lora=ADAPTERS, prm_update="none", prm_zero_below=0.0)
    _, _, between = step(rl, learner(rl, model), ref, rollout_batch())
    np.testing.assert_array_equal(between.prm_logprob_BT, between.ref_logprob_BT)
    assert not np.any(np.asarray(between.process_reward_BT))
    plain_BT = score(ref, rollout_batch())
    worst = np.abs(np.asarray(between.ref_logprob_BT - plain_BT)).max()
    assert worst < (1e-5 if dtype == "float32" else 0.05)


def test_training_moves_the_adapters_and_scores_are_those_of_the_merged_model():
    rl = config(prm_lora=ADAPTERS, prm_update="before")
    batch, before = rollout_batch(), learner(rl, params())
    after, reported, between = step(rl, before, params(), batch)
    assert jax.tree.structure(after.prm.params) == jax.tree.structure(before.prm.params)
    for name in ("wq_DNH", "down_FD"):
        moved = after.prm.params["layers"][name]["b"][...]
        assert np.abs(np.asarray(moved)).max() > 1e-3
    assert reported["reward_model/grad_norm"].total > 0 and int(after.prm.step) == 4

    merged = lora.merge(params(), after.prm.params, ADAPTERS)
    np.testing.assert_allclose(between.prm_logprob_BT, score(merged, batch), atol=1e-5)
    np.testing.assert_allclose(between.ref_logprob_BT, score(params(), batch), atol=1e-5)
    assert np.abs(np.asarray(between.prm_logprob_BT - between.ref_logprob_BT)).max() > 1e-3


def test_the_first_update_descends_the_loss_of_the_merged_model():
    rl = config(prm_lora=ADAPTERS, prm_minibatch_size=16)
    batch, before = rollout_batch(), learner(rl, params())
    after, reported, _ = step(rl, before, params(), batch)
    ref_BT = score(params(), batch)

    def loss(adapters):
        merged = lora.merge(params(), adapters, ADAPTERS)
        score_BT = process_rewards.token_scores(
            score(merged, batch), ref_BT, batch.response_mask_BT
        )
        score_B = process_rewards.response_scores(score_BT)
        return process_rewards.cross_entropy(score_B, batch.outcome_reward_B, beta=rl.beta).mean()

    value, grads = jax.value_and_grad(loss)(before.prm.params)
    np.testing.assert_allclose(reported["reward_model/prm_loss"].total, value, rtol=1e-5)
    expected = (1 - rl.prm_optimizer.b1) * grads["layers"]["wq_DNH"]["b"][...]  # clip_norm is far
    moment = after.prm.opt_state[1].mu["layers"]["wq_DNH"]["b"][...]
    np.testing.assert_allclose(moment, expected, rtol=1e-4, atol=1e-8)


@pytest.mark.parametrize(
    ("fields", "says"),
    [
        ({"prm": False}, "adapters need a PRM"),
        ({"ref_type": "policy"}, "the frozen reference beside them"),
        ({"prm_lora": dataclasses.replace(ADAPTERS, dropout=0.1)}, "without dropout"),
        (
            {"prm_lora": dataclasses.replace(ADAPTERS, base_dtype="bfloat16")},
            "set the run's ref_dtype",
        ),
    ],
)
def test_what_adapters_cannot_do_is_refused(fields, says):
    with pytest.raises(ValueError, match=says):
        config(**{"prm_lora": ADAPTERS} | fields)
