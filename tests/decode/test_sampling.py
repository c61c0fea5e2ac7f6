"""Sampling against a plain NumPy account of the same distributions, and against transformers."""

import dataclasses
import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from jax.sharding import NamedSharding, PartitionSpec
from scipy import stats
from transformers.generation import logits_process

from jaxmath import sharding
from jaxmath.decode import sampling
from jaxmath.decode.sampling import Features, SamplingConfig

FILTERS = [
    {"temperature": 1.0},
    {"temperature": 0.6},
    {"temperature": 1.0, "top_k": 5},
    {"temperature": 1.0, "top_k": 1000},
    {"temperature": 1.0, "top_p": 0.7},
    {"temperature": 1.3, "top_k": 6, "top_p": 0.8},
    {"temperature": 1.0, "top_p": 1e-6},
]
ENDS = np.asarray([0, 1, 2**31, 2**32 - 2, 2**32 - 1], np.uint32)
END_PAIRS = np.stack(np.meshgrid(ENDS, ENDS), -1).reshape(-1, 2)  # B2
STOPS = (2, 5)


@functools.partial(jax.jit, static_argnames=("features", "stop_ids"))
def _sample(logits_BV, bits_B2, params, num_tokens_B, seen_BV, features, stop_ids):
    return sampling.sample(
        logits_BV,
        bits_B2,
        params,
        features,
        num_tokens_B=num_tokens_B,
        stop_ids=stop_ids,
        seen_BV=seen_BV,
    )


def sample(logits_BV, bits_B2, configs, features=None, num_tokens=0, seen_BV=None, stop_ids=STOPS):
    """token_B, logprob_B, untempered_B of NumPy arrays; one config per row."""
    features = features or Features.of(*configs)
    logits_BV = np.asarray(logits_BV, np.float32)
    if seen_BV is None:
        seen_BV = np.zeros(logits_BV.shape, bool)
    num_tokens_B = np.broadcast_to(np.int32(num_tokens), len(configs))
    params = sampling.params_of(configs, features)
    args = logits_BV, np.asarray(bits_B2, np.uint32), params, num_tokens_B, seen_BV
    return jax.tree.map(np.asarray, _sample(*args, features=features, stop_ids=stop_ids))


def random_bits(count, seed=0):
    return np.random.default_rng(seed).integers(0, 2**32, (count, 2), np.uint32)


def repeated(logits_V, config, bits_B2, **options):
    """One distribution, many draws."""
    logits_BV = np.broadcast_to(np.float32(logits_V), (len(bits_B2), len(logits_V)))
    return sample(logits_BV, bits_B2, [config] * len(bits_B2), **options)


def log_softmax(score_V):
    shifted = np.asarray(score_V, np.float64) - np.max(score_V)
    return shifted - np.log(np.exp(shifted).sum())


def plain_distribution(logits_V: np.ndarray, config: SamplingConfig) -> np.ndarray:
    """Temperature, then top k, then top p, one token at a time; f64."""
    score = np.asarray(logits_V, np.float64) / config.temperature
    order = list(np.argsort(-score, kind="stable"))
    if config.top_k:
        order = order[: config.top_k]
    weight = np.exp(score - score.max())
    total = sum(weight[i] for i in order)
    kept, reached = [], 0.0
    for i in order:
        if reached >= config.top_p:
            break
        kept.append(i)
        reached += weight[i] / total
    prob_V = np.zeros_like(score)
    prob_V[kept] = weight[kept]
    return prob_V / prob_V.sum()


# --- the distribution -------------------------------------------------------------------------


