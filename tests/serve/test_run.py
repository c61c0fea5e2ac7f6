"""`jaxmath serve` with a real, tiny model: what HTTP gives is what the decoder gives."""

import concurrent.futures
import json
import os
import signal
import subprocess
import sys

import fakes
import httpx2
import jax
import numpy as np
import pytest

from jaxmath import config as config_lib
from jaxmath import sharding
from jaxmath.checkpoint import huggingface
from jaxmath.data import tokenizer
from jaxmath.decode import decoder, remote
from jaxmath.decode.requests import Request
from jaxmath.decode.sampling import SamplingConfig
from jaxmath.model import qwen2
from jaxmath.model.config import ModelConfig
from jaxmath.runs import serve, session

SHAPE = ModelConfig(
    vocab_size=512,
    num_layers=2,
    embed_dim=32,
    mlp_dim=64,
    num_heads=4,
    num_kv_heads=2,
    head_dim=8,
    rope_theta=1e4,
    max_positions=256,
    tie_embeddings=False,
    attention="reference",
    dtype="float32",
)
TEXTS = ["What is 12 * 34?", "The naïve answer – 408 – is right. 👩‍👩‍👧"]


@pytest.fixture(scope="module")
def mesh():
    return sharding.make_mesh(sharding.MeshConfig(), jax.devices()[:1])


@pytest.fixture(scope="module")
def model(mesh):
    """Random; its logits are large enough for some words to come again and again."""
    params = qwen2.init_sharded(SHAPE, jax.random.key(0), mesh)
    return jax.tree.map(lambda x: 2 * x, params)


@pytest.fixture(scope="module")
def folders(model, tmp_path_factory):
    """(model, tokenizer), both in Hugging Face format."""
    folder = tmp_path_factory.mktemp("model")
    tokenizer.train_small(TEXTS * 20, folder / "tokenizer", 400)
    huggingface.save(model, folder / "random", dtype="float32")
    return folder / "random", folder / "tokenizer"


@pytest.fixture(scope="module")
def fields(folders):
    return {
        "init_from": str(folders[0]),
        "model": config_lib.to_dict(SHAPE),  # in float32, as the decoder it is compared with
        "tokenizer": {"path": str(folders[1])},
        "decode": {"slots": 8, "max_prompt_tokens": 64, "chunk_tokens": 4, "prompt_buckets": []},
        "sampling": {"max_tokens": 40},
    }


@pytest.fixture(scope="module")
def client(fields, mesh):
    config = config_lib.from_dict(serve.ServeRun, fields)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(session, "make_mesh", lambda config: mesh)
        service = serve.make_service(config, None)
    with fakes.live(service) as (_, client):
        yield client


@pytest.fixture(scope="module")
def tokens(folders):
    return tokenizer.Tokenizer(tokenizer.TokenizerConfig(str(folders[1])))


@pytest.fixture(scope="module")
def local(model, mesh, tokens):
    """A decoder of the same model, of other sizes."""
    sizes = decoder.DecodeConfig(slots=3, max_prompt_tokens=48, chunk_tokens=7)
    drawn = SamplingConfig(temperature=0.0, max_tokens=40)
    out = decoder.Decoder(SHAPE, sizes, drawn, tokens.eos_ids, mesh, detokenize=tokens.decode)
    out.load(model)
    return out


def complete(client, **body):
    response = client.post("/v1/completions", json={"max_tokens": 40, **body})
    assert response.status_code == 200, response.text
    return response.json()


def texts(answer):
    return [choice["text"] for choice in answer["choices"]]


def test_greedy_over_http_is_greedy_here(client, local, tokens):
    ids = [tuple(tokens.encode(text)) for text in TEXTS]
    here = {c.prompt_id: c for c in local.generate(Request(i, 0, p) for i, p in enumerate(ids))}
    for prompt in (ids, TEXTS):
        answer = complete(client, prompt=prompt, temperature=0, logprobs=0)
        for choice in answer["choices"]:
            mine = here[choice["index"]]
            assert choice["text"] == mine.text and choice["finish_reason"] == mine.finish_reason
            np.testing.assert_allclose(
                choice["logprobs"]["token_logprobs"], mine.logprobs, atol=1e-4
            )
        assert answer["usage"]["completion_tokens"] == sum(len(c.tokens) for c in here.values())


