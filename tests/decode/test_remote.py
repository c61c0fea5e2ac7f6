"""The client of other servers: every sample once, whatever the server does on the way."""

import collections
import random
import subprocess
import sys
import threading
import time

import numpy as np
import pytest
from openai_server import serving

from jaxmath import config as config_lib
from jaxmath.decode import remote
from jaxmath.decode.requests import Request
from jaxmath.decode.sampling import SamplingConfig

SAMPLING = SamplingConfig(temperature=0.9, max_tokens=32, seed=3)


@pytest.fixture(autouse=True)
def short_waits(monkeypatch):
    monkeypatch.setattr(remote, "FIRST_WAIT_S", 0.01)


def engine_for(server, sampling=SAMPLING, logprobs=False, **changes):
    fields = {"kind": "openai", "base_url": server.url, "model": "m", "concurrency": 4}
    config = config_lib.from_dict(remote.EngineConfig, fields | changes)
    prompt_text = lambda request: f"prompt {request.prompt_id}"  # noqa: E731
    return remote.RemoteEngine(config, sampling, prompt_text, logprobs=logprobs)


def requests(num_prompts=5, num_samples=4):
    return [Request(i, j, (i, 7)) for i in range(num_prompts) for j in range(num_samples)]


def expected_text(request):
    seed = remote.sample_seed(SAMPLING.seed, request.prompt_id, request.sample)
    return f"{list(request.tokens)}/{seed}"


def check_all(replies, asked):
    """Each request has one reply, its own."""
    found = collections.Counter((r.prompt_id, r.sample) for r in replies)
    assert found == collections.Counter(request.name for request in asked)
    texts = {(r.prompt_id, r.sample): r.text for r in replies}
    assert texts == {request.name: expected_text(request) for request in asked}


# --- what is asked ----------------------------------------------------------------------------


def test_every_sample_comes_once_with_a_seed_of_its_own():
    with serving() as server:
        replies = list(engine_for(server).generate(iter(requests())))
    check_all(replies, requests())
    assert len({body["seed"] for body in server.bodies}) == 20 == len(server.bodies)
    assert all(0 <= body["seed"] < 2**31 for body in server.bodies)
    assert replies[0].num_tokens == len(replies[0].text) and replies[0].logprobs is None


def test_only_what_says_something_is_sent():
    with serving() as server:
        list(engine_for(server).generate(requests(1, 1)))
        drawn = SamplingConfig(
            temperature=0.5,
            top_k=5,
            top_p=0.9,
            max_tokens=8,
            min_tokens=2,
            repetition_penalty=1.2,
            logit_bias=((3, -100.0),),
            stop=("END",),
        )
        (reply,) = engine_for(server, drawn, logprobs=True).generate(requests(1, 1))
    seed = server.bodies[0].pop("seed")
    assert seed == remote.sample_seed(3, 0, 0)
    assert server.bodies[0] == {
        "model": "m",
        "prompt": [0, 7],
        "max_tokens": 32,
        "temperature": 0.9,
        "top_p": 1.0,
    }
    assert server.bodies[1] == {
        "model": "m",
        "prompt": [0, 7],
        "max_tokens": 8,
        "temperature": 0.5,
        "top_p": 0.9,
        "seed": remote.sample_seed(0, 0, 0),
        "top_k": 5,
        "min_tokens": 2,
        "repetition_penalty": 1.2,
        "logit_bias": {"3": -100.0},
        "stop": ["END"],
        "logprobs": 0,
    }
    assert reply.logprobs.dtype == np.float32 and reply.logprobs.tolist() == [-0.5, -0.25]


def test_a_server_without_token_ids_gets_text_after_one_refusal():
    with serving(takes_ids=False) as server:
        engine = engine_for(server)
        first, second = list(engine.generate(requests())), list(engine.generate(requests(2)))
    assert len(first) == 20 and len(second) == 8
    assert first[0].text.startswith("prompt 0/")
    assert sum(not isinstance(body["prompt"], str) for body in server.bodies) == 1


def test_requests_under_way_never_exceed_the_limit():
    for concurrency in (1, 3):
        with serving(delay_s=0.05) as server:
            replies = engine_for(server, concurrency=concurrency).generate(requests())
            check_all(list(replies), requests())
        assert min(concurrency, 2) <= server.most_at_once <= concurrency