@pytest.mark.parametrize("vocab_size", [17, 300])
@pytest.mark.parametrize("fields", FILTERS, ids=str)
def test_frequencies_and_logprobs_are_those_of_the_filtered_distribution(fields, vocab_size):
    config = SamplingConfig(**fields)
    logits_V = np.random.default_rng(0).normal(size=vocab_size).astype(np.float32) * 2
    prob_V = plain_distribution(logits_V, config)
    count = 20_000
    token_B, logprob_B, _ = repeated(logits_V, config, random_bits(count))

    assert np.all(prob_V[token_B] > 0), "a token outside the filter was drawn"
    np.testing.assert_allclose(logprob_B, np.log(prob_V[token_B]), atol=2e-6)
    seen_V = np.bincount(token_B, minlength=vocab_size)
    usual = prob_V * count >= 5  # the rarest together, as the test of Pearson asks for
    seen, expected = (np.append(x[usual], x[~usual].sum()) for x in (seen_V, prob_V * count))
    some = expected > 0
    assert seen[~some].sum() == 0
    if some.sum() > 1:
        assert stats.chisquare(seen[some], expected[some]).pvalue > 1e-3


def test_frequencies_are_right_across_a_vocabulary_of_many_blocks():
    vocab_size, rounds, count = 5003, 10, 4000
    logits_V = np.random.default_rng(0).normal(size=vocab_size).astype(np.float32)
    found = [
        repeated(logits_V, SamplingConfig(), random_bits(count, seed))[0] for seed in range(rounds)
    ]
    seen_V = np.bincount(np.concatenate(found), minlength=vocab_size)
    expected_V = np.exp(log_softmax(logits_V)) * rounds * count
    order = np.argsort(expected_V)
    groups = np.add.reduceat(order * 0 + seen_V[order], np.arange(0, vocab_size, 25))
    expected = np.add.reduceat(expected_V[order], np.arange(0, vocab_size, 25))
    assert stats.chisquare(groups, expected).pvalue > 1e-3
    # And by the place in the vocabulary: no block is favoured.
    places = [np.add.reduceat(x, np.arange(0, vocab_size, 40)) for x in (seen_V, expected_V)]
    assert stats.chisquare(*places).pvalue > 1e-3


@pytest.mark.parametrize("vocab_size", [5, 128, 131, 4096])
def test_a_banned_token_is_not_drawn_at_the_ends_of_the_range_either(vocab_size):
    banned = [0, 1, vocab_size - 1]
    config = SamplingConfig(logit_bias=tuple((token, -100.0) for token in banned))
    logits_V = np.zeros(vocab_size)
    logits_V[banned] = 50
    token_B, logprob_B, _ = repeated(logits_V, config, END_PAIRS)
    assert not set(banned) & set(token_B.tolist())
    np.testing.assert_allclose(logprob_B, -np.log(vocab_size - 3), atol=1e-6)


@pytest.mark.parametrize("fields", [{"top_k": 3}, {"top_p": 0.5}, {"top_k": 40, "top_p": 0.01}])
def test_a_filtered_token_is_not_drawn_at_the_ends_of_the_range_either(fields):
    config = SamplingConfig(**fields)
    logits_V = np.random.default_rng(0).normal(size=5003).astype(np.float32) * 3
    token_B, *_ = repeated(logits_V, config, np.concatenate([END_PAIRS, random_bits(500)]))
    assert np.all(plain_distribution(logits_V, config)[token_B] > 0)


@pytest.mark.parametrize("temperature", [1e-45, 1e-30, 1e-4, 1e4, 1e30])
def test_extreme_temperatures_give_tokens_and_finite_logprobs(temperature):
    logits_V = np.random.default_rng(0).normal(size=200).astype(np.float32) * 20
    config = SamplingConfig(temperature=temperature, logit_bias=((3, -100.0),))
    token_B, logprob_B, _ = repeated(logits_V, config, random_bits(64))
    if temperature < 1:
        assert set(token_B.tolist()) == {np.argmax(logits_V)}
    else:
        assert 3 not in token_B
        np.testing.assert_allclose(logprob_B, -np.log(199), atol=1e-2)
    assert np.all(np.isfinite(logprob_B))


def test_greedy_takes_the_largest_logit_and_reports_its_untempered_logprob():
    logits_V = np.asarray([0.5, 2.0, -1.0, 1.9], np.float32)
    token_B, logprob_B, _ = repeated(logits_V, SamplingConfig(temperature=0), random_bits(3))
    assert token_B.tolist() == [1, 1, 1]
    np.testing.assert_allclose(logprob_B, log_softmax(logits_V)[1], atol=1e-6)


