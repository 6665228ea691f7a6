"""The sync `Session` below the unit's `AsyncSession`: it takes turns and knows its state.

`AsyncSession` runs everything that may do I/O through the sync session, inside a greenlet.
So the turn is taken here, once, for `execute` as for lazy loads, `run_sync` and any
`AsyncSession` subclass.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any, NamedTuple, Protocol
from weakref import WeakSet

from sqlalchemy import event
from sqlalchemy.engine import Connection, Engine
from sqlalchemy.exc import TimeoutError as PoolTimeoutError
from sqlalchemy.ext.asyncio import AsyncSession, async_sessionmaker
from sqlalchemy.orm import InstanceState, Session, SessionTransaction
from sqlalchemy.util import await_only, immutabledict

from starlette_uow.errors import SessionClassError
from starlette_uow.gate import Chain, Gate, Hold
from starlette_uow.guard import guard
from starlette_uow.policy import Outcome
from starlette_uow.state import TransactionState
from starlette_uow.stream import Stream, enter_in_greenlet, take_turns
from starlette_uow.transaction import UnitTransaction

_no_autoflush: ContextVar[tuple[Session, ...]] = ContextVar("no_autoflush", default=())

OPERATIONS = (
    "begin_nested",
    "bulk_insert_mappings",
    "bulk_save_objects",
    "bulk_update_mappings",
    "commit",
    "connection",
    "delete",
    "delete_all",
    "get",
    "get_one",
    "invalidate",
    "merge",
    "merge_all",
    "prepare",
    "refresh",
    "rollback",
)
"""The methods of `Session` that may do I/O, besides those written out below."""


class Owner(Protocol):
    """What a session tells its unit."""

    def root_ended(self, outcome: Outcome) -> None:
        """A transaction (not a savepoint) was ended by the app itself."""

    def savepoint_undone(self, undone: SessionTransaction) -> None:
        """A savepoint was rolled back."""

    def doomed(self, reason: str, error: Exception | None = None) -> None:
        """Something was lost."""

    def pool_timed_out(self, error: PoolTimeoutError, bind: Any) -> None:
        """The pool of a bind gave no connection."""


class UnitSession(Session):
    """The sync session of a unit. Made by `async_sessionmaker`, adopted by its unit.

    Attributes:
        gate: whose turn it is.
        transaction_state: what is known about the transaction that is open.
        holds: the holds of the savepoints that are open.
        released: the savepoint that is being released just now.
        is_being_ended: the owner ends the transaction, and knows more of it than this session.
        streams: the streaming results that were handed out.
        engine_options: execution options for the engines this session draws from.
    """

    gate: Gate
    transaction_state: TransactionState
    holds: dict[SessionTransaction, Hold]
    _uow_owner: Owner

    # Defaults of the class: most sessions set none of them.
    released: SessionTransaction | None = None
    is_being_ended = False
    streams: WeakSet[Stream] | None = None
    engine_options: Mapping[str, Any] = immutabledict()
    _engines: Mapping[Engine, Engine] = immutabledict()
    _kept_back: list[_KeptBack] | None = None

    def adopt(self, owner: Owner, name: str, *, wait_timeout: float) -> None:
        """Become the session of a unit.

        Raises:
            SessionClassError: the user's class has given it something of the same name.
        """
        if taken := sorted(_OWN_NAMES.intersection(vars(self))):
            raise _name_error(type(self), taken)
        self._uow_owner = owner
        self.transaction_state = TransactionState()
        self.holds = {}
        self.gate = Gate(name, wait_timeout=wait_timeout)
        self.identity_map._modified = _Changed(self)

    def begin(self, nested: bool = False) -> SessionTransaction:
        """Begin in turn. A savepoint belongs to this task, and to the tasks started inside it."""
        enter_in_greenlet(self.gate)
        try:
            transaction = super().begin(nested=nested)
            if nested:
                self.holds[transaction] = self.gate.hold("a savepoint")
        finally:
            self.gate.leave()
        return transaction

    def close(self) -> None:
        """Close, which undoes what was written: `async with current_session()` does it unawares."""
        self._give_up("close", super().close)

    def reset(self) -> None:
        """Reset, which is a close."""
        self._give_up("reset", super().reset)

    def _give_up(self, name: str, close: Callable[[], None]) -> None:
        enter_in_greenlet(self.gate)
        try:
            wrote = self.transaction_state.wrote or not self._is_clean()
            close()
        finally:
            self.gate.leave()
        if wrote and not self.is_being_ended:
            self._uow_owner.doomed(
                f"session.{name}() undid what had been written (`async with` on the session itself "
                f"does so at its end: leave that out)"
            )

    def flush(self, *args: Any, **kwargs: Any) -> None:
        """Flush in turn, with what was added while this operation ran: a commit flushes twice."""
        enter_in_greenlet(self.gate)
        try:
            if not self._flushing:
                self._apply_kept_back()
                self.transaction_state.wrote |= not self._is_clean()
            super().flush(*args, **kwargs)
        finally:
            self.gate.leave()

    def _execute_internal(self, statement: Any, *args: Any, **kwargs: Any) -> Any:
        # Where execute(), scalar() and scalars() meet, and what listeners invoke.
        gate = self.gate
        if not gate.try_enter():
            await_only(gate.enter())
        try:
            result = super()._execute_internal(statement, *args, **kwargs)
            if statement.is_dml:
                self.transaction_state.wrote = True
            if (stream := take_turns(result, gate)) is not None:
                if self.streams is None:
                    self.streams = WeakSet()
                self.streams.add(stream)
        finally:
            gate.leave()
        return result

    def add(self, instance: object, *args: Any, **kwargs: Any) -> None:
        """Add, unless the unit has ended: nothing would ever write the object."""
        self.gate.check_usable()
        super().add(instance, *args, **kwargs)

    def _save_or_update_state(self, state: InstanceState[Any]) -> None:
        # Where add() and cascades meet. Neither can wait, and an object that is added while
        # another task's operation runs or its savepoint is open could be lost with it.
        self.gate.note_use()
        if self.gate.is_free() or state.session not in (None, self):  # which raises
            super()._save_or_update_state(state)
        else:
            self.keep_back(state, changed=False)

    def keep_back(self, state: InstanceState[Any], *, changed: bool) -> None:
        """Add an object, or what was changed of it, when nothing of another task's can undo it."""
        if self._kept_back is None:
            self._kept_back = []
        self._kept_back.append(_KeptBack(state, state.obj(), self.gate.chain(), changed))
        self.gate.when_free = self._apply_kept_back

    def changed_outside(self, savepoint: SessionTransaction) -> list[InstanceState[Any]]:
        """Objects that tasks outside of a savepoint changed meanwhile."""
        hold = self.holds.get(savepoint)
        return [k.state for k in self._kept_back or () if k.changed and hold not in k.chain]

    def expunge_all(self) -> None:
        """Forget all objects."""
        super().expunge_all()
        if not self.gate.is_closed:
            self.identity_map._modified = _Changed(self)

    @property
    @contextmanager
    def no_autoflush(self) -> Iterator[Any]:
        """A block without autoflush, for this task and those it starts."""
        before = _no_autoflush.get()
        _no_autoflush.set((*before, self))
        try:
            yield self
        finally:
            _no_autoflush.set(before)

    def _autoflush(self) -> None:
        # Called inside an operation, so in turn: nothing to flush needs no turn of its own.
        if (self._kept_back or not self._is_clean()) and self not in _no_autoflush.get():
            super()._autoflush()

    def _flush_warning(self, method: Any) -> None:
        # SQLAlchemy warns of changes by listeners of the flush. Other tasks may make theirs.
        if self.gate.is_free():
            super()._flush_warning(method)

    def _apply_kept_back(self) -> None:
        if not self._kept_back:
            return
        self.gate.when_free = None
        kept_back, self._kept_back = self._kept_back, []
        for entry in kept_back:
            if not self.gate.is_safe(entry.chain):
                self._kept_back.append(entry)
                self.gate.when_free = self._apply_kept_back
            elif entry.changed:
                # Or it was expired or expunged meanwhile.
                if entry.state.modified and self.identity_map.contains_state(entry.state):
                    set.add(self.identity_map._modified, entry.state)
                    self._autobegin_t()  # the transaction it was made in may have ended
            else:
                try:
                    super()._save_or_update_state(entry.state)
                except Exception as error:
                    # Whoever gives the turn back just now has nothing to do with it.
                    self._uow_owner.doomed("an object could not be added to the session", error)

    def set_engine_options(self, options: dict[str, Any]) -> None:
        """Choose the options for the transactions that begin from now on."""
        self.engine_options = options
        self._engines = {}


