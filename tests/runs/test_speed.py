"""Phases add up to the step; FLOPs by hand; what is not known is not reported."""

import time
import types

import jax
import numpy as np
import pytest

from jaxmath import sharding
from jaxmath.model.config import ModelConfig
from jaxmath.runs import speed

TINY = ModelConfig(24, 1, 16, 24, 4, 2, 8, dtype="float32")


def test_phases_and_the_wait_between_them_are_the_step():
    phases = speed.Phases()
    with phases("gen"):
        time.sleep(0.02)
    with phases("gen"):
        time.sleep(0.02)
    time.sleep(0.03)
    phases.add("verify", 0.001)
    found = phases.metrics()
    assert found.keys() == {f"timing_s/{name}" for name in ("gen", "verify", "wait", "step")}
    assert found["timing_s/gen"] >= 0.04 and found["timing_s/wait"] >= 0.025
    parts = sum(found.values()) - found["timing_s/step"]
    assert parts == pytest.approx(found["timing_s/step"], rel=1e-6)
    assert phases.total("gen", "verify", "prm") == pytest.approx(phases.seconds["gen"] + 0.001)


def test_flops_of_a_forward_pass_by_hand():
    block = 16 * 32 + 2 * 16 * 16 + 32 * 16 + 3 * 16 * 24  # q, k and v, o, mlp
    weights = block + 24 * 16  # the head
    expected = 2 * weights * (3 + 5) + 2 * 4 * 8 * (9 + 25)
    assert speed.forward_flops(TINY, [3, 5]) == expected
    tied = ModelConfig(24, 1, 16, 24, 4, 2, 8, dtype="float32", tie_embeddings=True)
    assert speed.forward_flops(tied, np.array([3, 5])) == expected


def mesh_of(kind, size=4):
    devices = np.array([types.SimpleNamespace(device_kind=kind)] * size)
    return types.SimpleNamespace(devices=devices, size=size)


@pytest.mark.parametrize(
    ("kind", "peak"),
    [
        ("NVIDIA H100 80GB HBM3", 989e12),
        ("NVIDIA H200", 989e12),
        ("TPU v5 lite", 197e12),
        ("TPU v5p", 459e12),
        ("TPU v5", 459e12),
        ("TPU v6 lite", 918e12),
    ],
)
def test_peaks_are_those_of_all_devices(kind, peak):
    assert speed.peak_flops(mesh_of(kind)) == 4 * peak


def test_a_cpu_has_no_peak_and_no_high_water_mark():
    mesh = sharding.make_mesh(sharding.MeshConfig(), jax.devices()[:1])
    assert speed.peak_flops(mesh) is None
    assert speed.memory_metrics() == {}