def test_replies_come_as_they_are_done():
    with serving(lambda number: "slow" if number == 1 else None) as server:
        replies = list(engine_for(server, concurrency=2).generate(requests(1, 6)))
    assert replies[-1].sample == 1


def test_requests_are_taken_as_they_are_needed():
    taken = []

    def source():
        for request in requests(50, 1):
            taken.append(request)
            yield request

    with serving(delay_s=0.01) as server:
        replies = engine_for(server).generate(source())
        next(replies)
        assert len(taken) < 20
        replies.close()


def test_the_key_comes_from_the_environment_and_goes_into_the_header(monkeypatch):
    monkeypatch.setenv("TEACHER_KEY", "s3cret")
    with serving() as server:
        engine = engine_for(server, api_key_env="TEACHER_KEY")
        list(engine.generate(requests(1, 1)))
        assert server.headers[0]["authorization"] == "Bearer s3cret"
        assert "s3cret" not in config_lib.dump(engine.config)
        monkeypatch.delenv("TEACHER_KEY")
        with pytest.raises(ValueError, match="TEACHER_KEY is empty or not set"):
            engine_for(server, api_key_env="TEACHER_KEY")


# --- when it goes wrong -----------------------------------------------------------------------

FAULTS = [
    (500, {"error": {"message": "oops"}}),
    (503, b"<html>busy</html>"),
    (429, {"error": {"message": "slow down"}}, {"Retry-After": "0.02"}),
    "drop",
    (200, {"choices": [{"text": "", "finish_reason": "abort"}], "usage": {"completion_tokens": 0}}),
]


def test_faults_of_every_kind_leave_every_sample_exactly_once():
    rng = random.Random(0)
    plan = [rng.choice(FAULTS) if rng.random() < 0.4 else None for _ in range(1000)]
    with serving(plan.__getitem__) as server:
        replies = list(engine_for(server, retries=20).generate(requests(10, 4)))
    check_all(replies, requests(10, 4))
    assert set(server.answered.values()) == {1} and len(server.bodies) > 50
    assert server.most_at_once <= 4


def test_a_fault_of_the_first_request_is_no_verdict_on_token_ids():
    with serving(lambda number: FAULTS[number] if number < len(FAULTS) else None) as server:
        check_all(list(engine_for(server).generate(requests())), requests())


def test_retry_after_is_honoured():
    busy = (429, {}, {"Retry-After": "0.5"})
    with serving(lambda number: busy if number == 0 else None) as server:
        list(engine_for(server).generate(requests(1, 1)))
    assert server.times[1] - server.times[0] >= 0.5


def test_a_slow_server_is_asked_again():
    with serving(lambda number: "slow" if number < 2 else None) as server:
        replies = list(engine_for(server, timeout_s=0.3).generate(requests(1, 1)))
    check_all(replies, requests(1, 1))
    assert len(server.bodies) == 3


def test_it_gives_up_in_words():
    with serving(lambda number: FAULTS[0]) as server:
        with pytest.raises(ValueError, match="failed 3 times, lastly: status 500: oops"):
            list(engine_for(server, retries=2).generate(requests()))
        assert len(server.bodies) == 3
    dead = engine_for(server, retries=1)
    with pytest.raises(ValueError, match="failed 2 times, lastly: ConnectError"):
        list(dead.generate(requests()))


@pytest.mark.parametrize("status", [400, 401, 404, 422, 301])
def test_a_refusal_is_an_error_in_the_servers_words(status):
    fault = (status, {"error": {"message": "no such model"}})
    with serving(lambda number: fault) as server:
        with pytest.raises(ValueError, match=f"with status {status}: no such model"):
            list(engine_for(server).generate(requests()))
        assert len(server.bodies) == (2 if status in (400, 422) else 1)


def test_a_refusal_in_mid_run_follows_the_replies_that_came():
    fault = (400, {"error": {"message": "too long"}})
    with serving(lambda number: fault if number == 10 else None) as server:
        replies, found = engine_for(server, concurrency=1).generate(requests()), []
        with pytest.raises(ValueError, match="prompt 2 .sample 2. with status 400: too long"):
            found.extend(reply for reply in replies if not found.append(reply))
    assert len({(r.prompt_id, r.sample) for r in found}) == 10


