"""The decoder against transformers, against the trainer's forward pass, and against itself."""

import jax
import numpy as np
import pytest

from jaxmath import sharding
from jaxmath.checkpoint import huggingface
from jaxmath.decode.decoder import DecodeConfig, Decoder
from jaxmath.decode.requests import Request
from jaxmath.decode.sampling import SamplingConfig
from jaxmath.model import qwen2
from jaxmath.model.config import ModelConfig

MODEL = ModelConfig(
    vocab_size=96,
    num_layers=2,
    embed_dim=32,
    mlp_dim=48,
    num_heads=4,
    num_kv_heads=2,
    head_dim=8,
    dtype="float32",
)


def one_device():
    return sharding.make_mesh(sharding.MeshConfig(), jax.devices()[:1])


@pytest.fixture(scope="module")
def model():
    """Random weights, ten times the usual size: responses that differ, some of which stop."""
    base = qwen2.init_sharded(MODEL, jax.random.key(1), one_device())
    return jax.tree.map(lambda x: x * 10 if x.ndim > 2 else x, base)


def some_requests(num_prompts=7, samples=2, longest=12, seed=0):
    rng = np.random.default_rng(seed)
    lengths = rng.integers(1, longest + 1, num_prompts)
    prompts = [tuple(rng.integers(0, MODEL.vocab_size, n).tolist()) for n in lengths]
    return [Request(p, s, prompts[p]) for p in range(num_prompts) for s in range(samples)]


def run(model, requests, *, mesh=None, stop_ids=(5, 17), seed=None, **changes):
    """{(prompt_id, sample): Completion}; `changes` are fields of either config."""
    decode = {"slots": 4, "max_prompt_tokens": 12, "chunk_tokens": 5}
    draw = {"max_tokens": 16}
    for name, value in changes.items():
        (draw if name in SamplingConfig.__dataclass_fields__ else decode)[name] = value
    drawn, mesh = SamplingConfig(**draw), mesh or one_device()
    decoder = Decoder(model.config, DecodeConfig(**decode), drawn, stop_ids, mesh)
    decoder.load(model)
    completions = list(decoder.generate(requests, seed))
    found = {(c.prompt_id, c.sample): c for c in completions}
    assert len(found) == len(completions), "a request was answered twice"
    return found


def tokens_of(found):
    return {name: completion.tokens for name, completion in found.items()}


# --- against others ---------------------------------------------------------------------------


def test_greedy_equals_transformers_token_for_token(tmp_path):
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(0)
    hf_config = transformers.Qwen2Config(
        vocab_size=96,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        rope_parameters={"rope_type": "default", "rope_theta": 10000.0},
        initializer_range=0.5,
        tie_word_embeddings=False,
    )
    hf_model = transformers.Qwen2ForCausalLM(hf_config).eval()
    hf_model.save_pretrained(tmp_path)
    config = huggingface.load_config(tmp_path, dtype="float32")
    requests = some_requests(num_prompts=50, samples=1, longest=40, seed=2)
    stop_ids, limit = (5, 17), 16
    found = run(
        huggingface.load_params(tmp_path, config, one_device()),
        requests,
        stop_ids=stop_ids,
        slots=8,
        max_prompt_tokens=40,
        max_tokens=limit,
        temperature=0.0,
    )
    reasons = set()
    for request in requests:
        with torch.no_grad():
            out = hf_model.generate(
                torch.tensor([request.tokens]),
                attention_mask=torch.ones(1, len(request.tokens), dtype=torch.long),
                do_sample=False,
                max_new_tokens=limit,
                eos_token_id=list(stop_ids),
                pad_token_id=0,
            )
        completion = found[request.prompt_id, 0]
        assert completion.tokens == tuple(out[0, len(request.tokens) :].tolist())
        reasons.add(completion.finish_reason)
    assert reasons == {"stop", "length"}, "the comparison must meet both kinds of end"


@pytest.mark.parametrize("temperature", [1.0, 0.7])
def test_logprobs_equal_the_trainers(model, temperature):
    requests = some_requests()
    found = run(model, requests, temperature=temperature)
    rows = [r.tokens + found[r.prompt_id, r.sample].tokens for r in requests]
    tokens_BT = np.zeros((len(rows), 12 + 16), np.int32)
    segment_ids_BT = np.zeros_like(tokens_BT)
    for row, tokens in enumerate(rows):
        tokens_BT[row, : len(tokens)], segment_ids_BT[row, : len(tokens)] = tokens, 1
    positions_BT = np.broadcast_to(np.arange(12 + 16, dtype=np.int32), tokens_BT.shape)
    trainer_BT = jax.jit(lambda *batch: model.token_logprobs(*batch, temperature=temperature))(
        tokens_BT, positions_BT, segment_ids_BT
    )
    worst = 0.0
    for request, tokens, trainer_T in zip(requests, rows, np.asarray(trainer_BT), strict=True):
        response_R = trainer_T[len(request.tokens) : len(tokens)]
        decoder_R = found[request.prompt_id, request.sample].logprobs
        worst = max(worst, np.abs(response_R - decoder_R).max())
    assert worst < 1e-5


# --- what a response is -----------------------------------------------------------------------


