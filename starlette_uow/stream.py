"""Results, which outlive the operation that made them: what is left to do with their cursors is
done in turn, and one can tell whether rows are left on the server.

A streaming result fetches past the session, and `AsyncResult.closed` stays False after its last
row. So the class of its cursor result is replaced by a subclass that enters the gate, and that
notes when the cursor is closed.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator
from typing import Any

from sqlalchemy.engine import CursorResult, Result
from sqlalchemy.util import await_only

from starlette_uow.gate import Gate, Hold


def enter_in_greenlet(gate: Gate, *, inside: Hold | None = None) -> None:
    """Take the turn, from code that SQLAlchemy runs in a greenlet."""
    if not gate.try_enter():
        await_only(gate.enter(inside=inside))


class Stream:
    """Lives as long as its result does, which cannot be referenced weakly itself."""

    __slots__ = ("__weakref__", "gate", "is_open")

    def __init__(self, gate: Gate) -> None:
        self.gate = gate
        self.is_open = True


def take_turns(result: object, gate: Gate) -> Stream | None:
    """Fetch the rows of a result in turn from now on, if it has a cursor on the server.

    All others have been fetched, and may be read outside of SQLAlchemy's greenlet. Their cursor
    is closed now, by the caller who has the turn: SQLite waits for that, and if it is
    cancelled then, SQLAlchemy takes the connection away from whoever uses it.
    """
    if not isinstance(result, Result):
        return None  # of scalar(): an object whose attributes may be anything
    cursor_result: Any = getattr(result, "raw", result)
    if not isinstance(cursor_result, CursorResult) or cursor_result._soft_closed:
        return None
    if not cursor_result.context._is_server_side:
        if getattr(cursor_result.cursor, "_awaitable_cursor_close", False):
            await_only(cursor_result.cursor._async_soft_close())
        return None
    if isinstance(cursor_result, _InTurn):
        return None  # a listener has executed it
    cls: Any = cursor_result.__class__
    cursor_result.__class__ = _in_turn(cls)
    cursor_result.__dict__["_stream"] = stream = Stream(gate)
    return stream


@functools.cache
def _in_turn(base: Any) -> type[CursorResult[Any]]:
    return type(base.__name__, (_InTurn, base), {"__slots__": (), "__doc__": base.__doc__})


class _InTurn:
    __slots__ = ()

    def _fetchone_impl(self, *args: Any, **kwargs: Any) -> Any:
        return _call(self, "_fetchone_impl", *args, **kwargs)

    def _fetchmany_impl(self, *args: Any, **kwargs: Any) -> Any:
        return _call(self, "_fetchmany_impl", *args, **kwargs)

    def _fetchall_impl(self, *args: Any, **kwargs: Any) -> Any:
        return _call(self, "_fetchall_impl", *args, **kwargs)

    def _fetchiter_impl(self) -> Iterator[Any]:
        while (row := self._fetchone_impl()) is not None:
            yield row

    def _soft_close(self, *args: Any, **kwargs: Any) -> None:
        gate: Gate = self.__dict__["_stream"].gate
        try:
            if gate.is_closed:  # the transaction is over, so nothing is left to wait for
                getattr(super(), "_soft_close")(*args, **kwargs)  # noqa: B009 - a mixin's super
            else:
                _call(self, "_soft_close", *args, **kwargs)
        finally:
            self.__dict__["_stream"].is_open = False


def _call(result: _InTurn, name: str, *args: Any, **kwargs: Any) -> Any:
    gate: Gate = result.__dict__["_stream"].gate
    enter_in_greenlet(gate)
    try:
        return getattr(super(_InTurn, result), name)(*args, **kwargs)
    finally:
        gate.leave()
