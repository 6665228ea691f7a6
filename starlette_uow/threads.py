"""`uow.run_sync()`: the way from a worker thread to the unit's session, which lives in the loop."""

from __future__ import annotations

import asyncio
import inspect
from collections.abc import Callable
from typing import TYPE_CHECKING, Concatenate, ParamSpec, TypeVar

import anyio.from_thread
from sqlalchemy.orm import Session

from starlette_uow.context import current_unit
from starlette_uow.errors import ConfigurationError, WrongThreadError

if TYPE_CHECKING:
    from starlette_uow.uow import UnitOfWork

P = ParamSpec("P")
R = TypeVar("R")


def run_in_loop(
    uow: UnitOfWork,
    function: Callable[Concatenate[Session, P], R],
    *args: P.args,
    **kwargs: P.kwargs,
) -> R:
    """Call `function(session, ...)` in the loop that started this thread. See `run_sync()`."""
    if inspect.iscoroutinefunction(function):
        raise ConfigurationError(
            f"run_sync() needs a synchronous function, and got {function!r}. Declare it with "
            f"`def`, and let it take a Session."
        )
    if _is_on_event_loop():
        raise WrongThreadError.on_the_loop()
    arrived = False

    async def call() -> R:
        nonlocal arrived
        arrived = True
        session = current_unit(uow).session
        return await session.run_sync(function, *args, **kwargs)

    try:
        # In a copy of this thread's context, which is a copy of the request's.
        return anyio.from_thread.run(call)
    except RuntimeError as error:
        if arrived:
            raise
        raise WrongThreadError.no_way_back() from error


def _is_on_event_loop() -> bool:
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return False
    return True
