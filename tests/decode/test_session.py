"""Requests on their way through a decoder: options, stop strings, updates, cancelling, packing."""

import dataclasses

import jax
import numpy as np
import pytest

from jaxmath import sharding
from jaxmath.decode import prefill
from jaxmath.decode.decoder import DecodeConfig, Decoder
from jaxmath.decode.requests import Request
from jaxmath.decode.sampling import SamplingConfig
from jaxmath.model import qwen2
from jaxmath.model.config import ModelConfig

MODEL = ModelConfig(
    vocab_size=96,
    num_layers=1,
    embed_dim=32,
    mlp_dim=48,
    num_heads=4,
    num_kv_heads=2,
    head_dim=8,
    dtype="float32",
)
LIMIT = 16
PROMPTS = [(1, 2, 3), (4,), (5, 6, 7, 8, 9), (1, 2)]


def letters(tokens):
    """One printable character per token."""
    return "".join(chr(0x21 + token) for token in tokens)


def one_device():
    return sharding.make_mesh(sharding.MeshConfig(), jax.devices()[:1])


@pytest.fixture(scope="module")
def model():
    base = qwen2.init_sharded(MODEL, jax.random.key(3), one_device())
    return jax.tree.map(lambda x: x * 10 if x.ndim > 2 else x, base)


@pytest.fixture(scope="module")
def make(model):
    def make(drawn=None, *, slots=4, stop_ids=(), per_request=False, **decode):
        decoder = Decoder(
            MODEL,
            DecodeConfig(max_prompt_tokens=12, slots=slots, chunk_tokens=5, **decode),
            drawn or SamplingConfig(max_tokens=LIMIT),
            stop_ids,
            one_device(),
            detokenize=letters,
            per_request=per_request,
        )
        decoder.load(model)
        return decoder

    return make


@pytest.fixture(scope="module")
def flexible(make):
    """A decoder whose requests bring their own options."""
    return make(per_request=True, stop_ids=(5, 17))


def requests(options=None, samples=2):
    return [
        Request(p, s, tokens, options) for p, tokens in enumerate(PROMPTS) for s in range(samples)
    ]


def named(completions):
    found = {(c.prompt_id, c.sample): c for c in completions}
    assert len(found) == len(completions)
    return found


def drive(session):
    finished = []
    while session.busy:
        finished += session.step()
    return named(finished)


# --- options ----------------------------------------------------------------------------------


def test_the_general_program_draws_what_the_plain_one_draws(make, flexible):
    plain = named(list(make(stop_ids=(5, 17)).generate(requests())))
    general = named(list(flexible.generate(requests())))
    for name, completion in plain.items():
        assert general[name].tokens == completion.tokens
        np.testing.assert_allclose(general[name].logprobs, completion.logprobs, atol=1e-5)


def test_each_request_follows_its_own_options(flexible):
    own = [
        SamplingConfig(max_tokens=3),
        SamplingConfig(max_tokens=LIMIT, temperature=0.0),
        SamplingConfig(max_tokens=LIMIT, top_k=1),
        SamplingConfig(max_tokens=LIMIT, min_tokens=LIMIT),
        SamplingConfig(max_tokens=9, logit_bias=((11, 1000.0),)),
        SamplingConfig(max_tokens=9, seed=4),
        SamplingConfig(max_tokens=9, seed=5),
    ]
    asked = [Request(7, 0, (1, 2, 3), options) for options in own]
    alone = [list(flexible.generate([request]))[0] for request in asked]
    in_company = [among_others(flexible, request) for request in asked]
    assert [c.tokens for c in alone] == [c.tokens for c in in_company]
    short, greedy, likeliest, long, biased, seed_4, seed_5 = alone
    assert len(short.tokens) <= 3
    assert greedy.tokens == likeliest.tokens
    assert len(long.tokens) == LIMIT and not {5, 17} & set(long.tokens[:-1])
    assert set(biased.tokens) == {11}
    assert seed_4.tokens != seed_5.tokens


def among_others(decoder, request):
    """The completion of one request among others that have nothing to do with it."""
    others = [Request(50 + i, 0, (i + 1,)) for i in range(6)]
    found = named(list(decoder.generate([*others[:3], request, *others[3:]])))
    return found[request.name]


def test_a_repetition_penalty_counts_prompt_and_response(flexible):
    strong = SamplingConfig(max_tokens=LIMIT, temperature=0.0, repetition_penalty=1e6)
    for completion in flexible.generate(requests(strong, samples=1)):
        seen = list(PROMPTS[completion.prompt_id]) + list(completion.tokens)
        assert len(set(completion.tokens)) == len(completion.tokens)
        assert len(set(seen)) == len(set(PROMPTS[completion.prompt_id])) + len(completion.tokens)


def test_untempered_logprobs_are_those_of_temperature_one(make):
    hot = SamplingConfig(max_tokens=LIMIT, temperature=2.0, untempered_logprobs=True)
    for completion in make(hot).generate(requests()):
        assert completion.untempered_logprobs.shape == completion.logprobs.shape
        assert not np.allclose(completion.untempered_logprobs, completion.logprobs)
    plain = SamplingConfig(max_tokens=LIMIT, untempered_logprobs=True)
    for completion in make(plain).generate(requests()):
        np.testing.assert_allclose(completion.untempered_logprobs, completion.logprobs, atol=1e-5)


