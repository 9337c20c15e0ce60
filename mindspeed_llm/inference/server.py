"""Owns the HTTP server: routes, who may ask, how large a question may be, what happens when someone
hangs up. What is asked and answered is in `protocol` and `answers`."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import hmac
import ipaddress
import json
import time
import urllib.parse
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

from fastapi import FastAPI, Request, Response
from fastapi.responses import JSONResponse, PlainTextResponse, StreamingResponse
from starlette.datastructures import Headers
from starlette.requests import ClientDisconnect

from mindspeed_llm.inference.answers import Answers, Choice
from mindspeed_llm.inference.metrics import Metrics
from mindspeed_llm.inference.protocol import ApiError, chat_wish, text_wish

_PAGE = Path(__file__).with_name("page")
_FILES = {  # path -> file and kind
    "/": ("page.html", "text/html"),
    "/page.css": ("page.css", "text/css"),
    "/page.js": ("page.js", "text/javascript"),
    "/icon.svg": ("icon.svg", "image/svg+xml"),
}
_HEADERS = {
    "Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self'; "
    "connect-src 'self'; img-src 'self'; base-uri 'none'; form-action 'none'; "
    "frame-ancestors 'none'",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cache-Control": "no-store",
}
_PATIENCE = 30.0  # seconds in which a body has to arrive
_LINGER = 5.0  # and of one that is too large, what may come before the line is closed
_LOCAL = ("localhost", "127.0.0.1", "::1")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Access:
    """Who may ask, and how much at once.

    Attributes:
        token: what `Authorization: Bearer` has to hold; None: nothing.
        hosts: names under which the server may be called, besides its own addresses.
        is_local: whether it listens on this machine alone.
        body: most bytes of a request.
    """

    token: str | None
    hosts: frozenset[str]
    is_local: bool
    body: int

    def check_host(self, header: str | None) -> None:
        """Raise ApiError unless the caller called us by a name that is ours: a page of another
        site whose name was made to point here is turned away."""
        name = _host(header or "")
        is_address = False
        with contextlib.suppress(ValueError):
            ipaddress.ip_address(name)
            is_address = True
        # An address cannot be made to point elsewhere.
        if name in self.hosts or name in _LOCAL or (is_address and not self.is_local):
            return
        raise ApiError(421, f"this server is not called {name!r}; --allowed-host NAME admits "
                       "another name")  # fmt: skip

    def check_token(self, header: str | None) -> None:
        """Raise ApiError unless the token is there, where there is one."""
        if self.token is None:
            return
        kind, _, given = (header or "").partition(" ")
        same = hmac.compare_digest(given.strip().encode(), self.token.encode())
        if kind.lower() != "bearer" or not same:
            raise ApiError(401, "the token is missing or wrong: Authorization: Bearer TOKEN",
                           code="invalid_api_key")  # fmt: skip


def _host(header: str) -> str:
    """The name of a Host header, without its port."""
    with contextlib.suppress(ValueError):
        return (urllib.parse.urlsplit(f"//{header}").hostname or "").rstrip(".")
    return ""


def make_app(answers: Answers, access: Access) -> FastAPI:
    """The application."""
    app = FastAPI(docs_url=None, redoc_url=None, openapi_url=None)
    started = int(time.time())
    worker, defaults = answers.worker, answers.defaults

    app.add_middleware(_Guard, access=access, metrics=answers.metrics)

    async def api_error(_request: Request, err: Exception) -> Response:
        assert isinstance(err, ApiError)
        return _error(err)

    async def missing(request: Request, _err: Exception) -> Response:
        return _error(ApiError(404, f"there is nothing at {request.url.path}"))

    async def wrong_method(request: Request, _err: Exception) -> Response:
        return _error(ApiError(405, f"{request.method} is not for {request.url.path}"))

    app.add_exception_handler(ApiError, api_error)
    app.add_exception_handler(404, missing)
    app.add_exception_handler(405, wrong_method)

    @app.get("/v1/models")
    async def models() -> dict[str, Any]:
        return {"object": "list", "data": [_model(defaults.model, started)]}

    @app.get("/v1/models/{name:path}")
    async def model(name: str) -> dict[str, Any]:
        if name != defaults.model:
            raise ApiError(404, f"there is no model {name!r} here; there is {defaults.model!r}",
                           param="model", code="model_not_found")  # fmt: skip
        return _model(name, started)

    @app.post("/v1/chat/completions")
    async def chat(request: Request) -> Response:
        wish = chat_wish(await _json(request, access.body), defaults)
        choices = answers.chat(wish)
        if wish.stream:
            return _streamed(request, answers, choices, answers.events(wish, choices))
        await _awaited(request, answers, choices)
        return JSONResponse(answers.chat_body(wish, choices))

    @app.post("/v1/completions")
    async def text(request: Request) -> Response:
        wish = text_wish(await _json(request, access.body), defaults)
        choices = answers.text(wish)
        if wish.stream:
            return _streamed(request, answers, choices, answers.events(wish, choices))
        await _awaited(request, answers, choices)
        return JSONResponse(answers.text_body(wish, choices))

    @app.get("/health")
    async def health() -> Response:
        alive = worker.is_alive
        return JSONResponse({"status": "ok" if alive else "stopped"}, 200 if alive else 503)

    @app.get("/metrics")
    async def metrics() -> Response:
        scheduler = worker.engine.scheduler
        gauges = {
            "replies": ("Replies being made or waiting.", worker.count),
            "replies_running": ("Replies being made.", len(scheduler.running)),
            "kv_tokens_used": ("Positions of memory spoken for.", scheduler.used),
            "kv_tokens_budget": ("Positions of memory there may be.", scheduler.budget or 0),
        }
        return PlainTextResponse(answers.metrics.text(gauges))

    for path, (name, kind) in _FILES.items():
        _serve_file(app, path, (_PAGE / name).read_text(encoding="utf-8"), kind)
    return app


class _Guard:
    """In front of every route: who asks, headers of every answer, and its count."""

    def __init__(self, app: Any, access: Access, metrics: Metrics) -> None:
        self.app, self.access, self.metrics = app, access, metrics

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        """One request, as ASGI has it."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        path, headers = scope["path"], Headers(scope=scope)

        async def sending(message: dict[str, Any]) -> None:
            if message["type"] == "http.response.start":
                own = [(name.encode(), value.encode()) for name, value in _HEADERS.items()]
                message["headers"] = [*message["headers"], *own]
                self.metrics.request(path if path in _KNOWN else "other", message["status"])
            await send(message)

        try:
            self.access.check_host(headers.get("host"))
            _check_origin(headers)
            if path.startswith("/v1/") or path == "/metrics":
                self.access.check_token(headers.get("authorization"))
        except ApiError as err:
            await _error(err)(scope, receive, sending)
            return
        await self.app(scope, receive, sending)


