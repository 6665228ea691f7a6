"""The end of a transaction: what became of it, and a connection that goes back clean or dies.

Everything here runs inside SQLAlchemy's greenlet, except `terminate`, which never waits.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable

from sqlalchemy.engine import Connection

from starlette_uow.guard import why_aborted
from starlette_uow.policy import Outcome
from starlette_uow.session import UnitSession

_log = logging.getLogger("starlette_uow")


def end_transaction(session: UnitSession, *, commit: bool) -> tuple[Outcome, BaseException | None]:
    """Commit or roll back, and give the connections back.

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
    """Close connections at once. The server rolls back what was not being committed."""
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
