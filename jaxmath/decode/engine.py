"""The decoder's compiled programs: parameters in place, prompts into slots, a chunk of tokens.

A fixed number of slots holds one sequence each. `admit` prefills prompts and copies their keys and
values into free slots; `decode_chunk` advances all slots by up to `chunk_tokens` tokens without the
host. All are pure functions with static shapes; `generate.Generator` compiles them and keeps the
queue.

Layers are unrolled, with a cache and weights of their own: a scan over layers would copy the cache
at every step.
"""

from __future__ import annotations

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jax.sharding import Mesh

from jaxmath import sharding
from jaxmath.decode import sampling
from jaxmath.kernels import attention as attention_kernels
from jaxmath.model import kv_cache, qwen2
from jaxmath.model.config import ModelConfig


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class DecodeState:
    """All that a decode step reads and writes; one row per slot.

    cache: keys and values of positions 0 … position - 1 of each slot's sequence.
    token_B: i32, the newest token of the sequence (of the prompt at first); not in the cache yet.
    position_B: i32, where that token stands in the sequence.
    num_tokens_B: i32, response tokens so far.
    done_B: bool, the slot is free: its response has stopped, or it never held one.
    key_B: PRNG keys made of (seed, prompt id, sample index); a draw adds its position.
    """

    cache: kv_cache.KVCache
    token_B: jax.Array
    position_B: jax.Array
    num_tokens_B: jax.Array
    done_B: jax.Array
    key_B: jax.Array


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Admission:
    """Prompts and where they go: entry i puts prompt `row_I[i]` into slot `slot_I[i]`.

    One prompt may go to several slots, as the samples of a group do.

    tokens_PT: i32, prompts, padded on the right. length_P: i32, their lengths.
    row_I, slot_I: i32; slot_I is the number of slots, which is out of range, beyond `count`.
    prompt_id_I, sample_I: u32, what the sample's key is made of.
    count: i32[], number of entries in use.
    seed: u32[], of the run.
    """

    tokens_PT: Any
    length_P: Any
    row_I: Any
    slot_I: Any
    prompt_id_I: Any
    sample_I: Any
    count: Any
    seed: Any


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Chunk:
    """What the host reads after a chunk; C is `chunk_tokens`.

    tokens_CB i32, logprob_CB f32: step by step; a slot that finished has nothing behind its last.
    num_tokens_B i32, done_B bool: as in `DecodeState`, after the chunk.
    """

    tokens_CB: jax.Array
    logprob_CB: jax.Array
    num_tokens_B: jax.Array
    done_B: jax.Array


# --- parameters -------------------------------------------------------------------------------


def decode_params(model: qwen2.Qwen2, mesh: Mesh, dtype: str | None = None) -> qwen2.DecodeParams:
    """The model's weights as the decoder wants them: cast, one block per layer, and placed.

    Heads, MLP and vocabulary stay split over "tensor"; the rest is whole on every device, since a
    gather of weights per token would cost more than the step. One compiled program per model shape.

    Args:
      dtype: of the weights; the compute dtype of the model where None.
    Raises:
      ValueError: the mesh's "tensor" axis does not divide heads, kv_heads, mlp or vocabulary.
    """
    place = _placement(model.config, mesh, dtype)
    with jax.set_mesh(mesh):
        return place(model)


@functools.lru_cache(maxsize=8)
def _placement(config: ModelConfig, mesh: Mesh, dtype: str | None):
    unstack = functools.partial(qwen2.unstack, dtype=dtype)
    shapes = jax.eval_shape(unstack, qwen2.abstract(config))

    def block_sharding(path, param):
        axes = tuple("act_embed" if a == "embed" else a for a in param.get_metadata()["axes"])
        shape = param.get_value().shape
        return param.replace(
            sharding.named(mesh, axes, shape, f"blocks{jax.tree_util.keystr(path)}")
        )

    is_param = lambda x: isinstance(x, nnx.Variable)  # noqa: E731
    head_shape = shapes.head_DV.shape
    shardings = dataclasses.replace(
        shapes,
        embed_VD=sharding.replicated(mesh),
        blocks=jax.tree_util.tree_map_with_path(block_sharding, shapes.blocks, is_leaf=is_param),
        final_norm_D=sharding.replicated(mesh),
        head_DV=sharding.named(mesh, ("act_embed", "vocab"), head_shape, "head_DV"),
    )
    return jax.jit(unstack, out_shardings=shardings)


