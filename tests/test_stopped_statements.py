"""The server stops what nobody waits for any more."""

from __future__ import annotations

import asyncio
import functools
from collections.abc import Callable, Coroutine
from typing import Any

import anyio
import pytest
from sqlalchemy import text
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response
from starlette.routing import Route

from starlette_uow import UnitOfWork, UnitOfWorkMiddleware, create_engine, current_session, drivers
from tests.asgi import http_scope, layers
from tests.databases import Database, PostgresObserver
from tests.proxy import Proxy

pytestmark = pytest.mark.parametrize("database", ["postgresql"], indirect=True)

POOL_SIZE = 3
REQUESTS = 30

NAP = 4711
"""The first half of the key of an advisory lock; the second is the request's number."""


async def nap(request: Request) -> Response:
    number = int(request.query_params["number"])
    await current_session().execute(
        text(f"select pg_advisory_xact_lock({NAP}, {number}), pg_sleep(30)")
    )
    return PlainTextResponse("awake")


async def napping(observer: PostgresObserver) -> list[int]:
    """The numbers of the requests whose statement the server is running.

    By their locks, which are seen all at one moment; pg_stat_activity is not.
    """
    rows = await observer.connection.fetch(
        "select objid from pg_locks join pg_database on pg_locks.database = pg_database.oid"
        " where locktype = 'advisory' and classid = $1 and datname = current_database()",
        NAP,
    )
    return [row["objid"] for row in rows]


Run = Callable[[], Coroutine[Any, Any, None]]


async def in_task(request: Run, cancel: asyncio.Event) -> None:
    """Cancelled once, as a server does that stops."""
    task = asyncio.create_task(request())
    await cancel.wait()
    task.cancel()
    await asyncio.wait([task])


async def in_cancel_scope(request: Run, cancel: asyncio.Event) -> None:
    """Cancelled again at every step, as a request is whose client has left."""
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(request)
        await cancel.wait()
        tasks.cancel_scope.cancel()


@pytest.mark.parametrize("cancelled", [in_task, in_cancel_scope])
@pytest.mark.parametrize("layer_count", [0, 1])
async def test_a_storm_of_cancels(
    database: Database,
    cancelled: Callable[[Run, asyncio.Event], Coroutine[Any, Any, None]],
    layer_count: int,
) -> None:
    """The next request gets a connection when the server has stopped the last one's statement."""
    observer = database.observer
    assert isinstance(observer, PostgresObserver)
    engine = create_engine(database.url, pool_size=POOL_SIZE, max_overflow=0)
    app = Starlette(routes=[Route("/", nap)], middleware=layers(layer_count))
    app.add_middleware(UnitOfWorkMiddleware, uow=UnitOfWork(engine))
    cancels = [asyncio.Event() for _ in range(REQUESTS)]
    most = 0

    async def request(number: int) -> None:
        async def receive() -> dict[str, object]:
            return {"type": "http.request", "body": b"", "more_body": False}

        async def send(message: object) -> None:
            raise AssertionError(message)

        await app(http_scope(query_string=f"number={number}".encode()), receive, send)

    async with asyncio.TaskGroup() as storm:
        for number, cancel in enumerate(cancels):
            storm.create_task(cancelled(functools.partial(request, number), cancel))
        while not all(cancel.is_set() for cancel in cancels):
            numbers = await napping(observer)
            most = max(most, len(numbers))
            for number in numbers:
                cancels[number].set()
    async with asyncio.timeout(2):
        while await napping(observer):
            pass

    assert 1 <= most <= POOL_SIZE
    await engine.dispose()


async def test_server_that_cannot_be_told(
    database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is silent: a cancelled request waits so long, and then gives up the connection."""
    monkeypatch.setattr(drivers, "STOP_TIMEOUT", 0.2)
    observer = database.observer
    assert isinstance(observer, PostgresObserver)
    async with Proxy(database.url) as proxy:
        engine = create_engine(proxy.url, pool_size=1, max_overflow=0)
        uow = UnitOfWork(engine)

        async def work() -> None:
            async with uow:
                await uow.session.execute(text(f"select pg_advisory_xact_lock({NAP}, 1)"))
                await uow.session.execute(text("select pg_sleep(30)"))

        task = asyncio.create_task(work())
        while not await napping(observer):
            pass
        proxy.stall()
        task.cancel()
        await asyncio.wait([task])
        proxy.flow()

        assert task.cancelled()
        async with uow:
            assert await uow.session.scalar(text("select 1")) == 1
        await engine.dispose()