@pytest.mark.parametrize(
    "body",
    [
        b"<html>",
        {},
        {"choices": []},
        {"choices": [{"text": None, "finish_reason": "stop"}], "usage": {"completion_tokens": 1}},
        {"choices": [{"text": "a", "finish_reason": "stop"}], "usage": None},
    ],
)
def test_an_answer_of_another_shape_is_an_error_in_words(body):
    with (
        serving(lambda number: (200, body)) as server,
        pytest.raises(ValueError, match="is this an OpenAI-compatible server"),
    ):
        list(engine_for(server).generate(requests(1, 1)))


@pytest.mark.parametrize("logprobs", [None, {}, {"token_logprobs": [None]}])
def test_logprobs_that_do_not_come_are_missed(logprobs):
    choice = {"text": "a", "finish_reason": "stop", "logprobs": logprobs}
    body = {"choices": [choice], "usage": {"completion_tokens": 1}}
    with (
        serving(lambda number: (200, body)) as server,
        pytest.raises(ValueError, match="logprobs.token_logprobs"),
    ):
        list(engine_for(server, logprobs=True).generate(requests(1, 1)))


def test_an_early_end_cancels_what_is_under_way():
    before = threading.active_count()
    with serving(lambda number: "slow" if number else None) as server:
        replies = engine_for(server).generate(requests())
        assert next(replies).prompt_id == 0
        start = time.monotonic()
        replies.close()
        assert time.monotonic() - start < 0.8
    assert len(server.bodies) <= 1 + 4
    deadline = time.monotonic() + 5
    while threading.active_count() > before:
        assert time.monotonic() < deadline
        time.sleep(0.01)


# --- small things -----------------------------------------------------------------------------


def test_waits_double_up_to_a_minute_with_jitter(monkeypatch):
    monkeypatch.setattr(remote, "FIRST_WAIT_S", 0.5)
    for attempt in range(20):
        full = min(60.0, 0.5 * 2**attempt)
        waits = [remote.wait_s(attempt) for _ in range(20)]
        assert full / 2 <= min(waits) < max(waits) <= full


@pytest.mark.parametrize(
    ("header", "low", "high"),
    [
        (None, 0, 0),
        ("3", 3, 3),
        ("1.5", 1.5, 1.5),
        ("-1", 0, 0),
        ("nan", 0, 0),
        ("inf", 600, 600),
        ("soon", 0, 0),
        ("Wed, 21 Oct 2015 07:28:00 GMT", 0, 0),
        ("Fri, 31 Dec 9999 23:59:59 GMT", 600, 600),
    ],
)
def test_retry_after_is_seconds_or_a_date(header, low, high):
    assert low <= remote.retry_after_s(header) <= high


def test_seeds_depend_on_each_of_their_parts():
    seeds = {remote.sample_seed(a, b, c) for a in range(5) for b in range(20) for c in range(20)}
    assert len(seeds) == 2000
    assert remote.sample_seed(2**32 - 1, 2**32 - 1, 2**32 - 1) < 2**31


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"kind": "openai"}, "needs base_url and model"),
        ({"model": "m"}, "model is for kind openai, but kind is local"),
        ({"base_url": "127.0.0.1:80/v1"}, "expected http://HOST:PORT/v1"),
        ({"base_url": "ftp://host/v1"}, "expected http://HOST:PORT/v1"),
        ({"base_url": "http://me:s3cret@host/v1"}, "use api_key_env for a key"),
        ({"concurrency": 0}, "concurrency 0"),
        ({"retries": -1}, "retries -1"),
        ({"timeout_s": 0}, "timeout_s 0"),
    ],
)
def test_an_engine_that_cannot_be_is_refused(fields, message):
    if fields.keys() - {"kind", "model"}:
        fields = {"kind": "openai", "model": "m", "base_url": "http://host/v1"} | fields
    with pytest.raises(config_lib.ConfigError, match=message) as found:
        config_lib.from_dict(remote.EngineConfig, fields)
    assert "s3cret" not in str(found.value)


def test_the_client_needs_no_jax():
    code = "import sys; from jaxmath.decode import remote; assert 'jax' not in sys.modules"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
