"""The web application: OpenAI's routes over a `Worker`.

    GET  /health                  200 while the decoder lives and takes calls
    GET  /v1/models, /v1/models/NAME
    POST /v1/completions          text or token ids in, n responses each out
    POST /v1/chat/completions

A client that goes away takes its requests with it. Bodies must say that they are JSON: a web page
of another origin cannot send such a body without asking first, and nobody here says yes.
"""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import hmac
from collections.abc import AsyncIterator, Callable, Coroutine
from typing import Any

from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.middleware.trustedhost import TrustedHostMiddleware
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import Route
from starlette.types import Receive, Scope, Send

from jaxmath.serve import answers, fields, protocol
from jaxmath.serve.errors import ApiError
from jaxmath.serve.worker import Batch, Event, Worker, shutting_down

BODY_TIMEOUT_S = 60.0  # a client that dribbles its body does not keep a connection for ever
LOCAL_NAMES = ("localhost", "127.0.0.1", "[::1]")

Events = asyncio.Queue[Event]


@dataclasses.dataclass
class Service:
    """What the routes work with.

    api_key: what clients must show; None asks nothing.
    draining: refuse new calls, finish those that are here.
    """

    worker: Worker
    limits: protocol.Limits
    codec: protocol.Codec
    max_body_bytes: int
    api_key: str | None = None
    local_only: bool = True
    draining: bool = False


def make_app(service: Service) -> Starlette:
    """The application; its lifespan is that of the worker's thread."""

    @contextlib.asynccontextmanager
    async def lifespan(app: Starlette) -> AsyncIterator[None]:
        service.worker.start()
        try:
            yield
        finally:
            await run_in_threadpool(service.worker.stop)

    parse = {
        "/v1/completions": protocol.parse_completion,
        "/v1/chat/completions": protocol.parse_chat,
    }
    routes = [
        Route("/health", _route(service, _health, protected=False), methods=["GET"]),
        Route("/v1/models", _route(service, _models), methods=["GET"]),
        Route("/v1/models/{name:path}", _route(service, _model), methods=["GET"]),
        *(Route(path, _route(service, _answer(p)), methods=["POST"]) for path, p in parse.items()),
    ]
    # Behind a loopback address, a name that is not local means a page that had its name rebound.
    trusted = Middleware(TrustedHostMiddleware, allowed_hosts=list(LOCAL_NAMES))
    return Starlette(
        routes=routes,
        lifespan=lifespan,
        middleware=[trusted] if service.local_only else [],
        exception_handlers={HTTPException: _http_error, Exception: _unforeseen},
    )


def _route(service: Service, respond: Callable, protected: bool = True) -> Callable:
    """The endpoint of a route: checks the key, and puts an ApiError into words."""

    async def endpoint(request: Request) -> Response:
        try:
            if protected:
                _authorize(service, request)
            return await respond(service, request)
        except ApiError as error:
            return JSONResponse(error.body(), error.status, error.headers)
        except ClientDisconnect:
            return Response(status_code=499)  # nobody reads it

    return endpoint


def _authorize(service: Service, request: Request) -> None:
    if service.api_key is None:
        return
    shown = request.headers.get("authorization", "").encode()
    if not hmac.compare_digest(shown, f"Bearer {service.api_key}".encode()):
        raise ApiError(
            401,
            "expected the server's API key in the header 'Authorization: Bearer KEY'",
            code="invalid_api_key",
            headers={"WWW-Authenticate": "Bearer"},
        )


async def _http_error(request: Request, error: HTTPException) -> Response:
    found = ApiError(error.status_code, f"{request.method} {request.url.path}: {error.detail}")
    return JSONResponse(found.body(), found.status, error.headers)


async def _unforeseen(request: Request, error: Exception) -> Response:
    return JSONResponse(ApiError(500, "the server has failed; its log says why").body(), 500)


# --- what is here -----------------------------------------------------------------------------


async def _health(service: Service, request: Request) -> Response:
    if service.worker.error is not None:
        raise ApiError(500, "the decoder has failed; the server's log says why")
    if service.draining:
        raise shutting_down()
    return JSONResponse({"status": "ok", "unfinished_responses": service.worker.num_waiting})


