"""Bytes and collectives of compiled programs, on small ones whose numbers are known."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, Mesh, PartitionSpec

from jaxmath.plan import hlo, traffic

CACHE = (32, 64, 256)  # slots, positions, numbers: 2 MB in f32
CACHE_BYTES = 4 * 32 * 64 * 256


def loop_of(step, *carry):
    """The compiled loop of ten `step`s, whose carry is donated."""

    def run(*carry):
        return jax.lax.while_loop(lambda c: c[0] < 10, lambda c: (c[0] + 1, *step(*c)), (0, *carry))

    compiled = jax.jit(run, donate_argnums=range(len(carry))).lower(*carry).compile()
    program = hlo.parse(compiled.as_text())
    return program, traffic.main_loop(program)


def put(cache, i, token):
    return jax.vmap(lambda row, at: row.at[at].set(token))(cache, jnp.full((CACHE[0],), i))


def test_a_token_written_in_place_is_a_token():
    token = jnp.ones((CACHE[2],))
    program, loop = loop_of(lambda i, cache: (put(cache, i, token),), jnp.zeros(CACHE))
    assert traffic.large_writes(program, loop.body, CACHE_BYTES // 2) == []
    assert traffic.accessed(program, loop.body) < CACHE_BYTES / 8


def test_a_cache_that_is_moved_is_found():
    step = lambda i, cache: (jnp.roll(cache, 1, axis=0),)  # noqa: E731
    program, loop = loop_of(step, jnp.zeros(CACHE))
    found = traffic.large_writes(program, loop.body, CACHE_BYTES // 2)
    assert found and found[0].nbytes <= CACHE_BYTES
    assert traffic.accessed(program, loop.body) >= CACHE_BYTES


def test_a_cache_whose_old_value_is_still_wanted_is_copied_and_found():
    def step(i, cache):
        new = put(cache, i, jnp.ones((CACHE[2],)))
        return (new * jnp.sum(cache - new),)

    program, loop = loop_of(step, jnp.zeros(CACHE))
    assert traffic.large_writes(program, loop.body, CACHE_BYTES // 2)


def test_a_cache_that_is_read_is_read_once():
    def step(i, cache, x):
        return cache, jnp.einsum("BTD,BD->BT", cache, x) @ jnp.ones((CACHE[1], CACHE[2]))

    program, loop = loop_of(step, jnp.zeros(CACHE), jnp.zeros((CACHE[0], CACHE[2])))
    accessed = traffic.accessed(program, loop.body)
    assert CACHE_BYTES <= accessed < 1.2 * CACHE_BYTES


def test_a_slice_counts_by_its_size():
    def step(i, cache, x):
        row = jax.lax.dynamic_index_in_dim(cache, i, keepdims=False)
        return cache, x + jnp.tanh(row)

    program, loop = loop_of(step, jnp.zeros(CACHE), jnp.zeros(CACHE[1:]))
    row = CACHE_BYTES // CACHE[0]
    assert row <= traffic.accessed(program, loop.body) <= 6 * row


def test_inner_loops_count_with_their_turns():
    def step(i, x, w):
        known = jax.lax.fori_loop(0, 3, lambda _, x: jnp.tanh(x @ w), x)
        return jax.lax.fori_loop(0, i, lambda _, x: jnp.sin(x @ w), known), w

    program, loop = loop_of(step, jnp.zeros((4, 512)), jnp.zeros((512, 512)))
    weight = 4 * 512 * 512
    turns = lambda n: traffic.accessed(program, loop.body, unknown_trips=n)  # noqa: E731
    assert turns(0) >= 3 * weight
    assert turns(2) - turns(1) == pytest.approx(weight, rel=0.1)


def test_collectives_are_counted_per_turn_with_their_bytes():
    mesh = Mesh(np.asarray(jax.devices()[:4]), ("x",), axis_types=(AxisType.Auto,))
    split = functools.partial(
        jax.shard_map, mesh=mesh, in_specs=PartitionSpec("x"), out_specs=PartitionSpec("x")
    )

    @split
    def exchange(x):
        x = x - jax.lax.psum(x, "x")
        return x + jax.lax.all_gather(x[:1], "x").sum(axis=0)

    x = jnp.zeros((8, 128))
    program, loop = loop_of(lambda i, x: (exchange(x),), x)
    found = traffic.collectives(program, loop)
    assert sorted((c.kind, c.nbytes) for c in found) == [
        ("all-gather", 128 * 4),
        ("all-reduce", 2 * 128 * 4),
    ]
    assert all("while/body" in c.op_name for c in found)


ON_CHIP = """HloModule jit_step

%fused (p.0: f32[256,128], p.1: f32[8,128]) -> f32[8,128] {
  %p.0 = f32[256,128]{1,0:T(8,128)S(1)} parameter(0)
  %p.1 = f32[8,128]{1,0:T(8,128)S(1)} parameter(1)
  ROOT %dot.1 = f32[8,128]{1,0:T(8,128)} convolution(%p.1, %p.0), dim_labels=bf_io->bf
}

ENTRY %main (w: f32[512,128], x: f32[8,128]) -> f32[8,128] {
  %w = f32[512,128]{1,0:T(8,128)} parameter(0)
  %x = f32[8,128]{1,0:T(8,128)} parameter(1)
  %slice-start.1 = ((f32[512,128]{1,0:T(8,128)}), f32[256,128]{1,0:T(8,128)S(1)}, s32[]{:S(2)}) slice-start(%w), slice={[0:256], [0:128]}
  %copy-start.1 = (f32[8,128]{1,0:T(8,128)S(1)}, f32[8,128]{1,0:T(8,128)}, u32[]{:S(2)}) copy-start(%x)
  %slice-done.1 = f32[256,128]{1,0:T(8,128)S(1)} slice-done(%slice-start.1)
  %copy-done.1 = f32[8,128]{1,0:T(8,128)S(1)} copy-done(%copy-start.1)
  ROOT %fusion.1 = f32[8,128]{1,0:T(8,128)} fusion(%slice-done.1, %copy-done.1), kind=kOutput, calls=%fused
}
"""  # noqa: E501


def test_what_goes_through_the_chip_is_read_once_and_free_there():
    program = hlo.parse(ON_CHIP)
    weight, x = 256 * 128 * 4, 8 * 128 * 4
    assert traffic.accessed(program, program.entry) == weight + x + x
    assert traffic.large_writes(program, program.entry, x + 1) == []


def test_a_program_without_a_loop_is_refused():
    with pytest.raises(ValueError, match="no loop"):
        traffic.main_loop(hlo.parse(ON_CHIP))
