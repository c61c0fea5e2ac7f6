"""Two forward passes over a dozen tokens, compared value by value when a model is exported.

`reference` knows only what a Hugging Face folder promises: tensor names, [out, in] matrices, the
rotation of half vectors. It is numpy on the files, shares no code or table with the model, and so
sees an export that is consistently wrong. `ours` is the model's own blocks. Both yield the same
names in the same order, and hold one layer at a time, in float32.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import jax
import jax.numpy as jnp
import numpy as np

from jaxmath.checkpoint import safetensors, trees
from jaxmath.kernels import attention
from jaxmath.model import qwen2
from jaxmath.model.config import ModelConfig

NUM_TOKENS = 12
VOCAB_BLOCK = 8192  # rows of the head at a time

Named = Iterator[tuple[str, np.ndarray]]


def probe_tokens(vocab_size: int) -> np.ndarray:
    return (np.arange(NUM_TOKENS) * 7919 + 1) % vocab_size


def _vocab_blocks(vocab_size: int) -> list[tuple[int, int]]:
    starts = range(0, vocab_size, VOCAB_BLOCK)
    return [(begin, min(begin + VOCAB_BLOCK, vocab_size)) for begin in starts]


def reference(tensors: dict[str, safetensors.Tensor], config: ModelConfig) -> Named:
    """Queries, keys, values, output of each layer, and the last row of logits, from the files."""

    def load(name: str, begin: int = 0, end: int | None = None) -> np.ndarray:
        tensor = tensors[name]
        return tensor.rows(begin, tensor.shape[0] if end is None else end).astype(np.float32)

    def norm(x, name):
        mean = np.mean(x**2, axis=-1, keepdims=True)
        return x / np.sqrt(mean + np.float32(config.rms_norm_eps)) * load(name)

    def linear(x, name, bias=False):
        y = x @ load(name + ".weight").T
        return y + load(name + ".bias") if bias else y

    T, H, half = NUM_TOKENS, config.head_dim, config.head_dim // 2
    frequency = config.rope_theta ** (-np.arange(half) * 2 / H)
    angle = (np.arange(T)[:, None] * np.concatenate([frequency, frequency])).astype(np.float32)
    cos, sin = np.cos(angle)[:, None], np.sin(angle)[:, None]

    def rotate(x):
        turned = np.concatenate([-x[..., half:], x[..., :half]], axis=-1)
        return x * cos + turned * sin

    table = "model.embed_tokens.weight"
    x = np.concatenate([load(table, t, t + 1) for t in probe_tokens(config.vocab_size)])
    causal = np.where(np.tri(T, dtype=bool), np.float32(0), np.float32(-np.inf))
    for i in range(config.num_layers):
        layer = f"model.layers.{i}."
        h = norm(x, layer + "input_layernorm.weight")
        q, k, v = (
            linear(h, f"{layer}self_attn.{name}_proj", bias=True).reshape(T, -1, H)
            for name in "qkv"
        )
        q, k = rotate(q), rotate(k)
        yield from ((f"layer {i} query", q), (f"layer {i} key", k), (f"layer {i} value", v))
        k, v = (np.repeat(a, config.num_heads // config.num_kv_heads, axis=1) for a in (k, v))
        score = np.einsum("qnh,knh->nqk", q, k) * np.float32(H**-0.5) + causal
        prob = np.exp(score - score.max(axis=-1, keepdims=True))
        prob /= prob.sum(axis=-1, keepdims=True)
        out = np.einsum("nqk,knh->qnh", prob, v).reshape(T, -1)
        x = x + linear(out, layer + "self_attn.o_proj")
        h = norm(x, layer + "post_attention_layernorm.weight")
        gate = linear(h, layer + "mlp.gate_proj")
        gate = gate / (1 + np.exp(-gate))
        x = x + linear(gate * linear(h, layer + "mlp.up_proj"), layer + "mlp.down_proj")
        yield f"layer {i} output", x
    last = norm(x, "model.norm.weight")[-1]
    head = table if config.tie_embeddings else "lm_head.weight"
    blocks = _vocab_blocks(config.vocab_size)
    yield "logits", np.concatenate([load(head, begin, end) @ last for begin, end in blocks])


def ours(config: ModelConfig, read: Callable[..., np.ndarray]) -> Named:
    """The same from our blocks. read(path, *slices): f32, that part of one of our parameters."""
    stacked = trees.flatten(qwen2.abstract(config).layers)
    structure = jax.tree.structure(qwen2.abstract(config).layers)

    @jax.jit
    def run(block, x_BTD):
        seen = []

        def attend(q_BTNH, k_BTKH, v_BTKH):
            seen.extend((q_BTNH[0], k_BTKH[0], v_BTKH[0]))
            return attention.reference(q_BTNH, k_BTKH, v_BTKH, jnp.ones_like(positions_BT))

        positions_BT = jnp.arange(NUM_TOKENS)[None]
        return block(x_BTD, positions_BT, attend), seen

    every = slice(None)
    tokens = probe_tokens(config.vocab_size)
    x_BTD = np.concatenate([read("embed_VD", slice(t, t + 1), every) for t in tokens])[None]
    with jax.default_matmul_precision("highest"):
        for i in range(config.num_layers):
            parts = [
                read(f"layers/{path}", slice(i, i + 1), *[every] * (len(x.shape) - 1))[0]
                for path, x in stacked.items()
            ]
            x_BTD, seen = run(structure.unflatten(parts), x_BTD)
            for name, value in zip(("query", "key", "value"), seen, strict=True):
                yield f"layer {i} {name}", np.asarray(value)
            yield f"layer {i} output", np.asarray(x_BTD[0])
        scale_D = read("final_norm_D", every)
        last_BTD = qwen2.rms_norm(x_BTD, scale_D, config.rms_norm_eps)[:, -1:]
        logits = []
        for begin, end in _vocab_blocks(config.vocab_size):
            part = slice(begin, end)
            tied = config.tie_embeddings
            head_DV = read("embed_VD", part, every).T if tied else read("head_DV", every, part)
            logits.append(np.asarray(qwen2.project(last_BTD, head_DV)[0, 0]))
        yield "logits", np.concatenate(logits)
