"""The guard that every engine of a unit gets, once: a few listeners, and a word before the ends.

- a connection that comes back to the pool inside a transaction is discarded, whoever put it
  there;
- a database error is noted on the transaction it happened in;
- just before COMMIT, and only if an error was noted, the server is asked whether the
  transaction is still alive: PostgreSQL answers the COMMIT of an aborted one with ROLLBACK and
  raises nothing (https://www.postgresql.org/docs/current/sql-commit.html);
- or, for a unit that resolves an unknown outcome, by what the transaction can be found again;
- the COMMIT is marked as sent, so that a connection lost during it is an unknown outcome;
- a connection whose ROLLBACK fails is discarded;
- a streaming cursor of SQLite is closed with its transaction;
- a connection that is discarded is closed completely, whatever is cancelled meanwhile, and its
  statement is stopped on the server.
"""

from __future__ import annotations

import logging
import weakref
from collections.abc import Callable
from typing import Any, TypeVar

from sqlalchemy import event
from sqlalchemy.engine import Connection, Dialect, Engine, ExceptionContext
from sqlalchemy.engine.base import OptionEngine
from sqlalchemy.engine.interfaces import DBAPIConnection
from sqlalchemy.exc import DBAPIError, PendingRollbackError, SQLAlchemyError
from sqlalchemy.ext.asyncio import AsyncEngine
from sqlalchemy.pool import ConnectionPoolEntry, PoolProxiedConnection

from starlette_uow.drivers import (
    close_asyncpg,
    is_closed,
    is_in_transaction,
    open_and_close_completely,
)
from starlette_uow.errors import NotAsyncError, UnitDoomedError
from starlette_uow.policy import Doom
from starlette_uow.resolving import take_trace
from starlette_uow.state import STATE, TransactionState

T = TypeVar("T")

IN_FAILED_SQL_TRANSACTION = "25P02"
"""SQLSTATE, https://www.postgresql.org/docs/current/errcodes-appendix.html"""

CURSORS = "starlette_uow_cursors"
"""Key in the info of an SQLite connection: the streaming cursors of its transaction."""

with_begin_recipe: weakref.WeakSet[Dialect] = weakref.WeakSet()
"""The dialects of SQLite engines whose transactions `create_engine()` begins."""

GUARDED = "starlette_uow_guarded"
"""Attribute of the dialect of an engine that has the guard; an engine has a dialect of its own."""

_log = logging.getLogger("starlette_uow")


def guard(engine: AsyncEngine | Engine) -> None:
    """Attach the guard to an engine. Doing it again changes nothing.

    Raises:
        NotAsyncError: the engine's driver is synchronous.
    """
    sync_engine = engine.sync_engine if isinstance(engine, AsyncEngine) else engine
    dialect = sync_engine.dialect
    if hasattr(dialect, GUARDED):
        return
    while isinstance(sync_engine, OptionEngine):  # it has the listeners of the one below
        sync_engine = sync_engine._proxied
    if not dialect.is_async:
        raise NotAsyncError(sync_engine)
    setattr(dialect, GUARDED, True)
    if sync_engine.dialect.name == "sqlite":
        _guard_sqlite(sync_engine)
    event.listen(sync_engine, "checkin", discard_open_transaction)
    event.listen(sync_engine, "handle_error", _note_error)
    _guard_ends(dialect)
    if dialect.driver == "asyncpg":
        event.listen(sync_engine, "invalidate", close_asyncpg)


def _guard_ends(dialect: Any) -> None:
    """What events of the engine would do. But a single listener to those makes SQLAlchemy go
    through all of them with every statement. What is refused here is an error of the connection to
    SQLAlchemy, so `handle_error` listeners of the app see it, too.
    """
    do_commit, do_rollback = dialect.do_commit, dialect.do_rollback
    do_commit_twophase = dialect.do_commit_twophase

    def commit(pooled: PoolProxiedConnection) -> None:
        state: TransactionState | None = getattr(pooled, STATE, None)
        # The pool may end what is over once more (`pool_reset_on_return="commit"`).
        if state is not None and not (state.committed or state.rolling_back):
            _before_commit(pooled, state)
        do_commit(pooled)

    def commit_twophase(connection: Connection, *args: Any, **kwargs: Any) -> None:
        if (state := getattr(connection, STATE, None)) is not None:
            state.commit_sent = True
        do_commit_twophase(connection, *args, **kwargs)

    def rollback(pooled: PoolProxiedConnection) -> None:
        # Where it fails the connection is in no known state. SQLAlchemy's pool would reset it,
        # which does nothing after a ROLLBACK that asyncpg refused to send, and hand it to the next.
        if (state := getattr(pooled, STATE, None)) is not None:
            state.rolling_back = True
        do_rollback(pooled)

    dialect.do_commit, dialect.do_rollback = commit, rollback
    dialect.do_commit_twophase = commit_twophase


