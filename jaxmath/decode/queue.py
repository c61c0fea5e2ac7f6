"""The host's side of a decoder: requests wait, slots are filled, chunks are read, responses end.

One chunk is launched after the other; with `lookahead` the next is launched before the last is
read, so the device does not wait for the host. Whatever a chunk says of a slot is for the request
that held it when the chunk was launched.
"""

from __future__ import annotations

import collections
import dataclasses
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

import jax
import numpy as np

from jaxmath.decode import engine, prefill, sampling
from jaxmath.decode.requests import Completion, Request, Update

if TYPE_CHECKING:
    from jaxmath.decode.decoder import Decoder

OnUpdate = Callable[[Update], None]


@dataclasses.dataclass
class _Running:
    """A request in a slot, and what came out so far."""

    request: Request
    options: sampling.SamplingConfig
    on_update: OnUpdate | None
    tokens: list[int] = dataclasses.field(default_factory=list)
    logprobs: list[np.ndarray] = dataclasses.field(default_factory=list)
    untempered: list[np.ndarray] = dataclasses.field(default_factory=list)
    ended: bool = False


@dataclasses.dataclass
class Occupancy:
    """Slot steps computed, and how many of them made a token; `queued` while requests waited."""

    slot_steps: int = 0
    tokens: int = 0
    queued_slot_steps: int = 0
    queued_tokens: int = 0

    @property
    def idle_share(self) -> float:
        """Of the slot steps while requests waited, the share that made no token."""
        return 1 - self.queued_tokens / max(self.queued_slot_steps, 1)


