"""Which attention a run takes, and what it says about it."""

import functools

import jax
import pytest

from jaxmath import sharding
from jaxmath.kernels import attention, attention_choice, attention_splash
from jaxmath.model.config import ModelConfig

HEADS = attention_choice.Heads(num_heads=2, num_kv_heads=1, head_dim=8, dtype="float32")
SPLASH = functools.partial(attention_splash.splash, interpret=True)


@pytest.fixture
def mesh():
    return sharding.make_mesh(sharding.MeshConfig(fsdp=1), jax.devices()[:1])


@pytest.fixture(autouse=True)
def forgotten(monkeypatch):
    """Nothing is remembered from other tests; the problem is small."""
    monkeypatch.setattr(attention_choice, "ENDS", (20, 21, 33, 35))
    monkeypatch.setattr(attention_choice, "NUM_TOKENS", 37)
    attention_choice.unusable.cache_clear()
    attention_choice._say_once.cache_clear()
    yield
    attention_choice.unusable.cache_clear()


def here(monkeypatch, attend):
    """A machine whose best attention is `attend`."""
    monkeypatch.setitem(attention_choice.BEST, "cpu", "splash")
    monkeypatch.setitem(attention_choice._REASONS, "splash", lambda heads, mesh: None)
    monkeypatch.setitem(attention.ATTENTION, "splash", attend)


def test_a_cpu_takes_the_one_that_runs_anywhere_and_says_nothing(mesh, capsys):
    assert attention_choice.choose("auto", HEADS, mesh) == "chunked"
    assert attention_choice.choose("reference", HEADS, mesh) == "reference"
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize(
    ("name", "reason"),
    [("splash", "needs a TPU"), ("cudnn", "NVIDIA GPU"), ("cudnn_offsets", "NVIDIA GPU")],
)
def test_one_that_is_named_and_cannot_run_is_an_error(name, reason, mesh, capsys):
    with pytest.raises(ValueError, match=f"attention '{name}' cannot be used: .*{reason}"):
        attention_choice.choose(name, HEADS, mesh)
    # A checkpoint may name what trained it; where it is loaded, that is no wish.
    assert attention_choice.choose(name, HEADS, mesh, must=False) == "chunked"
    assert reason in capsys.readouterr().err


def test_the_best_is_taken_where_it_agrees_in_values_and_gradients(mesh, monkeypatch, capsys):
    here(monkeypatch, SPLASH)
    assert attention_choice.choose("auto", HEADS, mesh) == "splash"
    assert capsys.readouterr().err == ""


def wrong_values(q_BTNH, *rest):
    return 1.1 * attention.reference(q_BTNH, *rest)


def wrong_gradients(q_BTNH, *rest):
    return attention.reference(jax.lax.stop_gradient(q_BTNH), *rest)


def leaking(q_BTNH, k_BTKH, v_BTKH, segment_ids_BT):
    return attention.reference(q_BTNH, k_BTKH, v_BTKH, segment_ids_BT.clip(max=1))


def broken(*_):
    raise NotImplementedError("Mosaic says no")


@pytest.mark.parametrize(
    ("attend", "reason"),
    [
        (wrong_values, "values or gradients differ from plain attention by 10.0%"),
        (wrong_gradients, "values or gradients differ from plain attention by 100.0%"),
        (leaking, "values or gradients differ from plain attention by"),
        (broken, "NotImplementedError: Mosaic says no"),
    ],
)
def test_what_does_not_agree_is_not_taken_and_the_reason_is_said_once(
    attend, reason, mesh, monkeypatch, capsys
):
    here(monkeypatch, attend)
    for _ in range(3):
        assert attention_choice.choose("auto", HEADS, mesh) == "chunked"
    assert capsys.readouterr().err.count("attention 'chunked', since 'splash'") == 1
    with pytest.raises(ValueError, match=reason):
        attention_choice.choose("splash", HEADS, mesh)


def test_a_config_keeps_what_was_written(mesh, monkeypatch):
    here(monkeypatch, SPLASH)
    config = ModelConfig(64, 1, 8, 8, num_heads=2, num_kv_heads=1, head_dim=8, dtype="float32")
    assert config.attention == "auto"
    assert config.on_mesh(mesh).attention == "splash"
    assert config.attention == "auto" and config.same_weights(config.on_mesh(mesh))
