"""The context variable that holds the open units, and how to look one up in it."""

from __future__ import annotations

import asyncio
import weakref
from collections.abc import Callable, Mapping
from contextvars import ContextVar
from copy import copy
from typing import TYPE_CHECKING, Any

from starlette_uow.errors import NoUnitError
from starlette_uow.gate import check_loop
from starlette_uow.unit import Unit

if TYPE_CHECKING:
    from starlette_uow.uow import UnitOfWork

_served: weakref.WeakSet[UnitOfWork] = weakref.WeakSet()


class Frame:
    """One entry of the context: a unit that was opened or joined here, or why there is none.

    Attributes:
        uow: whose unit it is.
        opened: the unit; None where `absence` says why there is none.
        outer: the entry around it.
        joined: the unit was open already, so leaving this entry does not end it.
        owner: what opened the entry, to be found by who takes it off again.
        operations: how many operations the unit had run when it was joined.
        absence: makes the error for a context that is not served.
    """

    def __init__(
        self,
        uow: UnitOfWork,
        opened: Unit | None,
        outer: Frame | None,
        *,
        owner: object,
        joined: bool = False,
        absence: Callable[[], NoUnitError] | None = None,
    ) -> None:
        self.uow = uow
        self.opened = opened
        self.outer = outer
        self.owner = owner
        self.joined = joined
        self.operations = 0 if opened is None else opened.operations
        self.absence = absence

    @property
    def unit(self) -> Unit | None:
        """The unit."""
        return self.opened


class RequestFrame(Frame):
    """The entry of a request, whose unit is opened when somebody asks for it.

    It is kept small: a connection that is opened in the request keeps the request's context.
    """

    opened: Unit | None = None
    joined = False
    operations = 0
    absence = None
    _is_over = False

    def __init__(
        self, uow: UnitOfWork, outer: Frame | None, owner: object, scope: Mapping[str, Any]
    ) -> None:
        self.uow = uow
        self.outer = outer
        self.owner = owner
        self._method = scope.get("method", "websocket")
        self._path = scope["path"]
        self._loop = asyncio.get_running_loop()
        uow._units.add(self)

    @property
    def name(self) -> str:
        """Of the unit."""
        return f"{self._method} {self._path}"

    @property
    def unit(self) -> Unit:
        """The unit, open or ended.

        Raises:
            WrongThreadError, WrongLoopError: the caller, who is the first, runs elsewhere.
        """
        if self.opened is None:
            check_loop(self._loop, self.name)
            self.opened = self.uow.open_unit(self.name)
            self.uow._units.discard(self)
            if self._is_over:
                self.opened.close()
        return self.opened

    def forgo(self) -> None:
        """Refuse every later use, where nobody has asked for the unit."""
        self._is_over = True
        self.uow._release(self)

    async def finish(self, *, commit: bool) -> None:
        """End the unit, and refuse every later use. Raises as `Unit.finish` does."""
        if self.opened is None:
            self.forgo()
        else:
            await self.opened.finish(commit=commit)


current_frame: ContextVar[Frame | None] = ContextVar("starlette_uow", default=None)


def mark_served(uow: UnitOfWork) -> None:
    """Note that a middleware serves this unit of work, for the messages of errors."""
    _served.add(uow)


def frame_of(uow: UnitOfWork | None) -> Frame | None:
    """The innermost entry of a unit of work, or of any."""
    frame = current_frame.get()
    while frame is not None and uow is not None and frame.uow is not uow:
        frame = frame.outer
    return frame


def current_unit(uow: UnitOfWork | None) -> Unit:
    """The unit that is open in this context.

    Raises:
        NoUnitError: there is none; the message says what is missing.
    """
    frame = current_frame.get() if uow is None else frame_of(uow)
    if frame is None:
        raise NoUnitError.nowhere(uow, served=bool(_served) if uow is None else uow in _served)
    if (unit := frame.unit) is None:
        assert frame.absence is not None
        raise frame.absence()
    return unit


def open_units() -> list[Unit]:
    """The units of this context, each once, the innermost first."""
    units: dict[Unit, None] = {}
    frame = current_frame.get()
    while frame is not None:
        if frame.opened is not None:
            units[frame.opened] = None
        frame = frame.outer
    return list(units)


def without(frame: Frame | None, gone: Frame) -> Frame | None:
    """The entries without one of them, which need not be the innermost."""
    if frame is None or frame is gone:
        return None if frame is None else frame.outer
    inner = copy(frame)
    inner.outer, inner.opened = without(frame.outer, gone), frame.unit
    return inner
