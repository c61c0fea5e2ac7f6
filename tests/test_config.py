"""Files and overrides become dataclasses; every mistake is one line: file, field, reason, cure."""

from __future__ import annotations

import dataclasses
import re
from typing import Literal

import pytest

from jaxmath import config, sharding


@dataclasses.dataclass(frozen=True)
class Optimizer:
    learning_rate: float = 1e-6
    clip_norm: float | None = 1.0
    betas: tuple[float, float] = (0.9, 0.95)
    num_steps: int = 10

    def __post_init__(self):
        if self.learning_rate <= 0:
            raise ValueError(f"learning_rate is {self.learning_rate}; expected above 0,\nset it so")


@dataclasses.dataclass(frozen=True)
class Run:
    name: str
    kind: Literal["sft", "prime"] = "sft"
    quiet: bool = False
    stages: tuple[str, ...] = ()
    seed: int | str = 0
    weights: dict[str, float] = dataclasses.field(default_factory=dict)
    optimizer: Optimizer = Optimizer()
    mesh: sharding.MeshConfig | None = None


@pytest.fixture
def folder(tmp_path):
    """Writes the named texts as files and returns their folder."""

    def write(**files):
        for name, text in files.items():
            (tmp_path / f"{name}.yaml").write_text(text, encoding="utf-8")
        return tmp_path

    return write


def error_of(path, overrides=()):
    with pytest.raises(config.ConfigError) as caught:
        config.load(Run, path, overrides)
    text = str(caught.value)
    assert "\n" not in text, text
    return text


# --- what loads -------------------------------------------------------------------------------


def test_a_file_fills_fields_and_the_rest_are_defaults(folder):
    path = folder(run="name: a\nstages: [x, y]\noptimizer: {num_steps: 3}") / "run.yaml"
    run = config.load(Run, path)
    assert run == Run("a", stages=("x", "y"), optimizer=Optimizer(num_steps=3))
    assert hash(run.stages)


def test_without_a_file_defaults_and_overrides_are_enough():
    assert config.load(Optimizer, None) == Optimizer()
    assert config.load(Run, None, ["name=a", "mesh.data=2"]).mesh == sharding.MeshConfig(data=2)


def test_numbers_without_a_dot_are_read_as_numbers(folder):
    path = folder(run="name: a\noptimizer: {learning_rate: 3e-6, clip_norm: 1}") / "run.yaml"
    optimizer = config.load(Run, path, ["optimizer.betas=[0, 1e-1]"]).optimizer
    assert optimizer == Optimizer(learning_rate=3e-6, clip_norm=1.0, betas=(0.0, 0.1))
    assert isinstance(optimizer.clip_norm, float)


@pytest.mark.parametrize(
    ("override", "field", "value"),
    [
        ("kind=prime", "kind", "prime"),
        ("quiet=true", "quiet", True),
        ("stages=[a, b]", "stages", ("a", "b")),
        ("stages=[]", "stages", ()),
        ("seed=7", "seed", 7),
        ("seed=seven", "seed", "seven"),
        ("weights={a: 1, b: 2e-1}", "weights", {"a": 1.0, "b": 0.2}),
        ("weights.a=0.5", "weights", {"a": 0.5}),
        ("name=a=b", "name", "a=b"),
        ("mesh=null", "mesh", None),
        ("optimizer={clip_norm: null}", "optimizer", Optimizer(clip_norm=None)),
    ],
)
def test_override_values_are_yaml_of_the_type_of_the_field(override, field, value):
    assert getattr(config.load(Run, None, ["name=x", override]), field) == value


def test_the_last_override_wins():
    assert config.load(Run, None, ["name=a", "seed=1", "seed=2"]).seed == 2


def test_a_section_may_stand_in_a_file_of_its_own(folder, tmp_path):
    (tmp_path / "parts").mkdir()
    (tmp_path / "parts" / "adam.yaml").write_text("num_steps: 5")
    path = folder(run="name: a\noptimizer: parts/adam.yaml") / "run.yaml"
    assert config.load(Run, path).optimizer == Optimizer(num_steps=5)
    assert config.load(Run, path, ["optimizer.clip_norm=null"]).optimizer == Optimizer(
        num_steps=5, clip_norm=None
    )


def test_extends_starts_from_another_file_and_merges_sections(folder):
    path = (
        folder(
            base="name: a\nseed: 1\noptimizer: {num_steps: 3, clip_norm: 2.0}",
            middle="extends: base.yaml\nseed: 2",
            run="extends: middle.yaml\noptimizer: {num_steps: 4}",
        )
        / "run.yaml"
    )
    expected = Run("a", seed=2, optimizer=Optimizer(num_steps=4, clip_norm=2.0))
    assert config.load(Run, path) == expected


