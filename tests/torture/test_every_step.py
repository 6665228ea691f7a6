"""Requests that are cancelled at every step, in every way, on everything that apps do.

`TORTURE=full` leaves nothing out; otherwise what was seen to behave alike is tried at every
second, third ... step, which differ from way to way.
"""

from __future__ import annotations

import os
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager, suppress
from typing import Any

import pytest
from sqlalchemy import Connection, event
from sqlalchemy.ext.asyncio import AsyncEngine

from starlette_uow import UnitOfWork
from tests.databases import Database, PostgresObserver
from tests.steps.admin import admin_endpoints, mount_admin
from tests.steps.attempt import Way
from tests.steps.endpoints import WithUnits, endpoints_of, unit_app
from tests.steps.outside import Outside
from tests.steps.promise import Endpoint
from tests.steps.subject import Subject
from tests.steps.ways import WAYS
from tests.torture.conftest import Count

pytestmark = pytest.mark.timeout(1200)

FULL = os.environ.get("TORTURE") == "full"

NAMES = list(endpoints_of(WithUnits, ""))
ADMIN = ["list", "login", "create", "edit", "refused form", "import", "streaming action"]

LEFT_OUT = {
    # The thread runs on, and what it does after the answer counts as a background task's.
    ("thread", "asyncio.timeout within the app"),
    # The lifespan waits for open units, and a websocket has none between its messages.
    ("websocket", "lifespan ends"),
}
"""What does not keep the promise, and is documented."""


async def try_all_ways(
    subject: Subject,
    endpoint: Endpoint,
    count: Count,
    *,
    ways: Sequence[Way] = WAYS,
    stride: int,
) -> None:
    """Where steps are left out, every way leaves out others."""
    for way in WAYS if FULL else ways:
        if (endpoint.name, way.name) in LEFT_OUT:
            continue
        first, stride = (1, 1) if FULL else (1 + WAYS.index(way) % stride, stride)
        tally = await subject.try_every_step(endpoint, way, first=first, stride=stride)
        count(way.name, tally)

        assert not tally.violations, tally


@pytest.mark.parametrize("layers", [0, 1, 2])
@pytest.mark.parametrize("name", NAMES)
async def test_endpoint(
    uow: UnitOfWork,
    engine: AsyncEngine,
    database: Database,
    count: Count,
    name: str,
    layers: int,
) -> None:
    """Below 0, 1 and 2 BaseHTTPMiddlewares, where it is cancelled in every third way."""
    endpoints = endpoints_of(WithUnits, database.name)
    app = unit_app(uow, count=layers)
    subject = Subject(app, engine, Outside(database), endpoints["write"], layers=layers)

    if not layers:
        await try_all_ways(subject, endpoints[name], count, stride=5)
    else:
        ways = WAYS[(NAMES.index(name) + layers) % 3 :: 3]
        await try_all_ways(subject, endpoints[name], count, ways=ways, stride=11)


@pytest.mark.parametrize("name", ADMIN)
async def test_admin(
    uow: UnitOfWork, engine: AsyncEngine, database: Database, count: Count, name: str
) -> None:
    """With an auth provider that reads and writes."""
    app = unit_app(uow)
    mount_admin(app, uow)
    outside = Outside(database)
    endpoints = endpoints_of(WithUnits, database.name) | await admin_endpoints(app, outside)
    subject = Subject(app, engine, outside, endpoints["write"])

    ways = WAYS[ADMIN.index(name) % 2 :: 2]
    await try_all_ways(subject, endpoints[f"admin: {name}"], count, ways=ways, stride=41)


@pytest.mark.parametrize("name", ["read", "write"])
async def test_cold_pool(
    uow: UnitOfWork, engine: AsyncEngine, database: Database, count: Count, name: str
) -> None:
    """The opening of the connection is cancelled, too."""
    endpoints = endpoints_of(WithUnits, database.name)
    subject = Subject(unit_app(uow), engine, Outside(database), endpoints["write"], cold=True)

    await try_all_ways(subject, endpoints[name], count, stride=3)


@pytest.mark.parametrize("name", ["write", "stream", "background_task", "write_and_raise"])
async def test_two_cancellations(
    uow: UnitOfWork, engine: AsyncEngine, database: Database, count: Count, name: str
) -> None:
    """At every distance."""
    endpoints = endpoints_of(WithUnits, database.name)
    subject = Subject(unit_app(uow), engine, Outside(database), endpoints["write"])
    tally = await subject.try_every_distance(endpoints[name], stride=1 if FULL else 2)
    count("cancel() twice, at every distance", tally)

    assert not tally.violations, tally


@pytest.mark.parametrize("name", ["write", "stream", "background_task", "callback"])
async def test_slow_commit(
    uow: UnitOfWork, engine: AsyncEngine, database: Database, count: Count, name: str
) -> None:
    """Whatever happens meanwhile."""
    if not isinstance(database.observer, PostgresObserver):
        pytest.skip("the COMMIT of SQLite cannot be made to wait")
    endpoints = endpoints_of(WithUnits, database.name)
    subject = Subject(unit_app(uow), engine, Outside(database), endpoints["write"])
    async with slow_commits(database.observer):
        await try_all_ways(subject, endpoints[name], count, stride=3)


@pytest.mark.parametrize("name", ["write_and_refuse", "write_and_raise", "fail_at_commit"])
async def test_slow_rollback(
    uow: UnitOfWork, engine: AsyncEngine, database: Database, count: Count, name: str
) -> None:
    """It takes a round trip more, in which it can be cancelled."""
    endpoints = endpoints_of(WithUnits, database.name)
    subject = Subject(unit_app(uow), engine, Outside(database), endpoints["write"])
    with slow_rollbacks(engine):
        await try_all_ways(subject, endpoints[name], count, stride=3)


@asynccontextmanager
async def slow_commits(observer: PostgresObserver) -> AsyncIterator[None]:
    """A deferred trigger that sleeps."""
    await observer.connection.execute(
        """
        create function nap() returns trigger language plpgsql as
            $$ begin perform pg_sleep(0.01); return null; end $$;
        create constraint trigger slow_commit after insert on items
            deferrable initially deferred for each row execute function nap();
        """
    )
    try:
        yield
    finally:
        await observer.connection.execute("drop function nap() cascade")


@contextmanager
def slow_rollbacks(engine: AsyncEngine) -> Iterator[None]:
    """A listener that asks the database something before each."""

    def ask(connection: Connection) -> None:
        adapted: Any = connection.connection.dbapi_connection
        with suppress(Exception):  # the connection is lost, or its transaction is
            adapted.run_async(lambda driver: driver.execute("select * from items"))

    event.listen(engine.sync_engine, "rollback", ask)
    try:
        yield
    finally:
        event.remove(engine.sync_engine, "rollback", ask)
