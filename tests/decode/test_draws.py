"""Random bits and the inverse CDF: the right frequencies, and never an index of mass 0."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

from jaxmath.decode import draws

ENDS = (0, 1, 2, 2**31 - 1, 2**31, 2**32 - 2, 2**32 - 1)


def pick(mass_N, bits):
    """One index per random word, all from the same masses."""
    mass_N = np.asarray(mass_N, np.float32)
    bits_B = jnp.asarray(np.asarray(bits, np.uint32))
    mass_BN = jnp.broadcast_to(mass_N, (len(bits), len(mass_N)))
    return np.asarray(jax.jit(draws.pick)(mass_BN, bits_B))


def test_an_index_comes_as_often_as_its_mass_says():
    rng = np.random.default_rng(0)
    mass_N = rng.exponential(size=37).astype(np.float32) * 1e-3
    mass_N[[0, 9, 10, 36]] = 0
    count = 200_000
    index_B = pick(mass_N, rng.integers(0, 2**32, count, np.uint32))
    seen_N = np.bincount(index_B, minlength=37)
    assert seen_N[mass_N == 0].sum() == 0
    there = mass_N > 0
    expected = count * mass_N[there].astype(np.float64) / mass_N.sum(dtype=np.float64)
    assert stats.chisquare(seen_N[there], expected * (count / expected.sum())).pvalue > 1e-3


@pytest.mark.parametrize("size", [1, 2, 128, 1187])
def test_an_index_of_mass_zero_is_not_drawn_at_the_ends_of_the_range_either(size):
    rng = np.random.default_rng(size)
    for share in (0.02, 0.5, 0.98):
        mass_N = np.exp(rng.normal(size=size) * 8) * (rng.uniform(size=size) < share)
        mass_N[rng.integers(size)] = 1e-3
        spread = rng.integers(0, 2**32, 500, np.uint32).tolist()
        index_B = pick(mass_N, [*ENDS, *spread])
        assert np.all(mass_N[index_B] > 0)


def test_the_only_index_with_mass_takes_every_word():
    for at in (0, 3, 6):
        assert set(pick(np.eye(7)[at] * 1e-20, ENDS).tolist()) == {at}


def test_the_ends_of_the_range_are_the_first_and_the_last_index_with_mass():
    mass_N = [0, 0, 1, 5, 1, 0]
    assert pick(mass_N, [0, 2**32 - 1]).tolist() == [2, 4]


def test_the_product_of_two_words_is_exact_in_its_upper_half():
    rng = np.random.default_rng(0)
    words = [*ENDS, 0xFFFF, 0x10000, *rng.integers(0, 2**32, 300).tolist()]
    a, b = (x.ravel() for x in np.meshgrid(np.asarray(words, np.uint32), np.uint32(words[:40])))
    expected = [int(x) * int(y) >> 32 for x, y in zip(a, b, strict=True)]
    assert np.asarray(draws._product_high(jnp.asarray(a), jnp.asarray(b))).tolist() == expected


def words(seed, prompt_id, sample, position):
    column = lambda value, dtype: jnp.asarray([value], dtype)  # noqa: E731
    key_B = draws.row_keys(*(column(x, jnp.uint32) for x in (seed, prompt_id, sample)))
    return np.asarray(draws.bits(key_B, column(position, jnp.int32)))[0].tolist()


def test_bits_are_a_function_of_seed_prompt_sample_and_position_in_their_order():
    names = [(1, 2, 3, 4), (2, 1, 3, 4), (1, 3, 2, 4), (1, 2, 4, 3), (1, 2, 3, 5), (0, 0, 0, 0)]
    found = [tuple(words(*name)) for name in names]
    assert len(set(found)) == len(names)
    assert found == [tuple(words(*name)) for name in names]


def threefry(key, counter):
    """Threefry-2x32 with 20 rounds (Salmon et al., SC 2011), on Python's whole numbers."""
    mask = 2**32 - 1
    schedule = [*key, key[0] ^ key[1] ^ 0x1BD11BDA]
    x, y = (counter[0] + schedule[0]) & mask, (counter[1] + schedule[1]) & mask
    for group in range(5):
        for turn in ((13, 15, 26, 6), (17, 29, 16, 24))[group % 2]:
            x = (x + y) & mask
            y = ((y << turn | y >> (32 - turn)) & mask) ^ x
        x = (x + schedule[(group + 1) % 3]) & mask
        y = (y + schedule[(group + 2) % 3] + group + 1) & mask
    return x, y


@pytest.mark.parametrize("name", [(0, 0, 0, 0), (2**32 - 1, 7, 2**32 - 1, 4095)], ids=str)
def test_bits_are_threefry_of_the_position_so_they_repeat_anywhere(name):
    seed, *rest = name
    state = (0, seed)
    for word in rest:
        state = threefry(state, (0, word))
    assert words(*name) == list(state)


def test_bits_are_uniform_over_rows_and_over_positions():
    row_B, zero_B = jnp.arange(4096, dtype=jnp.uint32), jnp.zeros(4096, jnp.uint32)
    over_rows = draws.bits(draws.row_keys(zero_B, row_B, zero_B), zero_B.astype(jnp.int32))
    over_time = draws.bits(draws.row_keys(zero_B, zero_B, zero_B), row_B.astype(jnp.int32))
    for bits_B2 in (over_rows, over_time):
        for word in range(2):
            share = np.asarray(bits_B2[:, word]) / 2**32
            assert stats.kstest(share, "uniform").pvalue > 1e-3
    both = np.asarray(over_time, np.float64)
    assert abs(np.corrcoef(both[:, 0], both[:, 1])[0, 1]) < 0.06


def test_a_step_costs_one_call_of_the_generator_per_row():
    key_B = draws.row_keys(*(jnp.zeros(2, jnp.uint32),) * 3)
    program = str(jax.make_jaxpr(draws.bits)(key_B, jnp.zeros(2, jnp.int32)))
    assert program.count("random_fold_in") == 1
    assert "random_bits" not in program and "random_split" not in program