def test_a_section_may_extend_a_file(folder):
    path = (
        folder(
            adam="num_steps: 5\nclip_norm: 2.0",
            run="name: a\noptimizer: {extends: adam.yaml, clip_norm: 3.0}",
        )
        / "run.yaml"
    )
    assert config.load(Run, path).optimizer == Optimizer(num_steps=5, clip_norm=3.0)


def test_a_file_replaces_a_whole_section_of_the_base(folder):
    path = (
        folder(
            adam="num_steps: 5",
            base="name: a\noptimizer: {clip_norm: 2.0}",
            run="extends: base.yaml\noptimizer: adam.yaml",
        )
        / "run.yaml"
    )
    assert config.load(Run, path).optimizer == Optimizer(num_steps=5)


def test_an_override_may_name_a_file_for_a_whole_section(folder):
    path = folder(adam="num_steps: 5", run="name: a\noptimizer: {clip_norm: 2.0}") / "run.yaml"
    adam = path.parent / "adam.yaml"
    run = config.load(Run, path, [f"optimizer={adam}", "optimizer.betas=[0, 0]"])
    assert run.optimizer == Optimizer(num_steps=5, betas=(0.0, 0.0))


def test_yaml_anchors_and_merge_keys_work(folder):
    text = "name: a\nmesh: &m {data: 2}\noptimizer: {<<: {num_steps: 5}, clip_norm: 2.0}"
    run = config.load(Run, folder(run=text) / "run.yaml")
    assert run.optimizer == Optimizer(num_steps=5, clip_norm=2.0)


# --- what does not ----------------------------------------------------------------------------

WRONG = {
    "unknown field": ("nmae: a", "{f}: nmae: Run has no such field; did you mean 'name'?"),
    "unknown field of a section": (
        "name: a\noptimizer: {learning_rat: 1}",
        "{f}: optimizer.learning_rat: Optimizer has no such field; "
        "did you mean 'optimizer.learning_rate'?",
    ),
    "nothing near": (
        "name: a\noptimizer: {zzz: 1}",
        "{f}: optimizer.zzz: Optimizer has no such field; "
        "fields: learning_rate, clip_norm, betas, num_steps",
    ),
    "missing field": ("seed: 1", "{f}: name: Run needs this field; add it"),
    "choice": ("name: a\nkind: rl", "{f}: kind: got 'rl', expected one of sft, prime"),
    "not text": ("name: 3", "{f}: name: expected text, got 3"),
    "not bool": ("name: a\nquiet: 1", "{f}: quiet: expected true or false, got 1"),
    "not whole": (
        "name: a\noptimizer: {num_steps: 1.5}",
        "{f}: optimizer.num_steps: expected a whole number, got 1.5",
    ),
    "bool is not whole": (
        "name: a\noptimizer: {num_steps: true}",
        "{f}: optimizer.num_steps: expected a whole number, got True",
    ),
    "not a number": (
        "name: a\noptimizer: {clip_norm: big}",
        "{f}: optimizer.clip_norm: expected a number, got 'big'",
    ),
    "nan": (
        "name: a\noptimizer: {learning_rate: .nan}",
        "{f}: optimizer.learning_rate: expected a number, got nan",
    ),
    "null": (
        "name: a\noptimizer: {num_steps: null}",
        "{f}: optimizer.num_steps: expected a whole number, got None",
    ),
    "not a list": ("name: a\nstages: x", "{f}: stages: expected a list, got 'x'"),
    "item of a list": ("name: a\nstages: [x, 3]", "{f}: stages[1]: expected text, got 3"),
    "number of items": (
        "name: a\noptimizer: {betas: [1]}",
        "{f}: optimizer.betas: expected 2 values, got 1",
    ),
    "union": ("name: a\nseed: 1.5", "{f}: seed: expected int or str, got 1.5"),
    "not a section": ("name: a\nmesh: 3", "{f}: mesh: expected a mapping (MeshConfig), got 3"),
    "not a mapping": ("name: a\nweights: 3", "{f}: weights: expected a mapping, got 3"),
    "item of a mapping": (
        "name: a\nweights: {x: y}",
        "{f}: weights.x: expected a number, got 'y'",
    ),
    "rule of a section": (
        "name: a\noptimizer: {learning_rate: 0}",
        "{f}: optimizer: learning_rate is 0.0; expected above 0, set it so",
    ),
    "list at the top": (
        "- name",
        "{f}: expected a mapping (field: value) at the top, got list",
    ),
}


@pytest.mark.parametrize("case", WRONG)
def test_an_error_names_file_field_reason_and_cure(case, folder):
    text, expected = WRONG[case]
    path = folder(run=text) / "run.yaml"
    assert error_of(path) == expected.format(f=path)


def test_a_file_that_is_not_yaml_is_named_with_the_line(folder):
    path = folder(run="name: a\n  seed: [") / "run.yaml"
    assert re.search(r"run\.yaml: is not YAML \(.*line 2.*\)", error_of(path))
    path.write_bytes(b"name: \xff\xfe")
    assert "is not YAML" in error_of(path)


