"""Qwen2 against transformers on PyTorch, and two ways to one answer within our own code.

Weights are carried over by a plain loop in this file, so that the parity of the forward pass does
not rest on the checkpoint code.
"""

import dataclasses
import functools
import typing

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
import transformers

from jaxmath.kernels import attention as attention_kernels
from jaxmath.kernels import logprobs as logprobs_kernels
from jaxmath.model import config as model_config
from jaxmath.model import qwen2

torch.set_num_threads(1)

TOLERANCE = 1e-4  # of logits, which have a standard deviation of about 1


class Shape(typing.NamedTuple):
    vocab: int
    layers: int
    embed: int
    mlp: int
    heads: int
    kv_heads: int
    head_dim: int | None  # None: not stated, embed / heads
    theta: float
    spelling: str  # of the rotary base in config.json: transformers 4 "flat", 5 "nested"
    eps: float
    tied: bool
    length: int


SHAPES = [
    Shape(96, 2, 32, 48, 4, 4, None, 1e6, "flat", 1e-6, False, 17),
    Shape(97, 2, 32, 56, 4, 2, None, 1e4, "nested", 1e-6, True, 16),
    Shape(61, 3, 48, 40, 8, 2, None, 1e6, "nested", 1e-5, False, 31),
    Shape(64, 2, 56, 72, 14, 2, None, 1e6, "flat", 1e-6, True, 23),
    Shape(50, 1, 16, 24, 2, 1, 12, 1e4, "flat", 1e-6, False, 9),
    Shape(128, 4, 24, 64, 4, 1, 10, 1e6, "nested", 1e-5, True, 13),
    Shape(33, 2, 40, 33, 7, 1, 8, 1e4, "flat", 1e-6, False, 1),
    Shape(71, 5, 16, 40, 2, 2, 16, 1e6, "flat", 1e-6, True, 29),
    Shape(101, 2, 64, 128, 8, 8, 4, 1e4, "nested", 1e-3, False, 64),
    Shape(80, 3, 36, 52, 6, 3, None, 1e6, "nested", 1e-6, False, 21),
    Shape(57, 2, 28, 44, 14, 2, 6, 1e4, "flat", 1e-5, True, 127),
    Shape(256, 2, 32, 96, 16, 4, 2, 5e5, "nested", 1e-6, False, 40),
    Shape(89, 6, 24, 48, 4, 2, 32, 1e6, "flat", 1e-6, False, 11),
]


def hf_config(shape: Shape) -> dict:
    rope = {"rope_theta": shape.theta}
    return {
        "model_type": "qwen2",
        "vocab_size": shape.vocab,
        "num_hidden_layers": shape.layers,
        "hidden_size": shape.embed,
        "intermediate_size": shape.mlp,
        "num_attention_heads": shape.heads,
        "num_key_value_heads": shape.kv_heads,
        "rms_norm_eps": shape.eps,
        "tie_word_embeddings": shape.tied,
        "max_position_embeddings": 128,
        "use_sliding_window": False,
        **({} if shape.head_dim is None else {"head_dim": shape.head_dim}),
        **(
            rope
            if shape.spelling == "flat"
            else {"rope_parameters": rope | {"rope_type": "default"}}
        ),
    }


def random_torch(hf: dict, seed: int) -> torch.nn.Module:
    """Random everywhere, biases and norm scales too, at the scale where activations stay near 1."""
    config = transformers.Qwen2Config.from_dict(hf)
    config._attn_implementation = "eager"
    model = transformers.Qwen2ForCausalLM(config).float().eval()
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            noise = torch.randn(parameter.shape, generator=generator)
            if "norm" in name:
                parameter.copy_(1 + 0.3 * noise)
            elif name.endswith("bias"):
                parameter.copy_(0.5 * noise)
            else:
                parameter.copy_(noise * parameter.shape[-1] ** -0.5)
    return model


