"""The routes: OpenAI's shapes, and who is let in."""

import json

import fakes
import pytest
from starlette.testclient import TestClient

from jaxmath.serve.app import make_app


def client_of(service, host="localhost"):
    return TestClient(make_app(service), base_url=f"http://{host}", raise_server_exceptions=False)


@pytest.fixture
def session():
    return fakes.FakeSession()


@pytest.fixture
def client(session):
    with client_of(fakes.service(session)) as client:
        yield client


def post(client, path="/v1/completions", **body):
    return client.post(path, json=body)


def chat(client, **body):
    messages = [{"role": "user", "content": "hi"}]
    return post(client, "/v1/chat/completions", messages=messages, **body)


def error_of(response):
    body = response.json()
    assert body.keys() == {"error"}
    return body["error"]


def events(response):
    """The JSON bodies of a stream that ends with [DONE]."""
    assert response.headers["content-type"].startswith("text/event-stream")
    blocks = response.text.split("\n\n")
    assert blocks[-1] == "" and blocks[-2] == "data: [DONE]"
    return [json.loads(block.removeprefix("data: ")) for block in blocks[:-2]]


# --- whole responses --------------------------------------------------------------------------


def test_a_completion(client):
    body = post(client, prompt="hello", max_tokens=50, model="tiny", seed=1).json()
    assert body["object"] == "text_completion" and body["model"] == "tiny"
    assert body["id"].startswith("cmpl-") and body["created"] > 1.7e9
    (choice,) = body["choices"]
    assert choice["text"].startswith("HELLO #") and choice["finish_reason"] == "stop"
    assert choice["index"] == 0 and choice["logprobs"] is None
    num_tokens = len(choice["text"]) + 1  # and the stop token
    assert body["usage"] == {
        "prompt_tokens": 5,
        "completion_tokens": num_tokens,
        "total_tokens": 5 + num_tokens,
    }


def test_a_chat(client):
    body = chat(client).json()
    assert body["object"] == "chat.completion" and body["id"].startswith("chatcmpl-")
    message = body["choices"][0]["message"]
    assert message["role"] == "assistant" and message["content"].startswith("<USER>HI<ASSISTANT> #")
    assert message["refusal"] is None and body["usage"]["prompt_tokens"] == 19


def test_choices_come_prompt_by_prompt(client):
    body = post(client, prompt=["a", "bb", [99]], n=2, max_tokens=50).json()
    assert [choice["index"] for choice in body["choices"]] == list(range(6))
    assert [choice["text"].split(" ")[0] for choice in body["choices"]] == (
        ["A", "A", "BB", "BB", "C", "C"]
    )
    assert len({choice["text"] for choice in body["choices"]}) == 6
    assert body["usage"]["prompt_tokens"] == 4


def test_the_seed_decides_the_answer(client):
    texts = [
        post(client, prompt="a", seed=seed, max_tokens=50).json()["choices"][0]["text"]
        for seed in (1, 1, 2)
    ]
    assert texts[0] == texts[1] != texts[2]


def test_a_response_is_cut_at_its_limit(client):
    body = post(client, prompt="hello", max_tokens=3).json()
    assert body["choices"][0] == {
        "index": 0,
        "text": "HEL",
        "finish_reason": "length",
        "logprobs": None,
    }
    assert body["usage"]["completion_tokens"] == 3


def test_a_stop_string_is_not_part_of_the_text(client):
    choice = post(client, prompt="one two", stop=[" T", "x"]).json()["choices"][0]
    assert (choice["text"], choice["finish_reason"]) == ("ONE", "stop")


def test_log_probabilities_of_the_chosen_tokens(client):
    logprobs = post(client, prompt="ab", logprobs=0, max_tokens=3).json()["choices"][0]["logprobs"]
    assert logprobs == {
        "tokens": ["A", "B", " "],
        "token_logprobs": pytest.approx([-0.65, -0.66, -0.32]),
        "top_logprobs": None,
        "text_offset": [0, 1, 2],
    }
    content = chat(client, logprobs=True, max_tokens=1).json()["choices"][0]["logprobs"]["content"]
    assert content == [
        {"token": "<", "logprob": pytest.approx(-0.6), "bytes": [60], "top_logprobs": []}
    ]


