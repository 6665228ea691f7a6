"""Requests that are cancelled at every step: a quick selection, and proof that it would tell.

All of it is in tests/torture.
"""

from __future__ import annotations

from typing import Any

import pytest
from sqlalchemy.ext.asyncio import AsyncEngine
from starlette.middleware import Middleware

from starlette_uow import UnitOfWork
from tests.databases import Database
from tests.steps.attempt import Way
from tests.steps.endpoints import Plain, WithUnits, endpoints_of, make_app, unit_app
from tests.steps.naive import FAULTS, Naive, end, naive_session
from tests.steps.outside import Outside
from tests.steps.promise import PROMISES
from tests.steps.subject import Subject
from tests.steps.ways import WAYS

QUICK = ["cancel()", "anyio scope around the app", "client leaves", "end of the loop"]


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
    subject = Subject(app, engine, Outside(database), endpoints["read"], patience=0.2)

    tally = await subject.try_every_step(endpoints[name], WAYS[0])
    for thing in kept:
        await end(thing)

    assert kind in tally.kinds, tally
