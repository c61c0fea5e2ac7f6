"""Any OpenAI-compatible server (vLLM, SGLang, `jaxmath serve`) in place of a decoder of our own.

One HTTP request per sample, with a seed derived from (run seed, prompt id, sample), so what is
asked does not depend on order, on retries or on what was asked before a run was cut off; whether a
server then repeats its answer is up to that server.

Prompts go to /completions as token ids, which leaves no doubt about what the model reads. A server
that takes text only is found out by its refusal of the first prompt; its own tokenizer then reads
the rendered chat, control tokens spelled out in a question included.
"""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import email.utils
import hashlib
import os
import queue
import random
import struct
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from typing import TYPE_CHECKING, Any, Literal

import httpx2
import numpy as np

if TYPE_CHECKING:  # which would load JAX
    from jaxmath.decode.requests import Request
    from jaxmath.decode.sampling import SamplingConfig

FIRST_WAIT_S, LONGEST_WAIT_S = 0.5, 60.0
LONGEST_RETRY_AFTER_S = 600.0
CONNECT_TIMEOUT_S = 10.0
TRANSIENT = (408, 409, 425, 429)  # and every 5xx


@dataclasses.dataclass(frozen=True)
class EngineConfig:
    """What makes the responses.

    kind: "local" is the decoder of this package; "openai" a server that speaks OpenAI's protocol.
    base_url: of the server, such as http://127.0.0.1:8000/v1. model: the name it knows.
    concurrency: requests under way at a time; enough to fill the server's batch.
    timeout_s: for one response. retries: after a lost connection, a 429 or a 5xx, waiting 0.5 s,
      1 s, 2 s … up to a minute, or what the server asks for.
    api_key_env: environment variable that holds the server's key.
    """

    kind: Literal["local", "openai"] = "local"
    base_url: str | None = None
    model: str | None = None
    concurrency: int = 32
    timeout_s: float = 1800.0
    retries: int = 8
    api_key_env: str | None = None

    def __post_init__(self):
        if self.kind == "local":
            for field in ("base_url", "model", "api_key_env"):
                if getattr(self, field) is not None:
                    raise ValueError(f"{field} is for kind openai, but kind is local; drop one")
            return
        if self.base_url is None or self.model is None:
            raise ValueError("kind openai needs base_url and model; add them")
        url = httpx2.URL(self.base_url)
        if url.scheme not in ("http", "https") or not url.host:
            raise ValueError(f"base_url is {self.base_url!r}; expected http://HOST:PORT/v1")
        if url.userinfo or url.query:
            raise ValueError("base_url holds a user, password or query; use api_key_env for a key")
        if self.concurrency < 1 or self.retries < 0 or not 0 < self.timeout_s < float("inf"):
            raise ValueError(
                f"concurrency {self.concurrency}, retries {self.retries}, timeout_s "
                f"{self.timeout_s}; expected at least 1, at least 0, above 0"
            )

    @property
    def is_local(self) -> bool:
        return self.kind == "local"


@dataclasses.dataclass(frozen=True)
class Reply:
    """A finished response.

    num_tokens: as the server counts them. logprobs: f32, one per token, of whatever distribution
      the server reports (vLLM: before temperature and filters); None unless asked for.
    """

    prompt_id: int
    sample: int
    text: str
    num_tokens: int
    finish_reason: Literal["stop", "length"]
    logprobs: np.ndarray | None


class EngineError(ValueError):
    """No answer is to be had from the server."""


