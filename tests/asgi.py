"""Drives an app with raw ASGI messages, and notes what a second connection sees at each."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import anyio
from starlette.middleware import Middleware
from starlette.middleware.base import BaseHTTPMiddleware, RequestResponseEndpoint
from starlette.requests import Request
from starlette.responses import Response
from starlette.types import ASGIApp, Message, Scope

from tests.databases import Observer


class PassThrough(BaseHTTPMiddleware):
    """Does nothing, in a task and a context of its own, as every BaseHTTPMiddleware does."""

    async def dispatch(self, request: Request, call_next: RequestResponseEndpoint) -> Response:
        return await call_next(request)


def layers(count: int) -> list[Middleware]:
    """So many BaseHTTPMiddlewares."""
    return [Middleware(PassThrough) for _ in range(count)]


def http_scope(path: str = "/", method: str = "GET", **more: Any) -> Scope:
    return {
        "type": "http",
        "asgi": {"version": "3.0", "spec_version": "2.4"},
        "http_version": "1.1",
        "method": method,
        "scheme": "http",
        "path": path,
        "raw_path": path.encode(),
        "query_string": b"",
        "root_path": "",
        "headers": [(b"host", b"test")],
        "client": ("127.0.0.1", 1),
        "server": ("test", 80),
        **more,
    }


class Exchange:
    """One request, its messages, and the items that were committed when each was sent.

    Attributes:
        events: `("start", status, items)` and `("body", text, more_body, items)`, in order.
        error: what came out of the app, as the server sees it.
    """

    def __init__(self, app: ASGIApp, observer: Observer) -> None:
        self.app = app
        self.observer = observer
        self.events: list[tuple[Any, ...]] = []
        self.error: BaseException | None = None
        self.disconnected = anyio.Event()
        self.on_message: Callable[[Message], None] = lambda message: None

    async def run(self, path: str = "/", method: str = "GET", **more: Any) -> Exchange:
        received = False

        async def receive() -> Message:
            nonlocal received
            if received:
                await self.disconnected.wait()
                return {"type": "http.disconnect"}
            received = True
            return {"type": "http.request", "body": b"", "more_body": False}

        async def send(message: Message) -> None:
            items = await self.observer.names()
            if message["type"] == "http.response.start":
                self.events.append(("start", message["status"], items))
            elif message["type"] == "http.response.body":
                text, more_body = message.get("body", b"").decode(), message.get("more_body", False)
                self.events.append(("body", text, more_body, items))
            self.on_message(message)

        try:
            await self.app(http_scope(path, method, **more), receive, send)
        except Exception as error:
            self.error = error
        return self

    @property
    def status(self) -> int | None:
        return next((event[1] for event in self.events if event[0] == "start"), None)

    @property
    def text(self) -> str:
        return "".join(event[1] for event in self.events if event[0] == "body")

    @property
    def is_complete(self) -> bool:
        return bool(self.events) and self.events[-1][0] == "body" and not self.events[-1][2]
