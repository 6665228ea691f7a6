"""FastAPI: dependencies that look up, and dependencies that end before or after the answer."""

from __future__ import annotations

import importlib
import sys
import threading
from collections.abc import AsyncIterator, Callable
from typing import Annotated, Any

import httpx
import pytest
import websockets
from fastapi import APIRouter, BackgroundTasks, Depends, FastAPI, HTTPException, Response
from fastapi.exceptions import ResponseValidationError
from fastapi.responses import PlainTextResponse
from sqlalchemy import func, select
from sqlalchemy.exc import IntegrityError
from sqlalchemy.ext.asyncio import AsyncSession
from starlette.requests import Request

from starlette_uow import (
    NoUnitError,
    Outcome,
    UnitOfWork,
    UnitOfWorkMiddleware,
    current_session,
)
from starlette_uow.fastapi import SessionDep, UnitOfWorkDep, get_session, get_uow
from starlette_uow.testing import Sandbox, sandbox
from tests.asgi import Exchange
from tests.databases import Database
from tests.models import Item
from tests.test_server import serve


class Shop(UnitOfWork):
    async def count(self) -> int:
        return (await self.session.scalars(select(func.count(Item.id)))).one()


async def another(session: SessionDep) -> AsyncSession:
    return session


class Boom(Exception):
    """What fails in these tests."""


def make_app(uow: UnitOfWork, **options: Any) -> FastAPI:
    app = FastAPI(**options)
    app.add_middleware(UnitOfWorkMiddleware, uow=uow)
    return app


def client_of(app: FastAPI) -> httpx.AsyncClient:
    transport = httpx.ASGITransport(app=app, raise_app_exceptions=False)
    return httpx.AsyncClient(transport=transport, base_url="http://test")


async def write_at_exit(session: SessionDep) -> AsyncIterator[None]:
    yield
    session.add(Item(name="exit"))


async def fail_at_exit(session: SessionDep) -> AsyncIterator[None]:
    yield
    session.add(Item(name="exit"))
    raise Boom


# --- SessionDep and UnitOfWorkDep ----------------------------------------------------------


async def test_dependencies_are_what_is_open(uow: UnitOfWork) -> None:
    """One session for everybody who asks, on the thread of the event loop."""
    app = make_app(uow)
    seen: list[object] = []

    @app.get("/")
    async def endpoint(
        session: SessionDep,
        unit_of_work: UnitOfWorkDep,
        same: Annotated[AsyncSession, Depends(another)],
    ) -> None:
        seen.extend([session is same is current_session(), unit_of_work is uow])
        seen.append(threading.current_thread() is threading.main_thread())

    async with client_of(app) as client:
        assert (await client.get("/")).status_code == 200

    assert seen == [True, True, True]


async def test_request_without_middleware_is_told(uow: UnitOfWork) -> None:
    """The dependencies open nothing by themselves."""
    app = FastAPI()

    @app.get("/")
    async def endpoint(session: SessionDep) -> None: ...

    transport = httpx.ASGITransport(app=app)
    async with httpx.AsyncClient(transport=transport, base_url="http://test") as client:
        with pytest.raises(NoUnitError, match="UnitOfWorkMiddleware"):
            await client.get("/")


async def test_own_definition_and_overrides(uow: UnitOfWork) -> None:
    """`get_uow` types a subclass, and both can be overridden in tests."""
    shop = Shop(uow.sessions)
    app = make_app(shop)

    @app.get("/")
    async def endpoint(shop: Annotated[Shop, Depends(get_uow)], session: SessionDep) -> str:
        return f"{await shop.count()} {session}"

    async with client_of(app) as client:
        app.dependency_overrides[get_session] = lambda: "overridden"
        assert (await client.get("/")).json() == "0 overridden"


# --- yield dependencies --------------------------------------------------------------------


@pytest.mark.parametrize(
    ("scope", "at_start"), [("function", ["endpoint", "exit"]), ("request", ["endpoint"])]
)
async def test_dependency_that_writes_at_its_end(
    uow: UnitOfWork, database: Database, scope: Any, at_start: list[str]
) -> None:
    """Before the answer it is part of the request; after it, a transaction of its own."""
    app = make_app(uow)

    @app.get("/", dependencies=[Depends(write_at_exit, scope=scope)])
    async def endpoint(session: SessionDep) -> None:
        session.add(Item(name="endpoint"))

    exchange = await Exchange(app, database.observer).run()

    assert exchange.events[0] == ("start", 200, at_start)
    assert await database.observer.names() == ["endpoint", "exit"]