_KNOWN = frozenset(
    {*_FILES, "/v1/models", "/v1/chat/completions", "/v1/completions", "/health", "/metrics"}
)


def _serve_file(app: FastAPI, path: str, text: str, kind: str) -> None:
    @app.get(path)
    async def file() -> Response:
        return Response(text, media_type=kind)


def _model(name: str, started: int) -> dict[str, Any]:
    return {"id": name, "object": "model", "created": started, "owned_by": "mindspeed-llm"}


def _error(err: ApiError) -> JSONResponse:
    headers = {429: {"Retry-After": "1"}, 401: {"WWW-Authenticate": "Bearer"}}.get(err.status)
    return JSONResponse(err.body(), err.status, headers)


def _check_origin(headers: Headers) -> None:
    """A page of another site cannot make this machine's browser ask."""
    origin = headers.get("origin")
    if origin is None:
        return
    with contextlib.suppress(ValueError):
        if urllib.parse.urlsplit(origin).netloc == headers.get("host"):
            return
    raise ApiError(403, f"requests from pages of {origin!r} are not taken")


async def _json(request: Request, most: int) -> Any:
    """The body; one that is too large is thrown away as it comes, for a while.

    Raises:
        ApiError: 413, 415, 408, or 400.
    """
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind != "application/json":  # and so no form of another site's page
        raise ApiError(415, f"Content-Type is {kind!r}; expected application/json")
    size = request.headers.get("content-length", "0")
    too_large = ApiError(413, f"the body has more than {most} bytes")
    if size.isdecimal() and int(size) > most:
        await _throw_away(request)
        raise too_large
    body = bytearray()

    async def read() -> None:
        async for chunk in request.stream():
            body.extend(chunk)
            if len(body) > most:
                raise too_large

    try:
        await asyncio.wait_for(read(), _PATIENCE)
    except ApiError:
        await _throw_away(request)
        raise
    except asyncio.TimeoutError as err:
        raise ApiError(408, f"the body did not arrive within {_PATIENCE:.0f} s") from err
    try:
        value = json.loads(body, parse_constant=_no_constant)
        json.dumps(value, ensure_ascii=False).encode()  # half a surrogate pair is no text
        return value
    except (ValueError, RecursionError) as err:
        raise ApiError(400, f"the body is not JSON: {err}") from err


async def _throw_away(request: Request) -> None:
    """Read what is still being sent: who finds the line closed never sees the answer."""

    async def read() -> None:
        async for _ in request.stream():
            pass

    with contextlib.suppress(asyncio.TimeoutError, ClientDisconnect):
        await asyncio.wait_for(read(), _LINGER)


def _no_constant(name: str) -> None:
    raise ValueError(f"{name} is no JSON")


async def _gone(request: Request) -> None:
    """Return when the caller has hung up."""
    while (await request.receive())["type"] != "http.disconnect":
        pass


async def _awaited(request: Request, answers: Answers, choices: list[Choice]) -> None:
    """Wait until all choices are made, or the caller has hung up."""
    gone = asyncio.ensure_future(_gone(request))
    done = asyncio.ensure_future(answers.finished(choices))
    try:
        await asyncio.wait((gone, done), return_when=asyncio.FIRST_COMPLETED)
        if not done.done():
            raise ApiError(499, "the caller has hung up")
        done.result()
    finally:
        for task in (gone, done):
            task.cancel()
        answers.cancel(choices)


def _streamed(
    request: Request, answers: Answers, choices: list[Choice], events: AsyncIterator[str]
) -> StreamingResponse:
    async def body() -> AsyncIterator[str]:
        gone = asyncio.ensure_future(_gone(request))
        gone.add_done_callback(lambda task: task.cancelled() or answers.cancel(choices))
        try:
            async for event in events:
                yield event
        finally:
            gone.cancel()
            answers.cancel(choices)

    return StreamingResponse(body(), media_type="text/event-stream")
