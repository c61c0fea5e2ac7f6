"""Every file in configs/ loads, and says what it claims."""

import importlib
import itertools
import re
import socket

import pytest

from jaxmath import __main__ as cli
from jaxmath import config
from jaxmath.model.config import ModelConfig

# parameters of the published checkpoints: half the bytes of their bf16 safetensors
PUBLISHED_PARAMS = {
    "qwen2.5-0.5b": 494_032_768,
    "qwen2.5-1.5b": 1_543_714_304,
    "qwen2.5-3b": 3_085_938_688,
    "qwen2.5-7b": 7_615_616_512,
    "qwen2.5-14b": 14_770_033_664,
    "qwen2.5-32b": 32_763_876_352,
    "qwen2.5-72b": 72_706_203_648,
    "qwen2.5-math-1.5b": 1_543_714_304,
    "qwen2.5-math-7b": 7_615_616_512,
    "qwen2.5-math-72b": 72_706_203_648,
    "qwq-32b": 32_763_876_352,
    "qwq-32b-preview": 32_763_876_352,
}


def test_every_published_model_has_a_file_and_no_file_is_unknown(root):
    names = {path.stem for path in (root / "configs" / "models").glob("*.yaml")}
    assert names == set(PUBLISHED_PARAMS)


@pytest.mark.parametrize("name", PUBLISHED_PARAMS)
def test_a_model_file_counts_its_parameters(name, root):
    path = root / "configs" / "models" / f"{name}.yaml"
    model = config.load(ModelConfig, path)
    assert model.num_params == PUBLISHED_PARAMS[name]
    assert model.num_heads * model.head_dim == model.embed_dim
    stated = re.match(r"# Qwen/(\S+): ([\d,]+) parameters", path.read_text())
    assert stated.group(1).lower() == name
    assert int(stated.group(2).replace(",", "")) == model.num_params


@pytest.mark.parametrize("name", PUBLISHED_PARAMS)
def test_math_models_have_their_own_rotary_base_and_length(name, root):
    model = config.load(ModelConfig, root / "configs" / "models" / f"{name}.yaml")
    if "-math-" in name:
        assert (model.rope_theta, model.max_positions) == (1e4, 4096)
    else:
        assert model.rope_theta == 1e6
        assert model.max_positions >= 32768


RUNS = {
    "eval": "eval",
    "generate": "generate",
    "grpo": "prime",
    "gsm8k-eval": "eval",
    "gsm8k-sft": "sft",
    "prime": "prime",
    "quickstart": "recipe",
    "serve": "serve",
    "sft": "sft",
    "synth": "synth",
}


def load_run(root, name, *overrides):
    """(module of the verb, config) of configs/<name>.yaml."""
    module_name, class_name, _ = cli.CONFIGURED[RUNS[name]]
    module = importlib.import_module(f"jaxmath.runs.{module_name}")
    cls = getattr(module, class_name)
    return module, config.load(cls, root / "configs" / f"{name}.yaml", overrides)


def test_every_run_config_belongs_to_a_verb(root):
    assert {path.stem for path in (root / "configs").glob("*.yaml")} == set(RUNS)


@pytest.mark.parametrize("name", RUNS)
def test_a_run_config_loads_and_survives_its_own_dump(name, root, tmp_path):
    _, loaded = load_run(root, name)
    copy = tmp_path / "copy.yaml"
    copy.write_text(config.dump(loaded))
    assert config.load(type(loaded), copy) == loaded


@pytest.mark.parametrize("name", RUNS)
def test_a_run_config_opens_with_its_command_and_its_hardware(name, root):
    text = (root / "configs" / f"{name}.yaml").read_text()
    head = "\n".join(itertools.takewhile(lambda line: line.startswith("#"), text.splitlines()))
    assert f"python -m jaxmath {RUNS[name]} configs/{name}.yaml" in head
    if name != "quickstart":  # which runs on any machine
        assert "# For: " in head
        assert ("ot yet run" in head) != ("# Measured: " in head)


@pytest.mark.parametrize("name", ["eval", "prime", "sft", "synth"])
def test_a_published_run_can_be_planned_without_a_network(name, root, no_network):
    module, loaded = load_run(root, name)
    facts = module.plan(loaded)
    assert facts["parameters"] == ("32,763,876,352" if name == "synth" else "7,615,616,512")
    assert facts["devices"] == "8 x cpu" and "fsdp=" in facts["mesh"]


def test_generation_with_a_stated_shape_can_be_planned_without_a_network(root, no_network):
    shape = root / "configs/models/qwen2.5-math-7b.yaml"
    module, loaded = load_run(root, "generate", f"model={shape}")
    assert module.plan(loaded)["parameters"] == "7,615,616,512"


def test_every_stage_of_the_quickstart_builds(root):
    module, loaded = load_run(root, "quickstart")
    verbs = [text.split(" ")[0] for text in module.plan(loaded).values()]
    assert verbs == ["problems", "sft", "eval", "synth", "sft", "eval", "prime", "eval", "export"]


def test_the_published_values_are_the_papers(root):
    _, sft = load_run(root, "sft")
    assert (sft.optimizer.learning_rate, sft.epochs, sft.batch_rows) == (5e-6, 5, 128)
    assert (sft.optimizer.schedule, sft.optimizer.warmup_fraction) == ("linear", 0.03)
    assert (sft.max_tokens, sft.loss_reduction, sft.pack) == (5000, "sequence_mean", False)
    _, prime = load_run(root, "prime")
    rl = prime.rl
    assert (rl.num_prompts, rl.num_responses, rl.policy_updates) == (256, 4, 4)
    assert (rl.min_accuracy, rl.max_accuracy, rl.beta, rl.clip_eps) == (0.2, 0.8, 0.05, 0.2)
    assert (rl.policy_optimizer.learning_rate, rl.prm_optimizer.learning_rate) == (5e-7, 1e-6)
    assert rl.max_prompt_tokens + rl.max_response_tokens == prime.model.max_positions == 4096
    _, synth = load_run(root, "synth")
    assert (synth.sampling.temperature, synth.num_samples) == (0.9, 2)


@pytest.fixture
def no_network(monkeypatch):
    """Any attempt to reach another machine fails the test."""

    def refuse(*args, **kwargs):
        raise AssertionError(f"a connection was asked for: {args}")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)
