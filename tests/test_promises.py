"""What code that means no harm does to a unit, and what becomes of the promise."""

from __future__ import annotations

import asyncio
from typing import Any

import anyio
import pytest
from sqlalchemy import insert, select, text
from sqlalchemy.exc import IntegrityError
from sqlalchemy.ext.asyncio import AsyncEngine
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, PlainTextResponse, Response
from starlette.routing import Mount, Route
from starlette.types import ASGIApp

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
from tests.asgi import Exchange
from tests.databases import Database
from tests.models import Item, Part

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