def test_a_seed_gives_the_same_answer_whatever_else_is_going_on(client):
    asked = {"prompt": TEXTS[0], "seed": 7, "temperature": 1.0}
    alone = texts(complete(client, **asked))
    assert texts(complete(client, **asked, n=8))[:1] == alone
    with concurrent.futures.ThreadPoolExecutor(8) as callers:
        noise = [callers.submit(complete, client, prompt=TEXTS[1], n=3) for _ in range(6)]
        again = callers.submit(complete, client, **asked)
        assert texts(again.result()) == alone
        assert len({text for call in noise for text in texts(call.result())}) == 18
    assert texts(complete(client, **(asked | {"seed": 8}))) != alone


@pytest.mark.parametrize("stop", [None, ["a", "\ufffd\ufffd", "1 "]])
def test_streams_of_random_bytes_add_up_to_the_whole(client, stop):
    asked = {"prompt": TEXTS, "seed": 1, "n": 8, "stop": stop, "logprobs": 0}
    whole = complete(client, **asked)
    parts = {i: [] for i in range(16)}
    body = {"max_tokens": 40, "stream": True, **asked}
    with client.stream("POST", "/v1/completions", json=body) as response:
        for line in response.iter_lines():
            if line.startswith("data: {"):
                (choice,) = json.loads(line.removeprefix("data: "))["choices"]
                parts[choice["index"]].append(choice)
    for choice in whole["choices"]:
        mine = parts[choice["index"]]
        assert "".join(part["text"] for part in mine) == choice["text"]
        assert mine[-1]["finish_reason"] == choice["finish_reason"]
        logprobs = sum((part["logprobs"]["token_logprobs"] for part in mine), [])
        assert logprobs == choice["logprobs"]["token_logprobs"]
        assert not any(end in choice["text"] for end in stop or ())
    reasons = {choice["finish_reason"] for choice in whole["choices"]}
    assert stop is None or "stop" in reasons


def test_ways_to_draw_have_their_effect(client, tokens):
    (letter,) = tokens.encode("Q")
    forced = complete(client, prompt="a", logit_bias={letter: 100}, temperature=0, max_tokens=5)
    assert texts(forced) == ["QQQQQ"]
    (greedy,) = texts(complete(client, prompt=TEXTS[0], temperature=0))
    (first,) = texts(complete(client, prompt=TEXTS[0], top_k=1, temperature=1.5))
    assert first == greedy
    (other,) = texts(complete(client, prompt=TEXTS[0], repetition_penalty=5, temperature=0))
    assert other != greedy
    eos = dict.fromkeys(tokens.eos_ids, 100)
    assert texts(complete(client, prompt="a", logit_bias=eos)) == [""]
    late = complete(client, prompt="a", logit_bias=eos, min_tokens=9)
    assert late["usage"]["completion_tokens"] == 10


def test_a_chat_is_the_templates_prompt(client, tokens):
    messages = [{"role": "user", "content": TEXTS[0]}]
    body = {"messages": messages, "temperature": 0, "max_tokens": 20}
    chat = client.post("/v1/chat/completions", json=body).json()
    ids = tokens.encode_chat(messages, add_generation_prompt=True)
    plain = complete(client, prompt=ids, temperature=0, max_tokens=20)
    assert chat["choices"][0]["message"]["content"] == texts(plain)[0]
    assert chat["usage"] == plain["usage"]
    # the template's control tokens count in a plain prompt, as on other servers
    rendered = tokens.render(messages, add_generation_prompt=True)
    assert texts(complete(client, prompt=rendered, temperature=0, max_tokens=20)) == texts(plain)


