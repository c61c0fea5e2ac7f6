"""The whole recipe end to end, with its budgets cut; and which stages run, skip or run again."""

import dataclasses
import json
import pathlib
import re
import types

import pytest
import yaml

from jaxmath import config as config_lib
from jaxmath.data import batches
from jaxmath.eval import journal
from jaxmath.eval.samples import Sample
from jaxmath.runs import recipe, session

from . import tiny

STAGES = [
    "data",
    "teacher",
    "teacher-eval",
    "synth",
    "student",
    "student-eval",
    "prime",
    "prime-eval",
    "export",
]


def cut_quickstart(root, output) -> dict:
    """configs/quickstart.yaml with small models, few problems and few steps."""
    tree = yaml.safe_load((root / "configs/quickstart.yaml").read_text())
    tree["output"] = str(output)
    stages = {name: stage["config"] for name, stage in tree["stages"].items()}
    stages["data"] |= {"num_train": 32, "num_test": 12, "levels": [1]}
    for name in ("teacher", "student"):
        stages[name] |= {"model": tiny.MODEL, "max_steps": 200, "epochs": 1000, "log_every": 20}
        stages[name]["optimizer"] |= {"learning_rate": 1e-2}
        stages[name]["checkpoint"] = {"save_every": 40}
        stages[name] |= {"row_tokens": 96, "max_tokens": 96, "batch_rows": 16}
    stages["synth"]["data"] |= {"limit": 32}
    stages["synth"] |= {"shard_questions": 16}
    stages["prime"] |= {"steps": 2, "checkpoint": {"save_every": 1}}
    stages["prime"]["rl"] |= {
        "num_prompts": 8,
        "num_responses": 4,
        "min_accuracy": 0.0,
        "max_accuracy": 1.0,
        "policy_minibatch_size": 16,
        "prm_minibatch_size": 16,
        "tokens_per_microbatch": 640,
        "max_prompt_tokens": 48,
        "max_response_tokens": 40,
    }
    for stage in stages.values():
        if "decode" in stage:
            stage |= {"decode": tiny.DECODE, "verify": tiny.VERIFY}
        if "sampling" in stage:
            stage["sampling"] = stage["sampling"] | {"max_tokens": 40}
        if "problems" in stage:
            # Models this small know what they have seen, and nothing else.
            seen = {"path": "{output}/data/train.jsonl", "limit": 12}
            stage |= {"problems": {"seen": seen}, "num_samples": 2}
    return tree


def build(tree) -> recipe.RecipeRun:
    return config_lib.from_dict(recipe.RecipeRun, tree)


def ran(output: str) -> dict[str, str]:
    """Stage → "ran" or "skipped", from what a recipe prints."""
    found = {}
    for line in output.splitlines():
        if line.startswith("["):
            name, rest = line[1:].split("] ", 1)
            if "is now" not in rest:
                found[name] = "skipped" if rest.startswith("done before") else "ran"
    return found


@pytest.fixture(scope="module")
def finished(root, tmp_path_factory):
    """The tree of a recipe that was cut off in its second stage, and then ran to its end."""
    output = tmp_path_factory.mktemp("recipe") / "quickstart"
    tree = cut_quickstart(root, output)
    with tiny.cut_after(batches.SftData, "batch_at", 100), pytest.raises(tiny.Cut):
        recipe.run(build(tree))
    first = json.loads((output / "stages/teacher.json").read_text())
    assert first["done"] is False and first["seconds"] > 0
    recipe.run(build(tree))
    second = json.loads((output / "stages/teacher.json").read_text())
    assert second["done"] is True and second["seconds"] > first["seconds"]
    return tree, output


@pytest.mark.slow
def test_every_stage_leaves_its_artefacts(finished):
    tree, output = finished
    records = {
        name: json.loads((output / f"stages/{name}.json").read_text()) for name in tree["stages"]
    }
    assert list(records) == STAGES and all(record["done"] for record in records.values())
    for stage in ("teacher", "student"):
        assert [row["step"] for row in tiny.rows(output / stage / "metrics.jsonl")] == list(
            range(20, 201, 20)
        )
    summary = records["synth"]["summary"]
    assert summary["responses"] == 64 and summary["kept"] > 8
    assert len(tiny.rows(output / "synth/sft.jsonl")) == summary["kept"]
    assert tiny.saved(output / "prime", 2)[0]["step"] == 2
    for stage in ("teacher-eval", "student-eval", "prime-eval"):
        assert len(journal.read(Sample, output / stage / "samples/seen.jsonl")) == 24
    assert "config, tokenizer" in records["export"]["summary"]["transformers"]
    assert (output / "export/huggingface/model.safetensors").exists()


@pytest.mark.slow
def test_the_table_has_a_line_for_each_stage(finished):
    _, output = finished
    header, *lines = (output / "table.txt").read_text().splitlines()
    assert header.split()[:2] == ["stage", "verb"] and "95 % interval" in header
    assert [line.split()[0] for line in lines] == STAGES
    by_stage = {line.split()[0]: line for line in lines}
    for stage in ("teacher", "student", "prime"):  # what each eval measured stands at both
        found = [re.search(r"[\d.]+ % \(.*?\)", by_stage[s]) for s in (stage, f"{stage}-eval")]
        assert found[0].group() == found[1].group()
    assert float(by_stage["teacher"].split()[2]) > 10
    assert all(str(output) in line for line in lines)


