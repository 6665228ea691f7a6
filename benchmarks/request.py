"""A request without database work through `UnitOfWorkMiddleware`, against the bare app."""

from __future__ import annotations

import argparse
import asyncio
from contextvars import ContextVar

from sqlalchemy.ext.asyncio import async_sessionmaker
from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response
from starlette.routing import Route
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from benchmarks.alternation import Block, Comparison, compare
from starlette_uow import UnitOfWork, UnitOfWorkMiddleware, create_engine

_variable: ContextVar[object] = ContextVar("variable", default=None)


class Wrapper:
    """The least a middleware can do that watches the answer and serves a context."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Wrap `send`, and set a context variable meanwhile."""

        async def wrapped(message: Message) -> None:
            await send(message)

        before = _variable.get()
        _variable.set(self)
        try:
            await self.app(scope, receive, wrapped)
        finally:
            _variable.set(before)


async def endpoint(request: Request) -> Response:
    """Answer at once."""
    return PlainTextResponse("answer")


async def receive() -> Message:
    """No body."""
    return {"type": "http.request", "body": b"", "more_body": False}


async def send(message: Message) -> None:
    """Drop it."""


def requests_to(app: ASGIApp) -> Block:
    """A block of raw ASGI calls."""

    async def block(calls: int) -> None:
        for _ in range(calls):
            scope: Scope = {
                "type": "http",
                "asgi": {"version": "3.0", "spec_version": "2.4"},
                "http_version": "1.1",
                "method": "GET",
                "scheme": "http",
                "path": "/",
                "raw_path": b"/",
                "query_string": b"",
                "root_path": "",
                "headers": [(b"host", b"localhost")],
                "client": ("127.0.0.1", 50000),
                "server": ("127.0.0.1", 8000),
                "state": {},
            }
            await app(scope, receive, send)

    return block


async def measure(middleware: Middleware, *, pairs: int, calls: int) -> Comparison:
    """A middleware against none."""
    routes = [Route("/", endpoint)]
    bare, served = Starlette(routes=routes), Starlette(routes=routes, middleware=[middleware])
    return await compare(requests_to(bare), requests_to(served), pairs=pairs, calls=calls)


def main() -> None:
    """Print what each middleware adds."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--pairs", type=int, default=2000)
    parser.add_argument("--calls", type=int, default=50)
    options = parser.parse_args()
    # No connection is ever opened, so the engine's server need not exist.
    engine = create_engine("postgresql+asyncpg://localhost/none")
    uow = UnitOfWork(async_sessionmaker(engine, expire_on_commit=False))
    middlewares = {
        "wrapper": Middleware(Wrapper),
        "UnitOfWorkMiddleware": Middleware(UnitOfWorkMiddleware, uow=uow),
    }
    for name, middleware in middlewares.items():
        result = asyncio.run(measure(middleware, pairs=options.pairs, calls=options.calls))
        print(result.report(name))  # noqa: T201 - to a person


if __name__ == "__main__":
    main()
