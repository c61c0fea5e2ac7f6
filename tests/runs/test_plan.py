"""Plans of runs: the programs are those of the run, and what they take is what the run takes."""

import dataclasses
import json
import math

import jax
import pytest
import yaml

from jaxmath import __main__ as cli
from jaxmath import config as config_lib
from jaxmath import sharding
from jaxmath.decode import memory
from jaxmath.plan import chips, targets
from jaxmath.runs import plan, plan_search

from . import tiny

# Programs for absent devices cannot be loaded again, so the cache of compiled ones is no use here.
pytestmark = pytest.mark.filterwarnings("ignore:Error reading persistent compilation cache")

TOKENIZER = {"path": "not read"}
MODEL = tiny.MODEL | {"num_layers": 1, "logprobs": "reference"}  # compiles sooner
DECODE = tiny.DECODE | {"chunk_tokens": 4}
SFT = {
    "output": "runs/none",
    "tokenizer": TOKENIZER,
    "data": {"path": "not read"},
    "model": MODEL,
    "max_tokens": 64,
    "row_tokens": 64,
    "batch_rows": 16,
    "num_microbatches": 2,
    "optimizer": {"learning_rate": 1e-3},
}
DECODING = {
    "output": "runs/none",
    "tokenizer": TOKENIZER,
    "init_from": "not read",
    "model": MODEL,
    "decode": DECODE,
}
PRIME = DECODING | {
    "data": {"path": "not read"},
    "steps": 2,
    "rl": {
        "num_prompts": 4,
        "num_responses": 4,
        "max_prompt_tokens": DECODE["max_prompt_tokens"],
        "max_response_tokens": 16,
        "policy_minibatch_size": 16,
        "prm_minibatch_size": 16,
        "microbatch_size": 8,
    },
}


@pytest.fixture
def write(tmp_path):
    """Writes a config, returns its path."""

    def to_file(tree, name="run"):
        path = tmp_path / f"{name}.yaml"
        path.write_text(yaml.safe_dump(tree))
        return str(path)

    return to_file


def answer(path, *overrides, topology="cpu:8", **options):
    return plan.answer(plan.ask(path, overrides, topology), **options)


def test_a_train_step_is_planned_with_what_its_state_takes(write):
    found = answer(write(SFT), "mesh.fsdp=4", "mesh.data=2")
    (row,) = found.plan.rows
    parts = found.plan.job.parts
    params = found.config.model.num_params
    assert parts["weights"] >= params  # f32 over four shards
    assert parts["optimizer"] == pytest.approx(2 * parts["weights"], rel=0.01)
    batch = 4 * 2 * 64 * 4  # arrays, rows here, tokens, bytes
    assert row.cost.arguments == pytest.approx(sum(parts.values()) + batch, rel=0.01)
    # Plain attention looks at all keys, a causal one needs half of them.
    assert 0.9 * row.program.model_flops / 8 <= row.cost.flops < 2 * row.program.model_flops / 8
    assert row.cost.work.counts["all-gather"] > 0
    assert found.plan.fits and found.text().splitlines()[-1].startswith("FITS: ")


@pytest.mark.nightly
def test_a_prime_run_is_planned_whole(write):
    found = answer(
        write(PRIME), "ref_dtype=bfloat16", "mesh.fsdp=2", "mesh.tensor=2", "mesh.data=2"
    )
    rows = {row.program.name: row for row in found.plan.rows}
    assert list(rows) == [
        "decode step",
        "prefill",
        "log-probs",
        "prm update",
        "policy update",
        "weight sync",
    ]
    parts = found.plan.job.parts
    assert parts["PRM"] == parts["policy"] == pytest.approx(2 * parts["reference"], rel=0.02)
    learning = ("policy", "its optimizer", "PRM", "PRM's optimizer", "reference")
    update = rows["policy update"]
    assert update.program.holds == learning[:2]
    held = sum(parts[n] for n in learning[:2])
    batch = (
        8 * 16 * (DECODE["max_prompt_tokens"] + 16) * 4
    )  # at most 8 arrays, whole on every device
    assert held <= update.cost.arguments <= held + batch
    assert update.beside == sum(parts[n] for n in learning[2:])  # the decoder is gone
    scored = rows["log-probs"]
    assert scored.beside == parts["PRM as it is scored"] + sum(parts[n] for n in learning[1:])
    decode = rows["decode step"]
    assert decode.beside == sum(parts[n] for n in learning)
    assert decode.cost.arguments == pytest.approx(
        parts["decoder's weights"] + parts["decoder's cache"], rel=0.1
    )
    assert decode.cost.flops * 8 == pytest.approx(decode.program.model_flops, rel=0.25)
    assert "decode step" in found.text() and "accuracy filter" in found.text()


