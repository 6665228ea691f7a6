"""The end of a transaction: it runs to completion whatever is cancelled, within a deadline, and
knows what became of the transaction; the connection goes back clean or dies.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Iterable

from sqlalchemy.engine import Connection
from sqlalchemy.util import greenlet_spawn

from starlette_uow.errors import CommitOutcomeUnknownError, EndTimeoutError
from starlette_uow.gate import Hold
from starlette_uow.guard import why_aborted
from starlette_uow.policy import Outcome
from starlette_uow.resolving import find_out
from starlette_uow.session import UnitSession
from starlette_uow.shield import GRACE, to_completion
from starlette_uow.state import TransactionState

_ENDED = "The transaction of %s: %s."

_log = logging.getLogger("starlette_uow")


class Ending:
    """Ends the transaction that a session has open.

    Args:
        session: whose transaction.
        name: of the unit, for messages.
        commit: what is wanted.
        timeout: seconds until the connection is terminated.
        resolve_unknown: find out what became of a lost COMMIT, for as long again.
        reserved: what keeps everybody else from the session from then on.
        ended: called with the outcome as soon as it is known, whatever is cancelled.
    """

    def __init__(
        self,
        session: UnitSession,
        name: str,
        *,
        commit: bool,
        timeout: float,
        resolve_unknown: bool,
        reserved: Hold | None,
        ended: Callable[[Outcome], None],
    ) -> None:
        self._session = session
        self._name = name
        self._commit = commit
        self._timeout = timeout
        self._resolve_unknown = resolve_unknown
        self._reserved = reserved
        self._ended = ended
        self._state = session.transaction_state
        self._expired = False
        self._outcome = Outcome.ROLLED_BACK
        self._error: BaseException | None = None

    async def run(self) -> BaseException | None:
        """End it, and return what has to be raised. A cancellation waits until then."""
        grace = GRACE + self._timeout if self._resolve_unknown else GRACE
        try:
            await to_completion(
                self._end(), timeout=self._timeout, terminate=self._expire, grace=grace
            )
        except asyncio.CancelledError:
            if self._error is not None:
                # The caller is cancelled, and will hear nothing else.
                _log.error(_ENDED, self._name, self._outcome, exc_info=self._error)
            raise
        _log.debug(_ENDED, self._name, self._outcome)
        error = self._error
        if self._outcome is Outcome.UNKNOWN and self._commit:
            error = CommitOutcomeUnknownError(self._name)
        elif self._expired and self._outcome is Outcome.ROLLED_BACK:
            error = EndTimeoutError(self._name, self._timeout) if self._commit else None
        if error is not None and error is not self._error:
            error.__cause__ = self._error
        return error

    def _expire(self) -> None:
        self._expired = not self._state.commit_lost  # or the time goes into finding out
        terminate(self._session.transaction_state.connections)

    async def _end(self) -> None:
        """Take the turn before anybody who waits, so that no statement runs meanwhile.

        A commit waits for the savepoints of other tasks; a rollback has no reason to.
        """
        session = self._session
        try:
            if not session.gate.try_enter():
                await session.gate.enter(first=True, over_holds=not self._commit)
        except asyncio.CancelledError as cancelled:
            # In time nobody gave the turn: the statement of a stray task does not end.
            terminate(session.transaction_state.connections)
            self._error = cancelled
            self._ended(self._outcome)
            return
        session.is_being_ended = True
        # Not before the turn: meanwhile the app may have committed, and begun another transaction.
        state = self._state = session.transaction_state
        state.wants_trace = self._resolve_unknown
        try:
            self._outcome, self._error = await greenlet_spawn(
                end_transaction, session, commit=self._commit
            )
            if self._outcome is Outcome.UNKNOWN and isinstance(self._error, Exception):
                await self._find_out(state)
        finally:
            session.is_being_ended = False
            # Of another task's savepoint that was rolled back over.
            session._trans_context_manager = None
            if self._reserved is not None:
                session.gate.keep(self._reserved)  # nobody else comes in before the unit's close()
            session.gate.leave()
        self._ended(self._outcome)

    async def _find_out(self, state: TransactionState) -> None:
        if state.trace is None:
            return
        engine = state.connections[0].engine
        try:
            self._outcome = await find_out(engine, state.trace, timeout=self._timeout)
        except asyncio.CancelledError:
            return  # it took too long
        if self._outcome is Outcome.COMMITTED:
            _log.warning("%s: the connection was lost during COMMIT; it was committed.", self._name)
            self._error = None


def end_transaction(session: UnitSession, *, commit: bool) -> tuple[Outcome, BaseException | None]:
    """Commit or roll back, and give the connections back; inside SQLAlchemy's greenlet.

    A commit that fails is rolled back.

    Returns:
        what became of the transaction, and the error that prevented or followed the commit.
    """
    state = session.transaction_state
    if not commit:
        outcome = state.outcome  # not always a rollback: the app may have tried to commit itself
        return outcome, _roll_back(session)
    try:
        session.commit()
    except BaseException as error:
        # BaseException: a commit that is cancelled has to be settled as well.
        if state.committed:
            # COMMIT was answered, and a listener of the app failed after it.
            _log.exception("An error after the COMMIT of a unit of work changes nothing.")
            session.close()
            return Outcome.COMMITTED, None if isinstance(error, Exception) else error
        outcome = state.outcome
        if (doomed := why_aborted(state, error)) is not None:  # raised by the flush
            doomed.__cause__, error = error, doomed
        return outcome, _roll_back(session) or error
    return Outcome.COMMITTED, None


def terminate(connections: Iterable[Connection]) -> None:
    """Close connections at once, without waiting. The server rolls back what was not being
    committed.
    """
    for connection in connections:
        if not connection.closed and not connection.invalidated:
            connection.invalidate()


def _roll_back(session: UnitSession) -> BaseException | None:
    """Roll back. Where that fails, the connection is discarded, and with it the transaction: what
    was promised holds, so the error is logged; only a cancellation is returned.
    """
    connections = session.transaction_state.connections
    if not session.is_active:
        _discard_changes(session)
    try:
        session.rollback()
    except BaseException as error:
        terminate(connections)
        if session.in_transaction():
            session.invalidate()
        if not isinstance(error, Exception):
            return error
        _log.warning("A rollback failed, so its connection was discarded.", exc_info=error)
    return None


def _discard_changes(session: UnitSession) -> None:
    """Forget what other tasks added or changed after a flush had failed. SQLAlchemy discards it,
    too, with a warning that is meant for them, and would be heard by nobody but the server.
    """
    for instance in (*session.new, *session.deleted):
        session.expunge(instance)
    for instance in session.dirty:
        session.expire(instance)
