"""Devices to compile for that are not there: TPU topologies, NVIDIA H100 and H200; and CPUs.

The compilers for both run on any x86 machine: `libtpu` (`pip install "jax[tpu]"`), and JAX's CUDA
plug-in (`pip install "jax[cuda13]"`). Programs compiled this way show their memory, copies and
collectives as on the real device; GPU kernels are not tuned. Arrays cannot be put on such devices,
so programs are lowered from shapes.
"""

from __future__ import annotations

import contextlib
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

# What the CUDA runtime reports of a Hopper SXM card, as far as XLA's cost models and limits ask.
_HOPPER = """
platform_name: "CUDA"
device_description_str: "{name}"
dnn_version_info {{ major: 9 minor: 12 }}
gpu_device_info {{
  name: "{name}"
  device_vendor: "NVIDIA Corporation"
  platform_version: "Compute Capability 9.0a"
  cuda_compute_capability {{ major: 9 feature_extension: ACCELERATED_FEATURES }}
  core_count: 132  fpus_per_core: 128  clock_rate_ghz: 1.98
  threads_per_warp: 32  threads_per_block_limit: 1024  threads_per_core_limit: 2048
  thread_dim_limit_x: 1024  thread_dim_limit_y: 1024  thread_dim_limit_z: 64
  block_dim_limit_x: 2147483647  block_dim_limit_y: 65535  block_dim_limit_z: 65535
  registers_per_core_limit: 65536  registers_per_block_limit: 65536
  shared_memory_per_core: 233472
  shared_memory_per_block: 49152
  shared_memory_per_block_optin: 232448
  l2_cache_size: 52428800
  memory_bandwidth: {bandwidth}
  device_memory_size: {memory}
  device_address_bits: 64
  driver_version: "13.0.0"  runtime_version: "13.0.0"  compile_time_toolkit_version: "13.0.0"
  dnn_version: "9.12.0"
}}
"""
_GPUS = {
    "h100": _HOPPER.format(name="NVIDIA H100", bandwidth=3_350_000_000_000, memory=80 * 2**30),
    "h200": _HOPPER.format(name="NVIDIA H200", bandwidth=4_800_000_000_000, memory=141 * 2**30),
}

KINDS = ("v4", "v5e", "v5p", "v6e", *_GPUS, "cpu")


def kind(target: str) -> str:
    """`v5e` of `v5e:2x4`.

    Raises:
      ValueError: an unknown target, or one without a size.
    """
    found, _, size = target.partition(":")
    if found not in KINDS or not size:
        raise ValueError(
            f"target is {target!r}; expected one of {', '.join(KINDS)} with a size, as in "
            "v5e:2x4 or h200:1"
        )
    return found


def devices(target: str) -> list[jax.Device]:
    """Devices of `v5e:2x4`, `v6e:2x4`, `v4:2x2x4` (chips along each side), or `h200:8` (how many).

    `cpu:8` are devices of this process, which may not have used any device before.

    Raises:
      ValueError: an unknown target, or its compiler is not installed.
    """
    which = kind(target)
    size = target.partition(":")[2]
    if which == "cpu":
        return _cpus(target, size)
    is_gpu = which in _GPUS
    try:
        if is_gpu:
            found = topologies.get_topology_desc(
                target, "cuda", topology=f"1x1x{size}", target_config=_GPUS[which]
            )
        else:
            os.environ.update({k: v for k, v in _TPU_ENVIRONMENT.items() if k not in os.environ})
            # One device per chip; by default a chip with two cores counts as two.
            options = {"chip_config_name": "megacore"} if which in ("v4", "v5p") else {}
            found = topologies.get_topology_desc(target, "tpu", **options)
    except Exception as error:  # each plug-in has its own way to say that it is missing
        extra = "cuda13" if is_gpu else "tpu"
        reason = " ".join(str(error).split())[:200]
        raise ValueError(
            f'cannot compile for {target}: {reason}; it needs pip install "jax[{extra}]"'
        ) from error
    return list(found.devices)


def _cpus(target: str, size: str) -> list[jax.Device]:
    if not size.isdecimal() or int(size) < 1:
        raise ValueError(f"target is {target!r}; expected a number of devices, as in cpu:8")
    with contextlib.suppress(RuntimeError):  # devices are in use: their number is what it is
        jax.config.update("jax_num_cpu_devices", int(size))
    found = jax.devices("cpu")[: int(size)]
    if len(found) < int(size):
        raise ValueError(
            f"{target}: this process has {len(found)} CPU devices; ask in a process of its own"
        )
    return found


def missing(target: str) -> str | None:
    """Why programs for `target` cannot be compiled here, or None."""
    try:
        devices(target)
    except ValueError as error:
        return str(error)
    return None