def test_what_training_holds_is_not_there_for_slots(write, monkeypatch):
    monkeypatch.setattr(memory, "device_budget", lambda fraction, mesh: 3 * 2**19)

    def slots(tree, verb):
        question = plan.ask(
            write(tree), ("decode.slots=null", "mesh.data=8", "mesh.fsdp=1"), "", verb
        )
        config = question.config()
        mesh = sharding.make_mesh(config.mesh)
        parts = plan.job_of(question, config, mesh).parts
        return parts["decoder's cache"], sum(n for name, n in parts.items() if "'s " not in name)

    alone, loaded = slots(DECODING | {"sampling": {"max_tokens": 16}}, "generate")
    beside, learning = slots(PRIME, "prime")
    assert 0 < beside < alone and learning > loaded


def test_the_verb_is_found_from_the_fields(write, root):
    for name, verb in {
        "sft": "sft",
        "prime": "prime",
        "synth": "synth",
        "eval": "eval",
        "generate": "generate",
        "serve": "serve",
        "gsm8k-sft": "sft",
    }.items():
        assert plan.verb_of(str(root / f"configs/{name}.yaml")) == verb
    with pytest.raises(config_lib.ConfigError, match="is a recipe; plan the config of one"):
        plan.verb_of(str(root / "configs/quickstart.yaml"))
    both = write(DECODING | {"data": {"path": "p"}, "num_samples": 2})
    with pytest.raises(config_lib.ConfigError, match="synth or generate; say which with --verb"):
        plan.verb_of(both)


def test_every_kept_plan_names_its_target_and_loads(root):
    paths = sorted((root / "configs/plans").glob("*.yaml"))
    assert len(paths) >= 12
    for path in paths:
        name = f"configs/plans/{path.name}"
        verb = plan.verb_of(str(path))
        head = path.read_text().splitlines()[:3]
        assert head[1] == f"# python -m jaxmath {verb} {name}"
        command, _, target = head[2].rpartition(" --topology ")
        assert command == f"# python -m jaxmath plan {name}"
        config = plan.ask(str(path), (), target).config()
        sizes = [int(n) for n in target.partition(":")[2].split("x")]
        assert math.prod(sizes) == config.mesh.data * config.mesh.fsdp * config.mesh.tensor