def test_greedy_takes_the_first_of_equal_logits_in_any_program():
    logits_BV = np.random.default_rng(0).integers(0, 12, (64, 1000)).astype(np.float32)
    configs = [SamplingConfig(temperature=0)] * 64
    for features in (Features.of(*configs), Features.every()):
        token_B, *_ = sample(logits_BV, random_bits(64), configs, features)
        assert np.array_equal(token_B, np.argmax(logits_BV, axis=-1))


# --- what is done to the logits ---------------------------------------------------------------


def test_the_repetition_penalty_is_that_of_transformers():
    rng = np.random.default_rng(0)
    logits_BV = rng.normal(size=(6, 50)).astype(np.float32) * 3
    ids_BT = rng.integers(0, 50, (6, 12))
    seen_BV = np.zeros((6, 50), bool)
    np.put_along_axis(seen_BV, ids_BT, True, axis=1)
    for penalty in (1.3, 0.8):
        processor = logits_process.RepetitionPenaltyLogitsProcessor(penalty)
        score_BV = processor(torch.from_numpy(ids_BT), torch.from_numpy(logits_BV)).numpy()
        config = SamplingConfig(repetition_penalty=penalty)
        token_B, logprob_B, _ = sample(logits_BV, random_bits(6), [config] * 6, seen_BV=seen_BV)
        expected_B = [log_softmax(row_V)[t] for row_V, t in zip(score_BV, token_B, strict=True)]
        np.testing.assert_allclose(logprob_B, expected_B, atol=2e-6)


def test_a_bias_is_added_to_the_logits_before_the_temperature():
    logits_V = np.random.default_rng(0).normal(size=40).astype(np.float32)
    bias = ((3, 2.5), (39, -1.0), (0, 4.0))
    biased_V = logits_V.copy()
    for token, value in bias:
        biased_V[token] += value
    config = SamplingConfig(logit_bias=bias, temperature=0.5)
    token_B, logprob_B, _ = repeated(logits_V, config, random_bits(200))
    np.testing.assert_allclose(logprob_B, log_softmax(biased_V / 0.5)[token_B], atol=2e-6)


@pytest.mark.parametrize("fields", [{}, {"temperature": 0}, {"top_k": 2}, {"top_p": 0.5}], ids=str)
def test_stop_ids_are_masked_until_the_response_has_min_tokens(fields):
    config = SamplingConfig(min_tokens=3, **fields)
    logits_V = np.zeros(30)
    logits_V[list(STOPS)] = 9
    for num_tokens in range(5):
        options = {"num_tokens": num_tokens, "stop_ids": STOPS}
        token_B, logprob_B, _ = repeated(logits_V, config, random_bits(50), **options)
        assert np.all(np.isin(token_B, STOPS)) == (num_tokens >= 3)
        assert np.any(np.isin(token_B, STOPS)) == (num_tokens >= 3)
        assert np.all(logprob_B > np.log(1 / 29))  # of what is left, renormalised


def test_untempered_logprobs_are_those_of_the_logits_as_they_are():
    logits_V = np.random.default_rng(0).normal(size=60).astype(np.float32) * 2
    plain = {"untempered_logprobs": True}
    changed = {"repetition_penalty": 2.0, "logit_bias": ((1, 3.0),), "min_tokens": 4, "top_p": 0.5}
    for fields in ({}, {"temperature": 0.3}, {"temperature": 0.3, **changed}):
        config = SamplingConfig(**plain, **fields)
        seen_BV = np.ones((100, 60), bool)
        token_B, _, untempered_B = repeated(logits_V, config, random_bits(100), seen_BV=seen_BV)
        np.testing.assert_allclose(untempered_B, log_softmax(logits_V)[token_B], atol=2e-6)
    assert repeated(logits_V, SamplingConfig(), random_bits(2))[2] is None


# --- rows and programs ------------------------------------------------------------------------

