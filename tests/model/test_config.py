"""config.json of type qwen2 ↔ ModelConfig; what is not implemented is refused by its name."""

import dataclasses

import pytest

from jaxmath.model import config as model_config

# Qwen2.5-0.5B's published config.json, in the spelling of transformers 4
PUBLISHED = {
    "architectures": ["Qwen2ForCausalLM"],
    "attention_dropout": 0.0,
    "bos_token_id": 151643,
    "eos_token_id": 151643,
    "hidden_act": "silu",
    "hidden_size": 896,
    "initializer_range": 0.02,
    "intermediate_size": 4864,
    "max_position_embeddings": 32768,
    "max_window_layers": 24,
    "model_type": "qwen2",
    "num_attention_heads": 14,
    "num_hidden_layers": 24,
    "num_key_value_heads": 2,
    "rms_norm_eps": 1e-06,
    "rope_theta": 1000000.0,
    "sliding_window": 32768,
    "tie_word_embeddings": True,
    "torch_dtype": "bfloat16",
    "use_cache": True,
    "use_mrope": False,
    "use_sliding_window": False,
    "vocab_size": 151936,
}

TINY = model_config.ModelConfig(
    vocab_size=61, num_layers=2, embed_dim=24, mlp_dim=40, num_heads=6, num_kv_heads=2, head_dim=4
)


def without(*names, **changes):
    return {k: v for k, v in PUBLISHED.items() if k not in names} | changes


def nested(theta=1e6, kind="default", **rest):
    return {"rope_parameters": {"rope_theta": theta, "rope_type": kind, **rest}}


def test_the_published_config_is_read():
    assert model_config.from_hf(PUBLISHED) == model_config.ModelConfig(
        vocab_size=151936,
        num_layers=24,
        embed_dim=896,
        mlp_dim=4864,
        num_heads=14,
        num_kv_heads=2,
        head_dim=64,
        rope_theta=1e6,
        rms_norm_eps=1e-6,
        tie_embeddings=True,
        max_positions=32768,
    )


def test_both_spellings_of_the_rotary_base_are_the_same_model():
    flat = model_config.from_hf(PUBLISHED)
    assert model_config.from_hf(without("rope_theta", **nested(1e6))) == flat
    assert model_config.from_hf(without(**nested(1e6))) == flat
    assert model_config.from_hf(without(rope_scaling=None)) == flat
    assert model_config.from_hf(without("rope_theta", **nested(1e4))).rope_theta == 1e4


def test_a_stated_head_dim_wins_over_the_implied_one():
    assert model_config.from_hf(without(head_dim=32)).head_dim == 32
    assert model_config.from_hf(without(head_dim=None)).head_dim == 64


def test_absent_or_null_fields_take_the_defaults_of_transformers():
    names = ("rms_norm_eps", "max_position_embeddings", "tie_word_embeddings")
    for hf in (without(*names), without(**dict.fromkeys(names))):
        config = model_config.from_hf(hf)
        assert (config.rms_norm_eps, config.max_positions) == (1e-6, 32768)
        assert config.tie_embeddings is False


def test_how_to_compute_is_chosen_beside_the_file():
    config = model_config.from_hf(PUBLISHED, remat="dots", dtype="float32")
    assert (config.remat, config.dtype) == ("dots", "float32")
    assert config.same_weights(model_config.from_hf(PUBLISHED))
    assert not config.same_weights(model_config.from_hf(without(rope_theta=1e4)))


