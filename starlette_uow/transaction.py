"""The transactions and savepoints of a unit's session: they end in turn, too."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import anyio
from sqlalchemy.engine import Connection, Engine
from sqlalchemy.exc import DBAPIError
from sqlalchemy.exc import TimeoutError as PoolTimeoutError
from sqlalchemy.orm import SessionTransaction
from sqlalchemy.orm.session import SessionTransactionState
from sqlalchemy.util import await_only

from starlette_uow.errors import SessionDeadlockError
from starlette_uow.stream import enter_in_greenlet

if TYPE_CHECKING:
    from starlette_uow.session import UnitSession

ACTIVE = SessionTransactionState.ACTIVE
COMMITTED = SessionTransactionState.COMMITTED


class UnitTransaction(SessionTransaction):
    """A transaction or savepoint whose context manager ends it in turn, too."""

    session: UnitSession

    def commit(self, *args: Any, **kwargs: Any) -> None:
        self._in_turn(super().commit, *args, **kwargs)

    def rollback(self, *args: Any, **kwargs: Any) -> None:
        self._in_turn(super().rollback, *args, **kwargs)

    def close(self, *args: Any, **kwargs: Any) -> None:
        if self._state is COMMITTED:
            super().close(*args, **kwargs)  # by commit(), which has the turn
        else:
            self._in_turn(super().close, *args, **kwargs)

    def _connection_for_bind(self, bind: Any, execution_options: Any) -> Connection:
        # The one place where every operation takes its connection.
        taken = self._connections.get(bind)
        if taken is not None and self._state is ACTIVE and not execution_options:
            return taken[0]  # what SQLAlchemy does, after checks that a turn makes needless
        try:
            try:
                return super()._connection_for_bind(bind, execution_options)
            except DBAPIError as error:
                # It was dead in the pool. Nothing has been done on it, and SQLAlchemy has
                # discarded all that are as old.
                if not (error.connection_invalidated and self._takes_it_from(bind)):
                    raise
                return super()._connection_for_bind(bind, execution_options)
        except PoolTimeoutError as error:
            if self.parent is None:  # a savepoint asks its parent
                self.session._uow_owner.pool_timed_out(error, bind)
            raise

    def _takes_it_from(self, bind: Any) -> bool:
        return self.parent is None and isinstance(bind, Engine) and bind not in self._connections

    def _restore_snapshot(self, dirty_only: bool = False) -> None:
        # It expires every object that was changed, wherever.
        spared = self.session.changed_outside(self)
        for state in spared:
            state.modified = False
        super()._restore_snapshot(dirty_only)
        for state in spared:
            state.modified = True

    def _in_turn(self, end: Callable[..., None], *args: Any, **kwargs: Any) -> None:
        gate = self.session.gate
        hold = self.session.holds.get(self)
        enter_in_greenlet(gate, inside=hold)
        try:
            end(*args, **kwargs)
        finally:
            gate.leave()

    def __exit__(self, type_: Any, value: Any, traceback: Any) -> None:
        """Leave the block in turn, and although the task is cancelled while it waits for it: a
        savepoint that is left open would be committed with the transaction.

        All of it needs the turn: SQLAlchemy looks first which context manager is the innermost.
        """
        with anyio.CancelScope(shield=True):  # noqa: ASYNC100 - a greenlet awaits without `await`
            try:
                cancelled = self._enter()
            except Exception:
                if value is None or not self.session.gate.is_closed:
                    raise
                return  # the savepoint is gone with its unit; what left the block goes on
            try:
                if cancelled is not None and type_ is None:
                    type_, value = type(cancelled), cancelled
                super().__exit__(type_, value, traceback)
            finally:
                self.session.gate.leave()
        if cancelled is not None:
            raise cancelled

    def _enter(self) -> asyncio.CancelledError | None:
        gate = self.session.gate
        if gate.try_enter():
            return None
        try:
            return await_only(gate.enter(inside=self.session.holds.get(self), patient=True))
        except SessionDeadlockError as error:
            self.session._uow_owner.doomed("a savepoint could not be ended", error)
            raise
