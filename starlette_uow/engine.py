"""`create_engine()`: an engine with the settings that production wants."""

from __future__ import annotations

import asyncio
from typing import Any

from sqlalchemy import event
from sqlalchemy.engine import Connection, Engine, make_url
from sqlalchemy.engine.interfaces import DBAPIConnection
from sqlalchemy.ext.asyncio import AsyncEngine, create_async_engine
from sqlalchemy.pool import ConnectionPoolEntry

from starlette_uow.errors import ConfigurationError
from starlette_uow.guard import guard, with_begin_recipe

READ_ONLY = "starlette_uow_read_only"
"""Execution option of a transaction that only reads: SQLite begins it without a write lock."""


def create_engine(url: str, *, busy_timeout: float = 5.0, **kwargs: Any) -> AsyncEngine:
    """An async engine whose connections come back clean, and whose SQLite is safe to share.

    On SQLite: foreign keys are enforced, the journal is a write-ahead log, and each transaction
    begins with an explicit BEGIN (IMMEDIATE unless it is read-only), so that a savepoint's
    release commits nothing and a read that turns into a write cannot fail with SQLITE_BUSY
    (https://www.sqlite.org/isolation.html, https://www.sqlite.org/lang_transaction.html).

    Args:
        url: a database URL with an async driver, such as `postgresql+asyncpg://...` or
            `sqlite+aiosqlite:///...`.
        busy_timeout: seconds SQLite waits for another connection's lock; 5 by default. Other
            databases ignore it.
        **kwargs: passed on to `sqlalchemy.ext.asyncio.create_async_engine`.

    Raises:
        ConfigurationError: the busy timeout is negative.
        sqlalchemy.exc.ArgumentError, InvalidRequestError: SQLAlchemy's own, for the URL.
    """
    if busy_timeout < 0:
        raise ConfigurationError(
            f"`busy_timeout` has to be 0 or more seconds, and is {busy_timeout!r}. Leave it out "
            f"for 5 seconds."
        )
    engine = create_async_engine(url, **kwargs)
    if make_url(url).get_backend_name() == "sqlite":
        _apply_sqlite_recipe(engine.sync_engine, busy_timeout)
    guard(engine)
    return engine


async def dispose_engine(engine: AsyncEngine, deadline: float) -> None:
    """Dispose an engine. A connection that is not closed at the deadline (of the event loop's
    clock) is terminated: asyncpg would wait for ever for a server that does not answer.
    """
    loop = asyncio.get_running_loop()
    timers: list[asyncio.TimerHandle] = []

    def limit(dbapi_connection: DBAPIConnection, record: ConnectionPoolEntry) -> None:
        if (terminate := getattr(record.driver_connection, "terminate", None)) is not None:
            timers.append(loop.call_at(deadline, terminate))

    pool = engine.sync_engine.pool
    event.listen(pool, "close", limit)
    try:
        await engine.dispose()
    finally:
        event.remove(pool, "close", limit)
        for timer in timers:
            timer.cancel()


def _apply_sqlite_recipe(engine: Engine, busy_timeout: float) -> None:
    def connect(dbapi_connection: Any, record: ConnectionPoolEntry) -> None:
        # The driver's own BEGIN comes too late for savepoints and reads, so it is turned off:
        # https://docs.sqlalchemy.org/en/20/dialects/sqlite.html#aiosqlite-serializable
        dbapi_connection.isolation_level = None
        cursor = dbapi_connection.cursor()
        cursor.execute(f"PRAGMA busy_timeout = {round(busy_timeout * 1000)}")
        cursor.execute("PRAGMA foreign_keys = ON")
        cursor.execute("PRAGMA journal_mode = WAL")
        cursor.close()

    def begin(connection: Connection) -> None:
        read_only = connection.get_execution_options().get(READ_ONLY, False)
        connection.exec_driver_sql("BEGIN" if read_only else "BEGIN IMMEDIATE")

    event.listen(engine, "connect", connect)
    event.listen(engine, "begin", begin)
    with_begin_recipe.add(engine)