def test_a_key_written_twice_is_refused(folder):
    text = error_of(folder(run="name: a\noptimizer: {num_steps: 1, num_steps: 2}") / "run.yaml")
    assert "run.yaml: " in text
    assert "'num_steps' is written twice; keep one" in text


def test_a_missing_file_is_named_together_with_who_asked_for_it(folder):
    path = folder(run="name: a\noptimizer: adam.yaml", child="extends: none.yaml") / "run.yaml"
    there = path.parent
    reason = "cannot be read (No such file or directory); give the path of a YAML file"
    assert error_of(there / "lost.yaml") == f"{there / 'lost.yaml'}: {reason}"
    assert error_of(path) == f"{path}: optimizer: {there / 'adam.yaml'}: {reason}"
    child = there / "child.yaml"
    assert error_of(child) == f"{child}: extends: {there / 'none.yaml'}: {reason}"
    override = f"optimizer={there / 'gone.yaml'}"
    child.write_text("name: a")
    text = error_of(child, [override])
    assert text == f"override {override!r}: {there / 'gone.yaml'}: {reason}"


def test_files_in_a_circle_are_refused(folder):
    path = folder(a="extends: b.yaml", b="extends: a.yaml") / "a.yaml"
    assert "break the circle" in error_of(path)


def test_the_file_named_is_the_one_that_holds_the_field(folder):
    path = (
        folder(
            adam="num_steps: x",
            base="name: a\nseed: 1.5\noptimizer: {num_steps: 1}",
            run="extends: base.yaml\nkind: prime",
            other="name: a\noptimizer: adam.yaml",
        )
        / "run.yaml"
    )
    there = path.parent
    assert error_of(path).startswith(f"{there / 'base.yaml'}: seed: ")
    assert error_of(there / "other.yaml").startswith(f"{there / 'adam.yaml'}: optimizer.num_steps:")


@pytest.mark.parametrize(
    ("override", "expected"),
    [
        ("name", "override 'name': expected the form section.field=value"),
        ("=3", "override '=3': expected the form section.field=value"),
        ("kind=rl", "override 'kind=rl': kind: got 'rl', expected one of sft, prime"),
        (
            "optimzer.num_steps=3",
            "override 'optimzer.num_steps=3': optimzer: Run has no such field; "
            "did you mean 'optimizer'?",
        ),
        (
            "optimizer.num_steps=x",
            "override 'optimizer.num_steps=x': optimizer.num_steps: "
            "expected a whole number, got 'x'",
        ),
    ],
)
def test_a_wrong_override_is_quoted(override, expected, folder):
    assert error_of(folder(run="name: a") / "run.yaml", [override]) == expected


def test_an_override_that_is_not_yaml_is_one_line(folder):
    text = error_of(folder(run="name: a") / "run.yaml", ["stages=[a"])
    assert text.startswith("override 'stages=[a': the value is not YAML")


def test_an_override_takes_the_blame_from_the_file_it_overrides(folder):
    path = folder(adam="num_steps: 5", run="name: a\noptimizer: adam.yaml") / "run.yaml"
    assert error_of(path, ["optimizer={num_steps: x}"]).startswith("override ")


# --- saved configs ----------------------------------------------------------------------------

FULL = Run(
    "naïve: a",
    "prime",
    True,
    ("x", "1e-3"),
    "0",
    {"a": 1e-30, "b": float("inf")},
    Optimizer(3e-6, None, (0.0, 1.0), 2),
    sharding.MeshConfig(2, -1, 2),
)


@pytest.mark.parametrize("run", [FULL, Run("a")])
def test_load_of_dump_is_the_config(run, tmp_path):
    path = tmp_path / "saved.yaml"
    path.write_text(config.dump(run), encoding="utf-8")
    assert config.load(Run, path) == run
    assert config.from_dict(Run, config.to_dict(run)) == run


def test_from_dict_names_its_source():
    with pytest.raises(config.ConfigError, match="^here: seeed: Run has no such field"):
        config.from_dict(Run, {"name": "a", "seeed": 1}, "here")


def test_fingerprints_are_equal_exactly_for_equal_configs():
    other = dataclasses.replace(FULL, weights=dict(reversed(FULL.weights.items())))
    assert config.fingerprint(FULL) == config.fingerprint(other)
    changed = dataclasses.replace(FULL, optimizer=Optimizer(3e-6, None, (0.0, 1.0), 3))
    assert config.fingerprint(FULL) != config.fingerprint(changed)


def test_a_fingerprint_is_the_same_on_every_machine():
    """Stages are skipped by comparing with fingerprints of earlier runs: they must not drift."""
    seen = config.fingerprint({"b": (1, 2.5, None), "a": "é"})
    assert seen == "c8e177ab11af9dbe561b9cd455fa2264ea383ac11dd32463d0a3a153e2e5b5c6"
