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
from starlette_uow.postgres import create_asyncpg_engine

READ_ONLY = "starlette_uow_read_only"
"""Execution option of a transaction that only reads: SQLite begins it without a write lock."""

MOST_SECONDS = 2147483
"""The server counts milliseconds, in 32 bits."""


def create_engine(
    url: str,
    *,
    application_name: str | None = "starlette-uow",
    idle_in_transaction_session_timeout: float | None = 60.0,
    statement_timeout: float | None = None,
    client_connection_check_interval: float | None = 1.0,
    busy_timeout: float = 5.0,
    **kwargs: Any,
) -> AsyncEngine:
    """An async engine whose connections come back clean, and that survives what befalls them.

    On PostgreSQL, with asyncpg: a connection that died in the pool is replaced before a unit of
    work notices. BEGIN, which is sent anyway, finds it out, so it costs no round trip. A
    connection that was used within the last 10 milliseconds counts as alive; a peer that has
    fallen silent is given up after 5 seconds. Outside of units (`engine.connect()`, a plain
    session) a connection is replaced whose end the event loop has heard of. The server stops the
    statement of a cancelled request, and what the options below ask for.

    On SQLite: foreign keys are enforced, the journal is a write-ahead log, and each transaction
    begins with an explicit BEGIN (IMMEDIATE unless it is read-only), so that a savepoint's
    release commits nothing and a read that turns into a write cannot fail with SQLITE_BUSY
    (https://www.sqlite.org/isolation.html, https://www.sqlite.org/lang_transaction.html).

    What PostgreSQL and asyncpg are told is ignored by other databases and drivers; None leaves
    it to the server's configuration. `connect_args={"server_settings": {...}}` wins.

    Args:
        url: a database URL with an async driver, such as `postgresql+asyncpg://...` or
            `sqlite+aiosqlite:///...`.
        application_name: what `pg_stat_activity` and the server's log call the connections
            (https://www.postgresql.org/docs/current/runtime-config-logging.html).
        idle_in_transaction_session_timeout: seconds after which the server ends a connection
            that waits inside a transaction, and rolls back; 60 by default. The backstop for a
            transaction whose process hangs or is out of reach
            (https://www.postgresql.org/docs/current/runtime-config-client.html).
        statement_timeout: seconds after which the server cancels a statement, with an error; off
            by default (same page).
        client_connection_check_interval: seconds between the server's looks, during a statement,
            whether its client is still there; 1 by default. Since PostgreSQL 14, where the
            server's platform can do it; left out elsewhere
            (https://www.postgresql.org/docs/current/runtime-config-connection.html).
        busy_timeout: seconds SQLite waits for another connection's lock; 5 by default. Other
            databases ignore it.
        **kwargs: passed on to `sqlalchemy.ext.asyncio.create_async_engine`.

    Raises:
        ConfigurationError: a number of seconds is negative or too large, or zero where that
            would mean "for ever", or the application's name is no string.
        sqlalchemy.exc.ArgumentError, InvalidRequestError: SQLAlchemy's own, for the URL.
    """
    if busy_timeout < 0:
        raise ConfigurationError(
            f"`busy_timeout` has to be 0 or more seconds, and is {busy_timeout!r}. Leave it out "
            f"for 5 seconds."
        )
    if not (application_name is None or isinstance(application_name, str)):
        raise ConfigurationError(
            f"`application_name` has to be a string, and is {application_name!r}. Leave it out "
            f"for 'starlette-uow'."
        )
    timeouts = {
        "idle_in_transaction_session_timeout": idle_in_transaction_session_timeout,
        "statement_timeout": statement_timeout,
        "client_connection_check_interval": client_connection_check_interval,
    }
    settings = {name: _milliseconds(name, seconds) for name, seconds in timeouts.items()}
    driver = make_url(url).get_driver_name()
    if driver == "asyncpg":
        engine = create_asyncpg_engine(
            url, {"application_name": application_name, **settings}, **kwargs
        )
    else:
        engine = create_async_engine(url, **kwargs)
    if driver == "aiosqlite":
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


def _milliseconds(name: str, seconds: float | None) -> str | None:
    if seconds is None:
        return None
    if not (isinstance(seconds, int | float) and 0.001 <= seconds <= MOST_SECONDS):
        raise ConfigurationError(
            f"`{name}` has to be between 0.001 and {MOST_SECONDS} seconds, and is {seconds!r}. "
            f"Pass None to leave it to the server's configuration."
        )
    return str(round(seconds * 1000))


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
    with_begin_recipe.add(engine.dialect)
