"""What code that means no harm does to a unit, and what becomes of the promise."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import suppress
from typing import Any

import anyio
import pytest
from sqlalchemy import insert, select, text
from sqlalchemy.exc import IntegrityError, OperationalError
from sqlalchemy.ext.asyncio import AsyncEngine, create_async_engine
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, PlainTextResponse, Response, StreamingResponse
from starlette.routing import Mount, Route, WebSocketRoute
from starlette.types import ASGIApp, Message, Receive, Scope, Send
from starlette.websockets import WebSocket

from starlette_uow import (
    Outcome,
    SavepointOpenError,
    TransactionStartedError,
    UnitDoomedError,
    UnitOfWork,
    UnitOfWorkMiddleware,
    current_session,
)
from starlette_uow.context import current_unit
from tests.asgi import Exchange, http_scope, layers
from tests.databases import Database
from tests.models import Base, Item, Part

# --- the session is closed by hand -------------------------------------------------------------


async def with_block() -> None:
    async with current_session() as session:
        session.add(Item(name="a"))


async def flush_and_close() -> None:
    current_session().add(Item(name="a"))
    await current_session().flush()
    await current_session().close()


async def insert_and_reset() -> None:
    await current_session().execute(insert(Item).values(name="a"))
    await current_session().reset()


@pytest.mark.parametrize("work", [with_block, flush_and_close, insert_and_reset])
async def test_work_that_a_close_has_undone_is_no_success(
    uow: UnitOfWork, database: Database, work: Any
) -> None:
    """The client gets an error that says what to leave out."""

    async def endpoint(request: Request) -> Response:
        await work()
        return PlainTextResponse("created", 201)

    app = UnitOfWorkMiddleware(Starlette(routes=[Route("/", endpoint)]), uow=uow)
    exchange = await Exchange(app, database.observer).run()

    assert exchange.events == []
    assert await database.observer.names() == []
    assert isinstance(exchange.error, UnitDoomedError)
    assert "leave that out" in str(exchange.error)


async def test_close_after_a_read_loses_nothing(uow: UnitOfWork, database: Database) -> None:
    """So it passes, and what is written afterwards is committed."""

    async def endpoint(request: Request) -> Response:
        async with current_session() as session:
            await session.scalars(select(Item))
        current_session().add(Item(name="a"))
        return PlainTextResponse("created", 201)

    app = UnitOfWorkMiddleware(Starlette(routes=[Route("/", endpoint)]), uow=uow)
    exchange = await Exchange(app, database.observer).run()

    assert exchange.events[0] == ("start", 201, ["a"])


# --- half of a block ---------------------------------------------------------------------------


async def add() -> None:
    current_session().add(Item(name="half"))


async def change() -> None:
    for item in current_session():
        assert isinstance(item, Item)
        item.name = "half"


@pytest.mark.parametrize("work", [add, change])
async def test_cancelled_block_that_sent_nothing_yet_dooms(
    uow: UnitOfWork, database: Database, work: Any
) -> None:
    """What it added or changed is half of its work."""
    async with uow:
        uow.session.add(Item(name="before"))

    with pytest.raises(UnitDoomedError):
        async with uow:
            kept = (await uow.session.scalars(select(Item))).all()
            with anyio.CancelScope() as scope:
                async with uow:
                    await work()
                    scope.cancel()
                    await anyio.sleep_forever()
            assert kept

    assert await database.observer.names() == ["before"]


async def test_rollback_inside_a_savepoint_is_refused(uow: UnitOfWork, database: Database) -> None:
    """What is written after it in the block could no longer be undone alone."""
    async with uow:
        uow.session.add(Item(name="before"))
        with pytest.raises(SavepointOpenError):
            async with uow.savepoint():
                uow.session.add(Item(name="within"))
                await uow.rollback()

    assert await database.observer.names() == ["before"]


async def test_dry_run_refuses_a_checkpoint(uow: UnitOfWork, database: Database) -> None:
    """Its second half would be committed."""
    async with uow:
        uow.session.add(Item(name="first"))
        uow.doom("a dry run")
        with pytest.raises(UnitDoomedError, match="a dry run"):
            await uow.checkpoint()
        uow.session.add(Item(name="second"))

    assert await database.observer.names() == []


# --- isolation ---------------------------------------------------------------------------------


@pytest.mark.parametrize("database", ["postgresql"], indirect=True)
async def test_function_with_the_level_of_its_unit_keeps_the_rest(uow: UnitOfWork) -> None:
    """A read-only unit stays read-only, also after its first statement."""

    @uow.transactional(isolation_level="SERIALIZABLE")
    async def read_only() -> object:
        return await uow.session.scalar(text("show transaction_read_only"))

    async with uow.new(isolation_level="SERIALIZABLE", read_only=True):
        assert await read_only() == "on"
        assert await read_only() == "on"


@pytest.mark.parametrize("database", ["postgresql"], indirect=True)
async def test_function_that_reads_leaves_its_unit_writable(
    uow: UnitOfWork, database: Database
) -> None:
    """A joined transaction stays as it is, but for its level."""

    @uow.transactional(isolation_level="SERIALIZABLE", read_only=True)
    async def level() -> object:
        return await uow.session.scalar(text("show transaction_isolation"))

    async with uow:
        assert await level() == "serializable"
        uow.session.add(Item(name="a"))
    assert await database.observer.names() == ["a"]
    async with uow:
        await uow.session.scalars(select(Item))
        with pytest.raises(TransactionStartedError):
            await level()


# --- the answer to a refused commit ------------------------------------------------------------


@pytest.mark.parametrize("database", ["postgresql"], indirect=True)
async def test_handler_that_reads_the_body_again_is_told(
    uow: UnitOfWork, database: Database
) -> None:
    """Instead of a wait for the client to leave."""

    async def endpoint(request: Request) -> Response:
        await request.body()
        current_session().add(Part(item_id=999))  # its item is looked for at COMMIT
        return PlainTextResponse("created", 201)

    async def conflict(request: Request, error: Exception) -> Response:
        return JSONResponse((await request.body()).decode(), 409)

    handlers: Any = {IntegrityError: conflict}
    starlette = Starlette(routes=[Route("/", endpoint)], exception_handlers=handlers)
    app = UnitOfWorkMiddleware(starlette, uow=uow)
    async with asyncio.timeout(5):
        exchange = await Exchange(app, database.observer).run()

    assert "has been read by the app" in str(exchange.error)


# --- paths -------------------------------------------------------------------------------------


@pytest.mark.parametrize("around", ["root path", "mount"])
async def test_excluded_paths_are_those_of_the_routes(
    uow: UnitOfWork, database: Database, around: str
) -> None:
    """A root path of the server or of a mount comes before them."""

    async def endpoint(request: Request) -> Response:
        return PlainTextResponse(str(request.scope["starlette_uow.frame"].absence is not None))

    app: ASGIApp = UnitOfWorkMiddleware(
        Starlette(routes=[Route("/health", endpoint)]), uow=uow, exclude=["/health"]
    )
    root_path = "/api" if around == "root path" else ""
    if around == "mount":
        app = Starlette(routes=[Mount("/api", app)])
    exchange = await Exchange(app, database.observer).run("/api/health", root_path=root_path)

    assert exchange.text == "True"


# --- callbacks ---------------------------------------------------------------------------------


async def test_unit_whose_callback_is_cancelled_is_committed_all_the_same(
    uow: UnitOfWork, database: Database
) -> None:
    """It says so, to the callbacks that follow and to whoever comes too late."""
    seen: list[object] = []

    async def endless() -> None:
        await anyio.sleep_forever()

    async def work() -> None:
        async with uow:
            unit = current_unit(uow)
            uow.session.add(Item(name="a"))
            uow.on_commit(lambda: asyncio.get_running_loop().call_soon(task.cancel) and None)
            uow.on_commit(endless)
            uow.on_commit(lambda: seen.append(unit.outcome))
            units.append(unit)

    units: list[Any] = []
    task = asyncio.create_task(work())
    with pytest.raises(asyncio.CancelledError):
        await task

    assert await database.observer.names() == ["a"]
    assert seen == [Outcome.COMMITTED]
    assert "committed" in str(units[0].ended())


async def test_two_shutdowns_at_once_are_both_quick(uow: UnitOfWork, engine: AsyncEngine) -> None:
    """An app in two mounts has two."""
    entered, leave = asyncio.Event(), asyncio.Event()

    async def work() -> None:
        async with uow:
            entered.set()
            await leave.wait()

    task = asyncio.create_task(work())
    await entered.wait()
    shutdowns = [asyncio.create_task(uow.dispose(timeout=30)) for _ in range(2)]
    asyncio.get_running_loop().call_soon(leave.set)
    async with asyncio.timeout(5):
        await asyncio.gather(*shutdowns)
    await task


# --- what a failure or a cancellation leaves -----------------------------------------------------


@pytest.mark.parametrize("count", [0, 1, 2])
async def test_failing_body_that_had_only_added_is_not_committed(
    uow: UnitOfWork, database: Database, count: int
) -> None:
    """Below BaseHTTPMiddlewares, too, which end it as if all were well."""

    async def body() -> AsyncIterator[str]:
        yield "a"
        current_session().add(Item(name="half"))
        yield "b"
        raise ValueError("in the body")

    async def endpoint(request: Request) -> Response:
        return StreamingResponse(body())

    app = Starlette(routes=[Route("/", endpoint)], middleware=layers(count))
    exchange = await Exchange(UnitOfWorkMiddleware(app, uow=uow), database.observer).run()

    assert not exchange.is_complete
    assert await database.observer.names() == []


async def test_checkpoint_that_fails_while_it_is_cancelled_dooms(
    uow: UnitOfWork, database: Database
) -> None:
    """Nobody hears of the failure, so what follows must not be committed alone."""
    async with uow:
        uow.session.add(Item(name="a"))
        await uow.session.flush()

    with pytest.raises(UnitDoomedError):
        async with uow:
            uow.session.add(Item(name="a"))
            with suppress(TimeoutError):
                async with asyncio.timeout(0):
                    await uow.checkpoint()
            uow.session.add(Item(name="second half"))

    assert await database.observer.names() == ["a"]


async def test_cancelled_callback_of_a_checkpoint_leaves_nothing_to_its_unit(
    uow: UnitOfWork, database: Database
) -> None:
    """Half of its work would be committed with what follows."""
    with_callback = anyio.CancelScope()

    async def callback() -> None:
        uow.session.add(Item(name="half"))
        await uow.session.flush()
        with_callback.cancel()
        await anyio.sleep_forever()

    async with uow:
        uow.session.add(Item(name="first"))
        uow.on_commit(callback)
        with with_callback:
            await uow.checkpoint()
        uow.session.add(Item(name="second"))

    assert await database.observer.names() == ["first", "second"]


@pytest.mark.parametrize("status", [201, 404])
async def test_time_limit_that_fires_during_the_end_answers_once(
    uow: UnitOfWork, database: Database, status: int
) -> None:
    """In the place of an answer that was not committed."""

    async def endpoint(request: Request) -> Response:
        current_session().add(Item(name="a"))
        await current_session().flush()
        if status == 201:
            current_session().add(Item(name="a"))  # refused by the flush of the commit
        uow.on_rollback(anyio.sleep_forever)
        return PlainTextResponse("answer", status)

    inner = Starlette(routes=[Route("/", endpoint)])

    async def with_time_limit(scope: Scope, receive: Receive, send: Send) -> None:
        try:
            async with asyncio.timeout(0.2):
                await inner(scope, receive, send)
        except TimeoutError:
            await PlainTextResponse("too slow", 504)(scope, receive, send)

    app = UnitOfWorkMiddleware(with_time_limit, uow=uow)
    exchange = await Exchange(app, database.observer).run()

    assert [event[:2] for event in exchange.events] == [("start", 504), ("body", "too slow")]


async def test_websocket_whose_handshake_is_refused_is_closed_once(
    uow: UnitOfWork, database: Database
) -> None:
    """Whatever the app makes of the error, which is raised all the same."""
    sent: list[Message] = []

    async def endpoint(websocket: WebSocket) -> None:
        async with uow:
            current_session().add_all([Item(name="a"), Item(name="a")])
        try:
            await websocket.accept()
        except IntegrityError:
            await websocket.close(4000)

    async def receive() -> Message:
        return {"type": "websocket.connect"}

    async def send(message: Message) -> None:
        sent.append(message)

    app = UnitOfWorkMiddleware(Starlette(routes=[WebSocketRoute("/", endpoint)]), uow=uow)
    scope = http_scope(type="websocket", subprotocols=[])
    with pytest.raises(IntegrityError):
        await app(scope, receive, send)

    assert [message["code"] for message in sent] == [1011]


async def test_failing_select_keeps_a_foreign_memory_database() -> None:
    """It is in no transaction there, which does not mean that SQLite has ended one."""
    engine = create_async_engine("sqlite+aiosqlite://")
    uow = UnitOfWork(engine)
    async with engine.begin() as connection:
        await connection.run_sync(Base.metadata.create_all)
    async with uow:
        uow.session.add(Item(name="a"))

    with pytest.raises(OperationalError):
        async with uow:
            await uow.session.execute(text("select missing from items"))

    async with uow:
        assert list(await uow.session.scalars(select(Item.name))) == ["a"]
    await engine.dispose()
