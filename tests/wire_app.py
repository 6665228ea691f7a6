"""An app whose units write two rows in two tables each, and what its clients are told.

The path of a request names what it does, then the unit: `/create/ada`. Shared by the faults on the
wire and by the crowd.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass

from sqlalchemy import select, text
from starlette.applications import Starlette
from starlette.background import BackgroundTask
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import PlainTextResponse, RedirectResponse, Response, StreamingResponse
from starlette.routing import Route, WebSocketRoute
from starlette.types import ASGIApp, Message
from starlette.websockets import WebSocket

from starlette_uow import (
    CommitOutcomeUnknownError,
    UnitOfWork,
    UnitOfWorkMiddleware,
    current_session,
    current_uow,
)
from tests.asgi import http_scope, layers
from tests.models import Item, Part

UNKNOWN = 504
"""What the apps here answer when the outcome of a commit is unknown."""


class UnluckyError(Exception):
    """The app's handler redirects."""


def write(name: str) -> None:
    """Half a unit would be an item without its part."""
    current_session().add(Item(name=name, parts=[Part()]))


async def create(request: Request) -> Response:
    await request.body()
    write(request.path_params["name"])
    return PlainTextResponse("created", 201)


async def refuse(request: Request) -> Response:
    write(request.path_params["name"])
    await current_session().flush()
    return PlainTextResponse("refused", 409)


async def crash(request: Request) -> Response:
    write(request.path_params["name"])
    await current_session().flush()
    raise LookupError


async def swallow(request: Request) -> Response:
    """What many apps do: an error of the database is dropped, and the answer is fine."""
    write(request.path_params["name"])
    try:
        await current_session().flush()
        await current_session().execute(select(Item.name).limit(1))
    except Exception:
        pass
    return PlainTextResponse("created", 201)


async def redirect(request: Request) -> Response:
    """An error of the database becomes a redirect, and nobody says that the unit is doomed."""
    write(request.path_params["name"])
    try:
        await current_session().flush()
        await current_session().execute(select(Item.name).limit(1))
    except Exception as error:
        raise UnluckyError from error
    return RedirectResponse("/thanks", 303)


async def savepoints(request: Request) -> Response:
    name = request.path_params["name"]
    try:
        async with current_uow().savepoint():
            write(f"{name}-undone")
            await current_session().flush()
            raise LookupError
    except LookupError:
        pass

    async def work() -> None:
        async with current_uow().savepoint():
            write(name)
            await current_session().flush()

    await asyncio.gather(work(), current_session().execute(select(Item.name).limit(1)))
    return PlainTextResponse("created", 201)


async def checkpoint(request: Request) -> Response:
    name = request.path_params["name"]
    write(f"{name}-before")
    await current_uow().checkpoint()
    write(name)
    return PlainTextResponse("created", 201)


async def stream(request: Request) -> Response:
    """The commit comes before the last chunk, because the rows are read until then."""
    write(request.path_params["name"])
    await current_session().flush()
    rows = await current_session().stream(text("select n from generate_series(1, 120) n"))

    async def body() -> AsyncIterator[str]:
        async for row in rows:
            yield f"{row.n}\n"

    return StreamingResponse(body(), 201)


async def body(request: Request) -> Response:
    async def chunks() -> AsyncIterator[str]:
        yield "1"
        write(request.path_params["name"])
        await current_session().flush()
        yield "2"

    return StreamingResponse(chunks(), 201)


async def background(request: Request) -> Response:
    name = request.path_params["name"]

    async def task() -> None:
        write(f"{name}-later")

    write(name)
    return PlainTextResponse("created", 201, background=BackgroundTask(task))


async def shake_hands(socket: WebSocket) -> None:
    write(socket.path_params["name"])
    await socket.accept()
    await socket.close()


Endpoint = Callable[[Request], Awaitable[Response]]
_endpoints: list[Endpoint] = [
    create,
    refuse,
    crash,
    swallow,
    redirect,
    savepoints,
    checkpoint,
    stream,
    body,
    background,
]
ENDPOINTS = {endpoint.__name__: endpoint for endpoint in _endpoints}
SCENARIOS = [*ENDPOINTS, "websocket"]


async def say_unknown(request: Request, error: Exception) -> Response:
    return PlainTextResponse("unknown", UNKNOWN)


async def say_sorry(request: Request, error: Exception) -> Response:
    return RedirectResponse("/sorry", 303)


def make_app(uow: UnitOfWork, count: int = 0) -> Starlette:
    """The app, with so many `BaseHTTPMiddleware`s below the unit's."""
    return Starlette(
        routes=[
            *(
                Route(f"/{path}/{{name}}", endpoint, methods=["GET", "POST"])
                for path, endpoint in ENDPOINTS.items()
            ),
            WebSocketRoute("/websocket/{name}", shake_hands),
        ],
        middleware=[Middleware(UnitOfWorkMiddleware, uow=uow), *layers(count)],
        exception_handlers={CommitOutcomeUnknownError: say_unknown, UnluckyError: say_sorry},
    )


@dataclass
class Told:
    """What a client was told."""

    status: int | None = None
    complete: bool = False
    error: BaseException | None = None

    @property
    def word(self) -> str:
        """One of success, failure, unknown, nothing."""
        if self.status is None or (self.status < 400 and not self.complete):
            return "nothing"
        if self.status == UNKNOWN:
            return "unknown"
        return "success" if self.status < 400 else "failure"


async def ask(app: ASGIApp, path: str) -> Told:
    """Send a request, or a handshake, of raw ASGI messages."""
    told = Told()
    left = asyncio.Event()
    scope = http_scope(path)
    first: list[Message] = [{"type": "http.request", "body": b""}]
    if path.startswith("/websocket"):
        scope["type"] = "websocket"
        first = [{"type": "websocket.connect"}]

    async def receive() -> Message:
        if not first:
            await left.wait()
        return first.pop()

    async def send(message: Message) -> None:
        kind = message["type"]
        if kind == "http.response.start":
            told.status = message["status"]
        elif kind == "http.response.body":
            told.complete = not message.get("more_body", False)
        elif kind == "websocket.accept":
            told.status, told.complete = 101, True
        elif kind == "websocket.close" and told.status is None:
            # 1011: a commit that failed, or whose outcome is unknown.
            told.status = UNKNOWN if message["code"] == 1011 else 403

    try:
        await app(scope, receive, send)
    except (Exception, asyncio.CancelledError) as error:
        told.error = error
        if told.status is None:  # what a server answers then, also for a request it cancelled
            told.status = 500
    return told


def broken_promises(scenario: str, name: str, word: str, written: dict[str, bool]) -> list[str]:
    """What is wrong about the units that were written, and whether each is whole.

    Args:
        scenario: what was asked for.
        name: the unit's.
        word: what the client was told.
        written: the units whose name begins so.
    """
    broken = [f"half of {unit} is written" for unit, whole in written.items() if not whole]
    if f"{name}-undone" in written:
        broken.append(f"{name}: a savepoint that was undone is written")
    if word == "success" and name not in written:
        broken.append(f"{name}: success was told, and nothing is written")
    if word == "failure" and name in written:
        broken.append(f"{name}: failure was told, and the unit is written")
    if scenario in ("refuse", "crash") and (name in written or word == "success"):
        broken.append(f"{name}: refused, but {word} was told, and written are {list(written)}")
    return broken
