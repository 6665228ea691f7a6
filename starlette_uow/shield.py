"""Running something to completion whatever is cancelled, within a deadline."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Coroutine
from contextlib import nullcontext
from typing import Any, TypeVar

import anyio

from starlette_uow.inline import InlineTask

try:
    from anyio._backends._asyncio import _task_states
except ImportError:  # its name for the scopes of tasks; a later anyio may have another
    _task_states = None  # type: ignore[assignment]

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
    """Run `work` to its end, and only then let a cancellation go on.

    Order: the work runs, in the caller but as a task of its own, so that the caller's
    cancellations do not reach it: they are absorbed meanwhile; after `timeout`, `terminate()` is
    called, which should end the work with an error; a work that still runs is cancelled. Then a
    cancellation that came meanwhile is raised, otherwise the work's result is returned, or its
    error raised.

    Both protections are needed: an anyio shield does not stop `task.cancel()`, and anyio's
    cancel scopes deliver their cancellation again at every await
    (https://anyio.readthedocs.io/en/stable/cancellation.html).

    Args:
        work: what must not be interrupted.
        timeout: seconds until it is terminated.
        terminate: takes away what the work waits for, without waiting itself.
        grace: seconds the work may go on after that; 1 by default.

    Raises:
        TimeoutError: the work ignores that it was terminated and cancelled. It goes on alone.
    """
    task = InlineTask(work)
    last_resorts = _LastResorts([(terminate, timeout), (task.cancel, grace), (task.leave, GRACE)])
    cancelled: asyncio.CancelledError | None = None
    try:
        with anyio.CancelScope(shield=True) if _is_in_scope() else nullcontext():
            while last_resorts.remain and not task.done():
                try:
                    await task.run()
                except asyncio.CancelledError as error:
                    cancelled = error
    finally:
        last_resorts.cancel()
    if not task.done():
        _go_on_alone(task)
        raise TimeoutError(f"What has to be completed hangs: {work!r}.")
    if cancelled is None:
        return task.result()
    failed = None if task.cancelled() else task.exception()
    if failed is not None and not isinstance(failed, Exception):
        raise failed  # the process is to end
    if failed is not None:
        # The caller is cancelled and will hear nothing else.
        _log.error("What a cancelled task had to complete has failed.", exc_info=failed)
    raise cancelled


def _is_in_scope() -> bool:
    """Whether anyio may cancel the current task. A shield costs more than to ask."""
    task = asyncio.current_task()
    if _task_states is None or task is None:
        return True
    state = _task_states.get(task)
    return state is not None and state.cancel_scope is not None


_given_up: set[asyncio.Task[None]] = set()
"""asyncio itself refers to tasks only weakly."""


def _go_on_alone(work: InlineTask[Any]) -> None:
    """Let it come to its end, however late: it may be about to give a connection back."""

    async def run() -> None:
        await work.run()

    task = asyncio.create_task(run())
    _given_up.add(task)
    task.add_done_callback(_given_up.discard)


class _LastResorts:
    """What is done against a work that takes too long: one thing after the other, so many seconds
    after the last.
    """

    def __init__(self, resorts: list[tuple[Callable[[], object], float]]) -> None:
        self.remain = resorts
        self._loop = asyncio.get_running_loop()
        self._timer = self._loop.call_later(resorts[0][1], self._resort)

    def _resort(self) -> None:
        (resort, _), *self.remain = self.remain
        if self.remain:
            self._timer = self._loop.call_later(self.remain[0][1], self._resort)
        resort()

    def cancel(self) -> None:
        self._timer.cancel()
