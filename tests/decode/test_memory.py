"""The memory plan: its arithmetic, its refusals, and its agreement with compiled programs."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxmath import sharding
from jaxmath.decode import memory
from jaxmath.decode.decoder import DecodeConfig, Decoder
from jaxmath.decode.sampling import SamplingConfig
from jaxmath.model.config import ModelConfig
from jaxmath.plan import decoding, targets

# Programs for absent devices cannot be loaded again, so the cache of compiled ones is no use here.
pytestmark = pytest.mark.filterwarnings("ignore:Error reading persistent compilation cache")

GIB = 2**30
MESH = {"data": 2, "fsdp": 2, "tensor": 2}
NEED = memory.Footprint(weights=4 * GIB, slot=GIB, step=GIB // 4, prefill=2 * GIB, length=1024)

QWEN_7B = ModelConfig(
    vocab_size=152064,
    num_layers=2,
    embed_dim=3584,
    mlp_dim=18944,
    num_heads=28,
    num_kv_heads=4,
    head_dim=128,
)
SMALL = ModelConfig(
    vocab_size=8192,
    num_layers=3,
    embed_dim=256,
    mlp_dim=512,
    num_heads=8,
    num_kv_heads=4,
    head_dim=32,
    dtype="float32",
)


def used(plan):
    return plan.budget - plan.free


def test_slots_fill_the_budget():
    # 16 = 4 weights + 10 slots + 2 of a prefill; a step needs 10 / 4 more than that
    plan = memory.plan(NEED, MESH, budget=16 * GIB)
    assert (plan.slots, plan.limit) == (9 * 4, "memory")
    assert used(plan) == (4 + 9 + 9 / 4) * GIB
    # with little scratch per step, that of a prefill counts
    plan = memory.plan(dataclasses.replace(NEED, step=1), MESH, budget=16 * GIB)
    assert plan.slots == 10 * 4
    assert (plan.scratch, plan.free) == (2 * GIB, 0)


@pytest.mark.parametrize("budget", np.linspace(8, 40, 17))
def test_the_plan_stays_within_its_budget_and_one_more_slot_would_not(budget):
    plan = memory.plan(NEED, MESH, budget=int(budget * GIB), reserved=GIB)
    assert plan.slots % 4 == 0
    assert plan.free >= 0
    more = dataclasses.replace(plan, slots=plan.slots + 4)
    assert more.free < 0


def test_what_others_hold_is_left_to_them():
    with_trainer = memory.plan(NEED, MESH, budget=20 * GIB, reserved=4 * GIB)
    assert with_trainer.slots == memory.plan(NEED, MESH, budget=16 * GIB).slots


@pytest.mark.parametrize(
    ("how", "slots", "limit"),
    [
        ({}, 36, "memory"),
        ({"queue": 5}, 8, "queue"),  # rounded up to the shards of the batch
        ({"queue": 1}, 4, "queue"),
        ({"queue": 1000}, 36, "memory"),
        ({"enough": 3}, 12, "throughput"),
        ({"slots": 8}, 8, "configured"),
        ({"slots": 36, "queue": 1}, 36, "configured"),
    ],
)
def test_the_plan_says_what_limits_the_slots(how, slots, limit):
    plan = memory.plan(NEED, MESH, budget=16 * GIB, **how)
    assert (plan.slots, plan.limit) == (slots, limit)
    assert f"{slots} slots" in plan.table()
    assert f"limited by {limit}" in plan.table()
    assert len(plan.table().splitlines()) <= 10


def test_one_sequence_that_does_not_fit_is_refused_with_the_table():
    with pytest.raises(ValueError, match="one sequence") as error:
        memory.plan(NEED, MESH, budget=6 * GIB)
    assert "mesh.tensor" in str(error.value)
    assert "weights      4.000" in str(error.value)


def test_configured_slots_that_do_not_fit_are_refused_with_the_number_that_does():
    with pytest.raises(ValueError, match="40 slots do not fit.*decode.slots to 36") as error:
        memory.plan(NEED, MESH, budget=16 * GIB, slots=40)
    assert "10 slots of 1024 tokens" in str(error.value)


def test_bytes_on_a_device_are_those_of_its_shards():
    mesh = sharding.make_mesh(sharding.MeshConfig(2, 2, 2))
    keys = jax.eval_shape(lambda: jax.random.split(jax.random.key(0), 8))
    tree = {"x": jax.ShapeDtypeStruct((8, 6, 4), jnp.bfloat16), "keys": keys}
    where = {
        "x": sharding.named(mesh, ("batch", "heads", None)),
        "keys": sharding.named(mesh, ("batch",)),
    }
    assert memory.device_bytes(tree, where) == 2 * 3 * 4 * 2 + 2 * 8


def test_a_short_head_fills_a_row_of_memory():
    how = {"mesh": MESH, "weights": 1, "state": (110, 210), "length": 8, "rows": 4, "row_tokens": 8}
    assert memory.footprint(SMALL, **how).slot == 100
    assert memory.footprint(SMALL, **how, lanes=128).slot == 400
    assert memory.footprint(SMALL, **how).weights == 1 + 10  # what does not grow with the slots


def test_free_memory_is_the_hosts_or_what_the_container_leaves(tmp_path):
    (tmp_path / "proc").mkdir()
    lines = "MemTotal:       99 kB\nMemAvailable:   64 kB\nHugePages_Total:       0\n"
    (tmp_path / "proc" / "meminfo").write_text(lines)
    assert memory.host_bytes(tmp_path) == 64 * 1024
    group = tmp_path / "sys" / "fs" / "cgroup"
    group.mkdir(parents=True)
    (group / "memory.current").write_text("1000\n")
    (group / "memory.max").write_text("max\n")
    assert memory.host_bytes(tmp_path) == 64 * 1024
    (group / "memory.max").write_text("21000\n")
    assert memory.host_bytes(tmp_path) == 20_000


def test_the_devices_of_a_cpu_share_the_hosts_memory():
    one = sharding.make_mesh(sharding.MeshConfig(1, 1, 1), jax.devices()[:1])
    all_eight = sharding.make_mesh(sharding.MeshConfig(8, 1, 1))
    budget = memory.device_budget(0.5, one)
    assert memory.device_budget(0.5, all_eight) == pytest.approx(budget / 8, rel=0.2)
    assert budget < 2**50
    assert memory.bytes_in_use(all_eight) == 0


# --- against compiled programs ----------------------------------------------------------------


def scratch(compiled):
    found = compiled.memory_analysis()
    new = found.output_size_in_bytes - found.alias_size_in_bytes
    return found.temp_size_in_bytes + new


@pytest.mark.parametrize(
    ("model", "sizes", "slots", "target"),
    [
        (SMALL, (2, 2, 2), 32, None),
        (SMALL, (1, 1, 1), 16, None),
        (QWEN_7B, (2, 1, 4), 128, "v5e:2x4"),
    ],
    ids=["eight CPU devices", "one CPU device", "v5e"],
)
def test_the_plan_is_within_a_tenth_of_the_compiled_programs(model, sizes, slots, target):
    if target and (missing := targets.missing(target)):
        pytest.skip(missing)
    devices = targets.devices(target) if target else jax.devices()[: int(np.prod(sizes))]
    mesh = sharding.make_mesh(sharding.MeshConfig(*sizes), devices)
    config = DecodeConfig(max_prompt_tokens=512, slots=slots, cache="xla")
    decoder = Decoder(model, config, SamplingConfig(max_tokens=1536), (5,), mesh)
    plan = decoder.memory
    with jax.default_matmul_precision("default"):  # as in runs; a TPU's kernels know no other
        loop, prefill = decoding.decode_chunk(decoder), decoding.admit(decoder, 512)
    held = loop.memory_analysis().argument_size_in_bytes
    assert plan.footprint.weights + plan.cache == pytest.approx(held, rel=0.02)
    needed = held + max(scratch(loop), scratch(prefill))
    assert plan.budget - plan.reserved - plan.free == pytest.approx(needed, rel=0.1)
