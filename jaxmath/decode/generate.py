"""Prompts in, sampled responses and their log-probabilities out, in order of completion.

Continuous batching (Orca, Yu et al., OSDI 2022): a slot whose response has finished takes the next
request at the following chunk boundary, so short responses do not wait for long ones.

A sample depends on (seed, prompt id, sample index) and the parameters alone, never on its slot, its
neighbours, the order of requests or the length of a chunk, up to the rounding of matrix products of
another shape.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Iterable, Iterator
from typing import Literal

import jax
import numpy as np
from jax.sharding import Mesh

from jaxmath import sharding
from jaxmath.decode import engine
from jaxmath.decode.sampling import SamplingConfig
from jaxmath.model import qwen2
from jaxmath.model.config import ModelConfig


@dataclasses.dataclass(frozen=True)
class DecodeConfig:
    """Sizes of the decoder.

    slots: sequences that are decoded together.
    max_prompt_tokens: longest prompt; a slot holds it and the longest response.
    chunk_tokens: most decode steps between two looks of the host.
    prompt_buckets: lengths below `max_prompt_tokens` to which prompts are padded, each a program of
      its own; None takes a quarter and a half of the limit.
    prefill_rows: prompts per prefill; None takes 8, or what the mesh needs.
    refill_slots: free slots that end a chunk early while requests wait; None takes an eighth.
    dtype: of weights, activations and cache; None takes the model's compute dtype.
    """

    slots: int
    max_prompt_tokens: int
    chunk_tokens: int = 32
    prompt_buckets: tuple[int, ...] | None = None
    prefill_rows: int | None = None
    refill_slots: int | None = None
    dtype: Literal["bfloat16", "float32"] | None = None

    def __post_init__(self):
        for name in ("slots", "max_prompt_tokens", "chunk_tokens", "prefill_rows", "refill_slots"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ValueError(f"{name} is {value}; expected at least 1")
        if self.refill_slots is not None and self.refill_slots > self.slots:
            raise ValueError(
                f"refill_slots is {self.refill_slots} of {self.slots} slots; expected at most all"
            )
        bounds = (0, *(self.prompt_buckets or ()), self.max_prompt_tokens)
        if any(low >= high for low, high in zip(bounds, bounds[1:], strict=False)):
            raise ValueError(
                f"prompt_buckets are {self.prompt_buckets}; expected ascending lengths between 0 "
                f"and max_prompt_tokens ({self.max_prompt_tokens}), both excluded"
            )

    @property
    def buckets(self) -> tuple[int, ...]:
        """Padded prompt lengths, ascending; the last is `max_prompt_tokens`."""
        limit = self.max_prompt_tokens
        if self.prompt_buckets is not None:
            return (*self.prompt_buckets, limit)
        return tuple(sorted({-(-limit // 4), -(-limit // 2), limit}))


@dataclasses.dataclass(frozen=True)
class Request:
    """One sample of one prompt.

    prompt_id, sample: 0 … 2**32 - 1; name the sample, and decide its random numbers.
    tokens: prompt ids, at least one.
    """

    prompt_id: int
    sample: int
    tokens: tuple[int, ...]


@dataclasses.dataclass(frozen=True)
class Completion:
    """A finished response.

    tokens: response ids, the stop id included if there was one.
    logprobs: f32, one per token, under the distribution sampled from (`sampling.sample`).
    finish_reason: "stop" after a stop id, "length" at max_tokens.
    """

    prompt_id: int
    sample: int
    tokens: tuple[int, ...]
    logprobs: np.ndarray
    finish_reason: Literal["stop", "length"]


@dataclasses.dataclass
class _Slot:
    """The host's view of a busy slot: its request, and what came out so far."""

    request: Request
    num_tokens: int = 0
    tokens: list[np.ndarray] = dataclasses.field(default_factory=list)
    logprobs: list[np.ndarray] = dataclasses.field(default_factory=list)