def test_the_command_prints_json_and_says_by_its_code_what_does_not_fit(write, capsys, monkeypatch):
    monkeypatch.setattr(plan, "on_cpu_alone", lambda: None)  # the session has its devices
    path = write(SFT)
    assert cli.main(["plan", path, "--topology", "cpu:8", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["verb"] == "sft" and found["fits"] and found["mesh"]["fsdp"] == 8
    assert found["programs"][0]["exchanges"]["all-gather"]["count"] > 0

    assert cli.main(["plan", path, "--topology", "v5e"]) == cli.INPUT
    assert "expected one of v4, v5e" in capsys.readouterr().err
    assert cli.main(["plan", path, "--topology", "cpu:8", "mesh.tensor=3"]) == cli.CONFIGURATION
    assert "does not use the 8 devices" in capsys.readouterr().err
    assert cli.main(["plan", path, "--topology", "cpu:8", "num_microbatches=4"]) == 64
    assert "4 is not a multiple of the 8 shards" in capsys.readouterr().err


def test_moments_on_the_host_and_adapters_leave_the_devices(write):
    def job(rl):
        question = plan.ask(write(PRIME | {"rl": PRIME["rl"] | rl}), (), "", "prime")
        config = question.config()
        return plan.job_of(question, config, sharding.make_mesh(config.mesh))

    offload = {"offload": True, "learning_rate": 1e-3}
    plain, hosted = job({}), job({"policy_optimizer": offload})
    assert not plain.host and list(hosted.host) == ["its optimizer"]
    assert hosted.parts["its optimizer"] < 100  # counters
    moved = hosted.host["its optimizer"] + hosted.parts["its optimizer"]
    assert moved == plain.parts["its optimizer"]
    assert any("on the host" in note for note in hosted.notes)

    thin = job({"prm_lora": {"rank": 2}})
    assert thin.parts["PRM"] < plain.parts["PRM"] / 4
    names = [program.name for program in thin.programs]
    assert "log-probs with adapters" in names and "PRM as it is scored" not in thin.parts
    update = next(program for program in thin.programs if program.name == "prm update")
    assert update.holds == ("PRM", "PRM's optimizer", "reference")


def test_optimizer_states_are_made_smaller_last(write):
    def savings(tree, verb):
        return list(plan_search.optimizer_savings(plan.ask(write(tree), (), "", verb).config()))

    host, small = "optimizer.offload=true", "optimizer.first_moment_dtype=bfloat16"
    assert savings(SFT, "sft") == [(host,), (host, small)]
    frugal = {"optimizer": SFT["optimizer"] | {"offload": True}}
    assert savings(SFT | frugal, "sft") == [(small,)]
    both = [f"rl.{name}.offload=true" for name in ("policy_optimizer", "prm_optimizer")]
    assert savings(PRIME, "prime")[0] == tuple(both)
    assert not savings(DECODING, "generate")


@pytest.mark.nightly
def test_a_search_finds_the_micro_batch_that_fits(write, monkeypatch, capsys):
    frugal = {"model": MODEL | {"remat": "full", "attention": "chunked"}}
    path = write(SFT | frugal | {"num_microbatches": 1, "batch_rows": 64})
    large = answer(path)
    small = answer(path, "num_microbatches=8").plan.fullest.total
    between = (large.plan.fullest.total + small) // 2
    chip = dataclasses.replace(large.plan.chip, memory=between)
    monkeypatch.setattr(chips, "of", lambda target: chip)
    monkeypatch.setattr(plan, "on_cpu_alone", lambda: None)
    assert cli.main(["plan", path, "--topology", "cpu:8", "--search"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert any(line.startswith("DOES NOT FIT: train step takes ") for line in lines)
    assert lines[-1] == "change: num_microbatches=8"


def test_candidates_change_the_mesh_last_and_keep_heads_whole(write):
    path = write(SFT | {"model": MODEL | {"remat": "none"}, "num_microbatches": 1})
    question = plan.ask(path, ("mesh.data=2", "mesh.fsdp=4"), "cpu:8")
    config = question.config()
    mesh = sharding.make_mesh(config.mesh, targets.devices("cpu:8"))
    found = list(plan_search.candidates(plan.Answer(question, config, mesh, None)))
    saved = ("num_microbatches=2", "model.remat=full", "model.attention=auto")
    assert found[:2] == [saved, (*saved, "mesh={data: 1, fsdp: 8, tensor: 1}")]
    tensors = [change[-1] for change in found[2:]]
    assert tensors == [
        "mesh={data: 1, fsdp: 4, tensor: 2}",
        "mesh={data: 1, fsdp: 2, tensor: 4}",
    ]


def test_a_run_on_somebody_elses_server_has_no_plan(write):
    engine = {"kind": "openai", "base_url": "http://127.0.0.1:1/v1", "model": "m"}
    tree = DECODING | {"data": {"path": "p"}, "engine": engine}
    with pytest.raises(config_lib.ConfigError, match="a server computes"):
        plan.answer(plan.ask(write(tree), (), "cpu:8", "synth"))


@pytest.mark.parametrize("topology", ["v5e:2x4", "h100:8"])
def test_a_run_compiles_for_machines_that_are_not_here(write, topology):
    if missing := targets.missing(topology):
        pytest.skip(missing)
    model = MODEL | {"dtype": "bfloat16", "attention": "auto"}
    with jax.default_matmul_precision("default"):  # as in runs; the kernels know no other
        found = answer(write(SFT | {"model": model}), topology=topology)
    (row,) = found.plan.rows
    # The target's, not this machine's; cuDNN's only where there is a cuDNN to ask for its version.
    names = ("splash",) if topology.startswith("v5e") else ("cudnn", "chunked")
    assert any(f"attention {name}\n" in found.text() for name in names)
    assert found.plan.fits and row.cost.work.counts
    assert 0.9 * row.program.model_flops / 8 <= row.cost.flops < 2 * row.program.model_flops / 8
