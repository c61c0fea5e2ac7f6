"""Completions and pieces of text → OpenAI's response objects, whole or in chunks."""

from __future__ import annotations

import dataclasses
import json
import secrets
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from jaxmath.decode.requests import Completion, Update
from jaxmath.serve.errors import ApiError
from jaxmath.serve.protocol import Call
from jaxmath.serve.text import Piece, TextStream

DONE = "data: [DONE]\n\n"


@dataclasses.dataclass(frozen=True)
class Part:
    """What is told of one choice at a time: all of it, or what a chunk added."""

    text: str
    pieces: list[Piece]
    finish_reason: str | None


class Answer:
    """The answer to one call, in the making.

    requests: what the decoder is asked, in the order of the choices.

    Args:
      model: the name to answer under. decode: ids → text.
    """

    def __init__(self, call: Call, model: str, decode: Callable[[Sequence[int]], str]):
        self.call = call
        self._head = {
            "id": f"{'chatcmpl' if call.chat else 'cmpl'}-{secrets.token_hex(12)}",
            "created": int(time.time()),
            "model": model,
        }
        self.requests = call.requests()
        self._index = {request.name: i for i, request in enumerate(self.requests)}
        self._streams = [
            TextStream(decode, call.options.stop, call.logprobs) for _ in self.requests
        ]
        self._parts: dict[int, Part] = {}
        self._num_tokens = 0

    @property
    def finished(self) -> bool:
        return len(self._parts) == len(self._streams)

    def add(self, event: Update | Completion) -> tuple[int, Part] | None:
        """Takes news of one choice: its index and what can be told, None for nothing yet."""
        index = self._index[event.prompt_id, event.sample]
        stream = self._streams[index]
        first = stream.num_tokens if isinstance(event, Completion) else 0
        if first < len(event.tokens) and (isinstance(event, Update) or self.call.logprobs):
            stream.push(event.tokens[first:], event.logprobs[first:])
        if isinstance(event, Update):
            text, pieces = stream.release()
            return (index, Part(text, pieces, None)) if text or pieces else None
        self._num_tokens += len(event.tokens)
        part = Part(*stream.finish(event.text), event.finish_reason)
        self._parts[index] = part
        return index, part

    def whole(self) -> dict[str, Any]:
        """The response object; every choice has finished."""
        kind = "chat.completion" if self.call.chat else "text_completion"
        choices = [self._choice(i, self._parts[i], "message") for i in range(len(self._streams))]
        return {**self._head, "object": kind, "choices": choices, "usage": self._usage()}

    # --- streams --------------------------------------------------------------------------------

    def opening(self) -> Iterator[str]:
        """Events before the first token: who is speaking, in a chat."""
        if self.call.chat:
            for i in range(len(self._streams)):
                delta = {"role": "assistant", "content": ""}
                choice = {"index": i, "delta": delta, "logprobs": None, "finish_reason": None}
                yield self._event([choice])

    def chunk(self, index: int, part: Part) -> str:
        return self._event([self._choice(index, part, "delta")])

    def closing(self) -> str:
        usage = self._event([], self._usage()) if self.call.include_usage else ""
        return usage + DONE

    def _event(self, choices: list[dict[str, Any]], usage: dict[str, int] | None = None) -> str:
        kind = "chat.completion.chunk" if self.call.chat else "text_completion"
        body = {**self._head, "object": kind, "choices": choices}
        if self.call.include_usage:
            body["usage"] = usage
        return event(body)

    # --- parts ----------------------------------------------------------------------------------

    def _choice(self, index: int, part: Part, key: str) -> dict[str, Any]:
        out: dict[str, Any] = {"index": index, "finish_reason": part.finish_reason}
        if not self.call.chat:
            return out | {"text": part.text, "logprobs": self._completion_logprobs(part)}
        message = {"content": part.text}
        if key == "message":
            message = {"role": "assistant", **message, "refusal": None}
        return out | {key: message, "logprobs": self._chat_logprobs(part)}

    def _completion_logprobs(self, part: Part) -> dict[str, Any] | None:
        if not self.call.logprobs:
            return None
        return {
            "tokens": [piece.text for piece in part.pieces],
            "token_logprobs": [piece.logprob for piece in part.pieces],
            "top_logprobs": None,
            "text_offset": [piece.offset for piece in part.pieces],
        }

    def _chat_logprobs(self, part: Part) -> dict[str, Any] | None:
        if not self.call.logprobs:
            return None
        content = [
            {
                "token": piece.text,
                "logprob": piece.logprob,
                "bytes": list(piece.text.encode()),
                "top_logprobs": [],
            }
            for piece in part.pieces
        ]
        return {"content": content, "refusal": None}

    def _usage(self) -> dict[str, int]:
        prompt = sum(map(len, self.call.prompts))
        return {
            "prompt_tokens": prompt,
            "completion_tokens": self._num_tokens,
            "total_tokens": prompt + self._num_tokens,
        }


def event(body: dict[str, Any]) -> str:
    """One server-sent event."""
    return f"data: {json.dumps(body, ensure_ascii=False, allow_nan=False)}\n\n"


def failure(error: ApiError) -> str:
    """The last event of a stream that failed; no [DONE] follows, so it cannot pass for whole."""
    return event(error.body())
