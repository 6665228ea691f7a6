"""Timeouts of the server that fire in the middle of a unit: the rule holds."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable

import pytest
from sqlalchemy import text
from sqlalchemy.exc import DBAPIError
from sqlalchemy.ext.asyncio import AsyncEngine
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response
from starlette.routing import Route

from starlette_uow import UnitOfWork, UnitOfWorkMiddleware, create_engine, current_session
from tests.asgi import Exchange
from tests.databases import Database
from tests.models import Item

pytestmark = pytest.mark.parametrize("database", ["postgresql"], indirect=True)

BACKENDS = (
    "select count(*) from pg_stat_activity where datname = current_database()"
    " and application_name = 'timeouts'"
)


@pytest.fixture
async def engine(database: Database) -> AsyncIterator[AsyncEngine]:
    """One connection, so that the next request gets the one that was hit, or its successor."""
    engine = create_engine(
        database.url,
        application_name="timeouts",
        statement_timeout=0.2,
        idle_in_transaction_session_timeout=0.2,
        pool_size=1,
        max_overflow=0,
    )
    yield engine
    await engine.dispose()


async def until_the_server_ends_the_session(database: Database) -> None:
    async with asyncio.timeout(10):
        while await database.observer.scalar(BACKENDS):
            pass


async def slow_statement(database: Database) -> None:
    await current_session().execute(text("select pg_sleep(30)"))


async def slow_statement_whose_error_is_swallowed(database: Database) -> None:
    try:
        await slow_statement(database)
    except DBAPIError:
        pass


async def idle_before_a_statement(database: Database) -> None:
    await until_the_server_ends_the_session(database)
    await current_session().execute(text("select 1"))


async def idle_before_the_commit(database: Database) -> None:
    await until_the_server_ends_the_session(database)


@pytest.mark.parametrize(
    "wait",
    [
        slow_statement,
        slow_statement_whose_error_is_swallowed,
        idle_before_a_statement,
        idle_before_the_commit,
    ],
)
async def test_timeout_in_a_request(
    database: Database, engine: AsyncEngine, wait: Callable[[Database], Awaitable[None]]
) -> None:
    """An error for the client, nothing written, and the next request is fine."""
    waits = [wait]

    async def create(request: Request) -> Response:
        current_session().add(Item(name=request.path_params["name"]))
        await current_session().flush()
        if waits:
            await waits.pop()(database)
        return PlainTextResponse("created", 201)

    app = Starlette(routes=[Route("/{name}", create)])
    app.add_middleware(UnitOfWorkMiddleware, uow=UnitOfWork(engine))

    hit = await Exchange(app, database.observer).run("/hit")
    after_it = await Exchange(app, database.observer).run("/after it")

    assert hit.events == [("start", 500, []), ("body", "Internal Server Error", False, [])]
    assert hit.error is not None
    assert after_it.events == [
        ("start", 201, ["after it"]),
        ("body", "created", False, ["after it"]),
    ]


async def test_a_client_that_is_gone(database: Database) -> None:
    """Killed, not cancelled, it asks nobody to stop its statement: the server looks by itself."""
    engine = create_engine(
        database.url, application_name="timeouts", client_connection_check_interval=0.1
    )
    async with engine.connect() as connection:
        driver = (await connection.get_raw_connection()).driver_connection
        assert driver is not None
        statement = asyncio.ensure_future(driver.execute("select pg_sleep(30)"))
        while not await database.observer.scalar(f"{BACKENDS} and state = 'active'"):
            pass

        driver.terminate()

        await asyncio.wait([statement])
        assert statement.exception() is not None
        async with asyncio.timeout(2):
            await until_the_server_ends_the_session(database)
    assert engine.pool.checkedout() == 0  # type: ignore[attr-defined]
    await engine.dispose()
