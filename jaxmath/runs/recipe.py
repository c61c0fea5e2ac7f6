"""`recipe`: the stages of one file, in order; finished ones are skipped, a cut-off one goes on.

    output: runs/quickstart
    seed: 0
    stages:
      teacher: {verb: sft, config: {data: {path: "{output}/data/train.jsonl"}, …}}
      teacher-eval: {verb: eval, config: {init_from: "{output}/teacher", seed: "{seed}", …}}

Each stage writes to `{output}/<its name>`. It is done when `{output}/stages/<name>.json` says so
for the same config and the same inputs: other stages' results, and the contents of files it names.
What a stage left under another config is moved aside, never deleted.
"""

from __future__ import annotations

import dataclasses
import hashlib
import importlib
import json
import pathlib
import time
from collections.abc import Iterator
from typing import Any, Literal

from jaxmath import config as config_lib
from jaxmath.runs import session

# verb → (module, config class, field that names where it writes)
VERBS = {
    "problems": ("problems", "ProblemsConfig", "folder"),
    "synth": ("synth", "SynthRun", "output"),
    "sft": ("sft", "SftRun", "output"),
    "prime": ("prime", "PrimeRun", "output"),
    "eval": ("evaluate", "EvalRun", "output"),
    "generate": ("generate", "GenerateRun", "output"),
    "export": ("export", "ExportRun", "output"),
}


@dataclasses.dataclass(frozen=True)
class Stage:
    """verb: what to run. config: its fields, but for the output folder, which is given."""

    verb: Literal["problems", "synth", "sft", "prime", "eval", "generate", "export"]
    config: dict[str, Any]


@dataclasses.dataclass(frozen=True)
class RecipeRun:
    """output: folder of the whole recipe. seed: put in for "{seed}" in the stages' configs."""

    output: str
    stages: dict[str, Stage]
    seed: int = 0

    def __post_init__(self):
        if not self.stages:
            raise ValueError("stages is empty; give at least one")
        for name in self.stages:
            if name in ("", ".", "..", "stages") or "/" in name:
                raise ValueError(f"stages: {name!r} cannot name a folder; choose another name")


@dataclasses.dataclass(frozen=True)
class Ready:
    """A stage with its config built and checked."""

    name: str
    verb: str
    module: Any
    config: Any
    output: pathlib.Path


def plan(config: RecipeRun) -> dict[str, Any]:
    """What `--dry-run` prints besides the config: the stages and what each would start from."""
    return {
        stage.name: f"{stage.verb} → {stage.output}" for stage in _ready(config)
    }  # building them checks every field of every stage


def run(config: RecipeRun) -> session.Report:
    """Runs what is not done yet; prints the table of all stages."""
    stages = _ready(config)
    folder = session.open_folder(config, "recipe")
    session.record(folder, config, "recipe")
    (folder / "stages").mkdir(exist_ok=True)
    keys: dict[str, str] = {}
    records: dict[str, dict[str, Any]] = {}
    for stage in stages:
        keys[stage.name] = key = _key(stage, stages, keys)
        record_path = folder / "stages" / f"{stage.name}.json"
        record = json.loads(record_path.read_text()) if record_path.exists() else {}
        if record.get("key") == key and record.get("done"):
            print(f"[{stage.name}] done before: {record['seconds']:.0f} s", flush=True)
            records[stage.name] = record
            continue
        if record.get("key") not in (None, key):
            _move_aside(stage)
            record = {}
        print(f"[{stage.name}] {stage.verb} → {stage.output}", flush=True)
        before = record.get("seconds", 0.0)  # of earlier attempts at the same stage
        start = time.monotonic()
        record = {"key": key, "done": False, "seconds": before}
        session.write_atomic(record_path, json.dumps(record) + "\n")
        try:
            report = stage.module.run(stage.config)
            artefacts = list(report.artefacts)
            record |= {"done": True, "summary": report.summary, "artefacts": artefacts}
        finally:
            record["seconds"] = before + time.monotonic() - start
            session.write_atomic(record_path, json.dumps(record, indent=2) + "\n")
        records[stage.name] = record
    table = _table(stages, records)
    session.write_atomic(folder / "table.txt", table + "\n")
    print("\n" + table, flush=True)
    seconds = sum(record["seconds"] for record in records.values())
    return session.Report({"stages": len(stages), "seconds": round(seconds)}, (str(folder),))