@pytest.mark.parametrize(
    ("scope", "status", "stored"), [("function", None, []), ("request", 200, ["endpoint"])]
)
async def test_dependency_that_fails_at_its_end(
    uow: UnitOfWork, database: Database, scope: Any, status: int | None, stored: list[str]
) -> None:
    """Before the answer it takes the request along; after it, its own work alone."""
    app = FastAPI()
    app.add_exception_handler(500, lambda request, error: PlainTextResponse("failed", 500))
    app.add_middleware(UnitOfWorkMiddleware, uow=uow)

    @app.get("/", dependencies=[Depends(fail_at_exit, scope=scope)])
    async def endpoint(session: SessionDep) -> None:
        session.add(Item(name="endpoint"))

    exchange = await Exchange(app, database.observer).run()

    assert isinstance(exchange.error, Boom)
    assert exchange.status == (status or 500)
    assert await database.observer.names() == stored


@pytest.mark.parametrize("scope", ["function", "request"])
async def test_dependency_sees_the_error_of_the_endpoint(
    uow: UnitOfWork, database: Database, scope: Any
) -> None:
    """What it writes before it raises again is rolled back with the rest."""
    app = make_app(uow)
    seen: list[Exception] = []

    async def note(session: SessionDep) -> AsyncIterator[None]:
        try:
            yield
        except Exception as error:
            seen.append(error)
            session.add(Item(name="noted"))
            await session.flush()
            raise

    @app.get("/", dependencies=[Depends(note, scope=scope)])
    async def endpoint(session: SessionDep) -> None:
        session.add(Item(name="endpoint"))
        raise HTTPException(422, "no")

    exchange = await Exchange(app, database.observer).run()

    assert exchange.status == 422
    assert len(seen) == 1
    assert await database.observer.names() == []


async def test_dependency_with_a_block(uow: UnitOfWork, database: Database) -> None:
    """One that opens a block around the endpoint: it joins, and dooms what fails in it."""
    app = make_app(uow)

    async def block() -> AsyncIterator[None]:
        async with uow:
            yield

    @app.exception_handler(Boom)
    async def redirect(request: Request, error: Exception) -> Response:
        return Response(status_code=303)

    @app.get("/", dependencies=[Depends(block, scope="function")])
    async def endpoint(session: SessionDep) -> None:
        session.add(Item(name="half"))
        raise Boom

    exchange = await Exchange(app, database.observer).run()

    assert exchange.status != 303
    assert await database.observer.names() == []


# --- answers -------------------------------------------------------------------------------


async def test_exception_handler_answers_and_nothing_is_written(
    uow: UnitOfWork, database: Database
) -> None:
    """Also for what the database refuses at COMMIT, and for an answer that does not validate."""
    app = make_app(uow)

    @app.exception_handler(IntegrityError)
    @app.exception_handler(Boom)
    @app.exception_handler(ResponseValidationError)
    async def handler(request: Request, error: Exception) -> Response:
        return PlainTextResponse(type(error).__name__, 409)

    @app.get("/boom")
    async def boom(session: SessionDep) -> None:
        session.add(Item(name="tea"))
        await session.flush()
        raise Boom

    @app.get("/duplicate")
    async def duplicate(session: SessionDep) -> None:
        session.add_all([Item(name="tea"), Item(name="tea")])

    @app.get("/invalid", response_model=int)
    async def invalid(session: SessionDep) -> str:
        session.add(Item(name="tea"))
        await session.flush()
        return "not a number"

    async with client_of(app) as client:
        answers = [await client.get(path) for path in ("/boom", "/duplicate", "/invalid")]

    assert {answer.status_code for answer in answers} == {409}
    assert [answer.text for answer in answers] == [
        "Boom",
        "IntegrityError",
        "ResponseValidationError",
    ]
    assert await database.observer.names() == []


async def test_routers_share_the_unit_with_their_dependencies(
    uow: UnitOfWork, database: Database
) -> None:
    """Whatever is included where."""
    app = make_app(uow)
    inner, outer = APIRouter(prefix="/inner"), APIRouter(prefix="/outer")

    def write(name: str) -> Callable[..., Any]:
        async def dependency(session: SessionDep) -> None:
            session.add(Item(name=name))

        return dependency

    @inner.get("")
    async def endpoint(session: SessionDep, status: int = 200) -> Response:
        session.add(Item(name="endpoint"))
        return Response(status_code=status)

    outer.include_router(inner, dependencies=[Depends(write("inner"))])
    app.include_router(outer, dependencies=[Depends(write("outer"))])

    async with client_of(app) as client:
        assert (await client.get("/outer/inner?status=404")).status_code == 404
        assert await database.observer.names() == []
        assert (await client.get("/outer/inner")).status_code == 200

    assert await database.observer.names() == ["endpoint", "inner", "outer"]