def test_our_client_drives_our_server(client, local, tokens):
    config = remote.EngineConfig("openai", f"{client.base_url}/v1", "random", concurrency=6)
    ids = [tuple(tokens.encode(text)) for text in TEXTS]
    asked = [Request(i, j, ids[i]) for i in (0, 1) for j in range(5)]
    drawn = SamplingConfig(temperature=0.8, max_tokens=30, seed=5)
    engine = remote.RemoteEngine(config, drawn, lambda r: TEXTS[r.prompt_id], logprobs=True)
    first = {(r.prompt_id, r.sample): r for r in engine.generate(asked)}
    again = {(r.prompt_id, r.sample): r for r in engine.generate(reversed(asked))}
    engine._as_text = True
    as_text = {(r.prompt_id, r.sample): r for r in engine.generate(asked)}
    assert first.keys() == {request.name for request in asked}
    for name, reply in first.items():
        assert reply.text == again[name].text == as_text[name].text
        assert reply.num_tokens == len(reply.logprobs)
        np.testing.assert_allclose(reply.logprobs, again[name].logprobs, atol=1e-5)
    assert len({reply.text for reply in first.values()}) == 10


def test_the_decoder_refuses_nothing_that_the_door_let_through(client):
    body = {
        "prompt": [list(range(64))],
        "max_tokens": 40,
        "min_tokens": 40,
        "n": 8,
        "logit_bias": {str(i): -100 for i in range(64)},
        "stop": ["x" * 256] * 16,
        "top_k": 2**31 - 1,
        "top_p": 1e-30,
        "temperature": 2,
        "repetition_penalty": 0.01,
        "logprobs": 0,
    }
    assert complete(client, **body)["usage"]["completion_tokens"] == 320


# --- the verb ---------------------------------------------------------------------------------


def test_the_verb_serves_until_a_signal(fields, tmp_path):
    path = tmp_path / "serve.yaml"
    path.write_text(config_lib.dump(config_lib.from_dict(serve.ServeRun, fields | {"port": 0})))
    environment = os.environ | {
        "JAX_COMPILATION_CACHE_DIR": jax.config.jax_compilation_cache_dir,
        "PYTHONPATH": os.pathsep.join(sys.path),
        "TINY_KEY": "s3cret",
    }
    command = [sys.executable, "-m", "jaxmath", "serve", str(path), "api_key_env=TINY_KEY"]
    process = subprocess.Popen(
        command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    # Before that it says how memory is used.
    line = next((line for line in process.stderr if line.startswith("serving ")), "")
    assert line.startswith("serving random at http://127.0.0.1:"), line
    url = line.split(" at ")[1].split(";")[0]
    headers = {"Authorization": "Bearer s3cret"}
    body = {"prompt": "a", "max_tokens": 2}
    answer = httpx2.post(f"{url}/completions", json=body, headers=headers, timeout=120)
    assert answer.status_code == 200 and answer.json()["usage"]["completion_tokens"] == 2
    assert httpx2.post(f"{url}/completions", json=body).status_code == 401
    process.send_signal(signal.SIGINT)
    out, errors = process.communicate(timeout=60)
    assert process.returncode == 0, errors
    assert out == "responses: 1\n" and "s3cret" not in errors + out


def test_an_open_port_needs_a_key(fields, monkeypatch):
    for host in ("0.0.0.0", "::", "192.168.0.1", "example.com"):
        with pytest.raises(config_lib.ConfigError, match="set api_key_env"):
            config_lib.from_dict(serve.ServeRun, fields | {"host": host})
    config = config_lib.from_dict(
        serve.ServeRun, fields | {"host": "0.0.0.0", "api_key_env": "TINY_KEY"}
    )
    for value in (None, ""):
        monkeypatch.setenv("TINY_KEY", value) if value is not None else None
        with pytest.raises(config_lib.ConfigError, match="TINY_KEY is empty or not set"):
            serve.run(config)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"port": 65536}, "port is 65536"),
        ({"grace_s": -1}, "grace_s is -1"),
        ({"max_choices": 0}, "max_choices is 0"),
        ({"max_choices": 5000}, "more than max_waiting 4096"),
        ({"sampling": {"max_tokens": 0}}, "max_tokens is 0"),
    ],
)
def test_a_server_that_cannot_be_is_refused(fields, changes, message):
    with pytest.raises(config_lib.ConfigError, match=message):
        config_lib.from_dict(serve.ServeRun, fields | changes)


def test_the_plan_says_where_and_how_much(fields):
    config = config_lib.from_dict(serve.ServeRun, fields | {"name": "m", "host": "::1"})
    facts = serve.plan(config)
    assert facts["address"] == "http://[::1]:8000/v1 as 'm'"
    assert facts["API key"] == "none asked for"
    assert facts["tokens per prompt, at most"] == 64
