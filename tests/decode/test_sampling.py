"""Sampling against a plain NumPy account of the same distributions."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxmath.decode import sampling
from jaxmath.decode.sampling import SamplingConfig

FILTERS = [
    {"temperature": 1.0},
    {"temperature": 0.6},
    {"temperature": 1.0, "top_k": 5},
    {"temperature": 1.0, "top_k": 1000},
    {"temperature": 1.0, "top_p": 0.7},
    {"temperature": 1.3, "top_k": 6, "top_p": 0.8},
    {"temperature": 1.0, "top_p": 1e-6},
]


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


def draws(logits_V, config, count):
    logits_BV = jnp.broadcast_to(jnp.asarray(logits_V, jnp.float32), (count, len(logits_V)))
    keys_B = jax.vmap(jax.random.fold_in, (None, 0))(jax.random.key(3), jnp.arange(count))
    token_B, logprob_B = jax.jit(sampling.sample, static_argnums=2)(logits_BV, keys_B, config)
    return np.asarray(token_B), np.asarray(logprob_B)


@pytest.mark.parametrize("fields", FILTERS, ids=str)
def test_frequencies_and_logprobs_are_those_of_the_filtered_distribution(fields):
    config = SamplingConfig(**fields)
    logits_V = np.random.default_rng(0).normal(size=17).astype(np.float32) * 2
    prob_V = plain_distribution(logits_V, config)
    count = 20_000
    token_B, logprob_B = draws(logits_V, config, count)

    assert np.all(prob_V[token_B] > 0), "a token outside the filter was drawn"
    np.testing.assert_allclose(logprob_B, np.log(prob_V[token_B]), atol=2e-6)
    share_V = np.bincount(token_B, minlength=17) / count
    five_sigma_V = 5 * np.sqrt(prob_V * (1 - prob_V) / count)
    assert np.all(np.abs(share_V - prob_V) <= five_sigma_V + 1e-9)


def test_greedy_takes_the_largest_logit_and_reports_its_untempered_logprob():
    logits_V = np.asarray([0.5, 2.0, -1.0, 1.9], np.float32)
    token_B, logprob_B = draws(logits_V, SamplingConfig(temperature=0), 3)
    assert token_B.tolist() == [1, 1, 1]
    expected = 2.0 - np.log(np.exp(logits_V.astype(np.float64)).sum())
    np.testing.assert_allclose(logprob_B, expected, atol=1e-6)


def test_a_row_depends_on_its_own_key_and_logits_only():
    logits_BV = jax.random.normal(jax.random.key(0), (6, 40))
    keys_B = jax.vmap(jax.random.fold_in, (None, 0))(jax.random.key(1), jnp.arange(6))
    config = SamplingConfig(top_p=0.9)
    together, _ = sampling.sample(logits_BV, keys_B, config)
    for row in range(6):
        alone, _ = sampling.sample(logits_BV[row : row + 1], keys_B[row : row + 1], config)
        assert alone[0] == together[row]


def test_a_plain_draw_does_not_sort_the_vocabulary():
    logits_BV, keys_B = jnp.zeros((2, 40)), jax.random.split(jax.random.key(0), 2)

    def program(config):
        return str(jax.make_jaxpr(lambda x, k: sampling.sample(x, k, config))(logits_BV, keys_B))

    for config in (
        SamplingConfig(),
        SamplingConfig(temperature=0.5),
        SamplingConfig(temperature=0),
    ):
        assert "sort[" not in program(config) and "top_k[" not in program(config)
    assert "top_k[" in program(SamplingConfig(top_p=0.9))


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
    ],
)
def test_impossible_settings_are_refused_by_name(fields, word):
    with pytest.raises(ValueError, match=word):
        SamplingConfig(**fields)
