"""Reading the text of compiled programs."""

import jax
import jax.numpy as jnp
import pytest

from jaxmath.plan import hlo

TPU = """HloModule jit_step, is_scheduled=true

%fused (p.0: bf16[64,256,128], p.1: s32[64]) -> bf16[64,128] {
  %p.0 = bf16[64,256,128]{2,1,0:T(8,128)(2,1)} parameter(0)
  %p.1 = s32[64]{0:T(128)S(1)} parameter(1)
  ROOT %gather.1 = bf16[64,128]{1,0:T(8,128)(2,1)} gather(%p.0, %p.1), offset_dims={1}
}

ENTRY %main (a: bf16[64,256,128], b: s32[64]) -> (bf16[64,128], s32[64]) {
  %b = s32[64]{0:T(128)} parameter(1)
  %a = bf16[64,256,128]{2,1,0:T(8,128)(2,1)} parameter(0)
  %copy-start.1 = (s32[64]{0:T(128)S(1)}, s32[64]{0:T(128)}, /*index=2*/u32[]{:S(2)}) copy-start(%b)
  %copy-done.1 = s32[64]{0:T(128)S(1)} copy-done(%copy-start.1)
  %fusion.1 = bf16[64,128]{1,0:T(8,128)(2,1)S(1)} fusion(%a, %copy-done.1), kind=kLoop, calls=%fused, metadata={op_name="jit(step)/take (x)"}
  ROOT %tuple.1 = (bf16[64,128]{1,0:T(8,128)(2,1)}, /*index=1*/s32[64]{0:T(128)}) tuple(%fusion.1, %b)
}
"""  # noqa: E501


def test_names_operands_and_calls_are_read():
    program = hlo.parse(TPU)
    fusion = program.entry["fusion.1"]
    assert (fusion.opcode, fusion.operands) == ("fusion", ("a", "copy-done.1"))
    assert fusion.called == ("fused",)
    assert fusion.op_name == "jit(step)/take (x)"
    assert program.entry.root.name == "tuple.1"
    assert [p.name for p in program.entry.parameters] == ["a", "b"]
    assert [u.name for u in program.entry.users["b"]] == ["copy-start.1", "tuple.1"]
    assert program["fused"].root.opcode == "gather"


def test_tuples_tiles_and_memory_spaces_are_read():
    start = hlo.parse(TPU).entry["copy-start.1"]
    assert [(a.dtype, a.dims, a.space) for a in start.shape] == [
        ("s32", (64,), 1),
        ("s32", (64,), 0),
        ("u32", (), 2),
    ]


@pytest.mark.parametrize(
    ("shape", "nbytes"),
    [
        ("f32[2,3]{1,0}", 24),
        ("pred[7]", 7),
        ("s4[3]{0}", 2),
        ("f8e4m3fn[5]{0}", 5),
        ("bf16[]", 2),
        ("bf16[1,128]{1,0:T(8,128)(2,1)}", 8 * 128 * 2),  # one row takes a tile of eight
        ("f32[64,1,7,128]{3,0,2,1:T(8,128)}", 7 * 64 * 128 * 4),  # tiled over 128 and 64: no waste
        ("f32[64,1,7,128]{3,2,1,0:T(8,128)}", 64 * 8 * 128 * 4),  # tiled over 128 and 7
        ("s32[]{:T(128)}", 512),
        ("token[]", 0),
    ],
)
def test_bytes_are_those_of_the_layout(shape, nbytes):
    text = f"ENTRY %m (p: {shape}) -> {shape} {{\n  ROOT %p = {shape} parameter(0)\n}}\n"
    assert hlo.parse(text).entry.root.nbytes == nbytes


def test_what_this_jax_compiles_is_read_whole():
    def f(x, w):
        return jax.lax.fori_loop(0, 5, lambda i, x: jnp.tanh(x @ w) + x[:1], x), w.argmax()

    x = jnp.ones((8, 16))
    text = jax.jit(f).lower(x, jnp.ones((16, 16))).compile().as_text()
    program = hlo.parse(text)
    lines = [line for line in text.splitlines() if line.startswith("  ") and " = " in line]
    assert sum(len(c.instructions) for c in program.computations.values()) == len(lines)
    loops = [i for _, i in program.reached(program.entry) if i.opcode == "while"]
    assert [loop.trip_count for loop in loops] == [5]
    for computation in program.computations.values():
        for i in computation:
            assert set(i.operands) <= set(computation.instructions)
            assert set(i.called) <= set(program.computations)


def test_other_text_is_refused():
    with pytest.raises(ValueError, match="ENTRY"):
        hlo.parse("module @jit_f {\n}\n")


UNROLLED = """HloModule m

%one (p: u32[], q: u32[]) -> u32[] {
  %p = u32[] parameter(0)
  %q = u32[] parameter(1)
  ROOT %add.1 = u32[] add(%p, %q)
}

%body (carried: (f32[8], u32[])) -> (f32[8], u32[]) {
  %carried = (f32[8]{0}, u32[]) parameter(0)
  %x = f32[8]{0} get-tuple-element(%carried), index=0
  %counter = u32[] get-tuple-element(%carried), index=1
  %c.1 = u32[] constant(1)
  %next = u32[] add(%c.1, %counter)
  %last = u32[] STEP
  ROOT %both = (f32[8]{0}, u32[]) tuple(%x, %last)
}

%condition (carried.2: (f32[8], u32[])) -> pred[] {
  %carried.2 = (f32[8]{0}, u32[]) parameter(0)
  %counter.2 = u32[] get-tuple-element(%carried.2), index=1
  %limit = u32[] constant(8)
  ROOT %less = pred[] compare(%counter.2, %limit), direction=LT
}

ENTRY %main (x.1: f32[8]) -> (f32[8], u32[]) {
  %x.1 = f32[8]{0} parameter(0)
  %zero = u32[] constant(0)
  %start = (f32[8]{0}, u32[]) tuple(%x.1, %zero)
  ROOT %loop = (f32[8]{0}, u32[]) while(%start), condition=%condition, body=%body
}
"""


@pytest.mark.parametrize(
    ("step", "turns"),
    [
        ("add(%counter, %c.1)", 8),
        ("add(%next, %c.1)", 4),
        ("fusion(%next, %c.1), kind=kLoop, calls=%one", 4),
        ("fusion(%counter, %c.1), kind=kLoop, calls=%one", 8),
        ("multiply(%counter, %next)", 8),  # not understood: as if it counted by one
    ],
)
def test_a_counter_that_takes_two_steps_at_once_turns_half_as_often(step, turns):
    program = hlo.parse(UNROLLED.replace("STEP", step))
    assert program.turns(program.entry, program.entry["loop"]) == turns
