"""Attention compiled for TPUs and GPUs that are not there: it fits, and keeps no scores."""

import functools

import jax
import jax.numpy as jnp
import pytest
from jax._src.cudnn import fused_attention_stablehlo

from jaxmath import sharding
from jaxmath.kernels import attention, attention_choice
from jaxmath.plan import hlo, targets, work

# the attention of Qwen2.5-7B, one row of 4,096 tokens on each shard of the batch
N, K, H, T = 28, 4, 128, 4096
HEADS = attention_choice.Heads(N, K, H, "bfloat16")
CAUSAL = 4 * N * H * T * T / 2  # FLOPs of a row's forward pass

# target → data, fsdp, tensor
TPUS = {"v5e:2x4": (2, 1, 4), "v6e:2x4": (1, 2, 4), "v4:2x2x1": (1, 1, 4)}


@pytest.fixture(autouse=True)
def settings(monkeypatch):
    """TPU kernels multiply bfloat16 as it is; the "highest" of other tests they refuse. And what is
    compiled for absent devices can be stored, but not loaded. Without a GPU there may be no cuDNN,
    whose version only kernels ask for that are not compiled here."""
    monkeypatch.setattr(fused_attention_stablehlo, "check_cudnn_version", lambda: 91200)
    jax.config.update("jax_enable_compilation_cache", False)
    with jax.default_matmul_precision("default"):
        yield
    jax.config.update("jax_enable_compilation_cache", True)


def mesh_of(target, sizes):
    if missing := targets.missing(target):
        pytest.skip(missing)
    return sharding.make_mesh(sharding.MeshConfig(*sizes), targets.devices(target))


@functools.cache
def gradient(name, mesh):
    """`jax.grad` of an attention on `mesh`, compiled."""
    B = mesh.shape["data"] * mesh.shape["fsdp"]

    def array(axes, *sizes, dtype="bfloat16"):
        return jax.ShapeDtypeStruct(sizes, dtype, sharding=sharding.named(mesh, axes, sizes))

    def loss(q_BTNH, k_BTKH, v_BTKH, segment_ids_BT):
        out_BTNH = attention.ATTENTION[name](q_BTNH, k_BTKH, v_BTKH, segment_ids_BT)
        return jnp.sum(out_BTNH.astype(jnp.float32) ** 2)

    q_BTNH = array(("batch", "seq", "heads", "head_dim"), B, T, N, H)
    k_BTKH = array(("batch", "seq", "kv_heads", "head_dim"), B, T, K, H)
    segment_ids_BT = array(("batch", "seq"), B, T, dtype="int32")
    with jax.set_mesh(mesh):
        step = jax.jit(jax.value_and_grad(loss, argnums=(0, 1, 2)))
        return step.lower(q_BTNH, k_BTKH, k_BTKH, segment_ids_BT).compile()


def temporaries(name, mesh):
    return gradient(name, mesh).memory_analysis().temp_size_in_bytes


def flops_of(name, mesh):
    program = hlo.parse(gradient(name, mesh).as_text())
    return work.of(program, program.entry).flops


@pytest.mark.parametrize("target", TPUS)
def test_splash_keeps_no_scores_on_a_tpu(target):
    mesh = mesh_of(target, TPUS[target])
    # One shard's scores in f32 would be 470 MB, and a chunk's of `chunked` 59 MB.
    assert temporaries("splash", mesh) < 4 * N // 4 * 512 * T / 10
    # Two products forward, seven backward, of whole blocks: 10 of 16 are not above the diagonal.
    expected = (9 / 2) * (10 / 8) * CAUSAL / 4
    assert flops_of("splash", mesh) == pytest.approx(expected, rel=1e-3)
    assert not [name for name in work_kinds(mesh) if name != "all-reduce"]  # of the loss


def work_kinds(mesh):
    program = hlo.parse(gradient("splash", mesh).as_text())
    return work.of(program, program.entry).counts


def test_cudnn_keeps_a_mask_and_no_scores_on_a_gpu():
    mesh = mesh_of("h100:8", (1, 8, 1))
    # The mask is 32 MiB; scores of all heads would be 1.9 GB in f32.
    assert temporaries("cudnn", mesh) < temporaries("chunked", mesh) / 3
    assert flops_of("cudnn", mesh) == pytest.approx((7 / 2) * CAUSAL, rel=1e-3)


@pytest.mark.parametrize(
    ("target", "sizes", "best"), [("v5e:2x4", (2, 1, 4), "splash"), ("h100:8", (1, 8, 1), "cudnn")]
)
def test_auto_is_resolved_for_the_target_and_not_for_this_machine(target, sizes, best, capsys):
    mesh = mesh_of(target, sizes)
    assert attention_choice.choose("auto", HEADS, mesh) == best
    assert capsys.readouterr().err == ""


def test_auto_says_why_a_gpu_does_not_get_its_best(capsys):
    mesh = mesh_of("h100:8", (1, 8, 1))
    heads = HEADS._replace(dtype="float32")
    assert attention_choice.choose("auto", heads, mesh) == "chunked"
    assert "bfloat16 or float16, not in float32" in capsys.readouterr().err