def carried_over(torch_model, config: model_config.ModelConfig, source=None) -> qwen2.Qwen2:
    """The same weights as a Qwen2. `source`: parameter → what to carry, its gradient, say."""
    D, H = config.embed_dim, config.head_dim
    N, K = config.num_heads, config.num_kv_heads
    source = source or (lambda parameter: parameter)
    torch_arrays = {n: source(p).detach().numpy() for n, p in torch_model.named_parameters()}

    def stack(name, convert):
        names = (f"model.layers.{i}.{name}" for i in range(config.num_layers))
        return np.stack([convert(torch_arrays[n]) for n in names])

    def fill(parameter, array):
        assert parameter.get_value().shape == array.shape
        parameter.set_value(jnp.asarray(array))

    as_is = lambda x: x  # noqa: E731
    transposed = lambda x: x.T  # noqa: E731
    out = qwen2.abstract(config)
    layers = out.layers
    fill(layers.input_norm_D, stack("input_layernorm.weight", as_is))
    fill(layers.mlp_norm_D, stack("post_attention_layernorm.weight", as_is))
    for letter, weight, bias, heads in (
        ("q", layers.wq_DNH, layers.bq_NH, N),
        ("k", layers.wk_DKH, layers.bk_KH, K),
        ("v", layers.wv_DKH, layers.bv_KH, K),
    ):
        split = lambda x, heads=heads: x.T.reshape(D, heads, H)  # noqa: E731
        fill(weight, stack(f"self_attn.{letter}_proj.weight", split))
        flat = lambda x, heads=heads: x.reshape(heads, H)  # noqa: E731
        fill(bias, stack(f"self_attn.{letter}_proj.bias", flat))
    fill(layers.wo_NHD, stack("self_attn.o_proj.weight", lambda x: x.T.reshape(N, H, D)))
    fill(layers.gate_DF, stack("mlp.gate_proj.weight", transposed))
    fill(layers.up_DF, stack("mlp.up_proj.weight", transposed))
    fill(layers.down_FD, stack("mlp.down_proj.weight", transposed))
    fill(out.embed_VD, torch_arrays["model.embed_tokens.weight"])
    fill(out.final_norm_D, torch_arrays["model.norm.weight"])
    if not config.tie_embeddings:
        fill(out.head_DV, torch_arrays["lm_head.weight"].T)
    return out


@functools.cache
def pair(index: int):
    """A torch model and ours with the same random weights, and tokens for both."""
    hf = hf_config(SHAPES[index])
    torch_model = random_torch(hf, seed=index)
    config = model_config.from_hf(hf, dtype="float32")
    tokens_BT = np.random.default_rng(index).integers(
        0, config.vocab_size, (2, SHAPES[index].length), np.int32
    )
    return torch_model, carried_over(torch_model, config), tokens_BT


def plain_rows(tokens_BT):
    positions_BT = jnp.tile(jnp.arange(tokens_BT.shape[1])[None], (tokens_BT.shape[0], 1))
    return jnp.asarray(tokens_BT), positions_BT, jnp.ones_like(positions_BT)


def worst(one, other) -> float:
    return float(np.max(np.abs(np.asarray(one, np.float32) - np.asarray(other, np.float32))))


def tree_worst(one, other) -> float:
    """Over the leaves: worst |difference| over worst |value| of that leaf."""
    error = lambda a, b: worst(a, b) / max(float(np.max(np.abs(b))), 1e-30)  # noqa: E731
    return max(jax.tree.leaves(jax.tree.map(error, one, other)))


@jax.jit
def every_layer(model: qwen2.Qwen2, tokens_BT, positions_BT, segment_ids_BT):
    """Logits of the scanned stack, and what enters and leaves each block run by itself."""
    params = qwen2.unstack(model)
    attend = functools.partial(attention_kernels.reference, segment_ids_BT=segment_ids_BT)
    layers = [qwen2.embed(params.embed_VD, tokens_BT, model.config)]
    for block in params.blocks:
        layers.append(block(layers[-1], positions_BT, attend))
    hidden_BTD = model.hidden_states(tokens_BT, positions_BT, segment_ids_BT)
    layers[-1] = qwen2.rms_norm(layers[-1], params.final_norm_D, model.config.rms_norm_eps)
    return model.logits(hidden_BTD), layers, hidden_BTD


# --- against transformers ---------------------------------------------------------------------


@pytest.mark.parametrize("index", range(len(SHAPES)))
def test_logits_and_every_layer_agree_with_transformers(index, record_property):
    torch_model, model, tokens_BT = pair(index)
    with torch.no_grad():
        expected = torch_model(torch.from_numpy(tokens_BT).long(), output_hidden_states=True)
    logits_BTV, layers, hidden_BTD = every_layer(model, *plain_rows(tokens_BT))
    assert logits_BTV.dtype == jnp.float32
    assert 0.3 < float(np.std(logits_BTV)) < 5  # a parity of zeros would prove nothing
    errors = [worst(a, b.numpy()) for a, b in zip(layers, expected.hidden_states, strict=True)]
    errors.append(worst(hidden_BTD, layers[-1]))  # scanned against unrolled
    logits_error = worst(logits_BTV, expected.logits.numpy())
    record_property("worst_logits_error", float(logits_error))
    record_property("worst_layer_error", float(max(errors)))
    print(f"logits {logits_error:.1e}, layers {max(errors):.1e}, {SHAPES[index]}")
    assert logits_error <= TOLERANCE
    assert max(errors) <= TOLERANCE