MIXED = [
    SamplingConfig(),
    SamplingConfig(temperature=0),
    SamplingConfig(temperature=0.7, top_k=20),
    SamplingConfig(top_p=0.9),
    SamplingConfig(temperature=1.5, top_k=300, top_p=0.8),
    SamplingConfig(repetition_penalty=1.4),
    SamplingConfig(logit_bias=((7, 5.0), (8, -100.0))),
    SamplingConfig(min_tokens=9),
]


def mixed_batch(vocab_size):
    rng = np.random.default_rng(vocab_size)
    configs = MIXED * 4
    logits_BV = rng.normal(size=(len(configs), vocab_size)).astype(np.float32) * 4
    seen_BV = rng.uniform(size=logits_BV.shape) < 0.1
    return logits_BV, random_bits(len(configs)), configs, seen_BV


@pytest.mark.parametrize("vocab_size", [301, 4096, 6007])
def test_a_row_depends_on_its_own_bits_logits_and_params(vocab_size):
    logits_BV, bits_B2, configs, seen_BV = mixed_batch(vocab_size)

    def some(rows):
        chosen, every = [configs[row] for row in rows], Features.every()
        return sample(logits_BV[rows], bits_B2[rows], chosen, every, seen_BV=seen_BV[rows])

    rows = list(range(len(configs)))
    together = some(rows)
    order = np.random.default_rng(0).permutation(rows)
    for shuffled_B, all_B in zip(some(order), together, strict=True):
        assert np.array_equal(shuffled_B, all_B[order])  # bit for bit
    for few in (order[:5], order[:1]):  # another shape, and so another order of the sums
        token_B, logprob_B, untempered_B = some(few)
        assert np.array_equal(token_B, together[0][few])
        np.testing.assert_allclose(logprob_B, together[1][few], atol=2e-6)
        np.testing.assert_allclose(untempered_B, together[2][few], atol=2e-6)


def test_a_program_for_one_config_and_a_program_for_any_give_the_same_sample():
    logits_BV, bits_B2, configs, seen_BV = mixed_batch(6007)
    token_B, logprob_B, _ = sample(logits_BV, bits_B2, configs, Features.every(), seen_BV=seen_BV)
    for config in MIXED:
        rows = [row for row, other in enumerate(configs) if other == config]
        chosen = [config] * len(rows)
        alone = sample(logits_BV[rows], bits_B2[rows], chosen, seen_BV=seen_BV[rows])
        assert np.array_equal(alone[0], token_B[rows])
        np.testing.assert_allclose(alone[1], logprob_B[rows], atol=2e-6)


def test_a_row_of_nan_spoils_no_other_and_gives_a_token_of_the_vocabulary():
    logits_BV, bits_B2, configs, _ = mixed_batch(301)
    clean = sample(logits_BV, bits_B2, configs, Features.every())
    logits_BV[4] = np.nan
    spoilt = sample(logits_BV, bits_B2, configs, Features.every())
    assert 0 <= spoilt[0][4] < 301 and not np.isfinite(spoilt[1][4])
    for a_B, b_B in zip(clean, spoilt, strict=True):
        assert np.array_equal(np.delete(a_B, 4), np.delete(b_B, 4))


@pytest.mark.parametrize("axes", [{"tensor": 8, "fsdp": 1}, {"data": 2, "fsdp": 1, "tensor": 4}])
def test_a_vocabulary_split_over_devices_is_sampled_where_it_lies(axes):
    vocab_size = 16 * 1187  # like Qwen's: a prime number of blocks of any power of two
    logits_BV, bits_B2, configs, seen_BV = mixed_batch(vocab_size)
    for features in (Features.of(SamplingConfig()), Features.every()):
        chosen = configs if features.filters else [SamplingConfig()] * len(configs)
        params = sampling.params_of(chosen, features)
        mesh = sharding.make_mesh(sharding.MeshConfig(**axes))
        by_row = NamedSharding(mesh, PartitionSpec("data"))
        by_token = NamedSharding(mesh, PartitionSpec("data", "tensor"))
        num_tokens_B = np.zeros(len(configs), np.int32)
        rows = jax.device_put((bits_B2, params, num_tokens_B, seen_BV), by_row)
        args = jax.device_put(logits_BV, by_token), *rows
        run = _sample.lower(*args, features=features, stop_ids=STOPS).compile()
        token_B, logprob_B, _ = run(*args)
        expected_B, expected_logprob_B, _ = sample(
            logits_BV, bits_B2, chosen, features, seen_BV=seen_BV
        )
        assert np.array_equal(token_B, expected_B)
        np.testing.assert_allclose(logprob_B, expected_logprob_B, atol=5e-6)
        moved = re.findall(r"= \w+\[([\d,]+)\]\S* (?:all-|collective-|reduce-sc)", run.as_text())
        largest = max(np.prod([int(n) for n in shape.split(",")]) for shape in moved)
        assert moved and largest < logits_BV.size / axes.get("data", 1) / 4


