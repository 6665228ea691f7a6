"""The end of a transaction: it runs to completion whatever is cancelled, within a deadline.

`to_completion` is about tasks and time; `end_transaction` runs inside SQLAlchemy's greenlet and
is about the truth: what became of the transaction, and a connection that goes back clean or is
destroyed.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Coroutine, Iterable
from typing import Any, TypeVar

import anyio
from sqlalchemy.engine import Connection

from starlette_uow.engine import TransactionState
from starlette_uow.policy import Outcome
from starlette_uow.session import UnitSession

T = TypeVar("T")

GRACE = 1.0
"""Seconds a work has to notice that its connection was terminated, then that it is cancelled."""

_log = logging.getLogger("starlette_uow")


async def to_completion(
    work: Coroutine[Any, Any, T], *, timeout: float, terminate: Callable[[], None]
) -> T:
    """Run `work` to its end in a task of its own, and only then let a cancellation go on.

    Order: the work runs; the caller waits, and absorbs native cancellations while it does;
    after `timeout` the connections are terminated, which ends the work with an error; a work
    that still runs is cancelled. Then a cancellation that came meanwhile is raised, otherwise
    the work's result is returned, or its error raised.

    Both protections are needed: an anyio shield does not stop `task.cancel()`, and anyio's
    cancel scopes deliver their cancellation again at every await
    (https://anyio.readthedocs.io/en/stable/cancellation.html).

    Args:
        work: what ends the transaction.
        timeout: seconds until the connections are terminated.
        terminate: closes the connections at once, without waiting.
    """
    task = asyncio.create_task(work)
    cancelled: asyncio.CancelledError | None = None
    clock = asyncio.get_running_loop().time
    deadline = clock() + timeout
    last_resorts: list[Callable[[], object]] = [task.cancel, terminate]
    with anyio.CancelScope(shield=True):
        while not task.done():
            try:
                await asyncio.wait({task}, timeout=max(0.0, deadline - clock()))
            except asyncio.CancelledError as exc:
                cancelled = exc
            if clock() >= deadline and not task.done():
                if not last_resorts:
                    raise TimeoutError(f"The end of a unit of work hangs: {task!r}.")
                last_resorts.pop()()
                deadline = clock() + GRACE
    if cancelled is None:
        return task.result()
    if not task.cancelled() and (error := task.exception()) is not None:
        # The caller is cancelled and will hear nothing else.
        _log.error("A unit of work of a cancelled task could not be ended.", exc_info=error)
    raise cancelled


def end_transaction(session: UnitSession, *, commit: bool) -> tuple[Outcome, BaseException | None]:
    """Commit or roll back, and give the connections back.

    A commit that fails is rolled back.

    Returns:
        what became of the transaction, and the error that prevented or followed the commit.
    """
    if not commit:
        return Outcome.ROLLED_BACK, _roll_back(session)
    state = session.transaction_state
    try:
        session.commit()
    except BaseException as error:
        # BaseException: a commit that is cancelled has to be settled as well.
        if state.committed:
            # COMMIT was answered, and a listener of the app failed after it.
            _log.exception("An error after the COMMIT of a unit of work changes nothing.")
            session.close()
            return Outcome.COMMITTED, None if isinstance(error, Exception) else error
        outcome = _outcome_of_failed_commit(state, error)
        return outcome, _roll_back(session) or error
    return Outcome.COMMITTED, None


def terminate(connections: Iterable[Connection]) -> None:
    """Close connections at once. The server rolls back what was not being committed."""
    for connection in connections:
        if not connection.closed and not connection.invalidated:
            connection.invalidate()


def _outcome_of_failed_commit(state: TransactionState, error: BaseException) -> Outcome:
    if not state.commit_sent:
        return Outcome.ROLLED_BACK
    lost = not isinstance(error, Exception) or any(c.invalidated for c in state.connections)
    # With two databases and no two-phase commit, the first may have committed already.
    return Outcome.UNKNOWN if lost or len(state.connections) > 1 else Outcome.ROLLED_BACK


def _roll_back(session: UnitSession) -> BaseException | None:
    """Roll back. A rollback that fails destroys the connection, and with it the transaction:
    what was promised holds, so the error is logged; only a cancellation is returned.
    """
    connections = session.transaction_state.connections
    try:
        session.rollback()
    except BaseException as error:
        terminate(connections)
        if session.in_transaction():
            session.invalidate()
        if not isinstance(error, Exception):
            return error
        _log.warning("A rollback failed, so its connection was destroyed.", exc_info=error)
    return None
