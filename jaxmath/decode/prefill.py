"""Prompts into slots: packed into rows on the host, prefilled and copied by one program.

A row holds several prompts, one behind the other, told apart by segment ids. Each prompt is
prefilled once and copied into the slots of all its samples.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxmath.decode import draws, sampling
from jaxmath.decode.engine import DecodeState, embed
from jaxmath.kernels import attention as attention_kernels
from jaxmath.model import qwen2


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Admission:
    """Prompts and where they go: entry i puts one of them into slot `slot_I[i]`.

    tokens_RT, segment_ids_RT, positions_RT: i32, packed rows; segment 0 is padding.
    row_I, start_I, length_I: i32, where the prompt of entry i lies.
    slot_I: i32; the number of slots, which is out of range, beyond `count`.
    prompt_id_I, sample_I: u32, what the sample's key is made of; seed_I: u32, of the run.
    params_I: `sampling.Params`, how the sample is drawn.
    count: i32[], number of entries in use.
    """

    tokens_RT: Any
    segment_ids_RT: Any
    positions_RT: Any
    row_I: Any
    start_I: Any
    length_I: Any
    slot_I: Any
    prompt_id_I: Any
    sample_I: Any
    seed_I: Any
    params_I: sampling.Params
    count: Any


class Place(NamedTuple):
    row: int
    start: int


class Entry(NamedTuple):
    """One sample that starts: its prompt's place, its slot and its name."""

    place: Place
    slot: int
    tokens: tuple[int, ...]
    prompt_id: int
    sample: int
    seed: int
    options: sampling.SamplingConfig


class PackedRows:
    """Rows of `row_tokens` that fill with prompts; equal prompts share a place."""

    def __init__(self, rows: int, row_tokens: int):
        self.tokens_RT = np.zeros((rows, row_tokens), np.int32)
        self.segment_ids_RT = np.zeros_like(self.tokens_RT)
        self.positions_RT = np.zeros_like(self.tokens_RT)
        self._used = [0] * rows
        self._places: dict[tuple[int, ...], Place] = {}

    def add(self, prompt: tuple[int, ...]) -> Place | None:
        """Where the prompt lies; None when no row has room for it."""
        if prompt in self._places:
            return self._places[prompt]
        row = min(range(len(self._used)), key=self._used.__getitem__)
        start, end = self._used[row], self._used[row] + len(prompt)
        if end > self.tokens_RT.shape[1]:
            return None
        self.tokens_RT[row, start:end] = prompt
        self.segment_ids_RT[row, start:end] = len(self._places) + 1
        self.positions_RT[row, start:end] = np.arange(len(prompt))
        self._used[row] = end
        self._places[prompt] = Place(row, start)
        return self._places[prompt]

    def admission(
        self, entries: Sequence[Entry], num_slots: int, features: sampling.Features
    ) -> Admission:
        """The arguments of `admit`; the columns are padded to `num_slots`."""
        last = entries[-1]
        padded = [*entries, *[last._replace(slot=num_slots)] * (num_slots - len(entries))]
        column = lambda values, dtype=np.int32: np.asarray(list(values), dtype)  # noqa: E731
        return Admission(
            tokens_RT=self.tokens_RT,
            segment_ids_RT=self.segment_ids_RT,
            positions_RT=self.positions_RT,
            row_I=column(entry.place.row for entry in padded),
            start_I=column(entry.place.start for entry in padded),
            length_I=column(len(entry.tokens) for entry in padded),
            slot_I=column(entry.slot for entry in padded),
            prompt_id_I=column((entry.prompt_id for entry in padded), np.uint32),
            sample_I=column((entry.sample for entry in padded), np.uint32),
            seed_I=column((entry.seed for entry in padded), np.uint32),
            params_I=sampling.params_of([entry.options for entry in padded], features),
            count=np.int32(len(entries)),
        )


def admit(
    params: qwen2.DecodeParams,
    state: DecodeState,
    admission: Admission,
    *,
    width: int,
    features: sampling.Features,
) -> DecodeState:
    """Prefills the prompts once each and starts their samples.

    The last token of a prompt becomes `token_B`, so the first response token comes from the same
    program as all others, and prefill needs no logits.

    Args:
      width: tokens copied into each slot, at least as many as the longest prompt has.
    """
    keys, values = _prefill(params, admission)
    # Every copy is `width` wide, wherever its prompt starts.
    pad = lambda x_RTKH: jnp.pad(x_RTKH, ((0, 0), (0, width), (0, 0), (0, 0)))  # noqa: E731
    caches = tuple(
        cache.insert(
            pad(k_RTKH), pad(v_RTKH), admission.row_I, admission.start_I, admission.slot_I,
            admission.count, width,
        )
        for cache, k_RTKH, v_RTKH in zip(state.caches, keys, values, strict=True)
    )  # fmt: skip
    last_I = admission.tokens_RT[admission.row_I, admission.start_I + admission.length_I - 1]
    key_I = draws.row_keys(admission.seed_I, admission.prompt_id_I, admission.sample_I)
    put = lambda x_B, new_I: x_B.at[admission.slot_I].set(new_I, mode="drop")  # noqa: E731
    seen_BV = state.seen_BV
    if features.penalty:
        seen_BV = put(seen_BV, _tokens_seen(admission, seen_BV.shape[1]))
    return DecodeState(
        caches=caches,
        token_B=put(state.token_B, last_I),
        position_B=put(state.position_B, admission.length_I - 1),
        num_tokens_B=put(state.num_tokens_B, 0),
        done_B=put(state.done_B, False),
        key_B=put(state.key_B, key_I),
        params=jax.tree.map(put, state.params, admission.params_I),
        seen_BV=seen_BV,
    )


def _prefill(params: qwen2.DecodeParams, admission: Admission):
    """Keys and values of the packed rows, [R, T, K, H] per layer."""
    attention = attention_kernels.of(params.config.attention)
    keys, values = [], []

    def attend(q_RTNH, k_RTKH, v_RTKH):
        keys.append(k_RTKH)
        values.append(v_RTKH)
        return attention(q_RTNH, k_RTKH, v_RTKH, admission.segment_ids_RT)

    x_RTD = embed(params, admission.tokens_RT)
    for block in params.blocks:
        x_RTD = block(x_RTD, admission.positions_RT, attend)
    return keys, values


def _tokens_seen(admission: Admission, vocab_size: int) -> jax.Array:
    """seen_IV, bool: the tokens of each entry's prompt."""
    segment_I = admission.segment_ids_RT[admission.row_I, admission.start_I]

    def one(row, segment):
        own_T = admission.segment_ids_RT[row] == segment
        ids_T = jnp.where(own_T, admission.tokens_RT[row], vocab_size)
        return jnp.zeros((vocab_size,), bool).at[ids_T].set(True, mode="drop")

    return jax.vmap(one)(admission.row_I, segment_I)