REFUSED = {
    "another type": (without(model_type="qwen3"), "model_type is 'qwen3'; only 'qwen2'"),
    "no type": (without("model_type"), "model_type is None; only 'qwen2'"),
    "sliding window": (without(use_sliding_window=True), "sliding-window attention"),
    "layer types": (
        without(layer_types=["full_attention"] * 23 + ["sliding_attention"]),
        "sliding-window attention",
    ),
    "linear": (without(rope_scaling={"type": "linear", "factor": 2.0}), "of type 'linear' is not"),
    "yarn": (
        without(rope_scaling={"rope_type": "yarn", "factor": 4.0}),
        "of type 'yarn' is not implemented",
    ),
    "dynamic": (without("rope_theta", **nested(kind="dynamic")), "of type 'dynamic' is not"),
    "yarn behind a default": (
        without(rope_scaling={"type": "yarn", "factor": 4.0}, **nested()),
        "of type 'yarn' is not implemented",
    ),
    "activation": (without(hidden_act="gelu"), "hidden_act is 'gelu'; only 'silu'"),
    "dropout": (without(attention_dropout=0.1), "attention_dropout is 0.1; only 0"),
    "quantized": (without(quantization_config={"bits": 4}), "quantized .*bfloat16"),
    "no theta": (without("rope_theta"), "neither rope_theta nor rope_parameters.rope_theta; add"),
    "no theta in parameters": (
        without("rope_theta", rope_parameters={"rope_type": "default"}),
        "neither rope_theta",
    ),
    "two thetas": (without(**nested(1e4)), "10000.0 and 1000000.0; make them equal"),
    "missing": (
        without("vocab_size", num_key_value_heads=None),
        "lacks vocab_size, num_key_value_heads",
    ),
    "heads": (without(num_key_value_heads=4), "num_heads 14 is not a multiple of num_kv_heads 4"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_is_not_supported_is_refused_by_name(case):
    hf, message = REFUSED[case]
    with pytest.raises(ValueError, match=message):
        model_config.from_hf(hf)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"num_layers": 0}, "num_layers is 0; expected at least 1"),
        ({"head_dim": 5}, "head_dim is 5; rotary embedding needs an even number"),
        ({"rope_theta": 0.0}, "rope_theta is 0.0; expected a number above 0"),
        ({"rms_norm_eps": float("nan")}, "rms_norm_eps is nan; expected a number above 0"),
        ({"attention": "flash"}, "attention is 'flash'; expected one of auto, reference, chunked"),
        ({"logprobs": "fast"}, "logprobs is 'fast'; expected one of reference, chunked"),
        ({"remat": "some"}, "remat is 'some'; expected one of none, dots, full"),
        ({"dtype": "float16"}, "dtype is 'float16'; expected one of bfloat16, float32"),
    ],
)
def test_an_impossible_model_is_refused(change, message):
    with pytest.raises(ValueError, match=message):
        dataclasses.replace(TINY, **change)


VARIANTS = {
    "untied": TINY,
    "tied": dataclasses.replace(TINY, tie_embeddings=True),
    "theta 1e4": dataclasses.replace(TINY, rope_theta=1e4),
    "head_dim apart": dataclasses.replace(TINY, head_dim=10, rms_norm_eps=1e-5),
    "one kv head": dataclasses.replace(TINY, num_kv_heads=1, num_layers=3, max_positions=99),
}


@pytest.mark.parametrize("name", VARIANTS)
def test_from_hf_of_to_hf_is_the_config(name):
    config = VARIANTS[name]
    assert model_config.from_hf(model_config.to_hf(config, dtype="float32")) == config


@pytest.mark.parametrize("name", VARIANTS)
def test_transformers_opens_what_we_write_with_the_same_theta_and_parameters(name):
    import transformers

    config = VARIANTS[name]
    hf = transformers.Qwen2Config.from_dict(
        model_config.to_hf(config, dtype="float32", eos_token_id=[7, 9], pad_token_id=8)
    )
    torch_model = transformers.Qwen2ForCausalLM(hf)
    assert hf.rope_parameters["rope_theta"] == config.rope_theta
    inverse = torch_model.model.rotary_emb.inv_freq
    assert inverse.shape == (config.head_dim // 2,)
    expected = config.rope_theta ** (-2 / config.head_dim)
    assert float(inverse[1]) == pytest.approx(expected, rel=1e-6)
    assert sum(p.numel() for p in torch_model.parameters()) == config.num_params
    assert hf.eos_token_id == [7, 9]
    assert not hf.use_sliding_window
    # What transformers writes back, in its own spelling, is the same model again.
    assert model_config.from_hf(hf.to_dict()) == config


@pytest.mark.parametrize(
    ("hf", "count"),
    [
        (PUBLISHED, 494_032_768),
        (
            without(
                hidden_size=3584,
                intermediate_size=18944,
                num_attention_heads=28,
                num_hidden_layers=28,
                num_key_value_heads=4,
                vocab_size=152064,
                tie_word_embeddings=False,
            ),
            7_615_616_512,
        ),
    ],
)
def test_published_models_have_their_published_number_of_parameters(hf, count):
    """Qwen2.5-0.5B and Qwen2.5-7B, as the safetensors metadata of the checkpoints counts them."""
    assert model_config.from_hf(hf).num_params == count
