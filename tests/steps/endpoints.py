"""What apps do in a request, in one small app, for those who cancel it at every step."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Sequence
from typing import Any, TypeVar

from fastapi import Depends, FastAPI
from sqlalchemy import insert, select, text
from sqlalchemy.exc import DBAPIError, IntegrityError
from sqlalchemy.ext.asyncio import AsyncSession
from starlette.applications import Starlette
from starlette.authentication import AuthCredentials, AuthenticationBackend, SimpleUser
from starlette.background import BackgroundTask
from starlette.concurrency import run_in_threadpool
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.middleware.authentication import AuthenticationMiddleware
from starlette.requests import HTTPConnection, Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import BaseRoute, Mount, Route, WebSocketRoute
from starlette.websockets import WebSocket

from starlette_uow import UnitOfWork, UnitOfWorkMiddleware
from tests.asgi import layers
from tests.models import Item, Part
from tests.steps.promise import Endpoint, Rows
from tests.steps.ways import Within

F = TypeVar("F", bound=Callable[..., Any])


class Boom(Exception):
    """What an endpoint fails with."""


def unit(*whats: str, due: str = "start", stands: bool = False) -> Rows:
    """What `write_two()` wrote in one transaction."""
    names = frozenset(f"{what} {number}" for what in whats for number in (1, 2))
    return Rows(names, due, stands)


def does(*units: Rows, status: int = 201, aborts_on: str = "") -> Callable[[F], F]:
    """Describe an endpoint. `aborts_on`: a database where it is refused, and writes nothing."""

    def describe(function: F) -> F:
        function.__dict__.update(units=units, status=status, aborts_on=aborts_on)
        return function

    return describe


class Plain:
    """Endpoints that need nothing but a session: any library can serve them."""

    def __init__(self, session: Callable[[], AsyncSession]) -> None:
        self.session = session

    async def write_two(self, what: str) -> None:
        """Two statements that belong together."""
        self.session().add(Item(name=f"{what} 1"))
        await self.session().flush()
        await self.session().execute(insert(Item).values(name=f"{what} 2"))

    async def names(self) -> AsyncIterator[str]:
        """Rows that are read while the body is sent."""
        names = select(Item.name).order_by(Item.id)
        options = {"yield_per": 1}
        result = await self.session().stream_scalars(names, execution_options=options)

        async def read() -> AsyncIterator[str]:
            async for name in result:
                yield name

        return read()

    @does(status=200)
    async def read(self, request: Request) -> Response:
        await self.session().execute(select(Item))
        return JSONResponse(list(await self.session().scalars(select(Item.name))))

    @does(unit("write"))
    async def write(self, request: Request) -> Response:
        await self.write_two("write")
        return Response(status_code=201)

    @does(status=422)
    async def write_and_refuse(self, request: Request) -> Response:
        await self.write_two("write")
        raise HTTPException(422)

    @does(status=500)
    async def write_and_raise(self, request: Request) -> Response:
        await self.write_two("write")
        raise Boom

    @does(status=409)
    async def fail_at_commit(self, request: Request) -> Response:
        await self.write_two("write")
        self.session().add(Part(item_id=0))
        return Response(status_code=201)

    @does(unit("write", due="end"))
    async def stream(self, request: Request) -> Response:
        await self.write_two("write")
        return StreamingResponse(await self.names(), 201)

    @does()
    async def stream_and_raise(self, request: Request) -> Response:
        await self.write_two("write")
        names = await self.names()

        async def body() -> AsyncIterator[str]:
            async for name in names:
                yield name
                raise Boom

        return StreamingResponse(body(), 201)

    @does(unit("write"), unit("body", due="end"))
    async def write_in_body(self, request: Request) -> Response:
        await self.write_two("write")

        async def body() -> AsyncIterator[str]:
            yield "first"
            await self.write_two("body")
            yield "second"

        return StreamingResponse(body(), 201)

    @does(unit("write"))
    async def write_in_body_and_raise(self, request: Request) -> Response:
        await self.write_two("write")

        async def body() -> AsyncIterator[str]:
            yield "first"
            await self.write_two("body")
            raise Boom

        return StreamingResponse(body(), 201)

    @does(unit("write"), unit("background", due="later"))
    async def background_task(self, request: Request) -> Response:
        await self.write_two("write")
        return Response(status_code=201, background=BackgroundTask(self.write_two, "background"))

    @does(unit("write"))
    async def background_task_that_raises(self, request: Request) -> Response:
        await self.write_two("write")

        async def fail() -> None:
            await self.write_two("background")
            raise Boom

        return Response(status_code=201, background=BackgroundTask(fail))

    @does(unit("kept"))
    async def savepoints(self, request: Request) -> Response:
        """One is kept, one undone."""
        async with self.session().begin_nested():
            await self.write_two("kept")
        try:
            async with self.session().begin_nested():
                await self.write_two("undone")
                raise Boom
        except Boom:
            pass
        return Response(status_code=201)

    @does(unit("write"), aborts_on="postgresql")
    async def swallow_a_database_error(self, request: Request) -> Response:
        """PostgreSQL answers the COMMIT with a silent ROLLBACK."""
        await self.write_two("write")
        try:
            await self.session().execute(text("select * from nothing"))
        except DBAPIError:
            pass
        return Response(status_code=201)

    @does(unit("seen", "write"))
    async def auth_backend(self, request: Request) -> Response:
        assert request.user.is_authenticated
        await self.write_two("write")
        return Response(status_code=201)

    @does(unit("seen", "write"))
    async def fastapi_dependency(self) -> None:
        await self.write_two("write")

    async def see(self) -> AsyncIterator[None]:
        """A dependency of FastAPI."""
        await self.write_two("seen")
        yield


class WithUnits(Plain):
    """Endpoints that use what a unit of work offers."""

    def __init__(self, uow: UnitOfWork) -> None:
        super().__init__(lambda: uow.session)
        self.uow = uow

    async def write_in_savepoint(self, what: str) -> None:
        async with self.uow.savepoint():
            await self.write_two(what)

    @does(unit("a", "b", "c"))
    async def gather(self, request: Request) -> Response:
        await asyncio.gather(*(self.write_in_savepoint(what) for what in "abc"))
        return Response(status_code=201)

    @does(unit("a", "b", "write"))
    async def task_group(self, request: Request) -> Response:
        async with self.uow.tasks(limit=2) as tg:
            for what in "ab":
                tg.start_soon(self.write_two, what)
        await self.write_two("write")
        return Response(status_code=201)

    @does(unit("write"))
    async def nested_savepoints(self, request: Request) -> Response:
        try:
            async with self.uow.savepoint():
                await self.write_in_savepoint("undone")
                raise Boom
        except Boom:
            pass
        async with self.uow.exclusive():
            await self.write_in_savepoint("write")
        return Response(status_code=201)

    @does(unit("first", stands=True), unit("second"))
    async def checkpoint(self, request: Request) -> Response:
        await self.write_two("first")
        await self.uow.checkpoint()
        await self.write_two("second")
        return Response(status_code=201)

    @does(unit("inner", stands=True), unit("write"))
    async def unit_of_its_own(self, request: Request) -> Response:
        await self.session().execute(select(Item))
        await self.uow.checkpoint()  # SQLite has one writer at a time
        async with self.uow.new():
            await self.write_two("inner")
        await self.write_two("write")
        return Response(status_code=201)

    @does(status=500)
    async def failing_block(self, request: Request) -> Response:
        """The error is swallowed, and the unit is doomed by it."""
        try:
            async with self.uow:
                await self.write_two("write")
                raise Boom
        except Boom:
            pass
        return Response(status_code=201)

    @does(status=200)
    async def dry_run(self, request: Request) -> Response:
        await self.write_two("write")
        self.uow.doom()
        return Response(status_code=200)

    @does(unit("write"), unit("callback", due="later"))
    async def callback(self, request: Request) -> Response:
        self.uow.on_commit(lambda: self.write_two("callback"))
        await self.write_two("write")
        return Response(status_code=201)

    @does(unit("write"))
    async def thread(self, request: Request) -> Response:
        """Two calls from a worker thread."""

        def write(name: str) -> None:
            self.uow.run_sync(lambda session: session.execute(insert(Item).values(name=name)))

        def write_two() -> None:
            write("write 1")
            write("write 2")

        await run_in_threadpool(write_two)
        return Response(status_code=201)

    @does(unit("handshake"), unit("message", due="end"), status=101)
    async def websocket(self, websocket: WebSocket) -> None:
        await self.write_two("handshake")
        await websocket.accept()
        await websocket.receive_text()
        async with self.uow:
            await self.write_two("message")
        await websocket.send_text("stored")
        await websocket.close()


class SeenBackend(AuthenticationBackend):
    """Writes down whom it saw."""

    def __init__(self, write_two: Callable[[str], Any]) -> None:
        self.write_two = write_two

    async def authenticate(self, conn: HTTPConnection) -> tuple[AuthCredentials, SimpleUser]:
        await self.write_two("seen")
        return AuthCredentials(), SimpleUser("user")


# --- the app -------------------------------------------------------------------------------


def endpoints_of(handlers: type[Plain], database: str) -> dict[str, Endpoint]:
    """What each handler does on this database, by its name."""
    endpoints: dict[str, Endpoint] = {}
    for cls in reversed(handlers.__mro__):
        for name, function in vars(cls).items():
            if not hasattr(function, "units"):
                continue
            refused = function.aborts_on == database
            endpoints[name] = Endpoint(
                name.replace("_", " "),
                f"/{name}/",
                () if refused else function.units,
                500 if refused else function.status,
                websocket=name == "websocket",
            )
    return endpoints


def make_app(handlers: Plain, middleware: Sequence[Middleware], *, count: int = 0) -> Starlette:
    """The endpoints below a middleware and so many BaseHTTPMiddlewares."""
    routes: list[BaseRoute] = []
    for name, endpoint in endpoints_of(type(handlers), "").items():
        handler = getattr(handlers, name)
        if endpoint.websocket:
            routes.append(WebSocketRoute(endpoint.path, handler))
        elif name == "auth_backend":
            backend = SeenBackend(handlers.write_two)
            guarded = [Middleware(AuthenticationMiddleware, backend=backend)]
            inner = Route("/", handler, methods=["GET", "POST"])
            routes.append(Mount(f"/{name}", routes=[inner], middleware=guarded))
        elif name == "fastapi_dependency":
            fastapi = FastAPI(dependencies=[Depends(handlers.see)])
            fastapi.post("/", status_code=201)(handler)
            routes.append(Mount(f"/{name}", fastapi))
        else:
            routes.append(Route(endpoint.path, handler, methods=["GET", "POST"]))
    return Starlette(
        routes=routes,
        middleware=[*middleware, *layers(count), Middleware(Within)],
        exception_handlers={IntegrityError: answer_conflict},
    )


async def answer_conflict(request: Request, error: Exception) -> Response:
    return Response(status_code=409)


def unit_app(uow: UnitOfWork, *, count: int = 0) -> Starlette:
    return make_app(WithUnits(uow), [Middleware(UnitOfWorkMiddleware, uow=uow)], count=count)