def _ready(config: RecipeRun) -> list[Ready]:
    stages = []
    for name, stage in config.stages.items():
        module_name, class_name, output_field = VERBS[stage.verb]
        module = importlib.import_module(f"jaxmath.runs.{module_name}")
        output = pathlib.Path(config.output) / name
        if output_field in stage.config:
            raise config_lib.ConfigError(
                f"stages.{name}.config.{output_field}: a stage writes to {output}; remove the field"
            )
        tree = _fill(stage.config, {"output": config.output, "seed": config.seed})
        tree[output_field] = str(output)
        built = config_lib.from_dict(getattr(module, class_name), tree, f"stages.{name}.config")
        stages.append(Ready(name, stage.verb, module, built, output))
    return stages


def _fill(value: Any, values: dict[str, Any]) -> Any:
    """Puts in for "{output}" and "{seed}"; a text that is only a placeholder becomes its value."""
    if isinstance(value, dict):
        return {key: _fill(item, values) for key, item in value.items()}
    if isinstance(value, list):
        return [_fill(item, values) for item in value]
    if not isinstance(value, str):
        return value
    for name, replacement in values.items():
        if value == f"{{{name}}}":
            return replacement
        value = value.replace(f"{{{name}}}", str(replacement))
    return value


def _key(stage: Ready, stages: list[Ready], keys: dict[str, str]) -> str:
    """Changes when the stage's config or one of its inputs does."""
    inputs = {}
    for text in _texts(config_lib.to_dict(stage.config)):
        path = pathlib.Path(text)
        owners = [s for s in stages if s.name in keys and _inside(path, s.output)]
        if owners:
            inputs[text] = keys[owners[0].name]
        elif not _inside(path, stage.output) and path.is_file():
            inputs[text] = hashlib.sha256(path.read_bytes()).hexdigest()
    return config_lib.fingerprint([stage.verb, config_lib.to_dict(stage.config), inputs])


def _texts(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict | list):
        for item in value.values() if isinstance(value, dict) else value:
            yield from _texts(item)


def _inside(path: pathlib.Path, folder: pathlib.Path) -> bool:
    return path == folder or folder in path.parents


def _move_aside(stage: Ready) -> None:
    if not stage.output.exists():
        return
    number = 1
    while (target := stage.output.with_name(f"{stage.name}.old-{number}")).exists():
        number += 1
    stage.output.rename(target)
    print(f"[{stage.name}] config or inputs changed; what was there is now {target}", flush=True)


def _table(stages: list[Ready], records: dict[str, dict[str, Any]]) -> str:
    """Stage, accuracy of the model it leaves (from the eval that opened it), time, artefacts."""
    accuracy: dict[str, str] = {}
    for stage in stages:
        if stage.verb != "eval":
            continue
        texts = [
            f"{100 * s['accuracy']:.1f} % ({100 * s['low']:.1f} to {100 * s['high']:.1f})"
            for s in records[stage.name]["summary"].values()
        ]
        accuracy[stage.name] = " ".join(texts)
        start = pathlib.Path(str(stage.config.init_from))
        for other in stages:
            if _inside(start, other.output):
                accuracy[other.name] = " ".join(texts)
    rows = [("stage", "verb", "accuracy (95 % interval)", "time", "artefacts")]
    for stage in stages:
        record = records[stage.name]
        seconds = record["seconds"]
        rows.append(
            (
                stage.name,
                stage.verb,
                accuracy.get(stage.name, ""),
                f"{seconds // 60:.0f} min {seconds % 60:02.0f} s",
                " ".join(record["artefacts"][:1]),
            )
        )
    widths = [max(len(row[i]) for row in rows) for i in range(4)]
    return "\n".join(
        "  ".join([*(cell.ljust(w) for cell, w in zip(row, widths, strict=False)), row[4]]).rstrip()
        for row in rows
    )