# --- state ------------------------------------------------------------------------------------


def init(config: ModelConfig, *, num_slots: int, length: int, dtype: str | None) -> DecodeState:
    """All slots free; each can hold a sequence of `length` tokens."""
    # Each field has zeros of its own: a donated buffer may stand for one argument only.
    zeros_B = lambda: jnp.zeros((num_slots,), jnp.int32)  # noqa: E731
    return DecodeState(
        cache=kv_cache.allocate(config, num_slots, length, dtype),
        token_B=zeros_B(),
        position_B=zeros_B(),
        num_tokens_B=zeros_B(),
        done_B=jnp.ones((num_slots,), bool),
        key_B=_keys(jnp.uint32(0), zeros_B(), zeros_B()),
    )


def state_shardings(mesh: Mesh, state: DecodeState) -> DecodeState:
    """Slots over "data" and "fsdp", key/value heads over "tensor"; `state` holds shapes.

    Raises:
      ValueError: the mesh does not divide slots or key/value heads.
    """

    def one(path, leaf):
        axes = kv_cache.CACHE_AXES if leaf.ndim == 4 else ("batch",)
        return sharding.named(mesh, axes, leaf.shape, f"decode{jax.tree_util.keystr(path)}")

    return jax.tree_util.tree_map_with_path(one, state)


def _keys(seed, prompt_id_B, sample_B) -> jax.Array:
    # The generator is named, not left to a flag of JAX: samples must repeat elsewhere.
    run_key = jax.random.key(seed, impl="threefry2x32")
    fold = jax.random.fold_in
    return jax.vmap(lambda prompt_id, sample: fold(fold(run_key, prompt_id), sample))(
        prompt_id_B, sample_B
    )


# --- steps ------------------------------------------------------------------------------------


def admit(params: qwen2.DecodeParams, state: DecodeState, admission: Admission) -> DecodeState:
    """Prefills the prompts once each and starts their samples.

    The last token of a prompt becomes `token_B`, so the first response token comes from the same
    program as all others, and prefill needs no logits.
    """
    prompt = _prefill(params, admission.tokens_PT, admission.length_P)
    insert = functools.partial(
        kv_cache.insert, row_I=admission.row_I, slot_I=admission.slot_I, count=admission.count
    )
    length_I = admission.length_P[admission.row_I]
    last_I = admission.tokens_PT[admission.row_I, length_I - 1]
    key_I = _keys(admission.seed, admission.prompt_id_I, admission.sample_I)
    put = lambda x_B, new_I: x_B.at[admission.slot_I].set(new_I, mode="drop")  # noqa: E731
    return DecodeState(
        cache=insert(state.cache, prompt),
        token_B=put(state.token_B, last_I),
        position_B=put(state.position_B, length_I - 1),
        num_tokens_B=put(state.num_tokens_B, 0),
        done_B=put(state.done_B, False),
        key_B=put(state.key_B, key_I),
    )


def _prefill(params: qwen2.DecodeParams, tokens_PT, length_P) -> kv_cache.KVCache:
    """Keys and values of right-padded prompts, [P, K, T, H] per layer."""
    attention = attention_kernels.ATTENTION[params.config.attention]
    index_1T = jnp.arange(tokens_PT.shape[1])[None]
    segment_ids_PT = (index_1T < length_P[:, None]).astype(jnp.int32)
    positions_PT = jnp.broadcast_to(index_1T, tokens_PT.shape)
    keys, values = [], []

    def attend(q_PTNH, k_PTKH, v_PTKH):
        keys.append(k_PTKH.swapaxes(1, 2))
        values.append(v_PTKH.swapaxes(1, 2))
        return attention(q_PTNH, k_PTKH, v_PTKH, segment_ids_PT)

    x_PTD = _embed(params, tokens_PT)
    for block in params.blocks:
        x_PTD = block(x_PTD, positions_PT, attend)
    return kv_cache.KVCache(tuple(keys), tuple(values))


