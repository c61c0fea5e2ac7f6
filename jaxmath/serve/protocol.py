"""OpenAI's completion and chat requests → `Call`s; everything is checked before it is queued.

Beyond OpenAI's own fields, `top_k`, `min_tokens` and `repetition_penalty` mean what they mean in
vLLM and SGLang. Fields of OpenAI's that ask for something this server does not do are refused
unless they hold their neutral value, so that no client is misled.
"""

from __future__ import annotations

import collections
import dataclasses
import hashlib
import secrets
import struct
from collections.abc import Callable, Sequence
from typing import Any

from jaxmath.decode.requests import Request
from jaxmath.decode.sampling import SamplingConfig
from jaxmath.serve import options
from jaxmath.serve.errors import ApiError, bad_field
from jaxmath.serve.fields import Fields, checked_text

COMPLETION_TOKENS = 16  # OpenAI's default of /v1/completions; a chat may take all there is

Message = dict[str, str]


@dataclasses.dataclass(frozen=True)
class Codec:
    """Text to ids and back.

    encode: a prompt as the model reads it, control tokens included.
    encode_chat: a chat, ready for the assistant's turn; raises ValueError for one it cannot put.
    decode: ids → text without special tokens.
    """

    encode: Callable[[str], Sequence[int]]
    encode_chat: Callable[[Sequence[Message]], Sequence[int]]
    decode: Callable[[Sequence[int]], str]


@dataclasses.dataclass(frozen=True)
class Limits:
    """What a call may ask for.

    model: the name it is served under. max_choices: prompts times n of one call.
    defaults: how responses are drawn where a call does not say; its max_tokens is the limit.
    """

    model: str
    max_prompt_tokens: int
    vocab_size: int
    max_choices: int
    defaults: SamplingConfig


@dataclasses.dataclass(frozen=True)
class Call:
    """One HTTP call, checked: `n` responses to each of the prompts.

    seed: of all its random numbers, drawn anew where the client named none.
    include_usage: a stream ends with the token counts.
    """

    chat: bool
    prompts: tuple[tuple[int, ...], ...]
    n: int
    options: SamplingConfig
    seed: int
    stream: bool
    include_usage: bool
    logprobs: bool

    def requests(self) -> list[Request]:
        """Prompt by prompt, n of each; equal (seed, prompt, place among its equals) name equally.

        The name decides the random numbers, so a call repeated with its seed repeats its answer,
        whatever else is being decoded. A prompt that is listed twice counts on from the first.
        """
        seen: collections.Counter[tuple[int, ...]] = collections.Counter()
        out = []
        for prompt in self.prompts:
            packed = struct.pack(f"<{len(prompt)}i", *prompt)
            digest = hashlib.blake2b(packed, digest_size=8, key=self.seed.to_bytes(9, signed=True))
            prompt_id, first = struct.unpack("<II", digest.digest())
            for _ in range(self.n):
                sample = (first + seen[prompt]) % 2**32
                out.append(Request(prompt_id, sample, prompt, self.options))
                seen[prompt] += 1
        return out


def parse_completion(tree: dict[str, Any], limits: Limits, codec: Codec) -> Call:
    """The body of POST /v1/completions.

    Raises:
      ApiError: 400 that names the field, or 404 for another model.
    """
    fields = Fields(tree)
    _check_model(fields, limits)
    prompts = _prompts(fields.take("prompt"), codec)
    logprobs = fields.take("logprobs")
    if logprobs is not None and (isinstance(logprobs, bool) or logprobs != 0):
        raise bad_field(
            "logprobs",
            "this server gives the log-probability of the chosen token only; send 0 for it, or "
            "leave the field out",
        )
    fields.neutral("best_of", 1)
    fields.neutral("echo", False)
    fields.neutral("suffix", "")
    max_tokens = fields.whole(
        "max_tokens",
        min(COMPLETION_TOKENS, limits.defaults.max_tokens),
        1,
        limits.defaults.max_tokens,
    )
    return _call(fields, limits, prompts, max_tokens, chat=False, logprobs=logprobs is not None)


def parse_chat(tree: dict[str, Any], limits: Limits, codec: Codec) -> Call:
    """The body of POST /v1/chat/completions.

    Raises:
      ApiError: as `parse_completion`.
    """
    fields = Fields(tree)
    _check_model(fields, limits)
    messages = _messages(fields.take("messages"))
    logprobs = fields.flag("logprobs")
    alternatives = fields.whole("top_logprobs", 0, 0, 20)
    if alternatives:
        raise bad_field(
            "top_logprobs",
            "this server gives the log-probability of the chosen token only; leave the field out",
        )
    for name in ("tools", "functions"):
        fields.neutral(name, [])
    fields.neutral("tool_choice", "none", "auto")
    fields.neutral("parallel_tool_calls", True, False)
    fields.neutral("modalities", ["text"])
    fields.neutral("store", False)
    limit = limits.defaults.max_tokens
    old = fields.whole("max_tokens", None, 1, limit)
    max_tokens = fields.whole("max_completion_tokens", old or limit, 1, limit)
    if old not in (None, max_tokens):
        raise bad_field("max_tokens", f"is {old}, but max_completion_tokens is {max_tokens}")
    try:
        prompt = tuple(codec.encode_chat(messages))
    except ValueError as error:
        raise bad_field("messages", str(error)) from None
    return _call(fields, limits, (prompt,), max_tokens, chat=True, logprobs=logprobs)