@pytest.mark.slow
def test_a_second_run_skips_all_and_a_changed_stage_takes_its_followers_along(finished, capsys):
    tree, output = finished
    before = tiny.contents(output / "stages")
    recipe.run(build(tree))
    assert ran(capsys.readouterr().out) == dict.fromkeys(STAGES, "skipped")
    assert tiny.contents(output / "stages") == before

    old = tiny.contents(output / "prime-eval")
    tree["stages"]["prime"]["config"]["steps"] = 1
    recipe.run(build(tree))
    followers = ("prime", "prime-eval", "export")
    assert ran(capsys.readouterr().out) == {
        name: "ran" if name in followers else "skipped" for name in STAGES
    }
    assert tiny.contents(output / "prime-eval.old-1") == old
    assert tiny.saved(output / "prime.old-1", 2)[0]["step"] == 2
    assert tiny.saved(output / "prime", 1)[0]["step"] == 1


# --- which stages run, with stages that take no time ------------------------------------------


@dataclasses.dataclass(frozen=True)
class NoteConfig:
    """reads: a file, maybe of another stage."""

    output: str
    reads: str = ""
    word: str = ""


class Notes:
    """A verb that writes down what it read. `fails`: stages that break off."""

    def __init__(self):
        self.ran, self.fails = [], set()

    def run(self, config):
        folder = pathlib.Path(config.output)
        folder.mkdir(exist_ok=True)
        self.ran.append(folder.name)
        before = folder / "started"
        resumed = before.exists()
        before.write_text("")
        if folder.name in self.fails:
            raise tiny.Cut(folder.name)
        (folder / "note.txt").write_text(config.word)
        return session.Report({"resumed": resumed}, (str(folder),))

    def take(self):
        taken, self.ran = self.ran, []
        return taken


@pytest.fixture
def notes(monkeypatch):
    fake = Notes()
    module = types.SimpleNamespace(run=fake.run, NoteConfig=NoteConfig)
    monkeypatch.setattr(recipe, "VERBS", {"generate": ("notes", "NoteConfig", "output")})
    monkeypatch.setattr(recipe.importlib, "import_module", lambda name: module)
    return fake


def note_recipe(folder, words=("", "", "")):
    """a → b → c, and d on its own, which reads a file from outside."""
    reads = {"a": "", "b": "{output}/a/note.txt", "c": "{output}/b", "d": f"{folder}/outside.txt"}
    stages = {
        name: {"verb": "generate", "config": {"reads": path, "word": word}}
        for (name, path), word in zip(reads.items(), (*words, ""), strict=True)
    }
    return build({"output": str(folder / "out"), "stages": stages})


def test_a_stage_runs_again_when_its_config_or_an_input_changed(tmp_path, notes):
    (tmp_path / "outside.txt").write_text("1")
    recipe.run(note_recipe(tmp_path))
    assert notes.take() == ["a", "b", "c", "d"]
    recipe.run(note_recipe(tmp_path))
    assert notes.take() == []
    recipe.run(note_recipe(tmp_path, ("", "new", "")))
    assert notes.take() == ["b", "c"]
    assert (tmp_path / "out/b.old-1/note.txt").read_text() == ""
    assert (tmp_path / "out/b/note.txt").read_text() == "new"
    recipe.run(note_recipe(tmp_path, ("new", "new", "")))
    assert notes.take() == ["a", "b", "c"]
    assert (tmp_path / "out/b.old-2/note.txt").read_text() == "new"
    (tmp_path / "outside.txt").write_text("2")
    recipe.run(note_recipe(tmp_path, ("new", "new", "")))
    assert notes.take() == ["d"]


def test_a_stage_that_was_cut_off_goes_on_where_it_was(tmp_path, notes):
    notes.fails = {"b"}
    with pytest.raises(tiny.Cut):
        recipe.run(note_recipe(tmp_path))
    notes.fails = set()
    recipe.run(note_recipe(tmp_path))
    assert notes.take() == ["a", "b", "b", "c", "d"]
    record = json.loads((tmp_path / "out/stages/b.json").read_text())
    assert record["summary"] == {"resumed": True}
    assert not list((tmp_path / "out").glob("*.old-*"))


def test_a_cut_off_stage_with_another_config_starts_afresh(tmp_path, notes):
    notes.fails = {"b"}
    with pytest.raises(tiny.Cut):
        recipe.run(note_recipe(tmp_path))
    notes.fails = set()
    recipe.run(note_recipe(tmp_path, ("", "new", "")))
    record = json.loads((tmp_path / "out/stages/b.json").read_text())
    assert record["summary"] == {"resumed": False}
    assert (tmp_path / "out/b.old-1/started").exists()


def test_the_plan_checks_every_field_of_every_stage(root, tmp_path):
    tree = cut_quickstart(root, tmp_path)
    assert list(recipe.plan(build(tree))) == STAGES
    tree["stages"]["prime"]["config"]["rl"]["num_prompt"] = 4
    with pytest.raises(config_lib.ConfigError) as error:
        recipe.plan(build(tree))
    assert "stages.prime.config: rl.num_prompt" in str(error.value)
    assert "did you mean 'rl.num_prompts'?" in str(error.value)


def test_a_stage_may_not_choose_where_it_writes(tmp_path, notes):
    stage = {"verb": "generate", "config": {"output": "elsewhere"}}
    with pytest.raises(config_lib.ConfigError, match="stages.x.config.output: .* remove the field"):
        recipe.plan(build({"output": str(tmp_path), "stages": {"x": stage}}))
    with pytest.raises(config_lib.ConfigError, match="'../x' cannot name a folder"):
        build({"output": str(tmp_path), "stages": {"../x": {"verb": "generate", "config": {}}}})


def test_the_seed_of_the_recipe_reaches_its_stages(root, tmp_path):
    tree = cut_quickstart(root, tmp_path) | {"seed": 7}
    seeds = {s.name: s.config.seed for s in recipe._ready(build(tree)) if hasattr(s.config, "seed")}
    assert seeds == dict.fromkeys((name for name in STAGES if name != "export"), 7)