def decode_chunk(
    params: qwen2.DecodeParams,
    state: DecodeState,
    leave_at,
    *,
    chunk_tokens: int,
    config: sampling.SamplingConfig,
    stop_ids: tuple[int, ...],
) -> tuple[DecodeState, Chunk]:
    """Up to `chunk_tokens` steps; fewer once `leave_at` slots (i32[]) are free."""
    num_slots = state.done_B.shape[0]
    stop_S = jnp.asarray(stop_ids, jnp.int32)

    def unfinished(carry):
        step, state, *_ = carry
        return (step < chunk_tokens) & (jnp.sum(state.done_B) < leave_at)

    def body(carry):
        step, state, tokens_CB, logprob_CB = carry
        logits_BV, cache = _forward(params, state)
        key_B = jax.vmap(jax.random.fold_in)(state.key_B, state.position_B + 1)
        token_B, logprob_B = sampling.sample(logits_BV, key_B, config)
        advance_B = (~state.done_B).astype(jnp.int32)
        num_tokens_B = state.num_tokens_B + advance_B
        stops_B = jnp.any(token_B[:, None] == stop_S[None], axis=1)
        state = DecodeState(
            cache=cache,
            token_B=jnp.where(state.done_B, state.token_B, token_B),
            position_B=state.position_B + advance_B,
            num_tokens_B=num_tokens_B,
            done_B=state.done_B | stops_B | (num_tokens_B >= config.max_tokens),
            key_B=state.key_B,
        )
        return step + 1, state, tokens_CB.at[step].set(token_B), logprob_CB.at[step].set(logprob_B)

    tokens_CB = jnp.zeros((chunk_tokens, num_slots), jnp.int32)
    logprob_CB = jnp.zeros((chunk_tokens, num_slots), jnp.float32)
    carry = (jnp.int32(0), state, tokens_CB, logprob_CB)
    _, state, tokens_CB, logprob_CB = jax.lax.while_loop(unfinished, body, carry)
    return state, Chunk(tokens_CB, logprob_CB, state.num_tokens_B, state.done_B)


def _forward(params: qwen2.DecodeParams, state: DecodeState) -> tuple[jax.Array, kv_cache.KVCache]:
    """Logits after `token_B`, f32, and the cache with that token in it."""
    keys, values = list(state.cache.k), list(state.cache.v)
    x_B1D = _embed(params, state.token_B[:, None])
    for layer, block in enumerate(params.blocks):

        def attend(q_B1NH, k_B1KH, v_B1KH, layer=layer):
            keys[layer] = kv_cache.write_token(keys[layer], k_B1KH, state.position_B)
            values[layer] = kv_cache.write_token(values[layer], v_B1KH, state.position_B)
            return kv_cache.attend(q_B1NH, keys[layer], values[layer], state.position_B + 1)

        x_B1D = block(x_B1D, state.position_B[:, None], attend)
    hidden_B1D = qwen2.rms_norm(x_B1D, params.final_norm_D, params.config.rms_norm_eps)
    logits_B1V = qwen2.project(hidden_B1D, params.head_DV)
    return logits_B1V[:, 0], kv_cache.KVCache(tuple(keys), tuple(values))


def _embed(params: qwen2.DecodeParams, tokens_BT) -> jax.Array:
    # Not qwen2.embed: there the table is split over fsdp, here every device holds all of it.
    x_BTD = jnp.take(params.embed_VD, tokens_BT, axis=0)
    return sharding.constrain(x_BTD, "batch", "seq", "act_embed")
