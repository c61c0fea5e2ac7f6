"""Devices to compile for that are not there."""

import jax
import jax.numpy as jnp
import pytest
from jax.sharding import SingleDeviceSharding

from jaxmath.plan import targets

# Programs for absent devices cannot be loaded again, so the cache of compiled ones is no use here.
pytestmark = pytest.mark.filterwarnings("ignore:Error reading persistent compilation cache")


@pytest.mark.parametrize("target", ["v5e", "v5e:", "v3:2x2", "tpu"])
def test_an_unknown_target_is_refused(target):
    with pytest.raises(ValueError, match="expected one of v4, v5e, v5p, v6e, h100, h200, cpu"):
        targets.devices(target)


@pytest.mark.parametrize(
    ("target", "num_devices", "kind"),
    [
        ("v4:2x2x4", 16, "TPU v4"),  # a chip of two cores is one device
        ("v5e:2x4", 8, "TPU v5 lite"),
        ("v6e:2x4", 8, "TPU v6 lite"),
        ("h200:8", 8, "NVIDIA H200"),
    ],
)
def test_a_product_compiles_for_each_target(target, num_devices, kind):
    if missing := targets.missing(target):
        pytest.skip(missing)
    devices = targets.devices(target)
    assert [d.device_kind for d in devices] == [kind] * num_devices
    x = jax.ShapeDtypeStruct((256, 512), jnp.bfloat16, sharding=SingleDeviceSharding(devices[0]))
    with jax.default_matmul_precision("default"):
        compiled = jax.jit(lambda x: x @ x.T).lower(x).compile()
    assert compiled.memory_analysis().argument_size_in_bytes == 256 * 512 * 2


def test_a_compiler_that_is_not_installed_is_named():
    if targets.missing("h200:1") is None:
        pytest.skip("the CUDA plug-in is installed")
    assert "jax[cuda13]" in targets.missing("h200:1")
