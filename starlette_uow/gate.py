"""One operation at a time: the turns that the tasks of a unit take on its session.

Pure asyncio: nothing here knows SQLAlchemy.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable
from typing import Any

from starlette_uow.errors import WrongLoopError, WrongThreadError

Task = asyncio.Task[Any]


class Gate:
    """Lets one task at a time operate on a session, first come first served.

    A task that has its turn may enter again (event listeners call back into the session);
    identity is the task, never a context variable, because child tasks inherit those.

    Attributes:
        last_task: the task that entered last.
        entered: how often a task has entered.
    """

    __slots__ = ("_closed", "_depth", "_loop", "_name", "_task", "_waiters", "entered", "last_task")

    def __init__(self, name: str) -> None:
        self._loop = asyncio.get_running_loop()
        self._name = name
        self._task: Task | None = None
        self._depth = 0
        self._waiters: deque[tuple[asyncio.Future[None], Task]] = deque()
        self._closed: Callable[[], Exception] | None = None
        self.last_task: Task | None = None
        self.entered = 0

    def try_enter(self) -> bool:
        """Take the turn if it is free or already the caller's.

        Raises:
            UnitEndedError: the gate is closed (or the error it was closed with).
            WrongLoopError, WrongThreadError: the caller runs elsewhere.
        """
        task = self._current_task()
        if self._task is None and not self._waiters:
            self._task = task
            self._depth = 1
        elif self._task is task:
            self._depth += 1
        else:
            return False
        self.last_task = task
        self.entered += 1
        return True

    async def enter(self, *, first: bool = False) -> None:
        """Wait for the turn, and take it.

        Args:
            first: go before everybody who waits already.

        A caller that is cancelled while it waits leaves the queue, and hands on a turn that it
        was given at the same moment: its cancellation costs nobody anything.
        """
        if self.try_enter():
            return
        task = self._current_task()
        future: asyncio.Future[None] = self._loop.create_future()
        waiter = (future, task)
        if first:
            self._waiters.appendleft(waiter)
        else:
            self._waiters.append(waiter)
        try:
            await future
        except asyncio.CancelledError:
            if self._task is task:
                self.leave()
            else:
                self._waiters.remove(waiter)
            raise
        self.last_task = task
        self.entered += 1

    def leave(self) -> None:
        """Give the turn back, or to the task that has waited longest."""
        self._depth -= 1
        if self._depth:
            return
        self._task = None
        if self._waiters:
            future, self._task = self._waiters.popleft()
            self._depth = 1
            future.set_result(None)

    def close(self, error: Callable[[], Exception]) -> None:
        """Refuse every later turn, and those who wait, with the error that `error()` makes."""
        self._closed = error
        while self._waiters:
            future, _ = self._waiters.popleft()
            future.set_exception(error())

    def check_open(self) -> None:
        """Raise the error that the gate was closed with, if it was."""
        if self._closed is not None:
            raise self._closed()

    def _current_task(self) -> Task:
        try:
            loop = asyncio.get_running_loop()
        except RuntimeError:
            raise WrongThreadError from None
        if loop is not self._loop:
            raise WrongLoopError(self._name)
        self.check_open()
        task = asyncio.current_task()
        assert task is not None, "a greenlet of SQLAlchemy always runs in a task"
        return task
