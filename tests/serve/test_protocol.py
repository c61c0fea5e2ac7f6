"""What a body may say, and what a client is told that says something else."""

import json

import fakes
import pytest

from jaxmath.decode.sampling import SamplingConfig
from jaxmath.serve import fields, protocol
from jaxmath.serve.errors import ApiError

MESSAGES = [{"role": "user", "content": "Hi"}]


def completion(**body):
    return protocol.parse_completion({"prompt": "Hi", **body}, fakes.limits(), fakes.CODEC)


def chat(**body):
    return protocol.parse_chat({"messages": MESSAGES, **body}, fakes.limits(), fakes.CODEC)


def refused(parse, **body):
    with pytest.raises(ApiError) as found:
        parse(**body)
    return found.value


# --- what is understood -----------------------------------------------------------------------


def test_a_bare_completion_has_openais_defaults():
    call = completion()
    assert call.prompts == ((72, 105),) and call.n == 1 and not call.chat
    assert call.options.max_tokens == 16 and call.options.temperature == 1
    assert not (call.stream or call.logprobs or call.include_usage)


def test_a_bare_chat_may_take_all_the_tokens_there_are():
    call = chat()
    assert call.options.max_tokens == 50 and call.chat
    assert fakes.decode(call.prompts[0]) == "<user>Hi<assistant>"


def test_every_way_to_draw_reaches_the_decoder():
    call = completion(
        max_tokens=20,
        temperature=0.5,
        top_p=0.9,
        top_k=7,
        min_tokens=3,
        repetition_penalty=1.1,
        logit_bias={"5": -100, "7": 1},
        stop=["a", "b", "a"],
        n=3,
        seed=5,
        logprobs=0,
        user="me",
    )
    assert call.options == SamplingConfig(
        temperature=0.5,
        top_k=7,
        top_p=0.9,
        max_tokens=20,
        min_tokens=3,
        repetition_penalty=1.1,
        logit_bias=((5, -100.0), (7, 1.0)),
        stop=("a", "b"),
    )
    assert (call.n, call.seed, call.logprobs) == (3, 5, True)
    assert completion(stop="end").options.stop == ("end",)
    assert completion(top_k=-1).options.top_k == 0
    assert completion(top_k=10**6).options.top_k == fakes.VOCAB_SIZE


@pytest.mark.parametrize("temperature", [0, 0.0, 1e-9])
def test_greedy_does_not_quarrel_with_the_filters_that_clients_send_along(temperature):
    options = completion(temperature=temperature, top_p=0.5, top_k=3).options
    assert (options.temperature, options.top_p, options.top_k) == (0, 1, 0)


def test_what_a_client_leaves_out_is_as_the_server_was_told():
    defaults = SamplingConfig(temperature=0.3, top_p=0.8, max_tokens=50, stop=("#",))
    limits = fakes.limits(defaults=defaults)
    call = protocol.parse_chat({"messages": MESSAGES, "temperature": None}, limits, fakes.CODEC)
    assert call.options == defaults
    call = protocol.parse_chat({"messages": MESSAGES, "stop": []}, limits, fakes.CODEC)
    assert call.options.stop == ()


@pytest.mark.parametrize(
    ("prompt", "expected"),
    [
        ("Hi", [(72, 105)]),
        ([72, 105], [(72, 105)]),
        (["a", "b"], [(97,), (98,)]),
        ([[1, 2], [3]], [(1, 2), (3,)]),
        (["a", [3]], [(97,), (3,)]),
    ],
)
def test_prompts_are_text_or_ids_or_lists_of_them(prompt, expected):
    assert list(completion(prompt=prompt).prompts) == expected


def test_chat_content_may_come_in_parts_and_developers_are_the_system():
    parts = [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]
    call = chat(messages=[{"role": "developer", "content": parts}, *MESSAGES])
    assert fakes.decode(call.prompts[0]) == "<system>ab<user>Hi<assistant>"


def test_neutral_values_of_what_is_not_supported_are_taken():
    completion(best_of=1, echo=False, suffix="", frequency_penalty=0, presence_penalty=0.0)
    chat(tools=[], tool_choice="none", response_format={"type": "text"}, top_logprobs=0)
    chat(max_tokens=5, max_completion_tokens=5, stream=True, stream_options={"include_usage": True})


# --- names and random numbers -----------------------------------------------------------------


def names(call):
    return [request.name for request in call.requests()]


def test_a_seed_repeats_the_names_and_none_draws_new_ones():
    assert names(completion(seed=1, n=4)) == names(completion(seed=1, n=4))
    assert names(completion(seed=1, n=4))[:2] == names(completion(seed=1, n=2))
    assert not set(names(completion(seed=1, n=4))) & set(names(completion(seed=2, n=4)))
    assert not set(names(completion(n=4))) & set(names(completion(n=4)))


def test_a_prompt_is_named_alike_alone_and_among_others():
    alone = names(completion(prompt="b", seed=3))
    assert names(completion(prompt=["a", "b"], seed=3))[1:] == alone


def test_all_requests_of_a_call_have_names_of_their_own():
    call = completion(prompt=["a", "b", "a"], n=2, seed=-(2**63))
    assert len(set(names(call))) == 6
    assert all(0 <= part < 2**32 for name in names(call) for part in name)
    assert [request.tokens for request in call.requests()][:4] == [(97,), (97,), (98,), (98,)]


# --- what is refused --------------------------------------------------------------------------

