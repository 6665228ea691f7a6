"""The one transaction of a sandbox, inside which all connections of an engine work.

The engine gets a pool with a single connection, whose BEGIN, COMMIT and ROLLBACK are a savepoint
of that transaction. Everything above the driver is as in production.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import asynccontextmanager
from contextvars import ContextVar
from typing import Any

import anyio
from sqlalchemy import event
from sqlalchemy.dialects.postgresql.asyncpg import AsyncAdapt_asyncpg_connection
from sqlalchemy.dialects.sqlite.aiosqlite import (
    AsyncAdapt_aiosqlite_connection,
    AsyncAdapt_aiosqlite_cursor,
    AsyncAdapt_aiosqlite_ss_cursor,
)
from sqlalchemy.engine import Dialect
from sqlalchemy.ext.asyncio import AsyncEngine
from sqlalchemy.pool import ConnectionPoolEntry, Pool, StaticPool
from sqlalchemy.util import await_only, greenlet_spawn

from starlette_uow.context import open_units
from starlette_uow.errors import SandboxError
from starlette_uow.guard import discard_open_transaction

TURN_TIMEOUT = 10.0
"""Seconds a unit waits for the connection while another unit has it."""

CHECK_CONSTRAINTS = (
    "SAVEPOINT starlette_uow_check; SET CONSTRAINTS ALL IMMEDIATE; "
    "ROLLBACK TO SAVEPOINT starlette_uow_check; RELEASE SAVEPOINT starlette_uow_check"
)
"""What COMMIT would check. In a savepoint that is undone, because the mode would stay."""

KEPT_EVENTS = ("checkout", "checkin", "reset", "invalidate", "soft_invalidate", "close", "detach")
"""The pool events that are the same for the sandbox's connection; it connected long before."""


class _Holder:
    """Who has the connection."""

    def __init__(self) -> None:
        self.has_it = True
        units = open_units()
        self.name = units[0].name if units else "nobody (the engine was used directly)"


_inside: ContextVar[tuple[_Holder, ...]] = ContextVar("starlette_uow_inside", default=())


class OuterPool(Pool):
    """Gives the one connection to one unit after the other, first come first served.

    Attributes:
        holder: who has it.
    """

    def __init__(self, connection: Any, *, dialect: Dialect, instead_of: Pool) -> None:
        self._connections = [connection]
        super().__init__(self._only_once, dialect=dialect)
        self._loop = asyncio.get_running_loop()
        self._turn = asyncio.Lock()
        self._entry: ConnectionPoolEntry | None = None
        self.holder: _Holder | None = None
        for name in KEPT_EVENTS:
            for listener in getattr(instead_of.dispatch, name):
                # The guard would find every connection inside a transaction: the sandbox's.
                if listener is not discard_open_transaction:
                    event.listen(self, name, listener)

    def _only_once(self) -> Any:
        if not self._connections:
            raise SandboxError.lost()
        return self._connections.pop()

    def _do_get(self) -> ConnectionPoolEntry:
        await_only(self._take_turn())
        if self._entry is None:
            self._entry = self._create_connection()
        return self._entry

    async def _take_turn(self) -> None:
        if asyncio.get_running_loop() is not self._loop:
            raise SandboxError.other_loop()
        holder = self.holder
        if holder is not None and (
            holder in _inside.get() or any(unit.holds_connection_of(self) for unit in open_units())
        ):
            raise SandboxError.nested(holder.name)
        try:
            async with asyncio.timeout(TURN_TIMEOUT):
                await self._turn.acquire()
        except TimeoutError:
            name = "somebody" if self.holder is None else self.holder.name
            raise SandboxError.no_turn(name, TURN_TIMEOUT) from None
        self.holder = _Holder()
        _inside.set((*(holder for holder in _inside.get() if holder.has_it), self.holder))

    def _do_return_conn(self, record: ConnectionPoolEntry) -> None:
        assert self.holder is not None
        self.holder.has_it, self.holder = False, None
        self._turn.release()

    @property
    def is_lost(self) -> bool:
        """Whether the connection was closed meanwhile, and the transaction with it."""
        return self._entry is not None and self._entry.dbapi_connection is None

    def recreate(self) -> Pool:
        """Itself: an app that disposes its engine at shutdown does not end the sandbox."""
        return self

    def dispose(self) -> None:
        """Nothing: the connection belongs to the sandbox."""

    def status(self) -> str:
        return "the connection of a sandbox"


@asynccontextmanager
async def outer_transaction(engine: AsyncEngine) -> AsyncGenerator[OuterPool]:
    """A block in which all that an engine writes is inside one transaction, rolled back at its end.

    Raises:
        SandboxError: the engine is in a sandbox already, or its driver is not supported.
    """
    sync_engine = engine.sync_engine
    before = sync_engine.pool
    if isinstance(before, OuterPool):
        raise SandboxError.twice(engine)
    begin = _BEGIN.get((engine.dialect.name, engine.dialect.driver))
    if begin is None:
        raise SandboxError.unsupported(repr(engine))
    # A pool of its own: connections of the engine's may belong to the loop of an earlier test. A
    # database in memory has only one connection.
    own = before if isinstance(before, StaticPool) else before.recreate()
    sync_engine.pool = own
    try:
        raw = await engine.raw_connection()
        await greenlet_spawn(raw.rollback)
        connection, roll_back = await begin(raw.dbapi_connection)
        sync_engine.pool = pool = OuterPool(connection, dialect=engine.dialect, instead_of=before)
        try:
            yield pool
        finally:
            with anyio.CancelScope(shield=True):
                if pool.is_lost:
                    raw.detach()  # it is closed, and its pool must not give it to anybody
                else:
                    await roll_back()
                    await greenlet_spawn(raw.close)
    finally:
        sync_engine.pool = before
        with anyio.CancelScope(shield=True):
            if own is not before:
                await greenlet_spawn(own.dispose)