class RemoteEngine:
    """Sends requests to a server, `concurrency` at a time.

    Args:
      sampling: how responses are drawn, and the seed of the run.
      prompt_text: the prompt of a request as text, for servers that do not take ids.
      logprobs: ask for log-probabilities.
    Raises:
      ValueError: the variable that should hold the key is empty.
    """

    def __init__(
        self,
        config: EngineConfig,
        sampling: SamplingConfig,
        prompt_text: Callable[[Request], str],
        *,
        logprobs: bool = False,
    ):
        self.config, self.sampling, self.logprobs = config, sampling, logprobs
        self._prompt_text = prompt_text
        self._as_text: bool | None = None  # not known before the first answer
        self._headers = {}
        if config.api_key_env is not None:
            if not (key := os.environ.get(config.api_key_env)):
                raise ValueError(
                    f"engine.api_key_env: the environment variable {config.api_key_env} is empty "
                    "or not set; put the server's key into it"
                )
            self._headers["Authorization"] = f"Bearer {key}"

    def generate(self, requests: Iterable[Request]) -> Iterator[Reply]:
        """A reply to each request, in order of completion; an early end cancels the others.

        Raises:
          EngineError: the server refuses a request, or keeps failing it.
        """
        found: queue.SimpleQueue[Reply | BaseException | None] = queue.SimpleQueue()
        loop = asyncio.new_event_loop()
        work = loop.create_task(self._answer_all(requests, found.put))

        def run() -> None:
            try:
                loop.run_until_complete(work)
            except BaseException as error:  # for the thread that waits
                found.put(error)
            else:
                found.put(None)
            finally:
                loop.close()

        thread = threading.Thread(target=run, name="remote engine", daemon=True)
        thread.start()
        try:
            while (reply := found.get()) is not None:
                if isinstance(reply, BaseException):
                    raise reply
                yield reply
        finally:
            with contextlib.suppress(RuntimeError):  # the loop has closed: all is done
                loop.call_soon_threadsafe(work.cancel)
            thread.join()

    # --- on the engine's thread -----------------------------------------------------------------

    async def _answer_all(self, requests: Iterable[Request], put: Callable[[Reply], None]) -> None:
        source = iter(requests)
        size = self.config.concurrency
        limits = httpx2.Limits(max_connections=size, max_keepalive_connections=size)
        timeout = httpx2.Timeout(self.config.timeout_s, connect=CONNECT_TIMEOUT_S)
        async with httpx2.AsyncClient(
            headers=self._headers, limits=limits, timeout=timeout
        ) as client:

            async def one_by_one() -> None:
                for request in source:
                    put(await self._answer(client, request))

            if self._as_text is None and (first := next(source, None)) is not None:
                put(await self._first_answer(client, first))
            workers = [asyncio.create_task(one_by_one()) for _ in range(size)]
            try:
                await asyncio.gather(*workers)
            finally:
                for worker in workers:
                    worker.cancel()
                await asyncio.gather(*workers, return_exceptions=True)

    async def _first_answer(self, client: httpx2.AsyncClient, request: Request) -> Reply:
        """Finds out whether the server takes token ids."""
        self._as_text = False
        try:
            return await self._answer(client, request)
        except _Refused as refused:
            if refused.status not in (400, 422):
                raise
            self._as_text = True
            try:
                return await self._answer(client, request)
            except _Refused:
                raise refused from None  # not on account of the ids

    async def _answer(self, client: httpx2.AsyncClient, request: Request) -> Reply:
        """One reply, however many attempts it takes."""
        for attempt in range(self.config.retries + 1):
            try:
                return await self._attempt(client, request)
            except _Failed as failed:
                error = failed
            if attempt < self.config.retries:
                await asyncio.sleep(max(error.retry_after_s, wait_s(attempt)))
        raise EngineError(
            f"{self.config.base_url}: prompt {request.prompt_id} (sample {request.sample}) failed "
            f"{self.config.retries + 1} times, lastly: {error}; is the server well?"
        )

    async def _attempt(self, client: httpx2.AsyncClient, request: Request) -> Reply:
        url = f"{self.config.base_url.rstrip('/')}/completions"
        try:
            response = await client.post(url, json=self._body(request))
        except httpx2.RequestError as error:
            raise _Failed(f"{type(error).__name__}: {error}") from None
        if response.status_code in TRANSIENT or response.status_code >= 500:
            raise _Failed(
                f"status {response.status_code}: {_message(response)}",
                retry_after_s(response.headers.get("retry-after")),
            )
        if response.status_code != 200:
            raise _Refused(
                response.status_code,
                f"{url} refused prompt {request.prompt_id} (sample {request.sample}) with status "
                f"{response.status_code}: {_message(response)}",
            )
        return self._reply(request, response)

    def _body(self, request: Request) -> dict[str, Any]:
        drawn = self.sampling
        body = {
            "model": self.config.model,
            "prompt": self._prompt_text(request) if self._as_text else list(request.tokens),
            "max_tokens": drawn.max_tokens,
            "temperature": drawn.temperature,
            "top_p": drawn.top_p,
            "seed": sample_seed(drawn.seed, request.prompt_id, request.sample),
        }
        # Fields that OpenAI itself does not know go along only where they say something.
        extra = {
            "logprobs": (0 if self.logprobs else None, None),
            "stop": (list(drawn.stop), []),
            "logit_bias": ({str(token): bias for token, bias in drawn.logit_bias}, {}),
            "top_k": (drawn.top_k, 0),
            "min_tokens": (drawn.min_tokens, 0),
            "repetition_penalty": (drawn.repetition_penalty, 1.0),
        }
        return body | {name: value for name, (value, off) in extra.items() if value != off}

    def _reply(self, request: Request, response: httpx2.Response) -> Reply:
        try:
            tree = response.json()
            (choice,) = tree["choices"]
            text, reason = choice["text"], choice["finish_reason"]
            num_tokens = tree["usage"]["completion_tokens"]
            logprobs = None
            if self.logprobs:
                logprobs = np.asarray(choice["logprobs"]["token_logprobs"], np.float32)
            known = logprobs is None or np.isfinite(logprobs).all()
            if not (isinstance(text, str) and isinstance(num_tokens, int) and known):
                raise TypeError
        except (ValueError, KeyError, TypeError):
            wanted = "choices[0].text, finish_reason, usage.completion_tokens"
            wanted += ", logprobs.token_logprobs" if self.logprobs else ""
            raise EngineError(
                f"{response.url} answered without {wanted}: {response.text[:200]!r}; is this an "
                "OpenAI-compatible server?"
            ) from None
        if reason not in ("stop", "length"):  # such as vLLM's "abort"
            raise _Failed(f"finish_reason is {reason!r}")
        return Reply(request.prompt_id, request.sample, text, num_tokens, reason, logprobs)


