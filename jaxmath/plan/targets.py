"""Devices to compile for that are not there: TPU topologies, and an NVIDIA H200.

The compilers for both run on any x86 machine: `libtpu` (`pip install "jax[tpu]"`), and JAX's CUDA
plug-in (`pip install "jax[cuda13]"`). Programs compiled this way show their memory, copies and
collectives as on the real device; GPU kernels are not tuned. Arrays cannot be put on such devices,
so programs are lowered from shapes.
"""

from __future__ import annotations

import os

import jax
from jax.experimental import topologies

# Outside of Google's cloud libtpu finds no description of its host, and waits or complains.
_TPU_ENVIRONMENT = {
    "TPU_SKIP_MDS_QUERY": "1",
    "TPU_ACCELERATOR_TYPE": "v5litepod-8",
    "TPU_WORKER_HOSTNAMES": "localhost",
    "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",  # its lock guards a chip, and there is none
}

# What the CUDA runtime reports of an H200 SXM, as far as XLA's cost models and limits ask for it.
_H200 = """
platform_name: "CUDA"
device_description_str: "NVIDIA H200"
dnn_version_info { major: 9 minor: 12 }
gpu_device_info {
  name: "NVIDIA H200"
  device_vendor: "NVIDIA Corporation"
  platform_version: "Compute Capability 9.0a"
  cuda_compute_capability { major: 9 feature_extension: ACCELERATED_FEATURES }
  core_count: 132  fpus_per_core: 128  clock_rate_ghz: 1.98
  threads_per_warp: 32  threads_per_block_limit: 1024  threads_per_core_limit: 2048
  thread_dim_limit_x: 1024  thread_dim_limit_y: 1024  thread_dim_limit_z: 64
  block_dim_limit_x: 2147483647  block_dim_limit_y: 65535  block_dim_limit_z: 65535
  registers_per_core_limit: 65536  registers_per_block_limit: 65536
  shared_memory_per_core: 233472
  shared_memory_per_block: 49152
  shared_memory_per_block_optin: 232448
  l2_cache_size: 52428800
  memory_bandwidth: 4800000000000
  device_memory_size: 151397597184
  device_address_bits: 64
  driver_version: "13.0.0"  runtime_version: "13.0.0"  compile_time_toolkit_version: "13.0.0"
  dnn_version: "9.12.0"
}
"""

KINDS = ("v4", "v5e", "v6e", "h200")


def devices(target: str) -> list[jax.Device]:
    """Devices of `v5e:2x4`, `v6e:2x4`, `v4:2x2x4` (chips along each side), or `h200:8` (how many).

    Raises:
      ValueError: an unknown target, or its compiler is not installed.
    """
    kind, _, size = target.partition(":")
    if kind not in KINDS or not size:
        raise ValueError(
            f"target is {target!r}; expected one of {', '.join(KINDS)} with a size, as in "
            "v5e:2x4 or h200:1"
        )
    try:
        if kind == "h200":
            found = topologies.get_topology_desc(
                target, "cuda", topology=f"1x1x{size}", target_config=_H200
            )
        else:
            os.environ.update({k: v for k, v in _TPU_ENVIRONMENT.items() if k not in os.environ})
            # One device per chip; by default a v4 chip counts as two.
            options = {"chip_config_name": "megacore"} if kind == "v4" else {}
            found = topologies.get_topology_desc(target, "tpu", **options)
    except Exception as error:  # each plug-in has its own way to say that it is missing
        extra = "cuda13" if kind == "h200" else "tpu"
        raise ValueError(
            f'cannot compile for {target}: {error}; it needs pip install "jax[{extra}]"'
        ) from error
    return list(found.devices)


def missing(target: str) -> str | None:
    """Why programs for `target` cannot be compiled here, or None."""
    try:
        devices(target)
    except ValueError as error:
        return str(error)
    return None