# --- PostgreSQL ----------------------------------------------------------------------------


class _Asyncpg(AsyncAdapt_asyncpg_connection):
    """asyncpg itself begins a savepoint where a transaction is open already."""

    __slots__ = ()

    async def _start_transaction(self) -> None:
        level, self.isolation_level = self.isolation_level, None  # the transaction has begun
        try:
            await super()._start_transaction()  # type: ignore[no-untyped-call]  # SQLAlchemy's
        finally:
            self.isolation_level = level
        if self.readonly:
            await self.driver_connection.execute("SET TRANSACTION READ ONLY")

    def commit(self) -> None:
        if self._transaction is not None:
            try:
                await_only(self.driver_connection.execute(CHECK_CONSTRAINTS))
            except Exception as error:
                self._handle_exception(error)
        super().commit()  # type: ignore[no-untyped-call]  # SQLAlchemy's

    def rollback(self) -> None:
        if self.isolation_level == "autocommit":
            try:
                self.commit()
            except Exception:  # after an error, so there is nothing to keep
                super().rollback()  # type: ignore[no-untyped-call]  # SQLAlchemy's
        else:
            super().rollback()  # type: ignore[no-untyped-call]  # SQLAlchemy's


async def _begin_asyncpg(adapter: Any) -> tuple[Any, Callable[[], Awaitable[None]]]:
    transaction = adapter.driver_connection.transaction()
    await transaction.start()
    adapter.__class__ = _Asyncpg
    return adapter, transaction.rollback


# --- SQLite --------------------------------------------------------------------------------


class _Aiosqlite(AsyncAdapt_aiosqlite_connection):
    """Begins a savepoint with the first statement, and looks for what COMMIT would refuse."""

    __slots__ = ("_begun", "_violations")

    def __init__(self, dbapi: Any, connection: Any, violations: set[Any] | None) -> None:
        super().__init__(dbapi, connection)
        self._begun = False
        self._violations = violations  # there before; None if foreign keys are not enforced

    @property
    def isolation_level(self) -> str | None:
        return None

    @isolation_level.setter
    def isolation_level(self, value: str | None) -> None:
        """Python's sqlite3 would commit: a level is of the transaction, which has begun."""

    def cursor(self, server_side: bool = False) -> Any:
        return _StreamCursor(self) if server_side else _Cursor(self)

    def begin(self) -> None:
        if not self._begun:
            self._run("SAVEPOINT starlette_uow")
            self._begun = True

    def commit(self) -> None:
        if self._begun:
            if self._violations is not None:
                found = self._run("PRAGMA foreign_key_check")
                if set(map(tuple, found)) - self._violations:
                    raise self.dbapi.IntegrityError("FOREIGN KEY constraint failed")
            self._run("RELEASE starlette_uow")
            self._begun = False

    def rollback(self) -> None:
        if self._begun:
            self._begun = False
            self._run("ROLLBACK TO starlette_uow")
            self._run("RELEASE starlette_uow")

    def _run(self, sql: str) -> Any:
        try:
            return await_only(self._connection.execute_fetchall(sql))
        except Exception as error:
            self._handle_exception(error)


class _BeginsFirst:
    """What a cursor runs begins the savepoint. BEGIN itself does nothing else."""

    __slots__ = ()
    _adapt_connection: Any

    def execute(self, operation: str, *args: Any) -> Any:
        self._adapt_connection.begin()
        if not re.match(r"\s*BEGIN\b", operation, re.IGNORECASE):
            return super().execute(operation, *args)  # type: ignore[misc]  # a mixin's super
        return None

    def executemany(self, operation: str, *args: Any) -> Any:
        self._adapt_connection.begin()
        return super().executemany(operation, *args)  # type: ignore[misc]  # a mixin's super


class _Cursor(_BeginsFirst, AsyncAdapt_aiosqlite_cursor):
    __slots__ = ()


class _StreamCursor(_BeginsFirst, AsyncAdapt_aiosqlite_ss_cursor):
    __slots__ = ()


async def _begin_aiosqlite(adapter: Any) -> tuple[Any, Callable[[], Awaitable[None]]]:
    driver = adapter.driver_connection
    await driver.execute_fetchall("BEGIN IMMEDIATE")
    violations = None
    if list(await driver.execute_fetchall("PRAGMA foreign_keys")) == [(1,)]:
        violations = set(await driver.execute_fetchall("PRAGMA foreign_key_check"))
    return _Aiosqlite(adapter.dbapi, driver, violations), driver.rollback


_BEGIN = {
    ("postgresql", "asyncpg"): _begin_asyncpg,
    ("sqlite", "aiosqlite"): _begin_aiosqlite,
}
