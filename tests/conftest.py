"""Stricter than the program: eight CPU devices, no silent broadcasting, full matmul precision."""

import os
import pathlib

import jax
import pytest

jax.config.update("jax_num_cpu_devices", 8)  # before the first use of a device
jax.config.update("jax_numpy_rank_promotion", "raise")
jax.config.update("jax_default_matmul_precision", "highest")

ROOT = pathlib.Path(__file__).resolve().parent.parent

cache = os.environ.get("JAXMATH_COMPILATION_CACHE", str(ROOT / ".cache" / "xla"))
jax.config.update("jax_compilation_cache_dir", cache)
jax.config.update("jax_persistent_cache_min_compile_time_secs", 0)
jax.config.update("jax_persistent_cache_min_entry_size_bytes", -1)


@pytest.fixture(scope="session")
def shared() -> pathlib.Path:
    """Benchmarks, goldens and a real tokenizer: the folder `JAXMATH_SHARED`, else `../shared`."""
    folder = pathlib.Path(os.environ.get("JAXMATH_SHARED", ROOT.parent / "shared"))
    if not folder.is_dir():
        pytest.skip(f"no shared data at {folder}; set JAXMATH_SHARED to the folder that holds it")
    return folder


@pytest.fixture(scope="session")
def root() -> pathlib.Path:
    return ROOT