def _call(
    fields: Fields, limits: Limits, prompts, max_tokens: int, *, chat: bool, logprobs: bool
) -> Call:
    """Reads what both kinds of call have in common, and refuses what is left."""
    n = fields.whole("n", 1, 1, limits.max_choices)
    if len(prompts) * n > limits.max_choices:
        raise bad_field(
            "n", f"{len(prompts)} prompts x {n} are more than {limits.max_choices} responses"
        )
    _check_prompts(prompts, limits, "messages" if chat else "prompt")
    drawn = options.parse(fields, limits.defaults, max_tokens, limits.vocab_size)
    seed = fields.whole("seed", None, -(2**63), 2**64 - 1)
    stream = fields.flag("stream")
    include_usage = _include_usage(fields.take("stream_options"), stream)
    for name in ("frequency_penalty", "presence_penalty"):
        fields.neutral(name, 0, 0.0)
    fields.neutral("response_format", {"type": "text"})
    fields.neutral("service_tier", "auto", "default")
    fields.text("user")
    fields.finish()
    return Call(
        chat=chat,
        prompts=prompts,
        n=n,
        options=drawn,
        seed=secrets.randbits(64) if seed is None else seed,
        stream=stream,
        include_usage=include_usage,
        logprobs=logprobs,
    )


def _include_usage(value: Any, stream: bool) -> bool:
    if value is None:
        return False
    if not stream:
        raise bad_field("stream_options", "only allowed when stream is true")
    if not isinstance(value, dict):
        raise bad_field("stream_options", "expected an object")
    fields = Fields(value, "stream_options")
    include = fields.flag("include_usage")
    fields.neutral("include_obfuscation", False)
    fields.finish()
    return include


# --- the prompt -------------------------------------------------------------------------------


def _check_model(fields: Fields, limits: Limits) -> None:
    name = fields.text("model")
    if name not in (None, limits.model):
        raise ApiError(
            404,
            f"model: this server has {limits.model!r} only",
            param="model",
            code="model_not_found",
        )


def _prompts(value: Any, codec: Codec) -> tuple[tuple[int, ...], ...]:
    """Text, ids, or a list of either."""
    if value is None:
        raise bad_field("prompt", "this field is required")
    if isinstance(value, str) or (isinstance(value, list) and value and _is_id(value[0])):
        value = [value]
    if not isinstance(value, list) or not value:
        raise bad_field("prompt", "expected text, token ids, or a list of either, not empty")
    out = []
    for i, prompt in enumerate(value):
        if isinstance(prompt, str):
            out.append(tuple(codec.encode(checked_text("prompt", prompt))))
        elif isinstance(prompt, list) and all(map(_is_id, prompt)):
            out.append(tuple(prompt))
        else:
            raise bad_field("prompt", f"entry {i} is neither text nor a list of token ids")
    return tuple(out)


def _is_id(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _messages(value: Any) -> list[Message]:
    if not isinstance(value, list) or not value:
        raise bad_field("messages", "expected a list of messages, not empty")
    out = []
    for i, message in enumerate(value):
        name = f"messages[{i}]"
        if not isinstance(message, dict):
            raise bad_field(name, "expected an object with role and content")
        fields = Fields(message, name)
        role = fields.text("role")
        role = "system" if role == "developer" else role  # OpenAI's newer word
        if role not in ("system", "user", "assistant"):
            raise fields.bad("role", f"expected system, user or assistant, got {role!r}")
        out.append({"role": role, "content": _content(fields.take("content"), f"{name}.content")})
        fields.neutral("refusal")
        fields.neutral("tool_calls", [])
        fields.finish()
    return out


def _content(value: Any, name: str) -> str:
    """Text, or a list of text parts, which are joined."""
    if not isinstance(value, list):
        return checked_text(name, value)
    parts = []
    for part in value:
        if not (isinstance(part, dict) and part.get("type") == "text"):
            raise bad_field(name, "expected text, or parts of type 'text' only")
        parts.append(checked_text(name, part.get("text")))
    return "".join(parts)


def _check_prompts(prompts, limits: Limits, name: str) -> None:
    for prompt in prompts:
        if not 1 <= len(prompt) <= limits.max_prompt_tokens:
            raise ApiError(
                400,
                f"{name}: a prompt has {len(prompt)} tokens; expected 1 to "
                f"{limits.max_prompt_tokens}",
                param=name,
                code="context_length_exceeded" if prompt else None,
            )
        if not (min(prompt) >= 0 and max(prompt) < limits.vocab_size):
            raise bad_field(
                name,
                f"token ids from {min(prompt)} to {max(prompt)}; expected 0 to "
                f"{limits.vocab_size - 1}",
            )