async def test_background_tasks_are_a_transaction_of_their_own(
    uow: UnitOfWork, database: Database
) -> None:
    """One that fails leaves the answer's work alone."""
    app = make_app(uow)

    async def write(name: str) -> None:
        async with uow:
            uow.session.add(Item(name=name))
            await uow.session.flush()
        if name == "fails":
            raise Boom

    @app.get("/{name}")
    async def endpoint(name: str, session: SessionDep, tasks: BackgroundTasks) -> None:
        session.add(Item(name=f"before {name}"))
        tasks.add_task(write, name)

    async with client_of(app) as client:
        assert (await client.get("/works")).status_code == 200
        assert (await client.get("/fails")).status_code == 200

    assert await database.observer.names() == ["before fails", "before works", "works"]


async def test_synchronous_endpoints_and_dependencies(uow: UnitOfWork, database: Database) -> None:
    """They run in threads; the session is used in the event loop, through run_sync()."""
    app = make_app(uow)

    def add(uow: UnitOfWorkDep) -> None:
        uow.run_sync(lambda session: session.add(Item(name="dependency")))

    @app.get("/", dependencies=[Depends(add)])
    def endpoint(uow: UnitOfWorkDep, status: int = 200) -> Response:
        found = uow.run_sync(lambda session: session.scalars(select(Item.name)).all())
        return PlainTextResponse(f"{found}", status)

    async with client_of(app) as client:
        assert (await client.get("/?status=400")).text == "['dependency']"
        assert await database.observer.names() == []
        assert (await client.get("/")).status_code == 200

    assert await database.observer.names() == ["dependency"]


# --- the example app -----------------------------------------------------------------------


class Example:
    """The example app in a sandbox: its tables, too, are gone afterwards."""

    def __init__(self, module: Any, box: Sandbox, client: httpx.AsyncClient) -> None:
        self.module = module
        self.box = box
        self.client = client

    async def post(self, text: str, **more: str) -> httpx.Response:
        return await self.client.post("/notes", json={"text": text, **more})

    async def scalars(self, query: Any) -> list[Any]:
        async with self.module.uow as uow:
            return list(await uow.session.scalars(query))


@pytest.fixture
async def example(database: Database, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Example]:
    monkeypatch.setenv("DATABASE_URL", database.url)
    sys.modules.pop("examples.fastapi_app", None)
    module = importlib.import_module("examples.fastapi_app")
    async with sandbox(module.uow) as box:
        async with module.app.router.lifespan_context(module.app), client_of(module.app) as client:
            client.headers["x-author"] = "ada"
            yield Example(module, box, client)


async def test_example_stores_and_counts(example: Example) -> None:
    """The note, the visit and the line of the background task."""
    assert (await example.post("tea")).status_code == 201
    assert (await example.client.get("/notes")).json() == ["tea"]
    assert (await example.client.get("/notes/count")).json() == 1

    assert example.box.units[1].name == "POST /notes"
    assert example.box.units[1].outcomes == [Outcome.COMMITTED] * 2
    assert await example.scalars(select(example.module.Log.line)) == ["ada wrote tea"]
    assert await example.scalars(select(example.module.Author.visits)) == [1]


async def test_example_refuses(example: Example) -> None:
    """Nothing is written: no note, no visit, no line."""
    await example.post("tea")

    assert (await example.post("tea")).status_code == 409
    assert (await example.post("milk", author="nobody")).status_code == 409
    assert (await example.client.get("/notes", headers={"x-author": "eve"})).status_code == 200
    example.client.headers["x-author"] = "eve"
    assert (await example.post("milk")).status_code == 401

    assert await example.scalars(select(example.module.Note.text)) == ["tea"]
    assert await example.scalars(select(example.module.Log.line)) == ["ada wrote tea"]
    assert await example.scalars(select(example.module.Author.visits)) == [1]


async def test_example_websocket(example: Example) -> None:
    """Through a real server: the visit with the handshake, then a unit for each message."""
    async with serve(example.module.app) as server:
        url = f"ws://127.0.0.1:{server.port}/notes/live"
        headers = {"x-author": "ada"}
        async with websockets.connect(url, additional_headers=headers) as socket:
            assert await example.scalars(select(example.module.Author.visits)) == [1]
            await socket.send("tea")
            assert await socket.recv() == "tea is stored"
            assert await example.scalars(select(example.module.Note.text)) == ["tea"]