BOTH = {
    "top_kk": (3, "did you mean 'top_k'?"),
    "n": (0, "from 1 to 8, got 0"),
    "max_tokens": (51, "from 1 to 50, got 51"),
    "temperature": ("hot", 'expected a number, got "hot"'),
    "top_p": (0, "above 0"),
    "top_k": (1.5, "expected a whole number, got 1.5"),
    "seed": (2**64, "expected a whole number from"),
    "min_tokens": (51, "from 0 to"),
    "repetition_penalty": (0, "from 0.01 to 100"),
    "stream": ("yes", "expected true or false"),
    "stop": ([""], "strings of 1 to 256 characters"),
    "logit_bias": ({"300": 1}, "token ids below 300"),
    "frequency_penalty": (0.5, "does not support 0.5; leave it out or send 0"),
    "presence_penalty": (True, "does not support true"),
    "response_format": ({"type": "json_object"}, "does not support"),
    "stream_options": ({"include_usage": True}, "only allowed when stream is true"),
    "user": (3, "expected text, got 3"),
}


@pytest.mark.parametrize("parse", [completion, chat])
@pytest.mark.parametrize("name", BOTH)
def test_a_bad_field_is_a_400_that_names_it(parse, name):
    value, message = BOTH[name]
    error = refused(parse, **{name: value})
    assert (error.status, error.param) == (400, name)
    assert error.message.startswith(f"{name}: ") and message in error.message


@pytest.mark.parametrize("value", [True, "1", [], {}, -1, 1e400, 10**400])
@pytest.mark.parametrize("name", ["temperature", "top_p", "max_tokens", "n", "repetition_penalty"])
def test_numbers_are_numbers_within_their_bounds(name, value):
    assert refused(completion, **{name: value}).param == name


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("stop", ["a"] * 17),
        ("stop", ["x" * 257]),
        ("stop", [3]),
        ("stop", ["\ud800"]),
        ("logit_bias", [1]),
        ("logit_bias", {str(i): 0 for i in range(65)}),
        ("logit_bias", {"1": 101}),
        ("logit_bias", {"1": True}),
        ("logit_bias", {"-1": 1}),
        ("logit_bias", {"²": 1}),
        ("prompt", None),
        ("prompt", ""),
        ("prompt", []),
        ("prompt", [[]]),
        ("prompt", [True]),
        ("prompt", {"text": "Hi"}),
        ("prompt", [1.5]),
        ("prompt", [-1]),
        ("prompt", [300]),
        ("prompt", [10**30]),
        ("prompt", "x" * 65),
        ("prompt", ["fine", "x" * 65]),
        ("prompt", "\udfff"),
        ("logprobs", 1),
        ("logprobs", True),
        ("best_of", 2),
        ("echo", True),
        ("suffix", "end"),
        ("messages", MESSAGES),
    ],
)
def test_a_completion_that_cannot_be_is_refused(name, value):
    error = refused(completion, **{name: value})
    assert error.status == 400 and error.param == name


@pytest.mark.parametrize(
    ("messages", "param"),
    [
        (None, "messages"),
        ([], "messages"),
        ("Hi", "messages"),
        (["Hi"], "messages[0]"),
        ([{"role": "user"}], "messages[0].content"),
        ([{"content": "Hi"}], "messages[0].role"),
        ([{"role": "tool", "content": "Hi"}], "messages[0].role"),
        ([*MESSAGES, {"role": "user", "content": 3}], "messages[1].content"),
        ([{"role": "user", "content": [{"type": "image_url"}]}], "messages[0].content"),
        ([{"role": "user", "content": "Hi", "voice": "x"}], "messages[0].voice"),
        ([{"role": "user", "content": "x" * 65}], "messages"),
        ([{"role": "assistant", "content": "Hi"}], "messages"),
    ],
)
def test_a_chat_that_cannot_be_is_refused(messages, param):
    error = refused(chat, messages=messages)
    assert error.status == 400 and error.param == param


def test_alternatives_are_refused_in_words():
    error = refused(chat, logprobs=True, top_logprobs=5)
    assert error.param == "top_logprobs" and "chosen token only" in error.message
    assert "chosen token only" in refused(completion, logprobs=5).message


def test_two_limits_that_differ_are_refused():
    assert refused(chat, max_tokens=5, max_completion_tokens=6).param == "max_tokens"


def test_prompts_times_n_are_bounded():
    assert completion(prompt=["a"] * 4, n=2).n == 2
    assert refused(completion, prompt=["a"] * 5, n=2).param == "n"


def test_another_model_is_a_404():
    assert completion(model="tiny").n == 1
    error = refused(completion, model="huge")
    assert (error.status, error.code, error.param) == (404, "model_not_found", "model")


def test_an_error_has_openais_shape():
    body = refused(completion, n=0).body()["error"]
    assert body.keys() == {"message", "type", "param", "code"}
    assert body["type"] == "invalid_request_error"


@pytest.mark.parametrize(
    "body",
    [b"", b"{", b"[1]", b"null", b'{"a": NaN}', b"\xff", b"[" * 100_000, b'{"n": ' + b"9" * 5000],
)
def test_a_body_that_is_no_json_object_is_a_400(body):
    with pytest.raises(ApiError) as found:
        fields.parse(body)
    assert found.value.status == 400
    json.dumps(found.value.body())


def test_what_a_client_sent_is_shown_in_ascii_and_cut_short():
    error = refused(completion, **{"\ud800é" * 100: 1})
    assert error.message.isascii() and len(error.message) < 300
    error = refused(completion, temperature="x" * 10_000)
    assert len(error.message) < 200
