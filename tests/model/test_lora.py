"""Adapters: nothing at first, the same attached and merged, and the only thing with a gradient."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxmath.model import lora, qwen2
from jaxmath.model.config import ModelConfig
from jaxmath.model.lora import LoraConfig

TINY = ModelConfig(48, 2, 32, 48, 4, 2, 8, dtype="float32", remat="none")
ALL = LoraConfig(rank=3, alpha=6.0)


@pytest.fixture(scope="module")
def model():
    return qwen2.Qwen2(TINY, jax.random.key(0))


def trained(config, seed=1):
    """Adapters as after some updates: B is not zero."""
    adapters = lora.init(config, TINY, jax.random.key(seed))
    noise = iter(jax.random.split(jax.random.key(seed + 1), 100))
    for pair in adapters["layers"].values():
        b = pair["b"]
        pair["b"] = b.replace(0.1 * jax.random.normal(next(noise), b[...].shape))
    return adapters


@jax.jit
def logprobs(model, tokens_BT):
    positions_BT = jnp.broadcast_to(jnp.arange(tokens_BT.shape[1])[None], tokens_BT.shape)
    return model.token_logprobs(tokens_BT, positions_BT, jnp.ones_like(tokens_BT))


TOKENS_BT = np.random.default_rng(0).integers(1, 48, (4, 10)).astype(np.int32)


def test_fresh_adapters_change_nothing(model):
    adapters = lora.init(ALL, TINY, jax.random.key(1))
    attached = lora.attach(model, adapters, ALL)
    np.testing.assert_array_equal(logprobs(attached, TOKENS_BT), logprobs(model, TOKENS_BT))
    a_LDR = np.asarray(adapters["layers"]["wq_DNH"]["a"][...])
    assert a_LDR.shape == (2, 32, 3) and 0.9 / 32**0.5 < np.abs(a_LDR).max() <= 1 / 32**0.5
    assert not np.array_equal(a_LDR[0], a_LDR[1])


@pytest.mark.parametrize("targets", [tuple(lora.TARGETS), ("o_proj", "down_proj")])
def test_attached_and_merged_are_one_model(model, targets):
    config = LoraConfig(rank=3, alpha=6.0, targets=targets)
    adapters = trained(config)
    assert set(adapters["layers"]) == {lora.TARGETS[name] for name in targets}
    attached = logprobs(lora.attach(model, adapters, config), TOKENS_BT)
    merged = logprobs(lora.merge(model, adapters, config), TOKENS_BT)
    np.testing.assert_allclose(attached, merged, atol=2e-5)
    assert np.abs(np.asarray(merged - logprobs(model, TOKENS_BT))).max() > 0.01
    delta = lora.merge(model, adapters, config).layers.down_FD[...] - model.layers.down_FD[...]
    pair = adapters["layers"]["down_FD"]
    np.testing.assert_allclose(delta, 2.0 * pair["a"][...] @ pair["b"][...], atol=1e-6)


def test_the_base_has_no_gradient(model):
    adapters = trained(ALL)

    def loss(model, adapters):
        return jnp.sum(logprobs(lora.attach(model, adapters, ALL), TOKENS_BT))

    of_base, of_adapters = jax.jit(jax.grad(loss, (0, 1)))(model, adapters)
    assert not np.any(of_base.layers.wq_DNH[...]) and not np.any(of_base.layers.down_FD[...])
    assert all(np.any(np.asarray(g)) for g in jax.tree.leaves(of_adapters))

    def merged_loss(adapters):
        return jnp.sum(logprobs(lora.merge(model, adapters, ALL), TOKENS_BT))

    expected = jax.jit(jax.grad(merged_loss))(adapters)
    for ours, theirs in zip(jax.tree.leaves(of_adapters), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-3, atol=1e-4)


def test_dropout_is_of_each_row_alone_and_right_on_average(model):
    config = LoraConfig(rank=3, alpha=6.0, targets=("down_proj",), dropout=0.5)
    adapters = trained(config)
    attached = jax.jit(
        lambda seeds_B: logprobs(lora.attach(model, adapters, config, seeds_B), rows)
    )
    rows = np.repeat(TOKENS_BT[:1], 4, axis=0)
    seeds_B = jnp.array([1, 2, 1, 3], jnp.uint32)
    found = np.asarray(attached(seeds_B))
    np.testing.assert_array_equal(found[0], found[2])
    assert np.abs(found[0] - found[1]).max() > 1e-4
    many = [attached(jnp.arange(4, dtype=jnp.uint32) + 10 + 4 * k) for k in range(100)]
    whole = logprobs(lora.attach(model, adapters, config), rows)[0]
    noise = np.std(np.concatenate(many), axis=0).max()
    np.testing.assert_allclose(np.concatenate(many).mean(axis=0), whole, atol=5 * noise / 20)


@pytest.mark.parametrize(
    ("fields", "named"),
    [
        ({"rank": 0}, "rank is 0"),
        ({"alpha": 0.0}, "alpha"),
        ({"targets": ()}, "targets are none"),
        ({"targets": ("q_proj", "lm_head")}, "q_proj, lm_head; expected one or more of q_proj"),
        ({"dropout": 1.0}, "dropout"),
        ({"base_dtype": "int8"}, "float32, bfloat16 or null"),
    ],
)
def test_impossible_options_are_refused_by_name(fields, named):
    with pytest.raises(ValueError, match=named):
        LoraConfig(**fields)