def test_responses_end_at_a_stop_id_or_at_max_tokens(model):
    found = run(model, some_requests(num_prompts=16))
    reasons = [completion.finish_reason for completion in found.values()]
    assert {"stop", "length"} == set(reasons)
    for completion in found.values():
        assert len(completion.logprobs) == len(completion.tokens)
        assert completion.logprobs.dtype == np.float32
        assert not {5, 17} & set(completion.tokens[:-1])
        if completion.finish_reason == "stop":
            assert completion.tokens[-1] in (5, 17)
        else:
            assert len(completion.tokens) == 16 and completion.tokens[-1] not in (5, 17)


def test_without_stop_ids_every_response_has_max_tokens(model):
    found = run(model, some_requests(), stop_ids=(), max_tokens=7)
    assert {len(c.tokens) for c in found.values()} == {7}


def test_more_requests_than_slots_are_all_answered_once(model):
    requests = some_requests(num_prompts=11, samples=3)
    found = run(model, iter(requests), slots=3)
    assert set(found) == {(r.prompt_id, r.sample) for r in requests}
    assert run(model, []) == {}


# --- what a sample depends on -----------------------------------------------------------------


@pytest.mark.parametrize(
    "changes",
    [
        {"slots": 1},
        {"slots": 13},
        {"lookahead": 1},
        {"lookahead": 3, "chunk_tokens": 2},
        {"chunk_tokens": 1},
        {"chunk_tokens": 64},
        {"refill_slots": 4},
        {"prompt_buckets": (2, 5)},
    ],
    ids=str,
)
def test_a_sample_does_not_depend_on_slots_chunks_or_buckets(model, changes):
    requests = some_requests()
    assert tokens_of(run(model, requests, **changes)) == tokens_of(run(model, requests))


def test_a_sample_does_not_depend_on_its_company_or_its_turn(model):
    requests = some_requests()
    expected = tokens_of(run(model, requests))
    shuffled = [requests[i] for i in np.random.default_rng(0).permutation(len(requests))]
    assert tokens_of(run(model, shuffled)) == expected
    for request in requests[::5]:
        name = request.prompt_id, request.sample
        assert tokens_of(run(model, [request])) == {name: expected[name]}


def test_samples_differ_by_prompt_id_sample_and_seed(model):
    prompt = (1, 2, 3)
    names = [(0, 0), (0, 1), (1, 0), (1, 1)]
    requests = [Request(*name, prompt) for name in names]
    first = tokens_of(run(model, requests, stop_ids=()))
    other = tokens_of(run(model, requests, stop_ids=(), seed=1))
    assert len({*first.values(), *other.values()}) == 8
    assert other == tokens_of(run(model, requests, stop_ids=(), **{"seed": 1}))


@pytest.mark.parametrize(
    "sizes",
    [
        pytest.param((1, 8, 1), marks=pytest.mark.nightly),
        pytest.param((4, 1, 2), marks=pytest.mark.nightly),
        (2, 2, 2),
        pytest.param((8, 1, 1), marks=pytest.mark.nightly),
        (2, 1, 4),
    ],
    ids=str,
)  # the last: four shards for two key/value heads
def test_every_mesh_gives_the_tokens_of_one_device(model, sizes):
    mesh = sharding.make_mesh(sharding.MeshConfig(*sizes))
    shardings = sharding.tree_shardings(mesh, qwen2.abstract(MODEL))
    placed = jax.device_put(model, shardings)
    requests = some_requests()
    assert tokens_of(run(placed, requests, mesh=mesh, slots=8)) == tokens_of(run(model, requests))


# --- what is refused --------------------------------------------------------------------------


@pytest.mark.parametrize(
    "tokens, reason", [((), "0 tokens"), ((1,) * 13, "13 tokens"), ((1, 96), "another tokenizer")]
)
def test_a_prompt_that_cannot_be_used_is_named(model, tokens, reason):
    with pytest.raises(ValueError, match=f"prompt 41.*{reason}"):
        run(model, [Request(41, 0, tokens)])


def test_impossible_sizes_are_refused_before_compiling(model):
    with pytest.raises(ValueError, match="max_positions"):
        run(model, [], max_tokens=40000)
    with pytest.raises(ValueError, match="stop_ids"):
        run(model, [], stop_ids=(96,))
    with pytest.raises(ValueError, match="prompt_buckets"):
        run(model, [], prompt_buckets=(4, 12))
    with pytest.raises(ValueError, match="slots"):
        run(model, [], slots=0)
    mesh = sharding.make_mesh(sharding.MeshConfig(data=8))
    with pytest.raises(ValueError, match="batch.*size 4.*does not divide"):
        run(model, [], mesh=mesh)


def test_more_refill_slots_than_the_memory_holds_are_refused():
    config = DecodeConfig(max_prompt_tokens=12, refill_slots=10**6)
    with pytest.raises(ValueError, match="refill_slots is 1000000, but the memory holds"):
        Decoder(MODEL, config, SamplingConfig(max_tokens=4), (5,), one_device())


def test_a_decoder_without_weights_says_so():
    config = DecodeConfig(max_prompt_tokens=12, slots=2)
    decoder = Decoder(MODEL, config, SamplingConfig(max_tokens=4), (5,), one_device())
    with pytest.raises(ValueError, match="no weights yet; call load"):
        next(decoder.generate([Request(0, 0, (1,))]))