# --- streams ----------------------------------------------------------------------------------


def test_a_stream_of_completions_adds_up_to_the_whole(client):
    asked = {"prompt": ["é👩", "b"], "n": 2, "seed": 4, "max_tokens": 50, "logprobs": 0}
    whole = post(client, **asked).json()
    chunks = events(post(client, stream=True, **asked))
    assert {chunk["id"] for chunk in chunks} == {chunks[0]["id"]} and "usage" not in chunks[0]
    for expected in whole["choices"]:
        mine = [c for chunk in chunks for c in chunk["choices"] if c["index"] == expected["index"]]
        assert len(mine) > 1
        assert "".join(c["text"] for c in mine) == expected["text"]
        assert [c["finish_reason"] for c in mine] == [None] * (len(mine) - 1) + ["stop"]
        for name in ("tokens", "token_logprobs", "text_offset"):
            joined = sum((c["logprobs"][name] for c in mine), [])
            assert joined == expected["logprobs"][name]


def test_a_stream_of_a_chat_opens_with_the_role_and_closes_with_the_usage(client):
    asked = {"seed": 4, "stream": True, "stream_options": {"include_usage": True}}
    *chunks, last = events(chat(client, **asked))
    assert chunks[0]["object"] == "chat.completion.chunk"
    assert chunks[0]["choices"][0]["delta"] == {"role": "assistant", "content": ""}
    text = "".join(chunk["choices"][0]["delta"]["content"] for chunk in chunks)
    assert text == chat(client, seed=4).json()["choices"][0]["message"]["content"]
    assert all(chunk["usage"] is None for chunk in chunks)
    assert last["choices"] == [] and last["usage"]["completion_tokens"] == len(text) + 1


def test_a_stop_string_never_shows_in_a_stream(client, session):
    session.chunk = 1
    asked = {"prompt": "abcd abce", "stop": "ABCE", "seed": 1, "stream": True, "max_tokens": 50}
    chunks = [chunk["choices"][0] for chunk in events(post(client, **asked))]
    assert [c["text"] for c in chunks if c["text"]] == ["ABCD", " "]
    assert chunks[-1]["finish_reason"] == "stop"


# --- what is refused --------------------------------------------------------------------------


def test_a_bad_field_is_named(client):
    response = post(client, prompt="a", temperatur=1)
    assert response.status_code == 400
    assert error_of(response)["param"] == "temperatur"
    assert "did you mean 'temperature'?" in error_of(response)["message"]


def test_a_request_that_only_the_session_refuses_is_a_400(client):
    assert post(client, prompt=[255]).status_code == 400
    text = post(client, prompt=[255], stream=True).text
    assert '"type": "invalid_request_error"' in text and "[DONE]" not in text


def test_a_body_that_is_too_large_is_a_413(client, session):
    assert post(client, prompt="a" * 20_000).status_code == 413

    def dribble():
        for _ in range(30):
            yield b" " * 1000

    headers = {"content-type": "application/json"}
    response = client.post("/v1/completions", content=dribble(), headers=headers)
    assert response.status_code == 413 and "20000 bytes" in error_of(response)["message"]
    assert not session.log


@pytest.mark.parametrize("kind", ["text/plain", "application/x-www-form-urlencoded", ""])
def test_a_body_must_say_that_it_is_json(client, kind):
    response = client.post(
        "/v1/completions", content=b'{"prompt": "a"}', headers={"content-type": kind}
    )
    assert response.status_code == 415 and "application/json" in error_of(response)["message"]


def test_broken_json_is_a_400(client):
    headers = {"content-type": "application/json; charset=utf-8"}
    response = client.post("/v1/completions", content=b'{"prompt": ', headers=headers)
    assert response.status_code == 400 and "not JSON" in error_of(response)["message"]


