"""Prompts in, sampled responses and their log-probabilities out, in order of completion.

    sampled = SamplingConfig(max_tokens=1024)
    decoder = Decoder(model.config, DecodeConfig(max_prompt_tokens=512), sampled, eos_ids, mesh)
    decoder.load(model)
    for completion in decoder.generate(requests): ...

Continuous batching (Orca, Yu et al., OSDI 2022): a slot whose response has finished takes the next
request at the following chunk boundary, so short responses do not wait for long ones.

A sample depends on (seed, prompt id, sample index) and the parameters alone, never on its slot, its
neighbours, the order of requests or the length of a chunk, up to the rounding of matrix products of
another shape.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Literal

import jax
import numpy as np
from jax.experimental.layout import Format, Layout
from jax.sharding import Mesh

from jaxmath import sharding
from jaxmath.decode import caches, engine, memory, placement, prefill, sampling
from jaxmath.decode.queue import Session
from jaxmath.decode.requests import Completion, Request, Update
from jaxmath.decode.sampling import SamplingConfig
from jaxmath.model import qwen2
from jaxmath.model.config import ModelConfig

Detokenize = Callable[[Sequence[int]], str]


@dataclasses.dataclass(frozen=True)
class DecodeConfig:
    """Sizes of the decoder.

    max_prompt_tokens: longest prompt; a slot holds it and the longest response.
    slots: sequences that are decoded together; None takes what `memory_fraction` allows.
    chunk_tokens: most decode steps between two looks of the host.
    prompt_buckets: lengths below `max_prompt_tokens` for which prefill has a program of its own;
      None takes a quarter and a half of the limit.
    refill_slots: free slots that end a chunk early while requests wait; None takes an eighth.
    lookahead: chunks that run before the host reads the first of them; None takes 1 on an
      accelerator and 0 on a CPU, where the host's work and the device's share the cores.
    cache: how keys and values are kept (`caches.CACHES`); None takes the best that runs here.
    dtype: of weights and activations; None takes the model's compute dtype.
    int8_weights: the blocks' matrices in eight bits, made anew from each set of weights.
    memory_fraction: of a device's memory that weights, cache and scratch may use together.
    """

    max_prompt_tokens: int
    slots: int | None = None
    chunk_tokens: int = 32
    prompt_buckets: tuple[int, ...] | None = None
    refill_slots: int | None = None
    lookahead: int | None = None
    cache: str | None = None
    dtype: Literal["bfloat16", "float32"] | None = None
    int8_weights: bool = False
    memory_fraction: float = 0.9

    def __post_init__(self):
        for name in ("slots", "max_prompt_tokens", "chunk_tokens", "refill_slots"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ValueError(f"{name} is {value}; expected at least 1")
        if None not in (self.refill_slots, self.slots) and self.refill_slots > self.slots:
            raise ValueError(
                f"refill_slots is {self.refill_slots} of {self.slots} slots; expected at most all"
            )
        if self.lookahead is not None and self.lookahead < 0:
            raise ValueError(f"lookahead is {self.lookahead}; expected 0 or more")
        if self.cache is not None and self.cache not in caches.CACHES:
            known = ", ".join(caches.CACHES)
            raise ValueError(f"cache: {self.cache!r} is not known; choose from {known}")
        if not 0 < self.memory_fraction <= 1:
            raise ValueError(
                f"memory_fraction is {self.memory_fraction}; expected above 0, up to 1"
            )
        bounds = (0, *(self.prompt_buckets or ()), self.max_prompt_tokens)
        if any(low >= high for low, high in zip(bounds, bounds[1:], strict=False)):
            raise ValueError(
                f"prompt_buckets are {self.prompt_buckets}; expected ascending lengths between 0 "
                f"and max_prompt_tokens ({self.max_prompt_tokens}), both excluded"
            )

    @property
    def form(self) -> placement.Form:
        """What the weights are made of."""
        return placement.Form(self.dtype, self.int8_weights)

    @property
    def buckets(self) -> tuple[int, ...]:
        """Prompt lengths, ascending, each with a prefill program; the last is the limit."""
        limit = self.max_prompt_tokens
        if self.prompt_buckets is not None:
            return (*self.prompt_buckets, limit)
        return tuple(sorted({-(-limit // 4), -(-limit // 2), limit}))


class Decoder:
    """Compiled programs for one model shape and one way to sample, and the weights they use.

    Args:
      sampling_config: how responses are drawn; its `max_tokens` bounds the length of a slot.
      stop_ids: token ids that end a response.
      detokenize: ids → text, for stop strings and `Completion.text`.
      per_request: compile every feature in, so that a request may bring options of its own.
      reserved: bytes of each device that others hold; None asks the devices.
      weights: what `placement.decode_params` made, where it is there already; then no `load`.
    Raises:
      ValueError: sequences longer than the model's positions, stop ids outside the vocabulary,
        slots or heads that the mesh does not divide, stop strings without a detokenizer, or not
        enough memory for one sequence.
    """

    def __init__(
        self,
        model: ModelConfig,
        decode: DecodeConfig,
        sampling_config: SamplingConfig,
        stop_ids: Iterable[int],
        mesh: Mesh,
        *,
        detokenize: Detokenize | None = None,
        per_request: bool = False,
        reserved: int | None = None,
        weights: qwen2.DecodeParams | None = None,
    ):
        self.model, self.decode, self.sampling, self.mesh = model, decode, sampling_config, mesh
        self.detokenize = detokenize
        self.stop_ids = tuple(sorted(set(stop_ids)))
        self.params = weights
        self.features = (
            sampling.Features.every() if per_request else sampling.Features.of(sampling_config)
        )
        self._check()
        length = decode.max_prompt_tokens + sampling_config.max_tokens
        dtype = decode.dtype or model.dtype
        self.form = decode.form
        shape = placement.decode_shape(model, mesh, self.form)
        allocate = caches.choose(decode.cache, shape, mesh, dtype)
        self.shards = mesh.shape["data"] * mesh.shape["fsdp"]
        init = functools.partial(
            engine.init,
            shape,
            allocate=allocate,
            length=length,
            dtype=dtype,
            features=self.features,
        )
        self._weights = placement.abstract(model, mesh, self.form)
        if reserved is None:
            ours = 0 if weights is None else memory.device_bytes(*self._weights)
            reserved = max(memory.bytes_in_use(mesh) - ours, 0)
        self.memory = self._plan(init, length, reserved)
        self.slots = self.memory.slots
        self.refill = decode.refill_slots or max(1, self.slots // 8)
        if self.refill > self.slots:
            raise ValueError(
                f"refill_slots is {self.refill}, but the memory holds {self.slots} slots; expected "
                "at most all: lower it, or leave it out"
            )
        self.lookahead = decode.lookahead
        if self.lookahead is None:
            self.lookahead = int(mesh.devices.flat[0].platform != "cpu")
        self._new_state = functools.partial(init, num_slots=self.slots)
        shapes = jax.eval_shape(self._new_state)
        self._state_shardings = engine.state_shardings(mesh, shapes)

    @functools.cached_property
    def _chunk(self) -> jax.stages.Compiled:
        """The token loop. Compiled first, since it says how the caches are to lie in memory: in any
        other layout a TPU would copy all of them before and behind the loop, at every chunk."""
        chunk = functools.partial(
            engine.decode_chunk,
            chunk_tokens=self.decode.chunk_tokens,
            features=self.features,
            stop_ids=self.stop_ids,
        )
        whole = sharding.replicated(self.mesh)
        params, where = self._weights
        free = lambda s: Format(Layout.AUTO, s)  # noqa: E731
        state = self._state_shardings
        state = dataclasses.replace(state, caches=jax.tree.map(free, state.caches))
        program = jax.jit(
            chunk,
            donate_argnums=1,
            in_shardings=(where, state, whole, whole),
            out_shardings=(state, whole),
        )
        leave_at, cancel_B = np.int32(0), np.zeros((self.slots,), bool)
        shapes = jax.eval_shape(self._new_state)
        with jax.set_mesh(self.mesh):
            return program.lower(params, shapes, leave_at, cancel_B).compile()

    @functools.cached_property
    def state_formats(self) -> engine.DecodeState:
        """Shardings of the state, and for the caches their layout."""
        caches = self._chunk.input_formats[0][1].caches
        return dataclasses.replace(self._state_shardings, caches=caches)

    @functools.cached_property
    def _init(self) -> Callable[[], engine.DecodeState]:
        return jax.jit(self._new_state, out_shardings=self.state_formats)

    @functools.cached_property
    def _admit(self) -> Callable[..., engine.DecodeState]:
        return jax.jit(
            functools.partial(prefill.admit, features=self.features),
            static_argnames="width",
            donate_argnums=1,
            out_shardings=self.state_formats,
        )

    def load(self, model: qwen2.Qwen2) -> None:
        """Takes new weights: cast, cut into layers and laid out for decoding, in one program."""
        self.release()
        self.params = placement.decode_params(model, self.mesh, self.form)

    def release(self) -> None:
        """Lets the weights go, until the next `load`. A cache lives no longer than its session."""
        self.params = None

    def open(self, seed: int | None = None) -> Session:
        """A queue of its own over these programs and weights.

        Args:
          seed: in place of `sampling.seed`, where the same prompts must give other samples.
        Raises:
          ValueError: no weights have been loaded.
        """
        if self.params is None:
            raise ValueError("the decoder has no weights yet; call load(model) first")
        return Session(self, self.sampling.seed if seed is None else seed)

    def generate(
        self,
        requests: Iterable[Request],
        seed: int | None = None,
        on_update: Callable[[Update], None] | None = None,
    ) -> Iterator[Completion]:
        """Samples a response to each request; yields them as they finish, in any order.

        Requests are taken as slots become free. Those with equal prompts, one behind the other,
        share a prefill. While the consumer handles completions the next chunk is running.

        Args:
          seed: as in `open`. on_update: called with what each chunk added to each response.
        Raises:
          ValueError: a prompt that is empty, too long, or has ids outside the vocabulary.
        """
        session, source = self.open(seed), iter(requests)
        finished: list[Completion] = []
        while session.top_up(source, on_update) or session.busy:
            session.launch()
            yield from finished  # of the chunk before: the consumer works while this one runs
            finished = session.collect()
        yield from finished

    def _plan(self, init, length: int, reserved: int) -> memory.MemoryPlan:
        """What fits into the devices' memory, the configured slots included."""
        mesh, decode, platform = self.mesh, self.decode, self.mesh.devices.flat[0].platform

        def state_bytes(num_slots: int) -> int:
            shapes = jax.eval_shape(functools.partial(init, num_slots=num_slots))
            return memory.device_bytes(shapes, engine.state_shardings(mesh, shapes))

        need = memory.footprint(
            placement.decode_shape(self.model, mesh, self.form),
            mesh.shape,
            weights=memory.device_bytes(*self._weights),
            state=(state_bytes(self.shards), state_bytes(2 * self.shards)),
            length=length,
            rows=self.shards,
            row_tokens=2 * decode.max_prompt_tokens,
            lanes=128 if platform == "tpu" else 1,
        )
        return memory.plan(
            need,
            mesh.shape,
            budget=memory.device_budget(decode.memory_fraction, mesh),
            reserved=reserved,
            slots=decode.slots,
            enough=memory.ENOUGH_SLOTS.get(platform, memory.ENOUGH_SLOTS["gpu"]),
        )

    def _check(self) -> None:
        model, decode, drawn = self.model, self.decode, self.sampling
        if any(not 0 <= stop_id < model.vocab_size for stop_id in self.stop_ids):
            raise ValueError(
                f"stop_ids are {self.stop_ids}; expected ids below vocab_size {model.vocab_size}"
            )
        if decode.max_prompt_tokens + drawn.max_tokens > model.max_positions:
            raise ValueError(
                f"max_prompt_tokens {decode.max_prompt_tokens} + max_tokens {drawn.max_tokens} "
                f"exceed the model's max_positions {model.max_positions}; lower one of them"
            )
        self.check_options(drawn)

    def check_options(self, options: SamplingConfig) -> None:
        """Raises ValueError for options that this decoder cannot follow."""
        if missing := self.features.missing(options):
            raise ValueError(
                f"this decoder was not made for {', '.join(missing)}; make it with per_request=True"
            )
        if options.stop and self.detokenize is None:
            raise ValueError(
                f"stop strings {options.stop} need a decoder with a detokenizer; pass detokenize="
            )
        if options.max_tokens > self.sampling.max_tokens:
            raise ValueError(
                f"max_tokens is {options.max_tokens}; this decoder's slots hold responses of up to "
                f"{self.sampling.max_tokens}"
            )
        for token_id, _ in options.logit_bias:
            if not 0 <= token_id < self.model.vocab_size:
                raise ValueError(
                    f"logit_bias names token {token_id}; expected ids below vocab_size "
                    f"{self.model.vocab_size}"
                )