class _KeptBack(NamedTuple):
    """What a task did beside another's operation or savepoint, without a way to wait."""

    state: InstanceState[Any]
    instance: object  # keeps it alive
    chain: Chain
    changed: bool


class _Changed(set[InstanceState[Any]]):
    """The changed objects of a session. A change beside another task's savepoint is kept back:
    a flush in there would write it, and the savepoint take it along when it fails.
    """

    def __init__(self, session: UnitSession) -> None:
        super().__init__()
        self._session = session

    def add(self, state: InstanceState[Any]) -> None:
        self._session.gate.note_use()
        if self._session.gate.is_free():
            super().add(state)
        else:
            self._session.keep_back(state, changed=True)


class _Binding(UnitSession):
    """Comes before the user's class, whose `get_bind` may be its own."""

    def get_bind(self, *args: Any, **kwargs: Any) -> Any:
        """The engine, with the options of this unit: SQLAlchemy's documented way to choose an
        isolation level for one session is to bind it to `engine.execution_options(...)`.
        """
        bind = super().get_bind(*args, **kwargs)
        if not self.engine_options or not isinstance(bind, Engine):
            return bind
        if bind not in self._engines:
            chosen = bind.execution_options(**self.engine_options)
            self._engines = {**self._engines, bind: chosen}
        return self._engines[bind]


