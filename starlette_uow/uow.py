"""`UnitOfWork`: the definition of units, and the ways to reach the open one.

A definition is created once and shared by everybody. It holds no state of any unit, so a
thousand tasks may enter it at once: what it shows is always the unit of the caller's context.
"""

from __future__ import annotations

import logging
from collections.abc import AsyncGenerator, Awaitable, Callable, Coroutine
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from types import TracebackType
from typing import Any, Concatenate, ParamSpec, Self, TypeVar

import anyio
from sqlalchemy import Engine
from sqlalchemy.ext.asyncio import AsyncEngine, AsyncSession, async_sessionmaker
from sqlalchemy.orm import Session, sessionmaker
from sqlalchemy.pool import StaticPool

from starlette_uow.blocks import (
    BLOCK,
    NewUnit,
    enter_block,
    joinable_frame,
    leave_block,
    transaction_options,
)
from starlette_uow.context import (
    Frame,
    RequestFrame,
    current_frame,
    current_unit,
    frame_of,
    open_units,
)
from starlette_uow.engine import dispose_engine
from starlette_uow.errors import (
    BlockContextError,
    ConfigurationError,
    NotAsyncError,
    SavepointOpenError,
    SessionClassError,
)
from starlette_uow.guard import guard
from starlette_uow.policy import Doom, Outcome
from starlette_uow.session import UnitSession, unit_session_class
from starlette_uow.tasks import UnitTasks, check_limit
from starlette_uow.threads import run_in_loop
from starlette_uow.transactional import Propagation, check_propagation, in_unit
from starlette_uow.unit import Callback, Terms, Unit

P = ParamSpec("P")
R = TypeVar("R")

_log = logging.getLogger("starlette_uow")


def current_session(uow: UnitOfWork | None = None) -> AsyncSession:
    """The session of the unit that is open in this context.

    It is the same object for everybody who serves the request, made at first use; its
    connection is taken from the pool by the first statement.

    Args:
        uow: whose unit is meant, with several databases; by default the innermost.

    Raises:
        NoUnitError: no unit is open here; the message says what is missing.
        UnitEndedError: the unit has ended.
        WebSocketUnitError: it ended with the handshake of a websocket.
        WrongThreadError, WrongLoopError: the caller runs in a thread or loop of its own.
    """
    return current_unit(uow).session


def current_uow() -> UnitOfWork:
    """The definition whose unit is open in this context, the innermost if there are several.

    Raises:
        NoUnitError: as `current_session` does.
    """
    unit = current_unit(None)
    unit.check_usable()
    frame = current_frame.get()
    assert frame is not None
    return frame.uow


