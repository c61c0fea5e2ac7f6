"""Programs measured and added up, and how the result reads."""

import json

import jax
import jax.numpy as jnp
import pytest
from flax import nnx
from jax.sharding import SingleDeviceSharding

from jaxmath.plan import programs, report, verdicts, work
from jaxmath.plan.chips import CHIPS, Chip
from jaxmath.plan.programs import Bound, Cost, Program
from jaxmath.plan.verdicts import Job

N = 256
PRODUCT = 2 * N**3
CHIP = Chip("small chip", flops=1e9, bandwidth=1e12, links=1e12, memory=4 * N * N * 4)


def matrix():
    return jax.ShapeDtypeStruct((N, N), jnp.float32)


def product(name="product", beside=(), **fields):
    compile_now = lambda: jax.jit(lambda a, b: a @ b).lower(matrix(), matrix()).compile()  # noqa: E731
    return Program(name, compile_now, ("a", "b"), beside, PRODUCT, runs=2, **fields)


def refused():
    def compile_now():
        raise jax.errors.JaxRuntimeError(
            "RESOURCE_EXHAUSTED: Ran out of memory in memory space hbm. Used 20.50G of 15.75G hbm. "
            "Exceeded hbm capacity by 4.75G."
        )

    return Program("large", compile_now, (), (), 1.0, runs=1)


def planned(*found, parts=None, refusals=()):
    parts = {"a": N * N * 4, "b": N * N * 4, "other": N * N * 4} if parts is None else parts
    job = Job(parts, found, "a product", tokens=N, refusals=refusals, notes=("assumed: nothing",))
    return verdicts.measure(job, CHIP, num_devices=1)


def test_a_program_takes_its_arguments_its_result_and_what_lies_beside():
    plan = planned(product(beside=("other",)))
    (row,) = plan.rows
    assert row.cost.arguments == 2 * N * N * 4 == plan.job.parts["a"] + plan.job.parts["b"]
    assert row.cost.peak >= 3 * N * N * 4
    assert row.total == row.cost.peak + N * N * 4
    assert row.cost.flops == PRODUCT
    assert (row.bound.seconds, row.bound.by) == (PRODUCT / CHIP.flops, "arithmetic")
    assert plan.bound_s == 2 * row.bound.seconds


def test_what_lies_beside_decides_whether_it_fits():
    room = CHIP.memory - planned(product()).rows[0].cost.peak
    parts = {"a": 0, "b": 0, "other": room}
    assert planned(product(beside=("other",)), parts=parts).fits
    tight = planned(product(beside=("other",)), parts=parts | {"other": room + 1})
    assert not tight.fits and [row.program.name for row in tight.too_large] == ["product"]


def test_a_program_refused_for_its_memory_is_measured_by_the_refusal():
    plan = planned(refused(), product("next", after="large"), product())
    assert not plan.fits and not plan.is_complete
    assert [row.program.name for row in plan.rows] == ["large", "product"]
    assert plan.rows[0].cost.full and plan.rows[0].total == int(20.5 * 2**30)
    assert programs.refused_peak("INTERNAL: something else") is None


def test_another_error_of_the_compiler_is_not_swallowed():
    def compile_now():
        raise jax.errors.JaxRuntimeError("INTERNAL: a bug")

    with pytest.raises(jax.errors.JaxRuntimeError, match="a bug"):
        planned(Program("broken", compile_now, (), (), 1.0, runs=1))


@pytest.mark.parametrize(
    ("flops", "moved", "received", "by"),
    [(2e9, 1e12, 1e12, "arithmetic"), (1e9, 3e12, 1e12, "memory"), (0, 1, 4e12, "links")],
)
def test_the_slowest_resource_is_the_bound(flops, moved, received, by):
    exchanges = work.Work(flops, received=work.collections.Counter({"all-gather": received}))
    cost = Cost(0, 0, 0, 0, flops, flops, moved, exchanges, 0.0)
    bound = Bound.of(cost, CHIP)
    assert bound.by == by and bound.seconds in (2.0, 3.0, 4.0)


def test_the_report_ends_with_the_verdict_and_its_table_is_aligned():
    plan = planned(product(beside=("other",)), product("another one"))
    lines = report.table(plan)
    assert len({len(line) for line in lines[:2]}) == 1
    starts = {line.index("0.") for line in lines[2:]}
    assert len(starts) == 1
    text = report.text(["a title"], plan)
    assert text.startswith("a title\n") and "assumed: nothing" in text
    assert text.splitlines()[-1].startswith("FITS: ") and "fragments" in text  # all but full
    (fullest,) = [line for line in text.splitlines() if line.startswith("product, GiB: ")]
    assert [word.split()[0] for word in fullest[14:].split(" + ")] == ["a", "b", "other", "its"]
    roomy = planned(product(), parts={"a": 0, "b": 0})
    assert "fragments" not in report.text([], roomy)
    too_much = planned(product(beside=("other",)), parts={"a": 0, "b": 0, "other": CHIP.memory})
    assert report.verdict(too_much).startswith("DOES NOT FIT: product takes ")
    assert report.verdict(planned(refusals=("no room",))) == "DOES NOT FIT: no room"
    assert "refused for it" in "\n".join(report.table(planned(refused())))


def test_the_numbers_are_json():
    found = json.loads(json.dumps(planned(product()).to_dict()))
    assert found["fits"] is True
    assert found["programs"][0]["flops"] == PRODUCT
    assert found["step"]["estimate_s"] == pytest.approx(found["step"]["bound_s"] / 0.5)


def test_arrays_in_the_hosts_memory_are_not_the_devices():
    device = jax.devices()[0]
    there = SingleDeviceSharding(device, memory_kind="pinned_host")
    here = SingleDeviceSharding(device)
    tree = [jax.ShapeDtypeStruct((8,), jnp.float32, sharding=where) for where in (here, there)]
    assert verdicts.device_bytes(tree) == 32 and verdicts.host_bytes(tree) == 32
    # A GPU that is not here forgets the memory of a sharding, and a moment says it besides.
    moment = nnx.Param(tree[0], axes=("norm",), memory="pinned_host")
    assert verdicts.device_bytes(moment) == 0 and verdicts.host_bytes(moment) == 32


def test_every_chip_is_slower_at_reading_than_at_arithmetic():
    for chip in CHIPS.values():
        assert chip.links < chip.bandwidth < chip.flops
        assert 15 * 2**30 < chip.memory < 140 * 2**30


@pytest.mark.parametrize(
    ("value", "text"), [(0.000218, "0.218 ms"), (2.5, "2.50 s"), (90, "1.5 min")]
)
def test_seconds_read_well(value, text):
    assert report.seconds(value) == text
