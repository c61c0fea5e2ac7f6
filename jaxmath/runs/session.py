"""What every run does before its first act: run folder, record of the circumstances, mesh.

output/
  config.yaml         the resolved config
  environment.json    package versions, git commit, devices, seed
  metrics.jsonl, tensorboard/, checkpoints/, …   as the run writes them
"""

from __future__ import annotations

import dataclasses
import hashlib
import importlib.metadata
import json
import pathlib
import platform
import subprocess
import sys
from typing import Any

import jax
from jax.sharding import Mesh

from jaxmath import config as config_lib
from jaxmath import sharding
from jaxmath.data import durable

PACKAGES = (
    "jax",
    "jaxlib",
    "flax",
    "optax",
    "orbax-checkpoint",
    "transformers",
    "datasets",
    "safetensors",
    "sympy",
    "mpmath",
    "numpy",
)


def open_folder(config: Any, verb: str) -> pathlib.Path:
    """Makes `config.output`; in a new one, records what is about to run.

    A folder that holds a run keeps its record until the run has accepted `config`: see `record`.

    Raises:
      ValueError: the folder cannot be written, or holds a run of another verb.
    """
    folder = pathlib.Path(config.output)
    made = folder / "environment.json"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        if not made.exists():
            record(folder, config, verb)
        elif (other := json.loads(made.read_text())["verb"]) != verb:
            raise ValueError(
                f"{folder} holds a run of '{other}', not of '{verb}'; choose another output"
            )
    except OSError as error:
        raise ValueError(
            f"output {folder} cannot be written ({error.strerror}); choose a folder that can"
        ) from None
    return folder


def record(folder: pathlib.Path, config: Any, verb: str) -> None:
    """Writes `config.yaml` and `environment.json`, also over those of an earlier start."""
    if jax.process_index() == 0:
        write_atomic(folder / "config.yaml", config_lib.dump(config))
        found = json.dumps(environment(verb, config), indent=2)
        write_atomic(folder / "environment.json", found + "\n")


def environment(verb: str, config: Any) -> dict[str, Any]:
    """Where and with what a run happens, enough to repeat it."""
    versions = {}
    for name in PACKAGES:
        try:
            versions[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            versions[name] = None
    devices = jax.devices()
    return {
        "verb": verb,
        "command": sys.argv,
        "python": platform.python_version(),
        "packages": versions,
        "git_commit": git_commit(),
        "device_kind": devices[0].device_kind,
        "num_devices": len(devices),
        "num_processes": jax.process_count(),
        "seed": getattr(config, "seed", None),
        "config_fingerprint": config_lib.fingerprint(config),
    }


def git_commit() -> str | None:
    """The commit of the source tree, with "+changes" where it differs; None outside a checkout."""
    folder = pathlib.Path(__file__).resolve().parents[2]
    if not (folder / ".git").exists():
        return None
    try:
        git = lambda *args: subprocess.run(  # noqa: E731
            ["git", "-C", str(folder), *args], capture_output=True, text=True, check=True
        ).stdout.strip()
        return git("rev-parse", "HEAD") + ("+changes" if git("status", "--porcelain") else "")
    except (OSError, subprocess.CalledProcessError):
        return None


def code_digest(room: str) -> str:
    """Twelve hex digits that change with the source of one room of this package."""
    digest = hashlib.sha256()
    for path in sorted((pathlib.Path(__file__).resolve().parents[1] / room).glob("*.py")):
        digest.update(path.name.encode() + b"\0" + path.read_bytes() + b"\0")
    return digest.hexdigest()[:12]


def make_mesh(config: Any) -> Mesh:
    """The mesh of `config.mesh`; an impossible one is a ConfigError."""
    try:
        return sharding.make_mesh(config.mesh)
    except ValueError as error:
        raise config_lib.ConfigError(f"mesh: {error}") from None


def say(text: str) -> None:
    """A word to people: on stderr, from process 0."""
    if jax.process_index() == 0:
        print(text, file=sys.stderr, flush=True)


def write_atomic(path: pathlib.Path, text: str) -> None:
    """The file is the old one or the new one, whenever the process dies."""
    durable.replace(path, text.encode())


@dataclasses.dataclass(frozen=True)
class Report:
    """How a run ended, for people and for `recipe`."""

    summary: dict[str, Any]  # small JSON-able facts, such as the accuracy
    artefacts: tuple[str, ...]  # paths it leaves behind
