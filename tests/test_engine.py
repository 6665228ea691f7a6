"""Engines: the SQLite recipe, the guard, and what a foreign engine is told."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import select, text
from sqlalchemy.event import registry
from sqlalchemy.exc import IntegrityError
from sqlalchemy.ext.asyncio import async_sessionmaker, create_async_engine

from starlette_uow import NotAsyncError, UnitOfWork, create_engine
from starlette_uow.guard import guard
from tests.databases import Database, create_tables
from tests.models import Item, Part


class Boom(Exception):
    """What the blocks of these tests raise."""


@pytest.fixture
async def sqlite_url(tmp_path: Path) -> str:
    url = f"sqlite+aiosqlite:///{tmp_path}/recipe.sqlite"
    await create_tables(url)
    return url


async def test_sqlite_settings(sqlite_url: str) -> None:
    """Foreign keys, write-ahead log, busy timeout."""
    engine = create_engine(sqlite_url, busy_timeout=1.5)
    async with engine.connect() as connection:
        pragmas = [
            (await connection.execute(text(f"pragma {name}"))).scalar()
            for name in ("foreign_keys", "journal_mode", "busy_timeout")
        ]
    await engine.dispose()

    assert pragmas == [1, "wal", 1500]


async def test_sqlite_savepoint_commits_nothing(sqlite_url: str) -> None:
    """The driver alone commits when the outermost savepoint is released."""
    uow = UnitOfWork(create_engine(sqlite_url))

    with pytest.raises(Boom):
        async with uow:
            async with uow.savepoint():
                uow.session.add(Item(name="a"))
            raise Boom

    async with uow:
        assert (await uow.session.execute(select(Item))).all() == []
    await uow.dispose()


async def test_sqlite_reads_that_turn_into_writes(sqlite_url: str) -> None:
    """With a deferred BEGIN one of them fails at once, busy timeout or not."""
    uow = UnitOfWork(create_engine(sqlite_url))

    async def read_then_write(name: str) -> None:
        async with uow:
            await uow.session.execute(select(Item))
            uow.session.add(Item(name=name))

    await asyncio.gather(*(read_then_write(name) for name in "abcdef"))

    async with uow:
        assert len((await uow.session.execute(select(Item))).all()) == 6
    await uow.dispose()


async def test_sqlite_enforces_foreign_keys(sqlite_url: str) -> None:
    """A deferred one at COMMIT."""
    uow = UnitOfWork(create_engine(sqlite_url))

    with pytest.raises(IntegrityError):
        async with uow:
            uow.session.add(Part(item_id=999))
    await uow.dispose()


async def test_foreign_sqlite_engine_is_told_what_it_misses(
    sqlite_url: str, caplog: pytest.LogCaptureFixture
) -> None:
    """Once, when it is first seen."""
    engine = create_async_engine(sqlite_url)
    UnitOfWork(engine)
    UnitOfWork(engine)

    assert caplog.text.count("was not made by starlette_uow.create_engine()") == 1


async def test_foreign_engine_gets_the_guard(
    database: Database, caplog: pytest.LogCaptureFixture
) -> None:
    """Also where it is bound after the unit of work was made."""
    engine = create_async_engine(database.url)
    sessions: async_sessionmaker[Any] = async_sessionmaker(expire_on_commit=False)
    uow = UnitOfWork(sessions)
    sessions.configure(bind=engine)

    async with uow:
        await uow.session.execute(select(Item))
    async with engine.connect() as connection:
        driver = (await connection.get_raw_connection()).driver_connection
        if driver is not None and database.is_postgres:
            await driver.execute("begin")  # which SQLAlchemy knows nothing of

    if database.is_postgres:
        assert "discarded" in caplog.text
    assert await database.observer.open_transactions() == []
    await engine.dispose()


async def test_guard_is_attached_once(database: Database) -> None:
    """Doing it again changes nothing."""
    engine = create_engine(database.url)
    before = len(engine.sync_engine.dispatch.commit)
    guard(engine)
    guard(engine.sync_engine)

    assert len(engine.sync_engine.dispatch.commit) == before


async def test_units_with_options_attach_nothing(
    uow: UnitOfWork, database: Database, caplog: pytest.LogCaptureFixture
) -> None:
    """Each makes an engine with options upon the guarded one, whose listeners it has."""
    async with uow.new(read_only=True):
        await uow.session.execute(select(Item))
    before = len(registry._key_to_collection)
    for _ in range(3):
        async with uow.new(read_only=True):
            await uow.session.execute(select(Item))

    assert len(registry._key_to_collection) == before
    assert "was not made by" not in caplog.text


def test_guard_of_a_synchronous_engine() -> None:
    """It could not be ended from a coroutine."""
    from sqlalchemy import create_engine as create_sync_engine

    with pytest.raises(NotAsyncError):
        guard(create_sync_engine("sqlite://"))


async def test_engine_with_execution_options_is_guarded_too(database: Database) -> None:
    """`engine.execution_options()` is an engine of its own upon the same pool."""
    engine = create_engine(database.url)
    uow = UnitOfWork(engine.execution_options(schema_translate_map=None))

    async with uow:
        uow.session.add(Item(name="a"))
        await uow.session.flush()

    assert await database.observer.names() == ["a"]
    await engine.dispose()
