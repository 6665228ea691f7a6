"""The connections of the drivers: what they say of themselves, and how they are closed, completely
and whatever is cancelled meanwhile.

SQLAlchemy closes what it discards at a moment when awaits are cancelled, and then drops it as it
is: with a statement that goes on on the server, or with its file locked.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Coroutine
from typing import Any

from sqlalchemy.pool import ConnectionPoolEntry
from sqlalchemy.util import await_only, greenlet_spawn
from sqlalchemy.util.concurrency import in_greenlet

from starlette_uow.shield import to_completion

CLOSE_TIMEOUT = 30.0
"""Seconds for an SQLite connection to finish its last statement and close."""

STOP_TIMEOUT = 5.0
"""Seconds for PostgreSQL to stop the last statement of a connection, and for that to close."""

_log = logging.getLogger("starlette_uow")


def is_in_transaction(driver_connection: Any) -> bool:
    """What asyncpg or aiosqlite say; a driver that cannot tell is believed to be clean."""
    if hasattr(driver_connection, "is_in_transaction"):
        return bool(driver_connection.is_in_transaction())
    try:
        return bool(getattr(driver_connection, "in_transaction", False))
    except ValueError:  # aiosqlite: the connection is closed
        return False


def is_closed(driver_connection: Any) -> bool:
    """What asyncpg says; other drivers find out when they are used."""
    is_closed = getattr(driver_connection, "is_closed", None)
    return is_closed is not None and bool(is_closed())


def close_asyncpg(
    dbapi_connection: Any, record: ConnectionPoolEntry, error: BaseException | None
) -> None:
    """Its close() asks the server to stop the statement, and waits until it has: else that would
    go on for nobody, beside what the connection does that takes its place in the pool.
    """
    driver = dbapi_connection.driver_connection
    if not driver.is_closed():
        _close_completely(driver, driver.close, driver.terminate, timeout=STOP_TIMEOUT)


def open_and_close_completely(dialect: Any) -> None:
    """Let an SQLite dialect close what it opens, whatever is cancelled. Of a connection whose
    opening is cancelled, or whose `connect` listeners are, the pool has no event.
    """
    connect, do_terminate = dialect.connect, dialect.do_terminate

    def connect_completely(*args: Any, **kwargs: Any) -> Any:
        opened: list[Any] = []

        async def open_it() -> None:
            opened.append(await greenlet_spawn(connect, *args, **kwargs))

        try:
            await_only(to_completion(open_it(), timeout=CLOSE_TIMEOUT, terminate=lambda: None))
        except asyncio.CancelledError:
            for dbapi_connection in opened:  # aiosqlite would drop it as it is
                _close_sqlite(dbapi_connection)
            raise
        return opened[0]

    def close_and_terminate(dbapi_connection: Any) -> None:
        _close_sqlite(dbapi_connection)
        do_terminate(dbapi_connection)

    dialect.connect, dialect.do_terminate = connect_completely, close_and_terminate


def _close_sqlite(dbapi_connection: Any) -> None:
    """aiosqlite leaves the file locked if its close() is cancelled. SQLite does while a cursor of a
    closed connection is alive, in a traceback, say (https://www.sqlite.org/c3ref/close.html,
    "zombie"): so it is rolled back first.
    """
    driver = dbapi_connection.driver_connection

    async def close() -> None:
        try:
            await driver.rollback()
        finally:
            await driver.close()

    _close_completely(driver, close, driver.stop, timeout=CLOSE_TIMEOUT)


def _close_completely(
    driver: Any,
    close: Callable[[], Coroutine[Any, Any, None]],
    terminate: Callable[[], None],
    *,
    timeout: float,
) -> None:
    """Close what is discarded, whatever is cancelled meanwhile: anyio cancels every await of a
    cancelled scope. SQLAlchemy then finds nothing left to do.
    """
    if not in_greenlet():
        return  # SQLAlchemy then drops the connection without waiting
    try:
        await_only(to_completion(close(), timeout=timeout, terminate=terminate))
    except asyncio.CancelledError:
        pass  # the cancellation that made the connection invalid is on its way already
    except Exception:
        _log.warning("A connection could not be closed: %r", driver, exc_info=True)