def test_options_that_the_program_lacks_are_refused_by_name(make):
    decoder = make()
    for options, reason in [
        (SamplingConfig(max_tokens=LIMIT, top_p=0.5), "not made for filters"),
        (SamplingConfig(max_tokens=LIMIT + 1), "up to 16"),
        (SamplingConfig(max_tokens=4, repetition_penalty=1.1), "not made for penalty"),
    ]:
        with pytest.raises(ValueError, match=rf"prompt 3 \(sample 0\).*{reason}"):
            decoder.open().submit(Request(3, 0, (1,), options))
    # What needs no further program is free.
    assert len(list(decoder.generate(requests(SamplingConfig(max_tokens=2, temperature=0.5))))) == 8


# --- stop strings -----------------------------------------------------------------------------


@pytest.mark.parametrize("lookahead", [0, 2])
def test_text_is_cut_before_the_stop_string_and_tokens_behind_it(make, lookahead):
    whole = named(list(make().generate(requests())))
    assert all(c.text == letters(c.tokens) for c in whole.values())
    # Two tokens in the middle of some response, whatever they are.
    target = whole[2, 1].tokens
    stop = letters(target[6:8])
    cut = SamplingConfig(max_tokens=LIMIT, stop=("never", stop))
    decoder = make(cut, lookahead=lookahead)
    found = named(list(decoder.generate(requests())))
    for name, completion in whole.items():
        text = letters(completion.tokens)
        at = text.find(stop)
        if at < 0:
            assert found[name].tokens == completion.tokens
            assert found[name].finish_reason == "length"
        else:
            assert found[name].text == text[:at]
            assert found[name].tokens == completion.tokens[: at + 2]
            assert len(found[name].logprobs) == at + 2
            assert found[name].finish_reason == "stop"
    assert len(found[2, 1].tokens) <= 8


def test_stop_strings_need_a_detokenizer(model):
    with pytest.raises(ValueError, match="detokenizer"):
        Decoder(
            MODEL,
            DecodeConfig(max_prompt_tokens=4, slots=1),
            SamplingConfig(max_tokens=4, stop=("x",)),
            (),
            one_device(),
        )


# --- updates, cancelling ----------------------------------------------------------------------


@pytest.mark.parametrize("stop", [(), ("$", "+", "A")], ids=["ids", "strings"])
def test_updates_add_up_to_the_completion(make, stop):
    decoder = make(SamplingConfig(max_tokens=LIMIT, stop=stop), stop_ids=(5, 17), lookahead=1)
    parts = {}
    listen = lambda u: parts.setdefault((u.prompt_id, u.sample), []).append(u)  # noqa: E731
    found = named(list(decoder.generate(requests(samples=4), on_update=listen)))
    assert any(len(updates) > 1 for updates in parts.values())
    for name, completion in found.items():
        assert sum((u.tokens for u in parts[name]), ()) == completion.tokens
        together = np.concatenate([u.logprobs for u in parts[name]])
        np.testing.assert_array_equal(together, completion.logprobs)


@pytest.mark.parametrize("lookahead", [0, 1])
def test_a_cancelled_request_leaves_no_trace_and_frees_its_slot(make, lookahead):
    decoder = make(slots=2, lookahead=lookahead)
    expected = named(list(decoder.generate(requests())))
    session = decoder.open()
    for request in requests():
        session.submit(request)
    finished = session.step()
    session.cancel(0, 0)  # in a slot
    session.cancel(3, 1)  # in the queue
    session.cancel(9, 9)  # unknown
    while session.busy:
        finished += session.step()
    found = named(finished)
    assert set(found) == set(expected) - {(0, 0), (3, 1)}
    assert all(found[name].tokens == expected[name].tokens for name in found)


def test_a_session_takes_requests_while_it_runs(make):
    decoder = make(slots=2)
    expected = named(list(decoder.generate(requests())))
    session, waiting, finished = decoder.open(), requests(), []
    while waiting or session.busy:
        if waiting:
            session.submit(waiting.pop())
        finished += session.step()
    assert {n: c.tokens for n, c in named(finished).items()} == {
        n: c.tokens for n, c in expected.items()
    }


# --- packing and occupancy --------------------------------------------------------------------


def test_packed_rows_hold_prompts_side_by_side_and_equal_ones_once():
    rows = prefill.PackedRows(2, 8)
    first, second = rows.add((1, 2, 3)), rows.add((4, 5, 6, 7))
    assert {first.row, second.row} == {0, 1}
    assert rows.add((1, 2, 3)) == first
    third = rows.add((8, 9, 8, 9, 8))
    assert third == prefill.Place(first.row, 3)
    assert rows.add((1, 1, 1, 1, 1)) is None
    np.testing.assert_array_equal(rows.tokens_RT[first.row], [1, 2, 3, 8, 9, 8, 9, 8])
    np.testing.assert_array_equal(rows.positions_RT[first.row], [0, 1, 2, 0, 1, 2, 3, 4])
    np.testing.assert_array_equal(rows.segment_ids_RT[second.row], [2, 2, 2, 2, 0, 0, 0, 0])
    assert len(set(rows.segment_ids_RT[first.row])) == 2


def test_slots_are_idle_less_than_a_tenth_of_the_time_while_requests_wait(make):
    """Lengths from a long-tailed distribution: log-normal, cut at the limit."""
    rng = np.random.default_rng(0)
    limit = 160
    lengths = np.clip(rng.lognormal(3.3, 0.8, 120), 1, limit).astype(int)
    drawn = SamplingConfig(max_tokens=limit)
    decoder = make(drawn, slots=16)
    session = decoder.open()
    for i, length in enumerate(lengths):
        options = dataclasses.replace(drawn, max_tokens=int(length))
        session.submit(Request(i, 0, (1 + i % 90,), options))
    found = drive(session)
    assert [len(found[i, 0].tokens) for i in range(len(lengths))] == lengths.tolist()
    used = session.occupancy
    assert used.tokens == lengths.sum() and used.queued_slot_steps > 1000
    assert used.idle_share < 0.1
