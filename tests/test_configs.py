"""Every file in configs/ loads, and says what it claims."""

import re

import pytest

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
