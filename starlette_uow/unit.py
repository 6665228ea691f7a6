"""One unit of work: its session, the transaction that is open, and what hangs on its outcome."""

from __future__ import annotations

import asyncio
import functools
import inspect
import logging
from collections.abc import AsyncGenerator, Callable, Iterable
from contextlib import asynccontextmanager
from typing import Any, NamedTuple, cast

from sqlalchemy.exc import TimeoutError as PoolTimeoutError
from sqlalchemy.ext.asyncio import AsyncSession
from sqlalchemy.orm import SessionTransaction
from sqlalchemy.pool import Pool

from starlette_uow.ending import Ending, terminate
from starlette_uow.errors import (
    CommitOutcomeUnknownError,
    SavepointOpenError,
    UnitDoomedError,
    UnitEndedError,
    pool_note,
)
from starlette_uow.gate import Hold, check_loop
from starlette_uow.policy import Decision, Doom, Outcome, decide
from starlette_uow.session import UnitSession

Callback = Callable[[], object]
"""Called after a transaction's end; if it returns an awaitable, that is awaited."""

SessionFactory = Callable[[], AsyncSession]
"""Makes the `AsyncSession` of a unit, upon a `UnitSession`."""

_log = logging.getLogger("starlette_uow")


class Terms(NamedTuple):
    """What the units of one definition have in common.

    Attributes:
        factory: makes their sessions.
        end_timeout: seconds for the end of a transaction.
        callback_timeout: seconds for a callback.
        wait_timeout: seconds that a task waits for the session while nothing moves.
        resolve_unknown: find out what became of a lost COMMIT.
        closed: is told of each unit that has ended.
        around: the units that are open in the caller's context.
    """

    factory: SessionFactory
    end_timeout: float
    callback_timeout: float
    wait_timeout: float
    resolve_unknown: bool
    closed: Callable[[Unit], None]
    around: Callable[[], Iterable[Unit]]


class _Registered(NamedTuple):
    outcome: Outcome
    callback: Callback
    savepoint: SessionTransaction | None


