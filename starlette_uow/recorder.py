"""What the units of a test did: which ran, how they ended, what they sent to the database."""

from __future__ import annotations

import weakref
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any

from sqlalchemy import event
from sqlalchemy.engine import Connection
from sqlalchemy.ext.asyncio import AsyncEngine

from starlette_uow.policy import Outcome
from starlette_uow.unit import Unit
from starlette_uow.uow import UnitOfWork


@dataclass
class RecordedUnit:
    """One unit of work, as the database saw it.

    Attributes:
        name: what it served: the method and path of a request, or "an `async with` block".
        outcomes: of its transactions, in order. A unit that sent nothing has none; a request
            whose body or background tasks used the session, too, has several.
        statements: all it sent, in order, savepoints included.
    """

    name: str
    outcomes: list[Outcome] = field(default_factory=list)
    statements: list[str] = field(default_factory=list)
    _sent_before: int = field(default=0, repr=False)

    def _ended(self, outcome: Outcome) -> None:
        if len(self.statements) > self._sent_before:
            self._sent_before = len(self.statements)
            self.outcomes.append(outcome)


class _WatchedUnit(Unit):
    def uses(self, connection: Connection) -> bool:
        session = self._sync_session
        return session is not None and connection in session.transaction_state.connections

    def _ended(self, outcome: Outcome) -> None:
        _recorded[self]._ended(outcome)
        super()._ended(outcome)


_recorded: weakref.WeakKeyDictionary[_WatchedUnit, RecordedUnit] = weakref.WeakKeyDictionary()


@contextmanager
def record(uow: UnitOfWork, engines: list[AsyncEngine]) -> Iterator[list[RecordedUnit]]:
    """A block that records the units of a definition, in the order in which they are opened."""
    records: list[RecordedUnit] = []
    open_unit = uow.open_unit

    def open_watched_unit(name: str, options: dict[str, Any] | None = None) -> Unit:
        unit = open_unit(name, options)
        unit.__class__ = _WatchedUnit
        assert isinstance(unit, _WatchedUnit)
        _recorded[unit] = recorded = RecordedUnit(name)
        records.append(recorded)
        return unit

    def note_statement(connection: Connection, cursor: object, statement: str, *_: object) -> None:
        if statement.startswith("BEGIN"):
            return  # SQLite's, by an event; PostgreSQL's comes from the driver
        for unit, recorded in _recorded.items():
            if unit.uses(connection):
                recorded.statements.append(statement)

    with ExitStack() as stack:
        for engine in engines:
            event.listen(engine.sync_engine, "before_cursor_execute", note_statement)
            stack.callback(
                event.remove, engine.sync_engine, "before_cursor_execute", note_statement
            )
        vars(uow)["open_unit"] = open_watched_unit
        stack.callback(vars(uow).pop, "open_unit")
        yield records