def _guard_sqlite(engine: Engine) -> None:
    event.listen(engine, "after_cursor_execute", _note_cursor)
    event.listen(engine, "commit", _finish_statements)
    event.listen(engine, "rollback", _finish_statements)
    open_and_close_completely(engine.dialect)
    if engine.dialect not in with_begin_recipe:
        _log.warning(
            "%r was not made by starlette_uow.create_engine(): SQLite will commit when a "
            "savepoint is released, and does not enforce foreign keys. Make it with "
            "create_engine().",
            engine,
        )


def discard_open_transaction(
    dbapi_connection: DBAPIConnection | None, record: ConnectionPoolEntry
) -> None:
    """Keep a connection that is still inside a transaction out of the pool it comes back to."""
    driver_connection = record.driver_connection
    if dbapi_connection is None:
        return
    if is_closed(driver_connection):  # asyncpg cannot say more of it
        record.invalidate()
    elif is_in_transaction(driver_connection):
        _log.warning(
            "A connection came back to the pool inside a transaction, and was discarded: %r",
            driver_connection,
        )
        record.invalidate()


def _note_cursor(connection: Connection, cursor: Any, *_: object) -> None:
    if cursor.server_side:
        connection.info.setdefault(CURSORS, []).append(cursor)


def _finish_statements(connection: Connection) -> None:
    """Close what an abandoned stream left open. SQLite ends no transaction below a statement that
    still runs: the connection would see the past, and could not write any more
    (https://www.sqlite.org/rescode.html#busy_snapshot).
    """
    if not connection.invalidated:
        for cursor in connection.info.pop(CURSORS, ()):
            cursor.close()


def _note_error(context: ExceptionContext) -> None:
    connection, error = context.connection, context.original_exception
    state: TransactionState | None = getattr(connection, STATE, None)
    if connection is None or state is None or isinstance(error, SQLAlchemyError | UnitDoomedError):
        return  # or it says only that the transaction is dead
    if state.error is None or _sqlstate(error) != IN_FAILED_SQL_TRANSACTION:
        state.error = (error, context.statement)
    if state.commit_sent and _is_lost(context):
        state.commit_lost = True
    if not context.is_disconnect and (state.rolling_back or _rolled_back_by_itself(context, state)):
        context.is_disconnect = True
        context.invalidate_pool_on_disconnect = False


def _is_lost(context: ExceptionContext) -> bool:
    """Whether an error is anything but the database's answer."""
    connection = context.connection
    return (
        context.is_disconnect
        or context.sqlalchemy_exception is None  # not an error of the driver: a timeout, say
        or (connection is not None and connection.invalidated)  # after the end_timeout
    )


def _rolled_back_by_itself(context: ExceptionContext, state: TransactionState) -> bool:
    """Whether SQLite did (RAISE(ROLLBACK), a full disk): what follows on this connection would be
    committed statement by statement. Without the BEGIN recipe a SELECT is in no transaction anyway.
    """
    connection = context.connection
    return (
        context.dialect.name == "sqlite"
        and connection is not None
        and (state.commit_sent or context.dialect in with_begin_recipe)
        and not is_in_transaction(connection.connection.driver_connection)
    )


def _before_commit(pooled: PoolProxiedConnection, state: TransactionState) -> None:
    if state.doom is not None:
        raise UnitDoomedError(state.doom)  # the app commits the session by its own hand
    if state.wants_trace and state.is_traceable:
        state.trace = _ask(pooled, state, take_trace)
    elif state.error is not None:
        _ask(pooled, state, _is_alive)
    # If the server ended the session meanwhile and the driver knows it, no COMMIT is sent, and what
    # became of the transaction is no secret.
    if not is_closed(pooled.driver_connection):
        state.commit_sent = True


def _is_alive(connection: Connection) -> None:
    connection.exec_driver_sql("SELECT 1")


def _ask(
    pooled: PoolProxiedConnection, state: TransactionState, question: Callable[[Connection], T]
) -> T:
    connection = next(c for c in state.connections if c.connection is pooled)
    try:
        return question(connection)
    except Exception as refused:
        if (doomed := why_aborted(state, refused)) is None:
            raise
        raise doomed from refused


def why_aborted(state: TransactionState, refused: BaseException) -> UnitDoomedError | None:
    """The error that names the cause, for one that says only that the transaction is dead."""
    aborted = (
        # The connection was lost, or its statement was cancelled.
        isinstance(refused, PendingRollbackError)
        or (
            isinstance(refused, DBAPIError) and _sqlstate(refused.orig) == IN_FAILED_SQL_TRANSACTION
        )
    )
    if not aborted or state.error is None:
        return None
    error, statement = state.error
    reason = f"the transaction was aborted by {type(error).__name__}: {error}"
    if statement is not None:
        reason += f" (in {statement!r})"
    return UnitDoomedError(Doom(reason, cause=error))


def _sqlstate(error: BaseException | None) -> str | None:
    return getattr(error, "sqlstate", None)
