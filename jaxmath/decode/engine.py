"""The decoder's token loop: all slots advance by up to a chunk of tokens without the host.

A fixed number of slots holds one sequence each. All functions here are pure, with static shapes;
`decoder.Decoder` compiles them, `prefill.admit` puts prompts into slots.

Layers are unrolled, with a cache and weights of their own: a scan over layers would copy the cache
at every step.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from jaxmath import sharding
from jaxmath.decode import draws, sampling
from jaxmath.decode.caches import Allocate
from jaxmath.model import qwen2
from jaxmath.model.config import ModelConfig


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class DecodeState:
    """All that a decode step reads and writes; one row per slot.

    caches: per layer, keys and values of positions 0 … position - 1 of each slot's sequence.
    token_B: i32, the newest token of the sequence (of the prompt at first); not in the cache yet.
    position_B: i32, where that token stands in the sequence.
    num_tokens_B: i32, response tokens so far.
    done_B: bool, the slot is free: its response has stopped, or it never held one.
    key_B: PRNG keys made of (seed, prompt id, sample index); a draw adds its position.
    params: how each slot's tokens are drawn.
    seen_BV: bool, tokens of prompt and response, where a repetition penalty asks for them.
    """

    caches: tuple[Any, ...]
    token_B: jax.Array
    position_B: jax.Array
    num_tokens_B: jax.Array
    done_B: jax.Array
    key_B: jax.Array
    params: sampling.Params
    seen_BV: jax.Array | None


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Chunk:
    """What the host reads after a chunk; C is `chunk_tokens`.

    tokens_CB i32, logprob_CB and untempered_CB f32 (None unless asked for): step by step; a slot
      that finished has nothing behind its last.
    num_tokens_B i32, done_B bool: as in `DecodeState`, after the chunk. num_steps: i32[].
    """

    tokens_CB: jax.Array
    logprob_CB: jax.Array
    untempered_CB: jax.Array | None
    num_tokens_B: jax.Array
    done_B: jax.Array
    num_steps: jax.Array


def init(
    shape: ModelConfig,
    *,
    allocate: Allocate,
    num_slots: int,
    length: int,
    dtype: str,
    features: sampling.Features,
) -> DecodeState:
    """All slots free; each can hold a sequence of `length` tokens.

    Args:
      shape: of `placement.decode_shape`. allocate: what `caches.choose` gives.
    """
    # Each field has zeros of its own: a donated buffer may stand for one argument only.
    zeros_B = lambda: jnp.zeros((num_slots,), jnp.int32)  # noqa: E731
    greedy = sampling.SamplingConfig(temperature=0.0)  # any program can do that
    idle = sampling.params_of([greedy] * num_slots, features)
    seen_BV = jnp.zeros((num_slots, shape.vocab_size), bool) if features.penalty else None
    return DecodeState(
        caches=tuple(allocate(shape, num_slots, length, dtype) for _ in range(shape.num_layers)),
        token_B=zeros_B(),
        position_B=zeros_B(),
        num_tokens_B=zeros_B(),
        done_B=jnp.ones((num_slots,), bool),
        key_B=draws.row_keys(*(jnp.zeros((num_slots,), jnp.uint32),) * 3),
        params=jax.tree.map(jnp.asarray, idle),
        seen_BV=seen_BV,
    )


def state_shardings(mesh: Mesh, state: DecodeState) -> DecodeState:
    """Slots over "data" and "fsdp", key/value heads over "tensor"; `state` holds shapes.

    Raises:
      ValueError: the mesh does not divide slots or key/value heads.
    """

    def of_rows(path, leaf):
        axes = ("batch",) + (None,) * (leaf.ndim - 1)
        return sharding.named(mesh, axes, leaf.shape, f"decode{jax.tree_util.keystr(path)}")

    def of_cache(layer):
        place = lambda leaf, axes: sharding.named(mesh, axes, leaf.shape, "decode.caches")  # noqa: E731
        return jax.tree.map(place, layer, layer.axes())

    rest = jax.tree_util.tree_map_with_path(of_rows, dataclasses.replace(state, caches=()))
    return dataclasses.replace(rest, caches=tuple(of_cache(layer) for layer in state.caches))


def decode_chunk(
    params: qwen2.DecodeParams,
    state: DecodeState,
    leave_at,
    cancel_B,
    *,
    chunk_tokens: int,
    features: sampling.Features,
    stop_ids: tuple[int, ...],
) -> tuple[DecodeState, Chunk]:
    """Up to `chunk_tokens` steps; fewer once `leave_at` slots (i32[]) are free.

    Args:
      cancel_B: bool, slots that the host has given up.
    """
    num_slots = state.done_B.shape[0]
    stop_S = jnp.asarray(stop_ids, jnp.int32)
    state = dataclasses.replace(state, done_B=state.done_B | cancel_B)
    zeros_CB = lambda dtype: jnp.zeros((chunk_tokens, num_slots), dtype)  # noqa: E731
    untempered_CB = zeros_CB(jnp.float32) if features.untempered else None

    def unfinished(carry):
        step, state, *_ = carry
        return (step < chunk_tokens) & (jnp.sum(state.done_B) < leave_at)

    def body(carry):
        step, state, *columns = carry
        logits_BV, caches = _forward(params, state)
        bits_B2 = draws.bits(state.key_B, state.position_B + 1)
        token_B, *logprobs_B = sampling.sample(
            logits_BV,
            bits_B2,
            _drawn_by(state, features),
            features,
            num_tokens_B=state.num_tokens_B,
            stop_ids=stop_ids,
            seen_BV=state.seen_BV,
        )
        advance_B = (~state.done_B).astype(jnp.int32)
        num_tokens_B = state.num_tokens_B + advance_B
        stops_B = jnp.any(token_B[:, None] == stop_S[None], axis=1)
        seen_BV = state.seen_BV
        if features.penalty:
            seen_BV = seen_BV.at[jnp.arange(num_slots), token_B].max(~state.done_B)
        state = dataclasses.replace(
            state,
            caches=caches,
            token_B=jnp.where(state.done_B, state.token_B, token_B),
            position_B=state.position_B + advance_B,
            num_tokens_B=num_tokens_B,
            done_B=state.done_B | stops_B | (num_tokens_B >= state.params.max_tokens_B),
            seen_BV=seen_BV,
        )
        put = lambda x_CB, new_B: None if x_CB is None else x_CB.at[step].set(new_B)  # noqa: E731
        return step + 1, state, *map(put, columns, (token_B, *logprobs_B))

    carry = (jnp.int32(0), state, zeros_CB(jnp.int32), zeros_CB(jnp.float32), untempered_CB)
    num_steps, state, *columns = jax.lax.while_loop(unfinished, body, carry)
    return state, Chunk(*columns, state.num_tokens_B, state.done_B, num_steps)


def _drawn_by(state: DecodeState, features: sampling.Features) -> sampling.Params:
    """How each slot draws; a free one does not filter, which could cost a pass for nobody."""
    if not features.filters:
        return state.params
    return dataclasses.replace(
        state.params,
        top_k_B=jnp.where(state.done_B, 0, state.params.top_k_B),
        top_p_B=jnp.where(state.done_B, 1.0, state.params.top_p_B),
    )


def _forward(params: qwen2.DecodeParams, state: DecodeState) -> tuple[jax.Array, tuple]:
    """Logits after `token_B`, f32, and the caches with that token in them."""
    caches = list(state.caches)
    # A free slot has length 0: its old sequence keeps nobody reading.
    length_B = jnp.where(state.done_B, 0, state.position_B + 1)
    x_B1D = embed(params, state.token_B[:, None])
    for layer, block in enumerate(params.blocks):

        def attend(q_B1NH, k_B1KH, v_B1KH, layer=layer):
            caches[layer] = caches[layer].write(k_B1KH[:, 0], v_B1KH[:, 0], state.position_B)
            return caches[layer].attend(q_B1NH[:, 0], length_B)[:, None]

        x_B1D = block(x_B1D, state.position_B[:, None], attend)
    hidden_B1D = qwen2.rms_norm(x_B1D, params.final_norm_D, params.config.rms_norm_eps)
    logits_B1V = qwen2.project(hidden_B1D, params.head_DV)
    return logits_B1V[:, 0], tuple(caches)


def embed(params: qwen2.DecodeParams, tokens_BT) -> jax.Array:
    """x_BTD. Not qwen2.embed: there the table is split over fsdp, here every device has all."""
    x_BTD = jnp.take(params.embed_VD, tokens_BT, axis=0)
    return sharding.constrain(x_BTD, "batch", "seq", "act_embed")
