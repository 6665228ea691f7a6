"""What `create_engine()` does for PostgreSQL, with asyncpg: settings of the server's session, and a
BEGIN that finds out whether the connection is alive.
"""

from __future__ import annotations

import asyncio
import functools
import logging
import time
import weakref
from typing import Any

from sqlalchemy import event
from sqlalchemy.dialects.postgresql.asyncpg import AsyncAdapt_asyncpg_connection
from sqlalchemy.ext.asyncio import AsyncEngine, create_async_engine
from sqlalchemy.pool import ConnectionPoolEntry, PoolProxiedConnection
from sqlalchemy.util import await_only

CHECK_INTERVAL = "client_connection_check_interval"
LAST_BEGIN = "starlette_uow_last_begin"
"""Key in a pooled connection's info: when its last transaction began."""

TRUSTED_FOR = 0.01
"""Seconds after that for which the connection counts as alive. No server restarts so fast, and a
pool that is as busy as that would feel what a BEGIN by itself costs: the greenlet waits once more.
"""

BEGIN_TIMEOUT = 5.0
"""Seconds for a BEGIN by itself. A firewall that has forgotten the connection answers nothing."""

CAN_BEGIN = all(
    hasattr(AsyncAdapt_asyncpg_connection, name) for name in ("_start_transaction", "_transaction")
)
"""Whether SQLAlchemy's adapter, whose names these are, can be told to send BEGIN. If a later one
cannot, the pool pings.
"""

_log = logging.getLogger("starlette_uow")


def create_asyncpg_engine(url: str, settings: dict[str, str | None], **kwargs: Any) -> AsyncEngine:
    """An engine that asks the server for `settings`, and lets BEGIN be sent when SQLAlchemy begins.

    The adapter otherwise sends it with the first statement, as a round trip of its own: so this
    one costs nothing, and shows that a connection is dead before anything was done on it.

    Args:
        url: as `create_async_engine` has it.
        settings: parameters of the server. Those of the user's `connect_args` win, and None
            leaves one alone.
        **kwargs: of `create_async_engine`.
    """
    connect_args = dict(kwargs.pop("connect_args", {}))
    of_user: dict[str, str] = connect_args.get("server_settings") or {}
    ours = {
        name: value
        for name, value in settings.items()
        if value is not None and name not in of_user and name not in of_user.get("options", "")
    }
    check_interval = ours.pop(CHECK_INTERVAL, None)
    # They go with the startup message, so they cost nothing, and RESET goes back to them.
    connect_args["server_settings"] = {**ours, **of_user}
    if not CAN_BEGIN:
        kwargs.setdefault("pool_pre_ping", True)
    engine = create_async_engine(url, connect_args=connect_args, **kwargs)

    def connect(dbapi_connection: Any, record: ConnectionPoolEntry) -> None:
        driver = dbapi_connection.driver_connection
        driver.add_termination_listener(functools.partial(_replace, weakref.ref(record)))
        if check_interval is not None:
            await_only(_set_check_interval(driver, check_interval))

    event.listen(engine.sync_engine, "connect", connect)
    if CAN_BEGIN:
        engine.dialect.do_begin = _begin  # type: ignore[assignment] # of this engine alone
    return engine


async def _set_check_interval(driver: Any, milliseconds: str) -> None:
    # Not a startup parameter: a server that does not know it, or whose platform cannot do it,
    # would refuse the connection.
    try:
        await driver.execute(
            f"SELECT set_config('{CHECK_INTERVAL}', '{milliseconds}', false)"
            f" WHERE current_setting('{CHECK_INTERVAL}', true) IS NOT NULL"
        )
    except Exception as error:
        _log.debug("The server does not set %s: %r", CHECK_INTERVAL, error)


def _replace(reference: weakref.ref[ConnectionPoolEntry], driver: Any) -> None:
    """A connection has closed. If it is still in the pool, the next to take it gets another."""
    record = reference()
    if record is not None and record.driver_connection is driver:
        record.invalidate(soft=True)


def _begin(connection: PoolProxiedConnection) -> None:
    """`Dialect.do_begin()`: SQLAlchemy makes of its errors what it makes of a statement's."""
    adapter: Any = connection.dbapi_connection
    info, now = connection.info, time.monotonic()
    trusted = now - info.get(LAST_BEGIN, 0.0) < TRUSTED_FOR
    info[LAST_BEGIN] = now
    # A listener of the app may have run a statement, and so begun, before.
    if trusted or adapter._transaction is not None:
        return
    try:
        await_only(_begin_in_time(adapter))
    except BaseException as error:
        # BaseException: a cancelled BEGIN has nothing to stop on the server.
        # A connection that cannot begin is of no use, although it may be open: a statement that
        # went past SQLAlchemy still runs on it, say. That only a closed one is lost, and only
        # by an error of the driver, is what SQLAlchemy thinks.
        adapter.driver_connection.terminate()
        if isinstance(error, adapter.dbapi.Error) or not isinstance(error, Exception):
            raise
        raise adapter.dbapi.InterfaceError(f"BEGIN failed with {error!r}") from error


async def _begin_in_time(adapter: Any) -> None:
    # Terminated, not cancelled: asyncpg would ask a silent peer to cancel, and wait for it.
    loop = asyncio.get_running_loop()
    timer = loop.call_later(BEGIN_TIMEOUT, adapter.driver_connection.terminate)
    try:
        await adapter._start_transaction()
    finally:
        timer.cancel()
