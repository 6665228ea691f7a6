"""Engines: the SQLite recipe, the guard, and what a foreign engine is told."""

from __future__ import annotations

import asyncio
import copy
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import select, text
from sqlalchemy.event import registry
from sqlalchemy.exc import IntegrityError
from sqlalchemy.ext.asyncio import async_sessionmaker, create_async_engine
from sqlalchemy.pool import NullPool

from starlette_uow import ConfigurationError, NotAsyncError, UnitOfWork, create_engine, postgres
from starlette_uow.guard import guard
from tests.databases import Database, connect, create_tables
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

    def attached() -> list[object]:
        dialect, pool = engine.dialect, engine.sync_engine.pool
        return [dialect.do_commit, dialect.do_rollback, len(pool.dispatch.checkin)]

    before = attached()
    guard(engine)
    guard(engine.sync_engine)
    guard(engine.execution_options(schema_translate_map=None))

    assert attached() == before


async def test_pool_that_commits_what_comes_back(
    database: Database, caplog: pytest.LogCaptureFixture
) -> None:
    """It finds nothing to commit, and nobody who objects."""
    engine = create_engine(database.url, pool_reset_on_return="commit")
    uow = UnitOfWork(engine)

    async with uow:
        uow.session.add(Item(name="a"))
        await uow.session.flush()
        uow.doom()

    assert await database.observer.names() == []
    assert [record for record in caplog.records if record.levelname != "DEBUG"] == []
    await engine.dispose()


async def test_guard_costs_no_statement_anything(postgres_url: str) -> None:
    """With one listener on an engine SQLAlchemy goes through its events with every statement."""
    for engine in (create_engine(postgres_url), create_async_engine(postgres_url)):
        UnitOfWork(engine)

        assert not engine.sync_engine._has_events


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


# --- PostgreSQL ------------------------------------------------------------------------------

SETTINGS = [
    "application_name",
    "idle_in_transaction_session_timeout",
    "statement_timeout",
    "client_connection_check_interval",
]


async def show(url: str, **options: Any) -> list[str]:
    """What a connection of such an engine has them set to."""
    engine = create_engine(url, **options)
    async with engine.connect() as connection:
        values = [
            (await connection.execute(text(f"show {name}"))).scalar_one() for name in SETTINGS
        ]
    await engine.dispose()
    return values


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({}, ["starlette-uow", "1min", "0", "1s"]),
        (dict.fromkeys(SETTINGS), ["", "0", "0", "0"]),
        (
            dict(zip(SETTINGS, ["shop", 0.25, 30, 60.0], strict=True)),
            ["shop", "250ms", "30s", "1min"],
        ),
        (
            {"connect_args": {"server_settings": dict.fromkeys(SETTINGS, "7000")}},
            ["7000", "7s", "7s", "7s"],
        ),
        (
            {
                "connect_args": {
                    "server_settings": {
                        "options": "-c idle_in_transaction_session_timeout=7000"
                        " -c client_connection_check_interval=8000"
                    }
                }
            },
            ["starlette-uow", "7s", "0", "8s"],
        ),
    ],
    ids=["defaults", "off", "chosen", "server_settings", "options"],
)
async def test_server_settings(
    postgres_url: str, options: dict[str, Any], expected: list[str]
) -> None:
    """Ours, the user's keywords, and before both what the user tells the driver."""
    assert await show(postgres_url, **options) == expected


async def test_connect_args_are_kept(postgres_url: str) -> None:
    """Ours come beside them, and theirs are not changed."""
    connect_args = {"command_timeout": 12.5, "server_settings": {"jit": "off"}}
    before = copy.deepcopy(connect_args)
    engine = create_engine(postgres_url, connect_args=connect_args)

    async with engine.connect() as connection:
        driver = (await connection.get_raw_connection()).driver_connection
        assert driver is not None
        assert driver._config.command_timeout == 12.5
        assert (await connection.execute(text("show jit"))).scalar_one() == "off"
    await engine.dispose()

    assert connect_args == before


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("a_setting_of_a_later_server", "1000"),  # as 13 sees this one
        ("client_connection_check_interval", "-1"),  # as a platform that cannot do it refuses it
    ],
)
async def test_server_that_cannot_check_its_clients(
    postgres_url: str, monkeypatch: pytest.MonkeyPatch, name: str, value: str
) -> None:
    """It is left out, and the connection works."""
    monkeypatch.setattr(postgres, "CHECK_INTERVAL", name)
    driver = await connect(postgres_url)

    await postgres._set_check_interval(driver, value)

    assert await driver.fetchval("show client_connection_check_interval") == "0"
    await driver.close()


@pytest.mark.parametrize("name", SETTINGS[1:])
@pytest.mark.parametrize("value", [0, 0.0004, -1, float("nan"), float("inf"), 2147484, "30"])
def test_timeouts_that_cannot_be_used(name: str, value: Any) -> None:
    """Zero would mean "for ever" to the server."""
    timeout: dict[str, Any] = {name: value}

    with pytest.raises(ConfigurationError, match=f"`{name}`"):
        create_engine("postgresql+asyncpg://", **timeout)


def test_application_name_that_is_none() -> None:
    """It has to be text."""
    with pytest.raises(ConfigurationError, match="`application_name`"):
        create_engine("postgresql+asyncpg://", application_name=7)  # type: ignore[arg-type]


def test_negative_busy_timeout() -> None:
    """SQLite would take it for none."""
    with pytest.raises(ConfigurationError, match="`busy_timeout`"):
        create_engine("sqlite+aiosqlite://", busy_timeout=-1)


@pytest.mark.parametrize("url", ["sqlite+aiosqlite://", "postgresql+asyncpg://"])
async def test_all_else_is_passed_on(url: str) -> None:
    """To SQLAlchemy."""
    engine = create_engine(url, echo=None, hide_parameters=True, poolclass=NullPool)

    assert engine.sync_engine.hide_parameters
    assert isinstance(engine.pool, NullPool)


async def test_connection_that_comes_back_closed(postgres_url: str) -> None:
    """By a hand that went past SQLAlchemy: the next one gets another."""
    engine = create_async_engine(postgres_url, pool_size=1, max_overflow=0)
    guard(engine)
    async with engine.connect() as connection:
        driver = (await connection.get_raw_connection()).driver_connection
        assert driver is not None
        await driver.close()

    async with engine.connect() as connection:
        assert (await connection.execute(text("select 1"))).scalar_one() == 1
    await engine.dispose()


@pytest.mark.parametrize("isolation_level", [None, "SERIALIZABLE", "AUTOCOMMIT"])
async def test_nothing_is_open_after_use(database: Database, isolation_level: str | None) -> None:
    """With an engine of its own isolation level, too, in a unit and beside it."""
    options: dict[str, Any] = {"isolation_level": isolation_level} if isolation_level else {}
    engine = create_engine(database.url, **options)
    uow = UnitOfWork(engine)

    async with engine.connect() as connection:
        await connection.execute(select(Item))
    async with engine.begin():
        pass
    async with uow:
        await uow.session.execute(select(Item))

    assert await database.observer.open_transactions() == []
    await engine.dispose()
