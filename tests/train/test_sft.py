"""The masked loss, its micro-batches, and that it learns."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxmath.data.batches import SftBatch
from jaxmath.model import lora, qwen2
from jaxmath.model.config import ModelConfig
from jaxmath.model.lora import LoraConfig
from jaxmath.train import optimizer, sft, state
from jaxmath.train.optimizer import OptimizerConfig

TINY = ModelConfig(48, 2, 32, 48, 4, 2, 8, dtype="float32")


@pytest.fixture(scope="module")
def model():
    return qwen2.Qwen2(TINY, jax.random.key(0))


def ragged_batch(seed=0, rows=8, length=20):
    """Rows of unequal length; the first third of each row is a prompt."""
    rng = np.random.default_rng(seed)
    tokens_BT = rng.integers(2, TINY.vocab_size, (rows, length)).astype(np.int32)
    lengths = rng.integers(6, length + 1, rows)
    segment_ids_BT = (np.arange(length)[None, :] < lengths[:, None]).astype(np.int32)
    positions_BT = np.arange(length, dtype=np.int32)[None, :] * segment_ids_BT
    weights_BT = segment_ids_BT * (np.arange(length)[None, :] >= lengths[:, None] // 3)
    return SftBatch(
        tokens_BT * segment_ids_BT, positions_BT, segment_ids_BT, weights_BT.astype(np.float32)
    )


def adamw(**options):
    return optimizer.make_optimizer(OptimizerConfig(**{"learning_rate": 1e-2} | options), 100)


def step_fn(optimizer_, num_microbatches=1):
    return jax.jit(
        functools.partial(sft.sft_step, optimizer=optimizer_, num_microbatches=num_microbatches)
    )


def worst(a, b):
    pairs = zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True)
    return max(float(jnp.max(jnp.abs(x - y))) for x, y in pairs)


def test_loss_is_the_weighted_mean_of_the_negative_log_likelihood(model):
    batch = ragged_batch()
    hidden_BTD = model.hidden_states(*batch[:3])
    logprob_BTV = jax.nn.log_softmax(model.logits(hidden_BTD), axis=-1)
    nll = -np.take_along_axis(
        np.asarray(logprob_BTV)[:, :-1], batch.tokens_BT[:, 1:, None], axis=-1
    )[:, :, 0]
    weights = batch.loss_weights_BT[:, 1:]
    expected = (nll * weights).sum() / weights.sum()
    np.testing.assert_allclose(sft.eval_loss(model, batch).value(), expected, rtol=1e-5)
    optimizer_ = adamw()
    _, metrics = step_fn(optimizer_)(state.create(model, optimizer_), batch)
    np.testing.assert_allclose(metrics["sft/loss"].value(), expected, rtol=1e-5)
    assert float(metrics["sft/num_tokens"]) == weights.sum()


@pytest.mark.parametrize("num_microbatches", [2, 4, 8])
def test_micro_batches_of_unequal_token_counts_equal_one_batch(model, num_microbatches):
    batch = ragged_batch()
    optimizer_ = adamw(weight_decay=0.1)
    start = state.create(model, optimizer_)
    whole, whole_metrics = step_fn(optimizer_)(start, batch)
    parts, parts_metrics = step_fn(optimizer_, num_microbatches)(start, batch)
    loss, norm = "sft/loss", "sft/grad_norm"
    np.testing.assert_allclose(parts_metrics[loss].value(), whole_metrics[loss].value(), rtol=1e-6)
    np.testing.assert_allclose(parts_metrics[norm], whole_metrics[norm], rtol=1e-5)
    # Moments, not parameters: Adam's first step is lr · sign(g), where g is zero up to rounding.
    assert worst(whole.opt_state, parts.opt_state) < 1e-6
    assert worst(start.params, parts.params) > 1e-3
    np.testing.assert_allclose(
        sft.eval_loss(model, batch, num_microbatches=num_microbatches).value(),
        sft.eval_loss(model, batch).value(),
        rtol=1e-6,
    )


def test_micro_batches_must_divide_the_batch(model):
    optimizer_ = adamw()
    with pytest.raises(ValueError, match="num_microbatches is 3"):
        step_fn(optimizer_, 3)(state.create(model, optimizer_), ragged_batch())


def test_packed_sequences_have_the_loss_of_separate_ones(model):
    separate = ragged_batch(rows=2, length=12)
    first, second = (int(n) for n in separate.segment_ids_BT.sum(axis=1))

    def join(field):
        values = getattr(separate, field)
        row = np.concatenate([values[0, :first], values[1, :second]])
        return np.pad(row, (0, 24 - len(row)))[None, :]

    packed = SftBatch(*(join(field) for field in SftBatch._fields))
    packed.segment_ids_BT[0, first : first + second] = 2
    losses = [sft.eval_loss(model, batch) for batch in (separate, packed)]
    np.testing.assert_allclose(losses[0].value(), losses[1].value(), rtol=1e-6)
    assert float(losses[0].count) == float(losses[1].count)


def test_padding_and_prompt_targets_do_not_move_the_loss(model):
    batch = ragged_batch()
    noise = np.random.default_rng(1).integers(2, TINY.vocab_size, batch.tokens_BT.shape)
    other = batch._replace(tokens_BT=np.where(batch.segment_ids_BT, batch.tokens_BT, noise))
    wider = SftBatch(*(np.pad(x, ((0, 0), (0, 5))) for x in batch))
    expected = sft.eval_loss(model, batch).value()
    for changed in (other, wider):
        np.testing.assert_allclose(sft.eval_loss(model, changed).value(), expected, rtol=1e-6)


def test_sequence_weights_give_the_mean_of_sequence_means(model):
    batch = ragged_batch()
    counts = batch.loss_weights_BT.sum(axis=1, keepdims=True)
    weighted = batch._replace(loss_weights_BT=batch.loss_weights_BT / counts)
    singles = [
        sft.eval_loss(model, SftBatch(*(x[i : i + 1] for x in batch))).value()
        for i in range(len(counts))
    ]
    np.testing.assert_allclose(sft.eval_loss(model, weighted).value(), np.mean(singles), rtol=1e-6)
    assert abs(sft.eval_loss(model, batch).value() - np.mean(singles)) > 1e-4


def test_a_batch_that_is_not_finite_changes_nothing_but_the_counters(model):
    optimizer_ = adamw()
    start = state.create(model, optimizer_)
    batch = ragged_batch()
    batch.loss_weights_BT[0, 7] = np.inf
    after, metrics = step_fn(optimizer_)(start, batch)
    assert float(metrics["sft/skipped_updates"]) == 1.0 and int(after.step) == 1
    assert worst(start.params, after.params) == 0.0
    assert worst(start.opt_state, after.opt_state) == 0.0
    assert float(metrics["sft/loss"].count) == 0.0  # does not poison an average over steps


def test_eight_examples_overfit(model):
    optimizer_ = adamw()
    step, batch = step_fn(optimizer_, 2), ragged_batch()
    trained, losses = state.create(model, optimizer_), []
    for _ in range(80):
        trained, metrics = step(trained, batch)
        losses.append(metrics["sft/loss"].value())
    assert losses[0] > 3.5 and losses[-1] < 0.05
    assert step._cache_size() == 1  # equal shapes compile once


def test_bf16_compute_keeps_f32_masters_and_gradients():
    model = qwen2.Qwen2(ModelConfig(48, 2, 32, 48, 4, 2, 8, dtype="bfloat16"), jax.random.key(0))
    optimizer_ = adamw(learning_rate=1e-6)
    after, _ = step_fn(optimizer_, 2)(state.create(model, optimizer_), ragged_batch())
    for leaf in jax.tree.leaves((after.params, after.opt_state[1].mu, after.opt_state[1].nu)):
        assert leaf.dtype == jnp.float32
    moved = [
        bool(jnp.any(a != b))
        for a, b in zip(jax.tree.leaves(model), jax.tree.leaves(after.params), strict=True)
    ]
    assert all(moved)  # a bf16 weight of 0.02 would round an update of 1e-6 away


def test_adapters_alone_are_trained_and_learn(model):
    config = LoraConfig(rank=4, alpha=16.0)
    optimizer_ = adamw(learning_rate=2e-2)
    adapters = lora.init(config, TINY, jax.random.key(1))
    # A head that is frozen near zero could not say anything for certain.
    base = jax.tree.map(jnp.copy, model)
    base.head_DV = model.head_DV.replace(20.0 * model.head_DV[...])
    step = jax.jit(
        functools.partial(sft.sft_step, optimizer=optimizer_, num_microbatches=2, lora=config)
    )
    trained, batch, losses = state.create(adapters, optimizer_), ragged_batch(), []
    for _ in range(60):
        trained, metrics = step(trained, batch, base)
        losses.append(metrics["sft/loss"].value())
    np.testing.assert_allclose(losses[0], sft.eval_loss(base, batch).value(), rtol=1e-5)
    assert losses[-1] < 0.3 * losses[0]
    merged = lora.merge(base, trained.params, config)
    last = step(trained, batch, base)[1]
    np.testing.assert_allclose(
        sft.eval_loss(merged, batch).value(), last["sft/loss"].value(), rtol=1e-4
    )
    num_adapters = sum(x.size for x in jax.tree.leaves(adapters))
    assert num_adapters == 2 * 4 * (2 * (32 + 32) + 2 * (32 + 16) + 3 * (32 + 48))
    moments = sum(x.size for x in jax.tree.leaves(trained.opt_state))
    assert moments == 2 * num_adapters + 1  # and Adam's count


@pytest.mark.nightly
def test_dropout_does_not_depend_on_the_number_of_micro_batches(model):
    config = LoraConfig(rank=4, dropout=0.5)
    optimizer_ = adamw()
    adapters = jax.tree.map(lambda x: x + 0.1, lora.init(config, TINY, jax.random.key(1)))

    def step(num_microbatches, step=0):
        start = state.create(adapters, optimizer_)
        start = state.TrainState(jnp.int32(step), start.params, start.opt_state)
        run = functools.partial(
            sft.sft_step, optimizer=optimizer_, num_microbatches=num_microbatches, lora=config
        )
        return float(jax.jit(run)(start, ragged_batch(), model)[1]["sft/loss"].value())

    np.testing.assert_allclose(step(4), step(1), rtol=1e-5)
    assert abs(step(1, step=1) - step(1)) > 1e-3  # each step has its own
