"""`plan`: what a run takes on devices that are not here, and whether it fits.

The config of any verb that computes, a target's name, and the run's own programs are compiled for
it (`plan_jobs`), measured (`plan.programs`) and added up (`plan.verdicts`). Where they do not fit,
`search` changes the config until they do (`plan_search`).
"""

from __future__ import annotations

import dataclasses
import importlib
import json
import pathlib
from collections.abc import Sequence
from typing import Any

import jax
import yaml
from jax.sharding import Mesh

from jaxmath import config as config_lib
from jaxmath import sharding
from jaxmath.plan import chips, report, targets, verdicts
from jaxmath.runs import plan_jobs, session

# verb → its config class, in the module of jaxmath.runs
CLASSES = {
    "sft": "sft.SftRun",
    "prime": "prime.PrimeRun",
    "synth": "synth.SynthRun",
    "eval": "evaluate.EvalRun",
    "generate": "generate.GenerateRun",
    "serve": "serve.ServeRun",
}


@dataclasses.dataclass(frozen=True)
class Question:
    """What is asked: a config file with overrides, of a verb, on a target.

    response_tokens: mean length of a response for the estimate of time; None takes a part of the
      limit.
    """

    path: str
    overrides: tuple[str, ...]
    verb: str
    topology: str
    response_tokens: int | None = None

    def config(self) -> Any:
        return config_lib.load(class_of(self.verb), self.path, self.overrides)


@dataclasses.dataclass(frozen=True)
class Answer:
    """plan: of the config as it is, or as `question.overrides` say."""

    question: Question
    config: Any
    mesh: Mesh
    plan: verdicts.Plan

    def text(self) -> str:
        return report.text(self._title(), self.plan)

    def json(self) -> str:
        return json.dumps(self.facts(), indent=2)

    def facts(self) -> dict[str, Any]:
        """Plain numbers and words."""
        asked = {
            "config": self.question.path,
            "overrides": list(self.question.overrides),
            "verb": self.question.verb,
            "topology": self.question.topology,
            "mesh": dict(self.mesh.shape),
            "jax": jax.__version__,
        }
        return asked | self.plan.to_dict()

    def _title(self) -> list[str]:
        asked, mesh = self.question, self.mesh
        shape = plan_jobs.models.shape_on(self.config, mesh)
        sizes = ", ".join(f"{axis}={size}" for axis, size in mesh.shape.items())
        chip = self.plan.chip
        return [
            f"{asked.verb} {asked.path} {' '.join(asked.overrides)}".rstrip(),
            f"{shape.num_params / 1e9:.2f} B parameters in {shape.num_layers} layers, "
            f"{shape.dtype}, remat {shape.remat}, attention {shape.attention}",
            f"{asked.topology}: {mesh.size} x {chip.name}, {report.gib(chip.memory)} GiB each; "
            f"mesh {sizes}",
        ]


def answer(question: Question, *, stop_when_full: bool = False) -> Answer:
    """Compiles everything that the run would, and measures it.

    Raises:
      ConfigError: the config is wrong, or its mesh does not fit the target.
      ValueError: an unknown target, or its compiler is not installed.
    """
    config = question.config()
    devices = targets.devices(question.topology)
    try:
        mesh = sharding.make_mesh(config.mesh, devices)
    except ValueError as error:
        raise config_lib.ConfigError(f"{question.path}: mesh: {error}") from None
    job = job_of(question, config, mesh)
    plan = verdicts.measure(
        job,
        chips.of(question.topology),
        mesh.size,
        stop_when_full=stop_when_full,
        on_row=lambda name: session.say(f"compiling {name} for {question.topology} …"),
    )
    return Answer(question, config, mesh, plan)


def job_of(question: Question, config: Any, mesh: Mesh) -> verdicts.Job:
    """The programs of the config's verb.

    Raises:
      ConfigError: another machine computes.
    """
    if question.verb == "sft":
        return plan_jobs.sft_job(config, mesh)
    if question.verb == "prime":
        return plan_jobs.prime_job(config, mesh, question.response_tokens)
    if hasattr(config, "engine") and not config.engine.is_local:
        raise config_lib.ConfigError(
            f"{question.path}: engine is {config.engine.kind!r}, so a server computes; set "
            "engine.kind to local for a plan"
        )
    return plan_jobs.decode_job(question.verb, config, mesh, question.response_tokens)


def class_of(verb: str) -> type:
    module, _, name = CLASSES[verb].partition(".")
    return getattr(importlib.import_module(f"jaxmath.runs.{module}"), name)


def verb_of(path: str, overrides: Sequence[str] = ()) -> str:
    """The verb whose config has all of the file's keys, needs no others, and takes their values.

    Raises:
      ConfigError: a recipe; or the file could be the config of several.
    """
    keys = _keys(pathlib.Path(path))
    if "stages" in keys:
        raise config_lib.ConfigError(
            f"{path}: is a recipe; plan the config of one of its stages, in a file of its own"
        )

    def distance(verb: str) -> int:
        fields = dataclasses.fields(class_of(verb))
        missing = dataclasses.MISSING
        required = {f.name for f in fields if f.default is f.default_factory is missing}
        return len(keys - {f.name for f in fields}) + len(required - keys)

    found = {verb: distance(verb) for verb in CLASSES}
    nearest = [verb for verb, away in found.items() if away == min(found.values())]
    if len(nearest) > 1:
        nearest = [verb for verb in nearest if _loads(verb, path, overrides)] or nearest
    if len(nearest) > 1:
        raise config_lib.ConfigError(
            f"{path}: could be a config of {' or '.join(nearest)}; say which with --verb"
        )
    return nearest[0]


def _loads(verb: str, path: str, overrides: Sequence[str]) -> bool:
    try:
        config_lib.load(class_of(verb), path, overrides)
    except config_lib.ConfigError:
        return False
    return True


def _keys(path: pathlib.Path, depth: int = 0) -> set[str]:
    """Of the file and of those that it extends; what is wrong with a file, `load` will say."""
    try:
        tree = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, yaml.YAMLError):
        tree = None
    if not isinstance(tree, dict) or depth > 8:
        return set()
    base = tree.pop("extends", None)
    return set(tree) | (_keys(path.parent / str(base), depth + 1) if base else set())


def on_cpu_alone() -> None:
    """Keeps this process off accelerators: nothing runs on one, and another may be using it.

    Programs for absent devices cannot be loaded, so a cache of them would only fill up and warn.
    """
    jax.config.update("jax_platforms", "cpu")
    jax.config.update("jax_enable_compilation_cache", False)


def ask(
    path: str,
    overrides: Sequence[str],
    topology: str,
    verb: str | None = None,
    response_tokens: int | None = None,
) -> Question:
    return Question(
        path, tuple(overrides), verb or verb_of(path, overrides), topology, response_tokens
    )
