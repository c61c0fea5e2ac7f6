"""What goes into the decoder and what comes out of it."""

from __future__ import annotations

import dataclasses
from typing import Literal

import numpy as np

from jaxmath.decode.sampling import SamplingConfig


@dataclasses.dataclass(frozen=True)
class Request:
    """One sample of one prompt.

    prompt_id, sample: 0 … 2**32 - 1; name the sample, and decide its random numbers.
    tokens: prompt ids, at least one.
    options: how this one is drawn, its own seed included; None for the decoder's own way.
    """

    prompt_id: int
    sample: int
    tokens: tuple[int, ...]
    options: SamplingConfig | None = None

    @property
    def name(self) -> tuple[int, int]:
        return self.prompt_id, self.sample


@dataclasses.dataclass(frozen=True)
class Update:
    """What a chunk added to one response.

    tokens: ids; logprobs: f32, one per token, as in `Completion`.
    """

    prompt_id: int
    sample: int
    tokens: tuple[int, ...]
    logprobs: np.ndarray


@dataclasses.dataclass(frozen=True)
class Completion:
    """A finished response.

    tokens: response ids, with the stop id, or the tokens of the stop string, if one ended it.
    logprobs: f32, one per token, under the distribution sampled from (`sampling.sample`).
    finish_reason: "stop" after a stop id or a stop string, "length" at max_tokens.
    text: of the tokens, cut before the stop string; None where the decoder has no detokenizer.
    untempered_logprobs: f32, one per token, of the plain softmax; None unless asked for.
    """

    prompt_id: int
    sample: int
    tokens: tuple[int, ...]
    logprobs: np.ndarray
    finish_reason: Literal["stop", "length"]
    text: str | None = None
    untempered_logprobs: np.ndarray | None = None