class UnitOfWork:
    """Defines units of work on one database. Create it once and share it.

    `async with uow:` joins the unit that is open in this context, or opens one and ends it with
    the block: committed if the block is left normally, rolled back if it raises. Only who
    opened a unit ends it. In a joined block an exception that leaves it dooms the unit (a
    cancellation only if the block had used the session), so that half the work of a request is
    never committed; what may fail alone belongs into `savepoint()`.

    A cancellation never interrupts the end of a unit: it goes on when the transaction has
    ended and the connection is back.

    Args:
        sessions: an `async_sessionmaker`, whose arguments are all kept, or an `AsyncEngine`.
        end_timeout: seconds a commit or rollback may take, 10 by default. After that the
            connection is terminated.
        callback_timeout: seconds an `on_commit`, `on_rollback` or `on_unknown` callback may
            take, 10 by default.
        wait_timeout: seconds a task waits for the session while nothing moves at all, 30 by
            default. A queue that moves slowly may take as long as it needs.
        resolve_unknown: find out what became of a COMMIT whose connection was lost, on PostgreSQL
            13 or later: the unit then ends as committed, or as rolled back with the error of the
            lost connection, and only rarely with `CommitOutcomeUnknownError` (a failover, a
            server that stays away). It costs one round trip more for each commit, and may take
            another `end_timeout` after a loss. SQLite has no connection to lose.

    Raises:
        NotAsyncError: a synchronous engine or sessionmaker was given.
        SessionClassError: its sessions do not take `sync_session_class`, or name something as units
            do.
        ConfigurationError: another argument cannot be used.
    """

    sessions: async_sessionmaker[Any]
    """Where the sessions of the units come from."""

    def __init__(
        self,
        sessions: async_sessionmaker[Any] | AsyncEngine,
        *,
        end_timeout: float = 10.0,
        callback_timeout: float = 10.0,
        wait_timeout: float = 30.0,
        resolve_unknown: bool = False,
    ) -> None:
        if isinstance(sessions, AsyncEngine):
            sessions = async_sessionmaker(sessions, expire_on_commit=False)
        if isinstance(sessions, (Engine, sessionmaker)):
            raise NotAsyncError(sessions)
        if not isinstance(sessions, async_sessionmaker):
            raise ConfigurationError(
                f"A unit of work needs an async_sessionmaker or an AsyncEngine, and got "
                f"{sessions!r}. Pass `async_sessionmaker(engine, expire_on_commit=False)`."
            )
        for name, seconds in (
            ("end_timeout", end_timeout),
            ("callback_timeout", callback_timeout),
            ("wait_timeout", wait_timeout),
        ):
            if not isinstance(seconds, (int, float)) or not seconds > 0:
                raise ConfigurationError(
                    f"`{name}` has to be more than 0 seconds, and is {seconds!r}. Leave it out "
                    f"for the default."
                )
        for bind in _binds(sessions):
            if isinstance(bind, Engine):
                raise NotAsyncError(bind)
        self.sessions = sessions
        self._session_class = unit_session_class(sessions)
        self._units: set[Unit | RequestFrame] = set()
        """What is open, and a shutdown has to wait for."""
        self._last_unit_ended: anyio.Event | None = None
        self._terms = Terms(
            self._make_session,
            end_timeout,
            callback_timeout,
            wait_timeout,
            resolve_unknown,
            closed=self._release,
            around=open_units,
        )
        for engine in self._engines():
            guard(engine)
            if resolve_unknown and engine.dialect.name not in ("postgresql", "sqlite"):
                raise ConfigurationError(
                    f"`resolve_unknown` needs PostgreSQL, and the engine is for "
                    f"{engine.dialect.name}. Leave it out."
                )

    def __repr__(self) -> str:
        urls = [engine.url.render_as_string() for engine in self._engines()]
        return f"<{type(self).__name__} on {', '.join(urls) or 'no bind'}>"

    @property
    def expires_on_commit(self) -> bool:
        """Whether objects are expired by a commit, which is SQLAlchemy's default."""
        return bool(self.sessions.kw.get("expire_on_commit", True))

    # --- the unit of the current context ---------------------------------------------------

    @property
    def session(self) -> AsyncSession:
        """The session of the unit that is open in this context. Raises as `current_session`."""
        return current_unit(self).session

    def doom(self, reason: str = "the app called doom()") -> None:
        """Let the open transaction roll back, and the app's answer pass: a dry run, say.

        Args:
            reason: for the log and for the error of a caller who insists on a commit.

        Raises:
            NoUnitError: no unit is open here.
        """
        self._usable_unit().doom(Doom(reason, wanted=True))

    def on_commit(self, callback: Callback) -> None:
        """Call `callback()` after the open transaction has been committed, and only then.

        It runs when the connection is back in the pool and before the client is answered, in
        order of registration, each within `callback_timeout`. One that uses the session gets a
        transaction of its own. Registered inside a savepoint that rolls back, it is dropped. An
        error in it is logged and changes nothing.

        Args:
            callback: without arguments; what it returns is awaited if it can be.

        Raises:
            NoUnitError: no unit is open here.
        """
        self._usable_unit().register(Outcome.COMMITTED, callback)

    def on_rollback(self, callback: Callback) -> None:
        """Call `callback()` after the open transaction has been rolled back, and only then.

        As `on_commit` otherwise.
        """
        self._usable_unit().register(Outcome.ROLLED_BACK, callback)

    def on_unknown(self, callback: Callback) -> None:
        """Call `callback()` after a commit whose outcome is unknown, and only then.

        The connection was lost while COMMIT was in flight, and the other two kinds of callbacks
        stay silent. As `on_commit` otherwise; what it finds in a transaction of its own need not
        be the last word, as the server may still be carrying the COMMIT out.
        """
        self._usable_unit().register(Outcome.UNKNOWN, callback)

    async def commit(self) -> None:
        """Commit, in the block that opened the unit; flush, in a block that joined it.

        In a request outside of any block it commits, too, as `checkpoint` does.

        Raises:
            NoUnitError: no unit is open here.
            Exception: what the flush raised, or what `checkpoint` raises.
        """
        frame, unit = self._usable_frame()
        if frame.joined:
            await unit.session.flush()
        else:
            await self.checkpoint()

    async def rollback(self) -> None:
        """Roll back, in the block that opened the unit; doom the unit, in a block that joined it.

        A joined block must not erase the work of its callers behind their back. If the request
        then still answers as if all went well, the client gets an error (`UnitDoomedError`). In a
        request outside of any block it rolls back at once; what follows is committed.

        Raises:
            NoUnitError: no unit is open here.
            SavepointOpenError: it was called inside a savepoint, in which raising undoes alone.
        """
        frame, unit = self._usable_frame()
        if frame.joined:
            unit.doom(Doom("uow.rollback() was called in a block that joined the unit"))
        elif unit.is_inside_savepoint:
            raise SavepointOpenError(unit.name)
        else:
            await unit.settle(commit=False)

    async def checkpoint(self) -> None:
        """Commit what is done so far, and give the connection back until it is needed again.

        For the middle of a unit, before a slow call to somebody else. The callbacks of the
        transaction run; a new one begins with the next statement. If the commit fails, the
        error is raised, and the unit is doomed: it must not commit its second half alone. A
        cancellation waits until the transaction has ended.

        Raises:
            NoUnitError: no unit is open here.
            SavepointOpenError: a savepoint is open.
            UnitDoomedError: the transaction could only roll back, after `doom()`, say.
            CommitOutcomeUnknownError: the connection was lost during COMMIT.
            EndTimeoutError: not committed within `end_timeout`, and rolled back.
            Exception: what the flush or the COMMIT raised.
        """
        await self._usable_unit().checkpoint()

    @asynccontextmanager
    async def savepoint(self) -> AsyncGenerator[Self]:
        """A block that may fail alone: what it did is undone if it raises, and nothing else.

        Callbacks registered in it are dropped with it. The exception goes on; catch it outside.
        Its exit completes although the task is cancelled.

        Raises:
            NoUnitError: no unit is open here.
            SessionDeadlockError: for `wait_timeout` nothing moved, and the session was another
                task's.
            Exception: what the flush at the end of the block raised; the block is undone.
        """
        async with self._usable_unit().session.begin_nested():
            yield self

    @asynccontextmanager
    async def exclusive(self) -> AsyncGenerator[Self]:
        """A block that owns the session: other tasks of the unit wait until it is left.

        For reading objects and changing their attributes beside other tasks: a change that is
        made while another task flushes the same object is not written, and nothing can see it
        coming. The block, and the tasks that are started in it, use the session freely. It is no
        savepoint and writes nothing by itself. Leaving it waits for nothing, so a cancellation
        cannot keep it from being left.

        Raises:
            NoUnitError: no unit is open here.
            SessionDeadlockError: for `wait_timeout` nothing moved, and the session was another
                task's.
        """
        async with self._usable_unit().exclusive():
            yield self

    # --- tasks and threads of the unit -----------------------------------------------------

    def tasks(self, *, limit: int | None = None) -> AbstractAsyncContextManager[UnitTasks]:
        """A block with a task group whose tasks work in this unit, and are done when it is left.

        They share the session and take turns on it. If one fails, the others are cancelled, and
        the errors leave the block as an `ExceptionGroup`, as anyio has it. The block joins the
        unit: an error or a cancellation that leaves it dooms the unit, as in `async with uow:`.

        Args:
            limit: how many of its tasks run at once; by default all of them.

        Raises:
            ConfigurationError: the limit is less than 1.
            NoUnitError: at the block's entry, if no unit is open here.

        Example:
            ```python
            async with uow.tasks(limit=5) as tg:
                for supplier in suppliers:
                    tg.start_soon(fetch_prices, supplier)
            ```
        """
        check_limit(limit)
        return self._tasks(limit)

    @asynccontextmanager
    async def _tasks(self, limit: int | None) -> AsyncGenerator[UnitTasks]:
        self._usable_unit()
        async with self, anyio.create_task_group() as group:
            yield UnitTasks(group, limit)

    def run_sync(
        self, function: Callable[Concatenate[Session, P], R], *args: P.args, **kwargs: P.kwargs
    ) -> R:
        """Call `function(session, ...)` from a worker thread, with the unit's session.

        For synchronous endpoints, dependencies and background tasks, which Starlette and FastAPI
        run in threads. The function runs in the event loop, where the connection lives, with the
        synchronous `Session` below the unit's `AsyncSession`; the thread waits for it. So it
        should do the database work and nothing slow beside. What it returns is returned, what
        it raises is raised. It takes turns with the tasks of the unit.

        If the request is cancelled meanwhile, the thread may get a
        `concurrent.futures.CancelledError` or, when the unit has ended, a `UnitEndedError`.

        Args:
            function: a synchronous function of a `Session`.
            *args: for the function, after the session.
            **kwargs: for the function.

        Raises:
            WrongThreadError: the caller runs on an event loop, or in a thread that anyio did not
                start.
            NoUnitError: no unit is open here.
            ConfigurationError: the function is a coroutine function.

        Example:
            ```python
            def endpoint(request):
                names = uow.run_sync(lambda session: session.scalars(select(User.name)).all())
            ```
        """
        return run_in_loop(self, function, *args, **kwargs)

    # --- opening units ---------------------------------------------------------------------

    async def __aenter__(self) -> Self:
        frame = joinable_frame(self)
        if frame is None:
            enter_block(self, self.open_unit(BLOCK), owner=self, joined=False)
        else:
            assert frame.unit is not None
            frame.unit.check_usable()
            enter_block(self, frame.unit, owner=self, joined=True)
        return self

    async def __aexit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        frame = current_frame.get()
        while frame is not None and not (frame.uow is self and frame.owner is self):
            frame = frame.outer
        if frame is None:
            raise BlockContextError(self)
        await leave_block(frame, exc)

    def new(self, *, isolation_level: str | None = None, read_only: bool = False) -> NewUnit[Self]:
        """A block with a unit of its own, whatever is open around it, on its own connection.

        For work that must stand alone: a record that survives the rollback of the request, a
        background task, a task that reads in parallel. It ends with the block, as the outermost
        `async with uow:` does: a cancellation waits until it has.

        Args:
            isolation_level: of its transactions, such as "SERIALIZABLE"; the engine's by default.
            read_only: the database refuses writes (PostgreSQL), or the transaction begins
                without a write lock (SQLite).

        Raises:
            Exception: at the end of the block, what `checkpoint` raises.
        """
        return NewUnit(self, transaction_options(isolation_level, read_only))

    def transactional(
        self,
        *,
        propagation: Propagation = "required",
        isolation_level: str | None = None,
        read_only: bool = False,
    ) -> Callable[[Callable[P, Awaitable[R]]], Callable[P, Coroutine[Any, Any, R]]]:
        """Decorate a coroutine function: each call runs in a unit.

        Args:
            propagation: "required" joins the open unit or opens one; "new" opens one of its
                own; "savepoint" joins in a savepoint, or opens a unit; "mandatory" joins, and
                raises `NoUnitError` where nothing is open; "never" raises `UnitOpenError` where
                something is.
            isolation_level: of the transaction, such as "SERIALIZABLE"; the engine's by
                default. A joined transaction takes it on only before its first statement.
            read_only: as for `new()`; a joined transaction stays as it is.

        Raises:
            ConfigurationError: at decoration, for an unknown propagation or a function that
                cannot be awaited.
            TransactionStartedError: at the call, for an isolation level that comes too late.
        """
        check_propagation(propagation)

        def decorate(function: Callable[P, Awaitable[R]]) -> Callable[P, Coroutine[Any, Any, R]]:
            return in_unit(
                function,
                self,
                propagation=propagation,
                isolation_level=isolation_level,
                read_only=read_only,
            )

        return decorate

    async def dispose(self, *, timeout: float = 10.0) -> None:
        """Wait for the open units, then dispose the engines. For the shutdown of an app.

        `UnitOfWorkMiddleware` calls it before `lifespan.shutdown.complete`. Call it yourself
        where no lifespan reaches the middleware: in a mounted app, or under a server without.
        An in-memory SQLite database is left alone, because disposing would delete it.

        Args:
            timeout: seconds until the open units are waited for no longer, and connections are
                closed without a goodbye.
        """
        deadline = anyio.current_time() + timeout
        if self._units:
            if self._last_unit_ended is None or self._last_unit_ended.is_set():
                self._last_unit_ended = anyio.Event()
            with anyio.CancelScope(deadline=deadline):
                await self._last_unit_ended.wait()
            if self._units:
                names = sorted(unit.name for unit in self._units)
                _log.warning("Shutting down with open units of work: %s.", ", ".join(names))
        for engine in self._engines():
            if not isinstance(engine.pool, StaticPool):
                await dispose_engine(engine, deadline)

    # --- for the middlewares of this package -----------------------------------------------

    def open_unit(self, name: str, options: dict[str, Any] | None = None) -> Unit:
        """A unit that is not yet part of any context.

        Args:
            name: what it serves, for messages.
            options: execution options of its transactions.
        """
        unit = Unit(self._terms, name, options)
        self._units.add(unit)
        return unit

    # --- private ---------------------------------------------------------------------------

    def _engines(self) -> list[AsyncEngine]:
        binds = _binds(self.sessions)
        return list({id(b): b for b in binds if isinstance(b, AsyncEngine)}.values())

    def _make_session(self) -> AsyncSession:
        try:
            session: AsyncSession = self.sessions(sync_session_class=self._session_class)
        except TypeError as error:
            if "sync_session_class" not in str(error):
                raise
            raise SessionClassError(self.sessions.class_, str(error)) from error
        if not isinstance(session.sync_session, UnitSession):
            raise SessionClassError(
                self.sessions.class_, f"its sync session is {session.sync_session!r}"
            )
        return session

    def _release(self, ended: Unit | RequestFrame) -> None:
        self._units.discard(ended)
        if self._last_unit_ended is not None and not self._units:
            self._last_unit_ended.set()

    def _usable_frame(self) -> tuple[Frame, Unit]:
        unit = current_unit(self)
        unit.check_usable()
        frame = frame_of(self)
        assert frame is not None
        return frame, unit

    def _usable_unit(self) -> Unit:
        return self._usable_frame()[1]


def _binds(sessions: async_sessionmaker[Any]) -> list[object]:
    return [sessions.kw.get("bind"), *(sessions.kw.get("binds") or {}).values()]