@pytest.mark.parametrize("temperature", [1.0, 0.6])
@pytest.mark.parametrize("index", [0, 1])
def test_token_logprobs_agree_with_torch(index, temperature):
    torch_model, model, tokens_BT = pair(index)
    ids = torch.from_numpy(tokens_BT).long()
    with torch.no_grad():
        logprobs = torch.log_softmax(torch_model(ids).logits / temperature, -1)
    expected = torch.gather(logprobs[:, :-1], -1, ids[:, 1:, None])[..., 0].numpy()
    score = jax.jit(lambda model, *rows: model.token_logprobs(*rows, temperature=temperature))
    logprob_BT = score(model, *plain_rows(tokens_BT))
    assert logprob_BT.shape == tokens_BT.shape
    assert worst(logprob_BT[:, 1:], expected) <= TOLERANCE
    assert not np.any(logprob_BT[:, 0])


def loss_of(model, tokens_BT, positions_BT, segment_ids_BT):
    return -jnp.mean(model.token_logprobs(tokens_BT, positions_BT, segment_ids_BT)[:, 1:])


def test_gradients_agree_with_torch_autograd():
    torch_model, model, tokens_BT = pair(3)  # tied, 14 heads over 2
    ids = torch.from_numpy(tokens_BT).long()
    torch_model.zero_grad()
    loss = torch.nn.functional.cross_entropy(
        torch_model(ids).logits[:, :-1].flatten(0, 1), ids[:, 1:].flatten()
    )
    loss.backward()
    ours, gradients = jax.jit(jax.value_and_grad(loss_of))(model, *plain_rows(tokens_BT))
    assert abs(float(ours) - loss.item()) <= 1e-5
    expected = carried_over(torch_model, model.config, source=lambda parameter: parameter.grad)
    assert tree_worst(gradients, expected) <= TOLERANCE


def test_bf16_stays_close_to_transformers_in_f32():
    torch_model, model, tokens_BT = pair(2)
    with torch.no_grad():
        expected = torch_model(torch.from_numpy(tokens_BT).long()).logits.numpy()
    model = with_config(model, dtype="bfloat16")
    hidden_BTD = model.hidden_states(*plain_rows(tokens_BT))
    logits_BTV = model.logits(hidden_BTD)
    assert hidden_BTD.dtype == jnp.bfloat16
    assert logits_BTV.dtype == jnp.float32
    assert worst(logits_BTV, expected) <= 0.15
    assert np.sqrt(np.mean((logits_BTV - expected) ** 2)) <= 0.03


# --- two ways to one answer -------------------------------------------------------------------


def with_config(model: qwen2.Qwen2, **changes) -> qwen2.Qwen2:
    """The same weights, computed another way."""
    other = qwen2.abstract(dataclasses.replace(model.config, **changes))
    return jax.tree.unflatten(jax.tree.structure(other), jax.tree.leaves(model))


BASE = {"remat": "none", "attention": "reference", "logprobs": "reference"}

WAYS = (
    [{"remat": name} for name in model_config.REMAT_POLICIES if name != "none"]
    + [{"attention": "chunked"}]
    + [{"logprobs": name} for name in logprobs_kernels.LOGPROBS if name != "reference"]
)


@functools.cache
def loss_and_gradients(**way):
    _, model, tokens_BT = pair(2)
    rows = plain_rows(tokens_BT)
    return jax.jit(jax.value_and_grad(loss_of))(with_config(model, **(BASE | way)), *rows)


@pytest.mark.parametrize("way", WAYS, ids=str)
def test_the_way_to_compute_changes_neither_loss_nor_gradients(way):
    loss, gradients = loss_and_gradients()
    other_loss, other_gradients = loss_and_gradients(**way)
    assert abs(float(loss) - float(other_loss)) <= 1e-6
    same = jax.tree.unflatten(jax.tree.structure(gradients), jax.tree.leaves(other_gradients))
    assert tree_worst(same, gradients) <= 1e-5


