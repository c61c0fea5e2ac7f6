"""How a client wants its responses drawn → `SamplingConfig`."""

from __future__ import annotations

import dataclasses
from typing import Any

from jaxmath.decode.sampling import MAX_BIASES, SamplingConfig
from jaxmath.serve.errors import bad_field
from jaxmath.serve.fields import Fields, checked_text

MAX_STOPS, MAX_STOP_CHARACTERS = 16, 256
# Clients mean "greedy" by a tiny temperature; in float32 a tiny top_p would be 0 and keep no token.
GREEDY_BELOW, SMALLEST_TOP_P = 1e-5, 1e-6


def parse(
    fields: Fields, defaults: SamplingConfig, max_tokens: int, vocab_size: int
) -> SamplingConfig:
    """Takes the fields of sampling; what the client left out is as in `defaults`.

    Raises:
      ApiError: 400 that names the field.
    """
    temperature = fields.number("temperature", defaults.temperature, 0, 2)
    top_p = fields.number("top_p", defaults.top_p, 0, 1)
    if top_p == 0:
        raise bad_field("top_p", "expected a number above 0, up to 1 (off), got 0")
    top_k = max(0, fields.whole("top_k", defaults.top_k, -1, 2**31 - 1))  # -1 too is "off" in vLLM
    if temperature < GREEDY_BELOW:  # whatever the filters: clients send their defaults along
        temperature, top_k, top_p = 0, 0, 1
    min_tokens = fields.whole("min_tokens", min(defaults.min_tokens, max_tokens), 0, max_tokens)
    penalty = fields.number("repetition_penalty", defaults.repetition_penalty, 0.01, 100)
    bias = fields.take("logit_bias")
    stop = fields.take("stop")
    return dataclasses.replace(
        defaults,
        temperature=float(temperature),
        top_k=min(top_k, vocab_size),
        top_p=max(float(top_p), SMALLEST_TOP_P),
        max_tokens=max_tokens,
        min_tokens=min_tokens,
        repetition_penalty=float(penalty),
        logit_bias=defaults.logit_bias if bias is None else _logit_bias(bias, vocab_size),
        stop=defaults.stop if stop is None else _stops(stop),
    )


def _logit_bias(value: Any, vocab_size: int) -> tuple[tuple[int, float], ...]:
    """OpenAI's form: token id, as text, → -100 (never) … 100."""
    if not isinstance(value, dict) or len(value) > MAX_BIASES:
        raise bad_field(
            "logit_bias", f"expected an object of at most {MAX_BIASES} token ids with their biases"
        )
    out = []
    for key, bias in value.items():
        if not (key.isascii() and key.isdigit() and len(key) < 10 and int(key) < vocab_size):
            raise bad_field("logit_bias", f"expected token ids below {vocab_size} as keys")
        known = isinstance(bias, int | float) and not isinstance(bias, bool)
        if not (known and -100 <= bias <= 100):
            raise bad_field("logit_bias", f"expected -100 to 100 for token {key}")
        out.append((int(key), float(bias)))
    return tuple(sorted(dict(out).items()))


def _stops(value: Any) -> tuple[str, ...]:
    stops = value if isinstance(value, list) else [value]
    if len(stops) > MAX_STOPS:
        raise bad_field("stop", f"expected at most {MAX_STOPS} strings, got {len(stops)}")
    for stop in stops:
        if not 1 <= len(checked_text("stop", stop)) <= MAX_STOP_CHARACTERS:
            raise bad_field("stop", f"expected strings of 1 to {MAX_STOP_CHARACTERS} characters")
    return tuple(dict.fromkeys(stops))
