"""Arithmetic and exchanges of compiled programs, on small ones whose numbers are known."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, Mesh, PartitionSpec

from jaxmath.model.config import ModelConfig
from jaxmath.plan import hlo, work

TINY = {"vocab_size": 100, "num_layers": 3, "embed_dim": 8, "mlp_dim": 16, "num_heads": 2}
TINY |= {"num_kv_heads": 1, "head_dim": 4}


def work_of(fn, *args, **options):
    compiled = jax.jit(fn).lower(*args).compile()
    program = hlo.parse(compiled.as_text())
    return compiled, work.of(program, program.entry, **options)


def test_a_scan_counts_with_its_turns_where_xla_counts_it_once():
    def scanned(x, w_L):
        return jax.lax.scan(lambda x, w: (jnp.tanh(x @ w), None), x, w_L)[0]

    product = 2 * 64 * 128 * 128
    compiled, found = work_of(scanned, jnp.ones((64, 128)), jnp.ones((5, 128, 128)))
    assert found.flops == 5 * product
    assert compiled.cost_analysis()["flops"] < 2 * product


def test_a_loop_of_unknown_length_counts_as_asked():
    def loop(n, x, w):
        return jax.lax.fori_loop(0, n, lambda _, x: jnp.tanh(x @ w), x)

    args = (jnp.int32(4), jnp.ones((64, 128)), jnp.ones((128, 128)))
    assert work_of(loop, *args)[1].flops == 2 * 64 * 128 * 128
    assert work_of(loop, *args, unknown_turns=4)[1].flops == 4 * 2 * 64 * 128 * 128


def test_a_loop_that_may_end_early_counts_as_if_it_did_not():
    def loop(n, x, w):
        within = lambda i: (i < 7) & (16 * i < n)  # noqa: E731
        step = lambda carry: (carry[0] + 1, jnp.tanh(carry[1] @ w))  # noqa: E731
        return jax.lax.while_loop(lambda carry: within(carry[0]), step, (jnp.int32(0), x))[1]

    args = (jnp.int32(4), jnp.ones((64, 128)), jnp.ones((128, 128)))
    assert work_of(loop, *args)[1].flops == 7 * 2 * 64 * 128 * 128


def test_gradients_and_batches_of_products_are_counted():
    def loss(w, x):
        return jnp.sum(jnp.einsum("bij,bjk->bik", x, w) ** 2)

    w, x = jnp.ones((4, 32, 16)), jnp.ones((4, 8, 32))
    assert work_of(jax.grad(loss, argnums=(0, 1)), w, x)[1].flops == 3 * 2 * 4 * 8 * 32 * 16


LINE = """HloModule m

ENTRY %main (a: bf16[4,512,128], b: bf16[4,128,64]) -> bf16[4,512,64] {{
  %a = bf16[4,512,128]{{2,1,0}} parameter(0)
  %b = bf16[4,128,64]{{2,1,0}} parameter(1)
  ROOT %r = {line}
}}
"""
AS_CONVOLUTION = (
    "bf16[4,512,64]{2,1,0} convolution(%a, %b), window={size=4 stride=3 lhs_dilate=4}, "
    "dim_labels=0bf_0io->0bf"
)
IN_CUBLAS = (
    "(bf16[4,512,64]{2,1,0}, s8[4194304]{0}) custom-call(%a, %b), "
    'custom_call_target="__cublas$gemm", backend_config={"gemm_backend_config":{'
    '"dot_dimension_numbers":{"lhs_contracting_dimensions":["2"],'
    '"rhs_contracting_dimensions":["1"],"lhs_batch_dimensions":["0"]}}}'
)
IN_A_KERNEL = (
    'bf16[4,512,64]{2,1,0} custom-call(%a, %b), custom_call_target="tpu_custom_call", '
    'backend_config={"custom_call_config":{"cost_estimate":{"flops":"33554432"}}}'
)


@pytest.mark.parametrize("line", [AS_CONVOLUTION, IN_CUBLAS, IN_A_KERNEL])
def test_a_batch_of_products_is_the_same_work_on_every_machine(line):
    program = hlo.parse(LINE.format(line=line))
    assert work.of(program, program.entry).flops == 2 * 4 * 512 * 64 * 128


@pytest.mark.parametrize(
    ("attributes", "size"),
    [
        ("channel_id=1, replica_groups={{0,1,2,3},{4,5,6,7}}, dimensions={0}", 4),
        ("replica_groups=[2,4]<=[8], use_global_device_ids=true", 4),
        ("replica_groups=[4,2]<=[2,4]T(1,0)", 2),
        ("replica_groups=mesh['axis_0'=2,'axis_1'=4] {'axis_1'}, dimensions={1}", 4),
        ("replica_groups=mesh['axis_0'=2,'axis_1'=4] {'axis_0','axis_1'}", 8),
        ("source_target_pairs={{0,1},{1,0}}", None),
    ],
)
def test_the_devices_of_an_exchange_are_counted(attributes, size):
    assert work.group_size(attributes) == size


def test_exchanges_in_a_loop_count_with_its_turns_and_by_what_arrives():
    mesh = Mesh(np.asarray(jax.devices()[:4]), ("x",), axis_types=(AxisType.Auto,))

    @functools.partial(
        jax.shard_map, mesh=mesh, in_specs=PartitionSpec("x"), out_specs=PartitionSpec("x")
    )
    def exchange(x):
        whole = jax.lax.all_gather(x[:1], "x").sum(axis=0)
        return x - jax.lax.psum(x, "x") + whole

    def scanned(x):
        return jax.lax.scan(lambda x, _: (exchange(x), None), x, length=3)[0]

    _, found = work_of(scanned, jnp.zeros((8, 128)))
    row = 128 * 4
    assert found.counts == {"all-reduce": 3, "all-gather": 3}
    assert found.received == {
        "all-reduce": 3 * 2 * (2 * row) * 3 / 4,
        "all-gather": 3 * 3 * row,
    }


@pytest.mark.parametrize("tied", [False, True])
def test_the_model_asks_for_two_flops_per_weight_of_a_matrix(tied):
    model = ModelConfig(**TINY, tie_embeddings=tied)
    table = model.vocab_size * model.embed_dim
    blocks = model.num_params - table * (1 if tied else 2)
    assert work.forward_flops(model, 0) == 2 * (blocks + table)
    assert work.forward_flops(model, 0, head=False) == 2 * blocks
    assert work.forward_flops(model, 10) - work.forward_flops(model, 0) == 4 * 3 * 8 * 10