class _Waiting:
    """An iterator of requests whose first one can be looked at."""

    def __init__(self, requests: Iterator[Request]):
        self._rest = requests
        self.first = next(requests, None)

    def __bool__(self) -> bool:
        return self.first is not None

    def pop(self) -> Request:
        first, self.first = self.first, next(self._rest, None)
        return first


class Generator:
    """Compiled programs for one model shape and one way to sample; see `generate`.

    Raises:
      ValueError: sequences longer than the model's positions, stop ids outside the vocabulary, or
        slots, prefill_rows or heads that the mesh does not divide.
    """

    def __init__(
        self,
        model: ModelConfig,
        decode: DecodeConfig,
        sampling: SamplingConfig,
        stop_ids: Iterable[int],
        mesh: Mesh,
    ):
        self.model, self.decode, self.sampling, self.mesh = model, decode, sampling, mesh
        self.stop_ids = tuple(sorted(set(stop_ids)))
        if any(not 0 <= stop_id < model.vocab_size for stop_id in self.stop_ids):
            raise ValueError(
                f"stop_ids are {self.stop_ids}; expected ids below vocab_size {model.vocab_size}"
            )
        length = decode.max_prompt_tokens + sampling.max_tokens
        if length > model.max_positions:
            raise ValueError(
                f"max_prompt_tokens {decode.max_prompt_tokens} + max_tokens {sampling.max_tokens} "
                f"exceed the model's max_positions {model.max_positions}; lower one of them"
            )
        shards = mesh.shape["data"] * mesh.shape["fsdp"]
        self._rows = decode.prefill_rows or -(-min(8, decode.slots) // shards) * shards
        self._refill = decode.refill_slots or max(1, decode.slots // 8)
        sharding.named(mesh, ("batch", "seq"), (self._rows, 1), "prefill_rows")
        dtype = decode.dtype or model.dtype
        init = functools.partial(
            engine.init, model, num_slots=decode.slots, length=length, dtype=dtype
        )
        state = engine.state_shardings(mesh, jax.eval_shape(init))
        chunk = functools.partial(
            engine.decode_chunk,
            chunk_tokens=decode.chunk_tokens,
            config=sampling,
            stop_ids=self.stop_ids,
        )
        whole = sharding.replicated(mesh)
        # The state goes from program to program in one placement, and is updated in place.
        self._init = jax.jit(init, out_shardings=state)
        self._admit = jax.jit(engine.admit, donate_argnums=1, out_shardings=state)
        self._chunk = jax.jit(chunk, donate_argnums=1, out_shardings=(state, whole))

    def decode_params(self, model: qwen2.Qwen2) -> qwen2.DecodeParams:
        """The parameters `generate` takes; call it after each change of the weights."""
        return engine.decode_params(model, self.mesh, self.decode.dtype)

    def generate(
        self, params: qwen2.DecodeParams, requests: Iterable[Request], seed: int | None = None
    ) -> Iterator[Completion]:
        """Samples a response to each request; yields them as they finish, in any order.

        Requests are taken one by one as slots become free. Those with equal prompts, one behind the
        other, share a prefill. While the consumer handles completions the next chunk is running.

        Args:
          seed: in place of `sampling.seed`, where the same prompts must give other samples.
        Raises:
          ValueError: a prompt that is empty, too long, or has ids outside the vocabulary.
        """
        seed = self.sampling.seed if seed is None else seed
        waiting = _Waiting(self._checked(requests))
        busy: dict[int, _Slot] = {}
        free = list(range(self.decode.slots))
        finished: list[Completion] = []
        with jax.set_mesh(self.mesh):
            state = self._init()
        while waiting or busy:
            with jax.set_mesh(self.mesh):
                while free and waiting:
                    admission = self._admission(waiting, free, busy, seed)
                    state = self._admit(params, state, admission)
                # With nothing left to put into free slots, go on until the last one is done.
                leave_at = self._refill if waiting else self.decode.slots
                state, chunk = self._chunk(params, state, np.int32(leave_at))
            yield from finished  # of the chunk before: the consumer works while this one runs
            finished = self._collect(jax.device_get(chunk), busy, free)
        yield from finished

    def _admission(
        self, waiting: _Waiting, free: list[int], busy: dict[int, _Slot], seed: int
    ) -> engine.Admission:
        """Moves requests from `waiting` to free slots: at most `_rows` different prompts."""
        prompts: list[tuple[int, ...]] = []
        entries: list[tuple[int, int, Request]] = []  # row, slot, request
        while free and waiting:
            request = waiting.first
            if not prompts or request.tokens != prompts[-1]:
                if len(prompts) == self._rows:
                    break
                prompts.append(request.tokens)
            slot = free.pop()
            busy[slot] = _Slot(waiting.pop())
            entries.append((len(prompts) - 1, slot, request))
        longest = max(map(len, prompts))
        bucket = next(size for size in self.decode.buckets if size >= longest)
        tokens_PT = np.zeros((self._rows, bucket), np.int32)
        length_P = np.ones((self._rows,), np.int32)
        for row, prompt in enumerate(prompts):
            tokens_PT[row, : len(prompt)] = prompt
            length_P[row] = len(prompt)

        def column(values, fill, dtype):  # padded to the number of slots
            padding = [fill] * (self.decode.slots - len(entries))
            return np.asarray([*values, *padding], dtype)

        return engine.Admission(
            tokens_PT=tokens_PT,
            length_P=length_P,
            row_I=column([row for row, _, _ in entries], 0, np.int32),
            slot_I=column([slot for _, slot, _ in entries], self.decode.slots, np.int32),
            prompt_id_I=column([r.prompt_id for _, _, r in entries], 0, np.uint32),
            sample_I=column([r.sample for _, _, r in entries], 0, np.uint32),
            count=np.int32(len(entries)),
            seed=np.uint32(seed),
        )

    def _collect(
        self, chunk: engine.Chunk, busy: dict[int, _Slot], free: list[int]
    ) -> list[Completion]:
        """Adds a chunk's tokens to their slots; frees and returns those that are done."""
        finished = []
        for index, slot in list(busy.items()):
            num_new = int(chunk.num_tokens_B[index]) - slot.num_tokens
            slot.num_tokens += num_new
            slot.tokens.append(chunk.tokens_CB[:num_new, index])
            slot.logprobs.append(chunk.logprob_CB[:num_new, index])
            if chunk.done_B[index]:
                tokens = tuple(np.concatenate(slot.tokens).tolist())
                finished.append(
                    Completion(
                        prompt_id=slot.request.prompt_id,
                        sample=slot.request.sample,
                        tokens=tokens,
                        logprobs=np.concatenate(slot.logprobs),
                        finish_reason="stop" if tokens[-1] in self.stop_ids else "length",
                    )
                )
                del busy[index]
                free.append(index)
        return finished

    def _checked(self, requests: Iterable[Request]) -> Iterator[Request]:
        limit, vocab_size = self.decode.max_prompt_tokens, self.model.vocab_size
        for request in requests:
            name = f"prompt {request.prompt_id} (sample {request.sample})"
            if not 1 <= len(request.tokens) <= limit:
                raise ValueError(
                    f"{name} has {len(request.tokens)} tokens; expected 1 to max_prompt_tokens "
                    f"({limit}): drop it, or raise decode.max_prompt_tokens"
                )
            if not (min(request.tokens) >= 0 and max(request.tokens) < vocab_size):
                raise ValueError(
                    f"{name} has token ids from {min(request.tokens)} to {max(request.tokens)}; "
                    f"expected 0 to {vocab_size - 1}: was it made by another tokenizer?"
                )
            if not (0 <= request.prompt_id < 2**32 and 0 <= request.sample < 2**32):
                raise ValueError(f"{name}: prompt_id and sample must be in 0 … 2**32 - 1")
            yield request