class Session:
    """Requests on their way through one decoder. Not thread safe: one thread owns it."""

    def __init__(self, decoder: Decoder, seed: int):
        self._decoder, self._seed = decoder, seed
        self._waiting: collections.deque[tuple[Request, OnUpdate | None]] = collections.deque()
        self._running: dict[int, _Running] = {}
        self._free = list(range(decoder.slots))
        self._stopped_by_host: set[int] = set()  # free slots that the device still advances
        self._launched: collections.deque[tuple[engine.Chunk, dict[int, _Running], bool]]
        self._launched = collections.deque()
        self.occupancy = Occupancy()
        with jax.set_mesh(decoder.mesh):
            self._state = decoder._init()

    @property
    def busy(self) -> bool:
        """Whether a request waits or runs."""
        return bool(self._waiting or self._running)

    def submit(self, request: Request, on_update: OnUpdate | None = None) -> None:
        """Puts a request into the queue.

        Raises:
          ValueError: a prompt that is empty, too long, or has ids outside the vocabulary; options
            that the decoder cannot follow.
        """
        self._check(request)
        self._waiting.append((request, on_update))

    def cancel(self, prompt_id: int, sample: int) -> None:
        """Forgets a request; its slot is free at the next chunk boundary. Unknown ones: nothing."""
        name = (prompt_id, sample)
        kept = [entry for entry in self._waiting if entry[0].name != name]
        self._waiting = collections.deque(kept)
        for index, running in list(self._running.items()):
            if running.request.name == name:
                self._stop(index, running)

    def step(self) -> list[Completion]:
        """Fills free slots, runs a chunk, and returns the responses that are known to be done."""
        self.launch()
        return self.collect()

    # --- the two halves of a step ---------------------------------------------------------------

    def top_up(self, source: Iterator[Request], on_update: OnUpdate | None) -> bool:
        """Takes requests until as many wait as there are slots; whether any waits."""
        while len(self._waiting) < self._decoder.slots:
            request = next(source, None)
            if request is None:
                break
            self.submit(request, on_update)
        return bool(self._waiting)

    def launch(self) -> None:
        """Prefills waiting requests into free slots and starts a chunk; does not wait for it."""
        decoder = self._decoder
        with jax.set_mesh(decoder.mesh):
            for admission, width in self._admissions():
                self._state = decoder._admit(decoder.params, self._state, admission, width=width)
            cancel_B = np.zeros((decoder.slots,), bool)
            cancel_B[sorted(self._stopped_by_host)] = True
            self._stopped_by_host.clear()
            # With nothing left to put into free slots, go on until the last one is done.
            leave_at = np.int32(decoder.refill if self._waiting else decoder.slots)
            self._state, chunk = decoder._chunk(decoder.params, self._state, leave_at, cancel_B)
        self._launched.append((chunk, dict(self._running), bool(self._waiting)))

    def collect(self) -> list[Completion]:
        """Reads launched chunks, up to the `lookahead` newest while responses are still running."""
        finished: list[Completion] = []
        while self._launched and (
            len(self._launched) > self._decoder.lookahead or not self._running
        ):
            chunk, running, queued = self._launched.popleft()
            finished += self._read(jax.device_get(chunk), running, queued)
        return finished

    # --- into slots -----------------------------------------------------------------------------

    def _admissions(self) -> Iterator[tuple[prefill.Admission, int]]:
        """Moves the first requests of the queue to the free slots, by few prefills of packed rows.

        The longest prompt decides how wide the next prefill is; shorter ones fill what it leaves.
        """
        decoder = self._decoder
        count = min(len(self._free), len(self._waiting))
        todo = [self._waiting.popleft() for _ in range(count)]
        todo.sort(key=lambda entry: -len(entry[0].tokens))
        while todo:
            longest = len(todo[0][0].tokens)
            width = next(size for size in decoder.decode.buckets if size >= longest)
            packed = prefill.PackedRows(decoder.shards, 2 * width)
            entries: list[prefill.Entry] = []
            left = []
            for request, on_update in todo:
                place = packed.add(request.tokens)
                if place is None:
                    left.append((request, on_update))
                    continue
                slot, options = self._free.pop(), request.options or decoder.sampling
                seed = self._seed if request.options is None else options.seed
                self._running[slot] = _Running(request, options, on_update)
                self._stopped_by_host.discard(slot)
                entries.append(
                    prefill.Entry(place, slot, request.tokens, *request.name, seed, options)
                )
            todo = left
            yield packed.admission(entries, decoder.slots, decoder.features), width

    # --- out of slots ---------------------------------------------------------------------------

    def _read(
        self, chunk: engine.Chunk, running: dict[int, _Running], queued: bool
    ) -> list[Completion]:
        finished, num_tokens = [], 0
        for index, run in running.items():
            if run.ended:
                continue
            num_new = int(chunk.num_tokens_B[index]) - len(run.tokens)
            num_tokens += num_new
            new = chunk.tokens_CB[:num_new, index].tolist()
            run.tokens += new
            run.logprobs.append(chunk.logprob_CB[:num_new, index])
            if chunk.untempered_CB is not None:
                run.untempered.append(chunk.untempered_CB[:num_new, index])
            text, cut = self._text(run, num_new, bool(chunk.done_B[index]))
            if run.on_update is not None and num_new:
                new_logprobs = run.logprobs[-1]
                if cut is not None:
                    num_new -= len(run.tokens) - cut
                    new, new_logprobs = new[:num_new], new_logprobs[:num_new]
                run.on_update(Update(*run.request.name, tuple(new), new_logprobs))
            if cut is not None or chunk.done_B[index]:
                finished.append(self._completion(run, text, cut))
                self._stop(index, run, on_device=not chunk.done_B[index])
        slot_steps = int(chunk.num_steps) * self._decoder.slots
        self.occupancy.slot_steps += slot_steps
        self.occupancy.tokens += num_tokens
        if queued:
            self.occupancy.queued_slot_steps += slot_steps
            self.occupancy.queued_tokens += num_tokens
        return finished

    def _text(self, run: _Running, num_new: int, done: bool) -> tuple[str | None, int | None]:
        """The text so far, and how many tokens it takes to complete the first stop string."""
        detokenize = self._decoder.detokenize
        if detokenize is None or not (done or run.options.stop):
            return None, None
        text = detokenize(run.tokens)
        places = [at for stop in run.options.stop if (at := text.find(stop)) >= 0]
        if not places:
            return text, None
        # Only tokens of this chunk can have completed it. Text may change until a character is
        # whole, so each prefix is decoded anew.
        for cut in range(len(run.tokens) - num_new + 1, len(run.tokens) + 1):
            prefix = detokenize(run.tokens[:cut])
            places = [at for stop in run.options.stop if (at := prefix.find(stop)) >= 0]
            if places:
                return prefix[: min(places)], cut
        return text, None

    def _completion(self, run: _Running, text: str | None, cut: int | None) -> Completion:
        tokens = tuple(run.tokens[:cut])
        stopped = cut is not None or tokens[-1] in self._decoder.stop_ids
        untempered = None
        if run.options.untempered_logprobs:
            untempered = np.concatenate(run.untempered)[:cut]
        return Completion(
            *run.request.name,
            tokens=tokens,
            logprobs=np.concatenate(run.logprobs)[:cut],
            finish_reason="stop" if stopped else "length",
            text=text,
            untempered_logprobs=untempered,
        )

    def _stop(self, index: int, run: _Running, on_device: bool = True) -> None:
        """Ends a request; `on_device`: the device does not know yet."""
        run.ended = True
        if self._running.get(index) is run:
            del self._running[index]
            self._free.append(index)
            if on_device:
                self._stopped_by_host.add(index)

    # --- at the door ----------------------------------------------------------------------------

    def _check(self, request: Request) -> None:
        decoder = self._decoder
        limit, vocab_size = decoder.decode.max_prompt_tokens, decoder.model.vocab_size
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
        if request.options is not None:
            try:
                decoder.check_options(request.options)
            except ValueError as error:
                raise ValueError(f"{name}: {error}") from None
