"""Rows hold every token once, in segments; log-probabilities come back as without packing."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxmath.model import qwen2
from jaxmath.model.config import ModelConfig
from jaxmath.rl import packing, rollouts

TINY = ModelConfig(24, 1, 16, 24, 4, 2, 8, dtype="float32")


def batch(lengths, width):
    """Prompts of one token and responses of the rest."""
    rng = np.random.default_rng(0)
    groups = [
        rollouts.Group(
            rollouts.Prompt(i, (2,)),
            (rollouts.Sample(tuple(rng.integers(2, 24, length - 1).tolist()), 1.0),),
        )
        for i, length in enumerate(lengths)
    ]
    return rollouts.to_batch(
        groups, max_prompt_tokens=1, max_response_tokens=width - 1, pad_id=0, eos_ids=()
    )


LENGTHS = np.array([9, 2, 5, 3, 12, 4, 7, 2])


def planned(chosen=range(8), row_tokens=16, microbatch_rows=2, pack=True):
    shape = packing.shape_for(
        len(chosen),
        12,
        microbatch_rows=microbatch_rows,
        row_tokens=row_tokens if pack else None,
    )
    return packing.plan(LENGTHS, list(chosen), shape, width=12, pack=pack), shape


@pytest.mark.parametrize("pack", [True, False])
@pytest.mark.parametrize("chosen", [range(8), (6, 0, 3)])
def test_every_token_stands_once(pack, chosen):
    rows, shape = planned(chosen, pack=pack)
    assert rows.place_BT.shape == (shape.max_rows, shape.row_tokens)
    assert shape.max_rows % shape.microbatch_rows == 0
    places = rows.place_BT[rows.place_BT >= 0]
    expected = [12 * i + t for i in chosen for t in range(LENGTHS[i])]
    assert sorted(places) == sorted(expected)
    used = np.any(rows.place_BT >= 0, axis=1)
    num_rows = len(chosen) if rows.num_rows is None else rows.num_rows
    np.testing.assert_array_equal(used, np.arange(len(used)) < num_rows)


def test_packed_rows_are_full():
    rows, _ = planned()
    assert int(rows.num_rows) == 3  # 44 tokens in rows of 16; one response a row takes 8
    for place_T in rows.place_BT[: rows.num_rows]:
        lengths = np.unique(place_T[place_T >= 0] // 12, return_counts=True)[1]
        assert lengths.sum() <= 16


@pytest.mark.parametrize("row_tokens", [32, 33, 63, 64, 100])
def test_the_rows_of_a_shape_hold_any_responses(row_tokens):
    rng = np.random.default_rng(row_tokens)
    for num in (1, 5, 16):
        shape = packing.shape_for(num, 32, microbatch_rows=3, row_tokens=row_tokens)
        for low in (1, 15, 32):
            lengths = rng.integers(low, 33, num)
            rows = packing.plan(lengths, range(num), shape, width=32, pack=True)
            assert rows.num_rows <= shape.max_rows


def test_inputs_are_segments_with_their_own_positions():
    rollout, (rows, _) = batch(LENGTHS, 12), planned()
    tokens, positions, segments = map(np.asarray, packing.inputs(rollout, rows.place_BT))
    for place_T, tokens_T, positions_T, segments_T in zip(
        rows.place_BT, tokens, positions, segments, strict=True
    ):
        start = 0
        order = [p // 12 for p in place_T if p >= 0 and p % 12 == 0]
        for segment, i in enumerate(order, start=1):
            stop = start + LENGTHS[i]
            np.testing.assert_array_equal(tokens_T[start:stop], rollout.tokens_BT[i, : LENGTHS[i]])
            np.testing.assert_array_equal(positions_T[start:stop], np.arange(LENGTHS[i]))
            assert set(segments_T[start:stop]) == {segment}
            start = stop
        assert not np.any(segments_T[start:]) and not np.any(tokens_T[start:])


def test_numbers_go_into_rows_and_back():
    rollout, (rows, _) = batch(LENGTHS, 12), planned((6, 0, 3))
    x_BT = np.random.default_rng(1).normal(size=(8, 12)).astype(np.float32)
    there = packing.pick(x_BT, rows.place_BT)
    expected = x_BT * rollout.segment_ids_BT
    expected[[1, 2, 4, 5, 7]] = 0
    np.testing.assert_array_equal(packing.back(there, rows.place_BT, x_BT), expected)
    np.testing.assert_array_equal(packing.chosen(rollout, rows.place_BT), [1, 0, 0, 1, 0, 0, 1, 0])
    np.testing.assert_allclose(
        packing.sum_by_response(there, rollout, rows.place_BT), expected.sum(axis=1), rtol=1e-5
    )


@pytest.mark.parametrize("temperature", [1.0, 0.7])
def test_log_probabilities_are_those_of_unpacked_rows(temperature):
    rollout, (rows, shape) = batch(LENGTHS, 12), planned()
    model = qwen2.Qwen2(TINY, jax.random.key(0))
    plain = model.token_logprobs(*rollout[:3], temperature=temperature)
    packed = jax.jit(packing.logprobs, static_argnames="shape")(
        model, rollout, rows, temperature, shape=shape
    )
    np.testing.assert_allclose(packed, plain, atol=1e-5)


def test_only_micro_batches_in_use_are_summed():
    rows, shape = planned(microbatch_rows=2)
    assert shape.max_rows == 8 and int(rows.num_rows) == 3

    def fn(w, place_BT):
        return jnp.sum(w * (place_BT >= 0)), jnp.ones(())

    value, calls, grad = jax.jit(lambda w: packing.sum_and_grad(fn, w, rows, shape))(2.0)
    assert (float(value), float(calls), float(grad)) == (88.0, 2.0, 44.0)
