"""Requests that are cancelled at every step: a quick selection, and proof that it would tell.

All of it is in tests/torture.
"""

from __future__ import annotations

import asyncio
import itertools
import sqlite3
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy.ext.asyncio import AsyncEngine
from starlette.middleware import Middleware
from starlette.types import Receive, Scope, Send

from starlette_uow import UnitOfWork, create_engine
from tests.asgi import http_scope
from tests.databases import Database
from tests.steps.attempt import Attempt, Way
from tests.steps.endpoints import Plain, WithUnits, endpoints_of, make_app, unit_app
from tests.steps.naive import FAULTS, Naive, commit_after_the_answer, end, naive_session
from tests.steps.outside import Outside
from tests.steps.promise import PROMISES
from tests.steps.subject import Subject
from tests.steps.ways import WAYS

QUICK = [
    "cancel()",
    "cancel() of a wait that is over",
    "anyio scope around the app",
    "client leaves",
    "end of the loop",
]


@pytest.mark.parametrize("way", [w for w in WAYS if w.name in QUICK], ids=lambda way: way.name)
async def test_request_that_is_cancelled_at_any_step(
    uow: UnitOfWork, engine: AsyncEngine, database: Database, way: Way
) -> None:
    """A write at each, every other endpoint at steps that differ from way to way."""
    endpoints = endpoints_of(WithUnits, database.name)
    subject = Subject(unit_app(uow), engine, Outside(database), endpoints["write"])
    for number, (name, endpoint) in enumerate(endpoints.items()):
        stride = 1 if name == "write" else 13
        first = 1 + (number + 3 * WAYS.index(way)) % stride
        tally = await subject.try_every_step(endpoint, way, first=first, stride=stride)

        assert not tally.violations, tally


@pytest.mark.parametrize("kind", PROMISES)
async def test_each_kind_of_violation_is_found(
    engine: AsyncEngine, database: Database, kind: str
) -> None:
    """In what one would write by hand, and in deliberate faults."""
    around, name = FAULTS[kind]
    kept: list[Any] = []
    handlers = Plain(naive_session)
    app = make_app(handlers, [Middleware(Naive, engine=engine, around=around, kept=kept)])
    endpoints = endpoints_of(Plain, database.name)
    subject = Subject(app, engine, Outside(database), endpoints["read"], patience=2)

    tally = await subject.try_every_step(endpoints[name], WAYS[0], until=kind)
    for thing in kept:
        await end(thing)

    assert kind in tally.kinds, tally


@pytest.mark.parametrize("name", ["fail_at_commit", "swallow_a_database_error"])
async def test_success_that_the_database_refused_is_found(
    engine: AsyncEngine, database: Database, name: str
) -> None:
    """No row is missing, because none was to be written: it is a lie all the same."""
    if endpoints_of(Plain, database.name)[name].status < 400:
        pytest.skip("SQLite does not refuse it")
    around = commit_after_the_answer
    app = make_app(Plain(naive_session), [Middleware(Naive, engine=engine, around=around, kept=[])])
    endpoints = endpoints_of(Plain, database.name)
    subject = Subject(app, engine, Outside(database), endpoints["read"])

    tally = await subject.try_every_step(endpoints[name], WAYS[0], stride=100)

    assert "success told, not committed" in tally.kinds, tally


class Counted(sqlite3.Connection):
    """Counts the connections that are open."""

    opened = 0

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        Counted.opened += 1

    def close(self) -> None:
        Counted.opened -= 1
        super().close()


@pytest.mark.parametrize("name", ["cancel()", "anyio scope around the app"])
async def test_sqlite_connection_whose_opening_is_cancelled_is_closed(
    tmp_path: Path, name: str
) -> None:
    """At any step; aiosqlite would drop it, and SQLAlchemy leave a task that waits for ever."""
    way = next(way for way in WAYS if way.name == name)
    others = asyncio.all_tasks()
    for at in itertools.count(1):
        url = f"sqlite+aiosqlite:///{tmp_path}/test.sqlite"
        engine = create_engine(url, connect_args={"factory": Counted})

        async def app(scope: Scope, receive: Receive, send: Send, engine: Any = engine) -> None:
            async with engine.connect():
                await send({"type": "http.response.start", "status": 200})

        attempt = Attempt(way, at)
        await attempt.run(app, http_scope(), b"", patience=5)
        if left := asyncio.all_tasks() - others:
            _, left = await asyncio.wait(left, timeout=2)
        await engine.dispose()

        assert (left, Counted.opened) == (set(), 0), f"cancelled at step {at}"
        if attempt.steps < at:
            break
    assert at > 5
