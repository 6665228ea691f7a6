"""`sandbox()`: a test in which everything is real, and of which nothing stays in the database."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncGenerator
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Any, Literal

import anyio
from sqlalchemy.pool import QueuePool

from starlette_uow.clone import clones
from starlette_uow.errors import LeftOpenError, SandboxError
from starlette_uow.outer import OuterPool, outer_transaction
from starlette_uow.policy import Outcome
from starlette_uow.recorder import RecordedUnit, record
from starlette_uow.uow import UnitOfWork

__all__ = ["Outcome", "RecordedUnit", "Sandbox", "sandbox"]

GRACE = 1.0
"""Seconds that tasks have to finish when the test is over."""


class Sandbox:
    """What `async with sandbox(uow) as box:` gives.

    Attributes:
        units: those that ran in it, in the order in which they were opened.
    """

    def __init__(self, uow: UnitOfWork, units: list[RecordedUnit]) -> None:
        self.units = units
        self._uow = uow
        self._tasks_before = asyncio.all_tasks()

    async def _end_all(self) -> list[str]:
        """End what the test left open, and tell what it was."""
        tasks = {task for task in asyncio.all_tasks() - self._tasks_before if _is_of_the_test(task)}
        if tasks:
            _, tasks = await asyncio.wait(tasks, timeout=GRACE)
        units = sorted(unit.name for unit in self._uow._units)
        left = [f"the unit of {name}" for name in units] + sorted(map(_describe, tasks))
        for task in tasks:
            task.cancel()
        if tasks:
            await asyncio.wait(tasks, timeout=GRACE)
        for unit in list(self._uow._units):
            with contextlib.suppress(Exception):  # it is closed whatever comes of its end
                await unit.finish(commit=False)
        return left + [held for engine in self._uow._engines() for held in _held(engine.pool)]


@asynccontextmanager
async def sandbox(
    uow: UnitOfWork, *, database: Literal["shared", "clone"] = "shared"
) -> AsyncGenerator[Sandbox]:
    """A block of a test that leaves nothing in the database, whatever the app commits in it.

    With "shared", all that the engines of `uow` do is inside one transaction each, which is
    rolled back at the end of the block. A COMMIT is the release of a savepoint: deferred
    constraints are checked there, `on_commit` callbacks run, and what was committed is there for
    the units that follow. What differs from production:

    - Units take turns on one connection, and others see nothing. What needs a second one inside
      an open unit (`uow.new()`, a request inside a block of the test) is an error.
    - A statement that is cancelled while it runs, or a connection that is lost, ends the sandbox.
    - Isolation levels, pool sizes and pool timeouts do not apply.
    - On PostgreSQL, now() stands still, sequences go on counting after the block, NOTIFY is never
      delivered, and what a deferred trigger writes is undone.

    With "clone", each test has a copy of the database and nothing differs. The copy takes a
    while (PostgreSQL: CREATE DATABASE ... TEMPLATE, for which nobody may be connected to the
    original; SQLite: a file), and is dropped at the end.

    The app has to run in the event loop of the test: under `httpx.ASGITransport` or a uvicorn
    that was started there. Tasks that were started in the block have a second to finish at its
    end. What is open then is ended, and the test fails with what it was.

    Args:
        uow: whose engines to take over. Every definition on the same engines is inside, too.
        database: "shared", or "clone" for a database of its own.

    Raises:
        SandboxError: the test asks for what its sandbox cannot do; the message says what can.
        LeftOpenError: at the end, if units, tasks or connections are open. If the block failed
            already, its exception gets a note instead.
    """
    if uow._units:
        raise SandboxError.too_late(", ".join(sorted(unit.name for unit in uow._units)))
    engines = uow._engines()
    if not engines:
        raise SandboxError.unsupported(repr(uow))
    async with AsyncExitStack() as stack:
        if database == "clone":
            await stack.enter_async_context(clones(engines))
        else:
            for engine in engines:
                await stack.enter_async_context(outer_transaction(engine))
        box = Sandbox(uow, stack.enter_context(record(uow, engines)))
        failure: BaseException | None = None
        try:
            yield box
        except BaseException as error:
            failure = error
            raise
        finally:
            with anyio.CancelScope(shield=True):
                left = await box._end_all()
            if left and failure is not None:
                failure.add_note(str(LeftOpenError(left)))
        if left:
            raise LeftOpenError(left)


def _is_of_the_test(task: asyncio.Task[Any]) -> bool:
    # The pytest plugin of anyio ends a fixture in another task than the one it waits in.
    waits_for_us = "TestRunner._call_in_runner_task"
    return task is not asyncio.current_task() and waits_for_us not in _name(task)


def _name(task: asyncio.Task[Any]) -> str:
    return getattr(task.get_coro(), "__qualname__", repr(task))


def _describe(task: asyncio.Task[Any]) -> str:
    return f"the task {task.get_name()!r} ({_name(task)})"


def _held(pool: object) -> list[str]:
    if isinstance(pool, OuterPool) and pool.holder is not None:
        return [f"the connection, which {pool.holder.name} has"]
    if isinstance(pool, QueuePool) and (count := pool.checkedout()):
        return [f"{count} connections"]
    return []
