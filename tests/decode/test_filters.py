"""Top-k and top-p thresholds against the logits processors of transformers, in f64."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from transformers.generation import logits_process

from jaxmath.decode import filters

NEAR = filters.GROUP * filters.NUM_GROUPS  # vocabularies up to here need no candidates


def threshold(logits_BV, top_k, top_p, temperature=1.0):
    """threshold_B, and the distribution it leaves."""
    logits_BV = jnp.asarray(logits_BV, jnp.float32)
    top_k_B, top_p_B = jnp.asarray(top_k, jnp.int32), jnp.asarray(top_p, jnp.float32)

    def run(logits_BV, top_k_B, top_p_B):
        best_B1 = jnp.max(logits_BV, axis=-1, keepdims=True)

        def weight_of(x_BC, least_B=None):
            weight_BC = jnp.exp((x_BC - best_B1) / temperature)
            return weight_BC if least_B is None else weight_BC * (x_BC >= least_B[:, None])

        threshold_B = filters.threshold(logits_BV, top_k_B, top_p_B, weight_of)
        weight_BV = weight_of(logits_BV, threshold_B)
        return threshold_B, weight_BV / jnp.sum(weight_BV, axis=-1, keepdims=True)

    return jax.tree.map(np.asarray, jax.jit(run)(logits_BV, top_k_B, top_p_B))


def transformers_probs(logits_BV, top_k, top_p, temperature=1.0):
    rows = []
    for row_V, k, p in zip(logits_BV, top_k, top_p, strict=True):
        score_1V = torch.from_numpy(np.asarray(row_V, np.float64))[None] / temperature
        if k:
            score_1V = logits_process.TopKLogitsWarper(k)(None, score_1V)
        if p < 1:
            # As f32, which is what we are given: 0.9 is another number in f64.
            score_1V = logits_process.TopPLogitsWarper(float(np.float32(p)))(None, score_1V)
        rows.append(score_1V.softmax(-1)[0].numpy())
    return np.stack(rows)


TOP_K = [0, 50, 0, 50, 1, 0, 0, 400, 3, 5000]
TOP_P = [1, 1, 0.9, 0.9, 1, 1e-6, 0.5, 0.95, 0.3, 0.999]


@pytest.mark.parametrize("spread", [0.5, 3, 8], ids=["flat", "usual", "peaked"])
@pytest.mark.parametrize("vocab_size", [300, NEAR + 907, 32_000])
def test_kept_tokens_and_probabilities_are_those_of_transformers(vocab_size, spread):
    rng = np.random.default_rng(0)
    logits_BV = rng.normal(size=(len(TOP_K), vocab_size)).astype(np.float32) * spread - 2
    for temperature in (1.0, 0.7):
        threshold_B, prob_BV = threshold(logits_BV, TOP_K, TOP_P, temperature)
        expected_BV = transformers_probs(logits_BV, TOP_K, TOP_P, temperature)
        assert np.array_equal(logits_BV >= threshold_B[:, None], expected_BV > 0)
        np.testing.assert_allclose(prob_BV, expected_BV, atol=1e-6)


def test_rows_that_ask_for_nothing_have_no_threshold():
    logits_BV = np.random.default_rng(0).normal(size=(3, NEAR * 2))
    threshold_B, _ = threshold(logits_BV, [0, 2, 0], [1, 1, 0.5])
    assert threshold_B[0] == -np.inf and np.all(np.isfinite(threshold_B[1:]))
    assert np.all(threshold(logits_BV, [0, 0, 0], [1, 1, 1])[0] == -np.inf)


@pytest.mark.parametrize("vocab_size", [100, NEAR + 1])
def test_all_tokens_that_tie_at_the_threshold_stay(vocab_size):
    logits_1V = np.full((1, vocab_size), -50.0)
    logits_1V[0, [3, 40, 77, 99]] = [2, 1, 1, 1]
    _, by_rank_1V = threshold(logits_1V, [2], [1])
    _, by_mass_1V = threshold(logits_1V, [0], [0.6])  # the first has 0.475, the next reaches 0.65
    for prob_1V in (by_rank_1V, by_mass_1V):
        assert np.flatnonzero(prob_1V).tolist() == [3, 40, 77, 99]


@pytest.mark.parametrize("k", [NEAR - 1, NEAR + 500, NEAR * 2, 2**31 - 1])
def test_a_k_beyond_the_candidates_is_exact_too(k):
    logits_1V = np.random.default_rng(0).permutation(2 * NEAR).astype(np.float32)[None] * 1e-3
    _, prob_1V = threshold(logits_1V, [k], [1])
    assert np.count_nonzero(prob_1V) == min(k, 2 * NEAR)


@pytest.mark.parametrize("vocab_size", [100, 2 * NEAR])
def test_tokens_of_probability_zero_do_not_fill_up_k(vocab_size):
    logits_1V = np.full((1, vocab_size), -np.inf)
    logits_1V[0, :4] = [0, 1, 2, 3]
    for k, p in ((10, 1), (10, 0.99), (0, 0.99999), (2**31 - 1, 1)):
        _, prob_1V = threshold(logits_1V, [k], [p])
        np.testing.assert_allclose(prob_1V[0, :4], np.exp([0, 1, 2, 3]) / 31.19, rtol=1e-3)


def test_a_p_just_below_one_keeps_what_the_rounding_cannot_tell_apart():
    logits_BV = np.random.default_rng(0).normal(size=(2, 2 * NEAR)).astype(np.float32)
    _, prob_BV = threshold(logits_BV, [0, 10], [1 - 2**-24] * 2)
    assert np.count_nonzero(prob_BV[0]) > 1.99 * NEAR
    assert np.count_nonzero(prob_BV[1]) == 10


def test_a_threshold_does_not_depend_on_what_the_neighbours_need():
    rng = np.random.default_rng(0)
    peaked_BV = rng.normal(size=(6, 2 * NEAR)) * 8
    flat_BV = rng.normal(size=(6, 2 * NEAR)) * 0.1  # needs more than the candidates
    k, p = [0, 7, 0, 9, 0, 2000], [0.9, 0.5, 0.95, 1, 0.3, 0.8]
    alone_B, _ = threshold(peaked_BV, k, p)
    among_B, _ = threshold(np.concatenate([flat_BV, peaked_BV]), k * 2, p * 2)
    assert np.array_equal(alone_B, among_B[6:])


def test_bisection_finds_every_float():
    rng = np.random.default_rng(0)
    bits = rng.integers(0, 2**32, 20_000).astype(np.uint32)
    x_B = bits.view(np.float32)
    x_B = x_B[np.isfinite(x_B) & (np.abs(x_B) >= np.finfo(np.float32).tiny)]
    x_B = np.concatenate([x_B, np.float32([0, 1, -1, 3.4e38, -3.4e38, 1e-37, -1e-37])])
    found_B = filters.bisect(lambda t_B: jnp.asarray(x_B) >= t_B, x_B.shape)
    tiny = np.finfo(np.float32).tiny  # a CPU may take what is below for 0
    assert np.all((np.asarray(found_B) == x_B) | ((x_B == 0) & (np.abs(found_B) < tiny)))


def test_the_vocabulary_is_not_sorted():
    logits_BV = jnp.zeros((2, 4 * NEAR))
    args = logits_BV, jnp.zeros(2, jnp.int32), jnp.ones(2)
    run = jax.jit(lambda x, k, p: filters.threshold(x, k, p, lambda x, _=None: jnp.exp(x)))
    # A top-k of the groups, which XLA keeps as such; a sort would cost a hundred times as much.
    assert " sort(" not in run.lower(*args).compile().as_text()