class Unit:
    """One session, one transaction at a time.

    A unit may live through several transactions (the request's, its body's, its background
    tasks'); doom and callbacks belong to the one that is open, the session to the unit.

    Args:
        terms: of its definition.
        name: what it serves, for messages.
        options: execution options of its transactions.
    """

    outcome: Outcome | None = None
    """Of the last transaction that ended; None before, and while one is being ended."""

    repositories: dict[object, Any] | None = None
    """Built so far, by their descriptor."""

    ended: Callable[[], Exception] | None = None
    """Why it cannot be used any more; None while it is open."""

    # Defaults of the class: a unit that nobody asks for its session sets none of them.
    _session: AsyncSession | None = None
    _sync_session: UnitSession | None = None
    _dooms: list[tuple[Doom, SessionTransaction | None]] | None = None
    _reserved: Hold | None = None
    _callbacks: list[_Registered] | None = None
    _due: list[Callback] | None = None

    def __init__(self, terms: Terms, name: str, options: dict[str, Any] | None = None) -> None:
        self.name = name
        self.options = options
        self._terms = terms
        self._loop = asyncio.get_running_loop()

    # --- the session -----------------------------------------------------------------------

    @property
    def session(self) -> AsyncSession:
        """The unit's session, made at first use.

        Raises:
            UnitEndedError: the unit has ended (or the error it ended with).
            WrongThreadError, WrongLoopError: the caller runs elsewhere.
        """
        self.check_usable()
        if self._session is None:
            session = self._terms.factory()
            sync_session = cast(UnitSession, session.sync_session)
            sync_session.adopt(self, self.name, wait_timeout=self._terms.wait_timeout)
            if self.options:
                sync_session.set_engine_options(self.options)
            self._session, self._sync_session = session, sync_session
            if self._dooms:
                self._show_doom()
        return self._session

    def check_usable(self) -> None:
        """Raise unless the unit is open and belongs to the running event loop."""
        if self.ended is not None:
            raise self.ended()
        check_loop(self._loop, self.name)

    @property
    def has_work(self) -> bool:
        """Whether a transaction is open. SQLAlchemy begins one with the first statement, and with
        the first object that is added, changed or deleted.
        """
        session = self._sync_session
        return session is not None and session.in_transaction()

    @property
    def is_idle(self) -> bool:
        """Whether there is nothing to end: no transaction, and nothing that waits for one."""
        return (
            (self._sync_session is None or not self._sync_session.in_transaction())
            and self._dooms is None
            and self._callbacks is None
            and self._due is None
        )

    @property
    def has_begun(self) -> bool:
        """Whether the open transaction has taken a connection."""
        session = self._sync_session
        return session is not None and bool(session.transaction_state.connections)

    def holds_connection_of(self, pool: Pool) -> bool:
        """Whether the open transaction keeps a connection of this pool."""
        session = self._sync_session
        return session is not None and any(
            connection.engine.pool is pool for connection in session.transaction_state.connections
        )

    @property
    def is_streaming(self) -> bool:
        """Whether a streaming result of the session has rows left to read."""
        session = self._sync_session
        if session is None or session.streams is None:
            return False
        return any(stream.is_open for stream in session.streams)

    @property
    def operations(self) -> int:
        """How many operations the session has run."""
        session = self._sync_session
        return 0 if session is None else session.gate.entered

    @property
    def last_task_is_done(self) -> bool:
        """Whether the task that used the session last has ended."""
        session = self._sync_session
        task = None if session is None else session.gate.last_task
        return task is not None and task.done()

    @property
    def is_inside_savepoint(self) -> bool:
        """Whether the caller is."""
        return self._savepoint is not None

    def set_options(self, options: dict[str, Any]) -> None:
        """Choose the execution options of the transactions that begin from now on."""
        self.options = options
        if (session := self._sync_session) is not None:
            session.set_engine_options(options)

    @asynccontextmanager
    async def exclusive(self) -> AsyncGenerator[None]:
        """Own the session for a block. Only the entry waits, so only it can be cancelled."""
        gate = cast(UnitSession, self.session.sync_session).gate
        await gate.enter()
        try:
            hold = gate.hold("an exclusive block", undoes=False)
        finally:
            gate.leave()
        try:
            yield
        finally:
            gate.release(hold)

    # --- the transaction -------------------------------------------------------------------

    def doom(self, doom: Doom) -> None:
        """Let the open transaction end in a rollback only. What went wrong inside a savepoint is
        undone with it; what the app wants stays.
        """
        if self._dooms is None:
            self._dooms = []
        self._dooms.append((doom, None if doom.wanted else self._savepoint))
        self._show_doom()

    def register(self, outcome: Outcome, callback: Callback) -> None:
        """Call back after the open transaction has ended with this outcome."""
        if self._callbacks is None:
            self._callbacks = []
        self._callbacks.append(_Registered(outcome, callback, self._savepoint))

    async def settle(self, *, commit: bool) -> None:
        """End the open transaction as wanted, or roll back and raise what is in the way.

        Order: flush and commit, or roll back; the connection goes back to the pool; then the
        callbacks of the outcome run. A cancellation waits until the transaction has ended.

        Raises:
            UnitDoomedError: a commit is wanted, and the transaction can only roll back.
            CommitOutcomeUnknownError: the connection was lost during COMMIT.
            EndTimeoutError: not committed within `end_timeout`, and rolled back.
            Exception: what the flush or the COMMIT raised, untouched.
        """
        error = await self._settle(commit=commit)
        await self._call_due()
        if error is not None:
            raise error

    async def finish(self, *, commit: bool) -> None:
        """Settle, and end the unit whatever comes of it. Raises as `settle` does."""
        if self.ended is not None:
            return
        if self.is_idle:
            self.close()
            return
        if (session := self._sync_session) is not None:
            self._reserved = session.gate.reserve("its end")
        try:
            await self.settle(commit=commit)
        except BaseException:
            # A cancellation can have kept callbacks from running, or hit one in its work.
            if self.has_work:
                await self._settle(commit=False)
            await self._call_due()
            raise
        finally:
            self.close()

    async def checkpoint(self) -> None:
        """Commit what is done so far. If that fails, nothing later is committed either."""
        session = self._sync_session
        if session is not None and session.in_nested_transaction():
            raise SavepointOpenError(self.name)
        if (doom := self._doom) is not None and doom.wanted:
            raise UnitDoomedError(doom)  # and not what follows alone, either
        try:
            await self.settle(commit=True)
        except Exception as error:
            self.doom(Doom(f"a checkpoint failed with {error!r}", cause=error))
            raise
        except BaseException:
            # A cancellation, in whose place nobody hears of the failure.
            if self.outcome is Outcome.UNKNOWN:
                self.doom(Doom("a checkpoint was cut", cause=CommitOutcomeUnknownError(self.name)))
            elif self.outcome is not Outcome.COMMITTED:
                self.doom(Doom("a checkpoint failed and was cancelled"))
            raise

    def close(self, ended: Callable[[], Exception] | None = None) -> None:
        """Refuse every later use. The transaction has been ended before."""
        if ended is None:
            # Not a method: the unit would refer to itself, and wait for the garbage collector.
            ended = functools.partial(_ended_error, self.name, self.outcome)
        self.ended = ended
        session = self._sync_session
        if session is not None:
            self._session = self._sync_session = self.repositories = None
            # Empty, unless a stray task began a transaction after the last end.
            terminate(session.transaction_state.connections)
            if self._reserved is not None:
                self._reserved.end()
            session.gate.close(self.ended)
            session.expunge_all()
        self._terms.closed(self)

    async def _settle(self, *, commit: bool) -> BaseException | None:
        doom, self._dooms = self._doom, None
        decision = decide(commit=commit, doom=doom)
        commit = decision is Decision.COMMIT
        session = self._sync_session
        error: BaseException | None = None
        if session is not None and session.in_transaction():
            self.outcome = None
            error = await Ending(
                session,
                self.name,
                commit=commit,
                timeout=self._terms.end_timeout,
                resolve_unknown=self._terms.resolve_unknown,
                reserved=self._reserved,
                ended=self._ended,
            ).run()
        else:
            self._ended(Outcome.COMMITTED if commit else Outcome.ROLLED_BACK)
        if error is None and decision is Decision.REFUSE:
            assert doom is not None
            if isinstance(doom.cause, CommitOutcomeUnknownError):
                return doom.cause  # of a checkpoint: that nothing was committed would be a guess
            error = UnitDoomedError(doom)
            error.__cause__ = doom.cause
        return error

    def _ended(self, outcome: Outcome) -> None:
        self.outcome = outcome
        callbacks, self._callbacks = self._callbacks, None
        if callbacks:
            due = [c.callback for c in callbacks if c.outcome is outcome]
            self._due = (self._due or []) + due

    def root_ended(self, outcome: Outcome) -> None:
        """The app itself committed, rolled back or closed the session."""
        self._dooms = None
        self._ended(outcome)

    @property
    def _savepoint(self) -> SessionTransaction | None:
        """The innermost savepoint that the caller is inside of; another task's does not count."""
        session = self._sync_session
        if session is None or not session.holds:
            return None
        chain = session.gate.chain()
        inside = [savepoint for savepoint, hold in session.holds.items() if hold in chain]
        return inside[-1] if inside else None

    @property
    def _doom(self) -> Doom | None:
        """The first reason, but one against the app's will before one that it wanted."""
        if not self._dooms:
            return None
        dooms = [doom for doom, _ in self._dooms]
        return next((doom for doom in dooms if not doom.wanted), dooms[0] if dooms else None)

    def _show_doom(self) -> None:
        if (session := self._sync_session) is not None:
            session.transaction_state.doom = self._doom

    def savepoint_undone(self, undone: SessionTransaction) -> None:
        if self._callbacks:
            self._callbacks = [c for c in self._callbacks if not _inside(c.savepoint, undone)]
        if self._dooms:
            self._dooms = [d for d in self._dooms if not _inside(d[1], undone)] or None
            self._show_doom()

    def doomed(self, reason: str, error: Exception | None = None) -> None:
        self.doom(Doom(reason if error is None else f"{reason}: {error}", cause=error))

    def pool_timed_out(self, error: PoolTimeoutError, bind: Any) -> None:
        """The pool is used up. Say so if that is by units that wait for this one."""
        pool = bind.engine.pool
        holders = [unit.name for unit in self._terms.around() if unit.holds_connection_of(pool)]
        if holders:
            error.add_note(pool_note(self.name, holders))

    async def _call_due(self) -> None:
        while self._due:
            await self._call_back(self._due.pop(0))
        self._due = None

    async def _call_back(self, callback: Callback) -> None:
        """Run a callback. One that uses the session gets a transaction of its own."""
        worked = False
        try:
            async with asyncio.timeout(self._terms.callback_timeout):
                result = callback()
                if inspect.isawaitable(result):
                    await result
            worked = True
        except Exception:
            _log.exception("%s: the callback %r failed.", self.name, callback)
        finally:  # of a cancelled one, too: half of its work must not become the unit's
            outcome = self.outcome
            try:
                error = await self._settle(commit=worked)
            finally:
                self.outcome = outcome  # that of the unit, which a callback does not change
        if error is not None:
            _log.error("%s: the work of %r was lost.", self.name, callback, exc_info=error)


def _ended_error(name: str, outcome: Outcome | None) -> UnitEndedError:
    return UnitEndedError(name, "it used no database" if outcome is None else str(outcome))


def _inside(savepoint: SessionTransaction | None, other: SessionTransaction) -> bool:
    while savepoint is not None:
        if savepoint is other:
            return True
        savepoint = savepoint.parent
    return False
