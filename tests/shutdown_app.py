"""A server to be stopped: `python -m tests.shutdown_app DATABASE_URL APPLICATION SOCKET GRACE`.

Its requests hold units open in every way there is.
"""

from __future__ import annotations

import asyncio
import os
import sys
from collections.abc import AsyncIterator, Awaitable, Callable

import uvicorn
from sqlalchemy import event, text
from starlette.background import BackgroundTask
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response, StreamingResponse
from starlette.routing import Route, WebSocketRoute
from starlette.websockets import WebSocket

from starlette_uow import UnitOfWork, create_engine, current_session
from tests.wire_app import make_app, write

FOREVER = 60.0
"""Seconds: longer than any test waits."""


async def wait(request: Request) -> Response:
    """A unit that is open, between two statements."""
    write(request.path_params["name"])
    await current_session().flush()
    await asyncio.sleep(FOREVER)
    return PlainTextResponse("created", 201)


async def query(request: Request) -> Response:
    """A unit whose statement runs."""
    write(request.path_params["name"])
    await current_session().execute(text(f"select pg_sleep({FOREVER})"))
    return PlainTextResponse("created", 201)


async def drip(request: Request) -> Response:
    """A body that is read from the database without an end."""
    write(request.path_params["name"])
    await current_session().flush()
    rows = await current_session().stream(text("select n from generate_series(1, 100000) n"))

    async def body() -> AsyncIterator[str]:
        async for row in rows:
            yield f"{row.n}\n"
            await asyncio.sleep(0.01)

    return StreamingResponse(body(), 201)


async def linger(request: Request) -> Response:
    """A background task without an end."""
    name = request.path_params["name"]

    async def task() -> None:
        write(f"{name}-later")
        await current_session().flush()
        await asyncio.sleep(FOREVER)

    write(name)
    return PlainTextResponse("created", 201, background=BackgroundTask(task))


ENDLESS: list[Callable[[Request], Awaitable[Response]]] = [wait, query, drip, linger]


def make_chat(uow: UnitOfWork) -> Callable[[WebSocket], Awaitable[None]]:
    async def chat(socket: WebSocket) -> None:
        """A websocket in the unit of a message that has no end."""
        name = socket.path_params["name"]
        write(name)
        await socket.accept()
        async with uow:
            write(f"{name}-later")
            await uow.session.flush()
            await asyncio.sleep(FOREVER)

    return chat


def main(url: str, user: str, listener: int, grace: int) -> None:
    """Serve until a signal comes."""
    engine = create_engine(
        url, pool_size=30, application_name=user, client_connection_check_interval=0.2
    )
    event.listen(engine.sync_engine, "engine_disposed", lambda _: os.write(1, b"disposed\n"))
    uow = UnitOfWork(engine)
    app = make_app(uow)
    for endpoint in ENDLESS:
        path = f"/{endpoint.__name__}/{{name}}"
        app.router.routes.append(Route(path, endpoint, methods=["POST"]))
    app.router.routes.append(WebSocketRoute("/chat/{name}", make_chat(uow)))
    uvicorn.run(
        app,
        fd=listener,
        log_level="warning",
        ws="websockets-sansio",
        timeout_graceful_shutdown=grace,
    )


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], int(sys.argv[3]), int(sys.argv[4]))