class _Failed(Exception):
    """An attempt that may succeed when repeated."""

    def __init__(self, message: str, retry_after_s: float = 0.0):
        super().__init__(message)
        self.retry_after_s = retry_after_s


class _Refused(EngineError):
    """A request that the server will never take."""

    def __init__(self, status: int, message: str):
        super().__init__(message)
        self.status = status


def sample_seed(seed: int, prompt_id: int, sample: int) -> int:
    """0 … 2**31 - 1, which every server takes; spread evenly."""
    packed = struct.pack("<QQQ", seed, prompt_id, sample)
    (word,) = struct.unpack("<I", hashlib.blake2b(packed, digest_size=4).digest())
    return word >> 1


def wait_s(attempt: int) -> float:
    """Exponential backoff, with jitter so that those who failed together do not return together."""
    return min(LONGEST_WAIT_S, FIRST_WAIT_S * 2**attempt) * random.uniform(0.5, 1.0)


def retry_after_s(header: str | None) -> float:
    """Seconds that a Retry-After header asks for: a number of them, or a date; 0 without one."""
    if header is None:
        return 0.0
    try:
        seconds = float(header)
    except ValueError:
        try:
            seconds = email.utils.parsedate_to_datetime(header).timestamp() - time.time()
        except ValueError:
            return 0.0
    return min(seconds, LONGEST_RETRY_AFTER_S) if seconds > 0 else 0.0  # and 0 for "nan"


def _message(response: httpx2.Response) -> str:
    """What a server says is wrong, in OpenAI's form or as it comes."""
    try:
        return str(response.json()["error"]["message"])[:500]
    except (ValueError, KeyError, TypeError):
        return repr(response.text[:200])
