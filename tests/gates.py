"""What tasks do at a gate, for the tests of it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import asynccontextmanager
from typing import Any, TypeVar

from starlette_uow.gate import Gate, Hold

T = TypeVar("T")
Task = asyncio.Task[Any]


def is_idle(gate: Gate) -> bool:
    """Whether nobody has the turn, waits for it or holds the gate."""
    return gate._task is None and not gate._waiters and not gate._holds


@asynccontextmanager
async def turn(gate: Gate, **how: Any) -> AsyncIterator[None]:
    """Have the turn for a block."""
    await gate.enter(**how)
    try:
        yield
    finally:
        gate.leave()


@asynccontextmanager
async def held(gate: Gate) -> AsyncIterator[Hold]:
    """Hold the gate for a block, as a savepoint does; its end waits, whatever is cancelled."""
    async with turn(gate):
        hold = gate.hold("a savepoint")
    try:
        yield hold
    finally:
        await end(gate, hold)


async def end(gate: Gate, hold: Hold) -> None:
    """End a hold, from any task."""
    cancelled: BaseException | None = None
    entered = False
    while not entered:
        try:
            await gate.enter(inside=hold)
            entered = True
        except asyncio.CancelledError as error:
            cancelled = error
    gate.release(hold)
    gate.leave()
    if cancelled is not None:
        raise cancelled


async def step(count: int = 1) -> None:
    """Let the event loop go round so many times: that runs every task up to its next wait."""
    for _ in range(count):
        await asyncio.sleep(0)


async def started(work: Coroutine[Any, Any, Any]) -> Task:
    """A task that has run up to its first wait."""
    task = asyncio.create_task(work)
    await step()
    return task


async def note(gate: Gate, log: list[str], name: str, **how: Any) -> None:
    """Have the turn once, and write it down."""
    async with turn(gate, **how):
        log.append(name)


async def after(event: asyncio.Future[None], work: Callable[[], Coroutine[Any, Any, T]]) -> T:
    """Start the task now, and do the work later: it is outside of what is opened meanwhile."""
    await event
    return await work()
