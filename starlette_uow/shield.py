"""Running something to completion whatever is cancelled, within a deadline."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Coroutine
from typing import Any, TypeVar

import anyio

T = TypeVar("T")

GRACE = 1.0
"""Seconds a work has to notice that it was terminated, or that it is cancelled."""

_log = logging.getLogger("starlette_uow")


async def to_completion(
    work: Coroutine[Any, Any, T],
    *,
    timeout: float,
    terminate: Callable[[], None],
    grace: float = GRACE,
) -> T:
    """Run `work` to its end in a task of its own, and only then let a cancellation go on.

    Order: the work runs; the caller waits, and absorbs native cancellations while it does;
    after `timeout`, `terminate()` is called, which should end the work with an error; a work that
    still runs is cancelled. Then a cancellation that came meanwhile is raised, otherwise
    the work's result is returned, or its error raised.

    Both protections are needed: an anyio shield does not stop `task.cancel()`, and anyio's
    cancel scopes deliver their cancellation again at every await
    (https://anyio.readthedocs.io/en/stable/cancellation.html).

    Args:
        work: what must not be interrupted.
        timeout: seconds until it is terminated.
        terminate: takes away what the work waits for, without waiting itself.
        grace: seconds the work may go on after that; 1 by default.

    Raises:
        TimeoutError: the work ignores that it was terminated and cancelled.
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
                    raise TimeoutError(f"The end of a transaction hangs: {task!r}.")
                last_resorts.pop()()
                deadline = clock() + (grace if last_resorts else GRACE)
    if cancelled is None:
        return task.result()
    if not task.cancelled() and (error := task.exception()) is not None:
        # The caller is cancelled and will hear nothing else.
        _log.error(
            "A transaction of a cancelled task could not be ended as wanted.", exc_info=error
        )
    raise cancelled