def packed(tokens_BT, lengths, length):
    """One row that holds the first `lengths[b]` tokens of each row b, then padding."""
    tokens = np.zeros((1, length), np.int32)
    positions, segments = np.zeros_like(tokens), np.zeros_like(tokens)
    start, slices = 0, []
    for i, (row, size) in enumerate(zip(tokens_BT, lengths, strict=True)):
        where = slice(start, start + size)
        tokens[0, where], positions[0, where], segments[0, where] = row[:size], range(size), i + 1
        slices.append(where)
        start += size
    tokens[0, start:] = 5  # padding need not be zero
    return (jnp.asarray(tokens), jnp.asarray(positions), jnp.asarray(segments)), slices


def test_packed_rows_equal_separate_rows():
    _, model, tokens_BT = pair(2)
    rows, slices = packed(tokens_BT, (13, 30), 50)
    hidden = jax.jit(qwen2.Qwen2.hidden_states)
    score = jax.jit(qwen2.Qwen2.token_logprobs)
    separate_hidden = hidden(model, *plain_rows(tokens_BT))
    separate_logprob = score(model, *plain_rows(tokens_BT))
    packed_hidden, packed_logprob = hidden(model, *rows), score(model, *rows)
    for b, where in enumerate(slices):
        size = where.stop - where.start
        assert worst(packed_hidden[0, where], separate_hidden[b, :size]) <= 1e-5
        assert worst(packed_logprob[0, where], separate_logprob[b, :size]) <= 1e-5
        assert packed_logprob[0, where.start] == 0
    assert not np.any(packed_logprob[0, slices[-1].stop :])


def test_padding_tokens_move_neither_logprobs_nor_gradients():
    _, model, tokens_BT = pair(2)
    rows, slices = packed(tokens_BT, (13, 30), 50)
    scrambled = (rows[0].at[0, slices[-1].stop :].set(9), *rows[1:])
    total = jax.jit(jax.value_and_grad(lambda model, *rows: jnp.sum(model.token_logprobs(*rows))))
    for one, other in zip(
        jax.tree.leaves(total(model, *rows)), jax.tree.leaves(total(model, *scrambled)), strict=True
    ):
        assert np.isfinite(one).all()
        np.testing.assert_array_equal(one, other)


def test_unstacked_parameters_are_the_same_function_in_the_compute_dtype():
    _, model, _ = pair(1)
    params = jax.jit(qwen2.unstack)(with_config(model, dtype="bfloat16"))
    assert len(params.blocks) == model.config.num_layers
    assert params.embed_VD.dtype == params.head_DV.dtype == jnp.bfloat16
    assert params.blocks[0].wq_DNH[...].dtype == jnp.bfloat16
    # Training never rounds the norm scales; a rounded copy would sample from another distribution.
    assert params.blocks[0].input_norm_D[...].dtype == params.final_norm_D.dtype == jnp.float32
    np.testing.assert_array_equal(
        params.blocks[1].bk_KH[...], model.layers.bk_KH[1].astype("bfloat16")
    )
    np.testing.assert_array_equal(params.head_DV, model.embed_VD[...].T.astype("bfloat16"))


def test_the_program_does_not_grow_with_depth():
    def size(num_layers):
        config = dataclasses.replace(pair(0)[1].config, num_layers=num_layers)
        rows = plain_rows(np.zeros((2, 8), np.int32))
        return len(
            str(jax.make_jaxpr(jax.grad(loss_of))(qwen2.abstract(config), *rows)).split("\n")
        )

    assert size(2) == size(8)


def test_abstract_counts_every_parameter():
    for shape in SHAPES[:2]:
        config = model_config.from_hf(hf_config(shape))
        leaves = jax.tree.leaves(qwen2.abstract(config))
        assert sum(leaf.size for leaf in leaves) == config.num_params


def test_a_new_model_is_the_initialisation_of_transformers():
    config = dataclasses.replace(pair(1)[1].config, embed_dim=64, mlp_dim=96)  # tied
    model = jax.jit(lambda key: qwen2.Qwen2(config, key))(jax.random.key(0))
    for leaf in (model.embed_VD, model.layers.wq_DNH, model.layers.down_FD):
        assert float(np.std(leaf[...])) == pytest.approx(0.02, rel=0.05)
    assert not np.any(model.layers.bq_NH[...])
    assert np.all(np.asarray(model.layers.mlp_norm_D[...]) == 1)
    assert not np.array_equal(model.layers.up_DF[0], model.layers.up_DF[1])
