"""`uow.tasks()`: a task group inside a unit, whose tasks are finished before the unit ends."""

from __future__ import annotations

from collections.abc import Callable, Coroutine
from typing import Any, TypeVarTuple

import anyio
import anyio.abc

from starlette_uow.errors import ConfigurationError

Args = TypeVarTuple("Args")


class UnitTasks:
    """What `async with uow.tasks() as tg:` gives: an anyio task group, with a limit.

    Attributes:
        cancel_scope: of all its tasks and of the block; `cancel_scope.cancel()` stops them.
    """

    def __init__(self, group: anyio.abc.TaskGroup, limit: int | None) -> None:
        self.cancel_scope = group.cancel_scope
        self._group = group
        self._limiter = None if limit is None else anyio.CapacityLimiter(limit)

    def start_soon(
        self,
        function: Callable[[*Args], Coroutine[Any, Any, object]],
        *args: *Args,
        name: object = None,
    ) -> None:
        """Run `function(*args)` in a task of this unit, as soon as the limit allows.

        Args:
            function: a coroutine function. What it returns is dropped.
            *args: for the function.
            name: of the task, for debuggers and messages; the function's name by default.
        """
        limiter = self._limiter
        name = name or getattr(function, "__qualname__", None)
        if limiter is None:
            self._group.start_soon(function, *args, name=name)
            return

        async def call_within_limit() -> None:
            async with limiter:
                await function(*args)

        self._group.start_soon(call_within_limit, name=name)


def check_limit(limit: int | None) -> None:
    """Raise `ConfigurationError` unless this many tasks can run at once."""
    if limit is not None and (not isinstance(limit, int) or limit < 1):
        raise ConfigurationError(
            f"`limit` has to be a whole number of at least 1 task at once, and is {limit!r}. "
            f"Leave it out for no limit."
        )