def test_unknown_paths_and_methods_are_told_in_the_same_shape(client):
    response = client.get("/v1/embeddings")
    assert response.status_code == 404 and "/v1/embeddings" in error_of(response)["message"]
    assert client.get("/v1/completions").status_code == 405
    assert error_of(client.post("/health"))["type"] == "invalid_request_error"


def test_models_are_listed(client):
    (card,) = client.get("/v1/models").json()["data"]
    assert card["id"] == "tiny" and card["max_model_len"] == 64 + 50
    assert client.get("/v1/models/tiny").json() == card
    assert client.get("/v1/models/a/b").status_code == 404


def test_a_key_is_asked_for_where_there_is_one():
    with client_of(fakes.service(api_key="s3cret")) as client:
        for shown in (None, "Bearer", "Bearer s3cret2", "Basic s3cret", "bearer é"):
            headers = {} if shown is None else {"authorization": shown.encode()}
            for response in (
                client.get("/v1/models", headers=headers),
                client.post("/v1/completions", json={"prompt": "a"}, headers=headers),
            ):
                assert response.status_code == 401
                assert error_of(response)["code"] == "invalid_api_key"
                assert "s3cret" not in response.text
        assert client.get("/health").status_code == 200
        client.headers["authorization"] = "Bearer s3cret"
        assert post(client, prompt="a").status_code == 200


@pytest.mark.parametrize(
    ("host", "status"), [("localhost:8000", 200), ("127.0.0.1", 200), ("evil.example", 400)]
)
def test_a_page_whose_name_was_bound_to_this_machine_is_not_let_in(host, status):
    with client_of(fakes.service(), host) as client:
        assert client.get("/v1/models").status_code == status
    with client_of(fakes.service(local_only=False), host) as client:
        assert client.get("/v1/models").status_code == 200


# --- when things go wrong ---------------------------------------------------------------------


def test_a_decoder_that_fails_is_500_and_not_healthy(client, session, capfd):
    assert client.get("/health").json() == {"status": "ok", "unfinished_responses": 0}
    session.fails = RuntimeError("out of memory")
    response = post(client, prompt="a")
    assert response.status_code == 500 and error_of(response)["code"] == "decoder_failed"
    assert "memory" not in response.text
    assert post(client, prompt="a", stream=True).status_code == 500
    assert client.get("/health").status_code == 500


def test_a_decoder_that_fails_in_mid_stream_ends_the_stream_with_an_error(client, session, capfd):
    session.chunk = 1

    def second_step_fails(request):
        if session.num_steps:
            session.fails = RuntimeError("out of memory")
        return fakes.answer_ids(request)

    session.answer = second_step_fails
    assert post(client, prompt="a").status_code == 200
    text = post(client, prompt="a", stream=True).text
    assert '"type": "server_error"' in text and "[DONE]" not in text


def test_a_fault_of_our_own_is_a_500_without_details(session):
    service = fakes.service(session)

    def broken(ids):
        raise RuntimeError("secret")

    service.codec = fakes.protocol.Codec(fakes.encode, fakes.encode_chat, broken)
    with client_of(service) as client:
        response = post(client, prompt="a", logprobs=0)
        assert response.status_code == 500 and "secret" not in response.text
        assert service.worker.num_waiting == 0


def test_a_server_that_drains_takes_no_calls(session):
    service = fakes.service(session)
    with client_of(service) as client:
        service.draining = True
        response = post(client, prompt="a")
        assert response.status_code == 503 and response.headers["retry-after"] == "5"
        assert client.get("/health").status_code == 503
        assert client.get("/v1/models").status_code == 200


def test_a_full_queue_is_a_429(session):
    with client_of(fakes.service(session, max_waiting=2)) as client:
        response = post(client, prompt=["a"] * 3)
        assert response.status_code == 429 and response.headers["retry-after"] == "1"
        assert error_of(response)["type"] == "rate_limit_error"