async def _models(service: Service, request: Request) -> Response:
    return JSONResponse({"object": "list", "data": [_card(service)]})


async def _model(service: Service, request: Request) -> Response:
    if request.path_params["name"] != service.limits.model:
        raise ApiError(
            404, f"this server has {service.limits.model!r} only", code="model_not_found"
        )
    return JSONResponse(_card(service))


def _card(service: Service) -> dict[str, Any]:
    limits = service.limits
    return {
        "id": limits.model,
        "object": "model",
        "created": 0,
        "owned_by": "jaxmath",
        "max_model_len": limits.max_prompt_tokens + limits.defaults.max_tokens,
    }


# --- responses --------------------------------------------------------------------------------


def _answer(parse: Callable) -> Callable:
    """The endpoint for bodies that `parse` reads."""

    async def respond(service: Service, request: Request) -> Response:
        if service.draining:
            raise shutting_down()
        body = await _body(request, service.max_body_bytes)
        # Tokenizing megabytes takes a while; other clients' streams go on meanwhile.
        call = await run_in_threadpool(
            lambda: parse(fields.parse(body), service.limits, service.codec)
        )
        answer = answers.Answer(call, service.limits.model, service.codec.decode)
        loop, events = asyncio.get_running_loop(), asyncio.Queue()

        def deliver(event: Event) -> None:
            with contextlib.suppress(RuntimeError):  # the loop has closed: nobody waits any more
                loop.call_soon_threadsafe(events.put_nowait, event)

        batch = Batch(answer.requests, deliver, call.stream)
        service.worker.submit(batch)
        if call.stream:
            return EventStream(_stream(events, answer), lambda: service.worker.cancel(batch))
        try:
            return await _unless_gone(request, _whole(events, answer))
        finally:
            service.worker.cancel(batch)

    return respond


class EventStream(StreamingResponse):
    """Server-sent events; `on_end` is called however the stream ends, begun or not."""

    def __init__(self, events: AsyncIterator[str], on_end: Callable[[], None]):
        headers = {"Cache-Control": "no-cache", "X-Accel-Buffering": "no"}
        super().__init__(events, headers=headers, media_type="text/event-stream")
        self._on_end = on_end

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await super().__call__(scope, receive, send)
        finally:
            self._on_end()


async def _stream(events: Events, answer: answers.Answer) -> AsyncIterator[str]:
    for opening in answer.opening():
        yield opening
    while not answer.finished:
        event = await events.get()
        if isinstance(event, ApiError):
            yield answers.failure(event)
            return
        if (news := answer.add(event)) is not None:
            yield answer.chunk(*news)
    yield answer.closing()


async def _whole(events: Events, answer: answers.Answer) -> Response:
    while not answer.finished:
        event = await events.get()
        if isinstance(event, ApiError):
            raise event
        answer.add(event)
    return JSONResponse(answer.whole())


async def _unless_gone(request: Request, work: Coroutine[Any, Any, Response]) -> Response:
    """The result of `work`, given up as soon as the client has gone (ClientDisconnect)."""

    async def gone() -> Response:
        while (await request.receive())["type"] != "http.disconnect":
            pass
        raise ClientDisconnect()

    tasks = [asyncio.create_task(work), asyncio.create_task(gone())]
    try:
        done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        return (tasks[0] if tasks[0] in done else tasks[1]).result()
    finally:
        for task in tasks:
            task.cancel()


async def _body(request: Request, limit: int) -> bytes:
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind != "application/json":
        raise ApiError(415, f"expected Content-Type: application/json, got {kind[:60]!r}")
    too_large = ApiError(413, f"the body is larger than {limit} bytes")
    declared = request.headers.get("content-length", "0")
    if declared.isdigit() and int(declared) > limit:
        raise too_large
    chunks, size = [], 0
    try:
        async with asyncio.timeout(BODY_TIMEOUT_S):
            async for chunk in request.stream():
                size += len(chunk)
                if size > limit:
                    raise too_large
                chunks.append(chunk)
    except TimeoutError:
        raise ApiError(408, f"the body was not here after {BODY_TIMEOUT_S:.0f} s") from None
    return b"".join(chunks)