def test_a_plain_program_neither_sorts_nor_looks_for_thresholds():
    def program(config):
        params = sampling.params_of([config] * 2, Features.of(config))
        args = jnp.zeros((2, 40)), jnp.zeros((2, 2), jnp.uint32), params, jnp.zeros(2, jnp.int32)
        run = functools.partial(_sample, features=Features.of(config), stop_ids=STOPS)
        return str(jax.make_jaxpr(lambda *args: run(*args, None))(*args))

    for fields in ({}, {"temperature": 0.5}, {"temperature": 0.0}):
        text = program(SamplingConfig(**fields))
        assert not any(word in text for word in ("sort[", "top_k[", "cond[", "while[", "scan["))
    assert "cond[" in program(SamplingConfig(top_p=0.9))


# --- configuration ----------------------------------------------------------------------------


def test_features_are_the_union_of_what_the_configs_ask_for():
    assert Features.of(SamplingConfig()) == Features(*[False] * 6)
    greedy = SamplingConfig(temperature=0)
    assert Features.of(greedy).greedy_only
    assert not Features.of(greedy, SamplingConfig()).greedy_only
    needed = dataclasses.asdict(Features.of(*MIXED, SamplingConfig(untempered_logprobs=True)))
    assert needed == dataclasses.asdict(Features.every())


def test_params_are_one_row_per_config():
    configs = [SamplingConfig(logit_bias=((9, -250.0), (4, 1.5))), SamplingConfig(top_k=2**40)]
    params = sampling.params_of(configs, Features.every())
    assert params.bias_BM.shape == params.bias_id_BM.shape == (2, sampling.MAX_BIASES)
    assert params.bias_id_BM[0, :2].tolist() == [9, 4]
    assert params.bias_BM[0, :2].tolist() == [np.float32(sampling.BANNED), 1.5]
    assert params.top_k_B.tolist() == [0, 2**31 - 1]
    narrow = sampling.params_of([SamplingConfig()], Features.of(SamplingConfig()))
    assert narrow.bias_BM.shape == (1, 0)


@pytest.mark.parametrize(
    "fields, word",
    [
        ({"temperature": -1.0}, "temperature"),
        ({"temperature": float("nan")}, "temperature"),
        ({"top_k": -1}, "top_k"),
        ({"top_p": 0.0}, "top_p"),
        ({"top_p": 1.1}, "top_p"),
        ({"temperature": 0.0, "top_k": 5}, "greedy"),
        ({"max_tokens": 0}, "max_tokens"),
        ({"seed": -1}, "seed"),
        ({"min_tokens": -1}, "min_tokens"),
        ({"min_tokens": 9, "max_tokens": 8}, "max_tokens"),
        ({"repetition_penalty": 0.0}, "repetition_penalty"),
        ({"repetition_penalty": float("nan")}, "repetition_penalty"),
        ({"logit_bias": ((5, 1.0), (5, 2.0))}, "token 5 twice"),
        ({"logit_bias": ((-1, 1.0),)}, "logit_bias"),
        ({"logit_bias": ((1, float("inf")),)}, "logit_bias"),
        ({"logit_bias": tuple((i, 1.0) for i in range(65))}, "at most 64"),
        ({"stop": ("\n", "")}, "stop"),
    ],
)
def test_impossible_settings_are_refused_by_name(fields, word):
    with pytest.raises(ValueError, match=word):
        SamplingConfig(**fields)