def _operation(name: str) -> Callable[..., Any]:
    def operation(self: UnitSession, *args: Any, **kwargs: Any) -> Any:
        enter_in_greenlet(self.gate)
        try:
            return getattr(super(UnitSession, self), name)(*args, **kwargs)
        finally:
            self.gate.leave()

    operation.__name__ = name
    operation.__qualname__ = f"UnitSession.{name}"
    operation.__doc__ = getattr(Session, name).__doc__
    return operation


for _name in OPERATIONS:
    if hasattr(Session, _name):  # delete_all and merge_all are new in SQLAlchemy 2.1
        setattr(UnitSession, _name, _operation(_name))


_OWN_NAMES = {*vars(UnitSession), *UnitSession.__annotations__} - set(dir(Session))
"""What a user's session class must not define, as it comes before `UnitSession`."""


@event.listens_for(UnitSession, "after_transaction_create")
def _after_transaction_create(session: UnitSession, transaction: SessionTransaction) -> None:
    if transaction.nested or transaction.parent is None:
        transaction.__class__ = UnitTransaction


@event.listens_for(UnitSession, "after_begin")
def _after_begin(
    session: UnitSession, transaction: SessionTransaction, connection: Connection
) -> None:
    if not transaction.nested:
        guard(connection.engine)
        session.transaction_state.watch(connection)


@event.listens_for(UnitSession, "after_commit")
def _after_commit(session: UnitSession) -> None:
    # The event fires on the release of a savepoint, too.
    session.released = session.get_nested_transaction()
    if session.released is None:
        session.transaction_state.committed = True


@event.listens_for(UnitSession, "after_transaction_end")
def _after_transaction_end(session: UnitSession, transaction: SessionTransaction) -> None:
    if transaction.nested:
        # Not "after_soft_rollback": a savepoint whose flush failed is only closed.
        if transaction is not session.released:
            session._uow_owner.savepoint_undone(transaction)
        session.released = None
        if (hold := session.holds.pop(transaction, None)) is not None:
            session.gate.release(hold)
    elif transaction.parent is None:
        ended, session.transaction_state = session.transaction_state, TransactionState()
        ended.unwatch()
        if not session.is_being_ended:
            session._uow_owner.root_ended(ended.outcome)


def _name_error(session_class: type[Session], names: list[str]) -> SessionClassError:
    reason = f"it calls something {', '.join(map(repr, names))}, as units do"
    return SessionClassError(session_class, reason, "Choose another name.")


def unit_session_class(sessions: async_sessionmaker[AsyncSession]) -> type[UnitSession]:
    """The user's sync session class, made to take turns.

    Raises:
        SessionClassError: the sessionmaker names no subclass of `Session`, or one that defines
            what `UnitSession` does.
    """
    configured: Any = sessions.kw.get("sync_session_class") or sessions.class_.sync_session_class
    if not (isinstance(configured, type) and issubclass(configured, Session)):
        raise SessionClassError(
            sessions.class_, f"its sync_session_class is {configured!r}, not a class of sessions"
        )
    if configured is Session:
        return _Binding
    if taken := sorted(_OWN_NAMES.intersection(dir(configured))):
        raise _name_error(configured, taken)
    # The user's class comes before UnitSession, so that what its methods call through super()
    # takes turns, too: the `exec` of SQLModel, for example.
    bases = (_Binding, configured, UnitSession)
    return type(configured.__name__, bases, {"__doc__": configured.__doc__})
