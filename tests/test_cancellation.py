"""Tasks of a unit that are cancelled, at every step, and tasks that outlive their unit."""

from __future__ import annotations

import asyncio
import functools
import itertools
import logging
import types
from collections.abc import Callable, Coroutine, Generator
from typing import Any

import anyio
import pytest
from sqlalchemy import insert, select
from sqlalchemy.exc import SQLAlchemyError
from sqlalchemy.ext.asyncio import AsyncEngine

from starlette_uow import UnitDoomedError, UnitEndedError, UnitOfWork, UnitOfWorkError
from tests.databases import Database
from tests.models import Item
from tests.scenarios import Boom, query, step

OTHERS = [f"other {number} {turn}" for number in range(3) for turn in range(3)]

Victim = Callable[[UnitOfWork], Coroutine[Any, Any, None]]


async def other(uow: UnitOfWork, number: int) -> None:
    """Work that must not be harmed, or be told that it is lost."""
    for turn in range(3):
        async with uow.savepoint():
            await uow.session.execute(insert(Item).values(name=f"other {number} {turn}"))
        await uow.session.execute(select(Item.id))


async def read(uow: UnitOfWork) -> None:
    """Only waits and reads."""
    for _ in range(3):
        await uow.session.execute(select(Item))


async def load(uow: UnitOfWork) -> None:
    """As loaders do: SQLAlchemy closes the cursor after the statement, which SQLite waits for."""
    for _ in range(3):
        await uow.session.run_sync(lambda session: session.scalars(select(Item)).all())


async def stream(uow: UnitOfWork) -> None:
    """Holds a cursor open."""
    names = select(Item.name).order_by(Item.id)
    result = await uow.session.stream(names, execution_options={"yield_per": 1})
    async for _ in result:
        await step()


async def savepoint(uow: UnitOfWork) -> None:
    """All of it, or nothing."""
    async with uow.savepoint():
        uow.session.add(Item(name="victim 1"))
        await uow.session.flush()
        uow.session.add(Item(name="victim 2"))


async def nested_savepoints(uow: UnitOfWork) -> None:
    """The inner one has been released when the outer one is undone."""
    async with uow.savepoint():
        async with uow.savepoint():
            await uow.session.execute(insert(Item).values(name="victim 1"))
        await uow.session.execute(select(Item))
        await uow.session.execute(insert(Item).values(name="victim 2"))


async def savepoint_with_children(uow: UnitOfWork) -> None:
    """Its end waits for what its children are doing, although it is cancelled."""

    async def child(name: str) -> None:
        async with uow.savepoint():
            await uow.session.execute(insert(Item).values(name=name))

    async with uow.savepoint():
        await asyncio.gather(child("victim 1"), child("victim 2"))


async def failing_savepoint(uow: UnitOfWork) -> None:
    """Its rollback is cancelled."""
    try:
        async with uow.savepoint():
            await uow.session.execute(insert(Item).values(name="victim 3"))
            raise Boom
    except Boom:
        pass


async def savepoint_left_while_a_child_works(uow: UnitOfWork, error: bool = False) -> None:
    """Its end waits for the turn, and is cancelled there."""

    async def child() -> None:
        async with uow.savepoint():
            await uow.session.execute(insert(Item).values(name="victim 2"))

    tasks: list[asyncio.Task[None]] = []
    try:
        async with uow.savepoint():
            await uow.session.execute(insert(Item).values(name="victim 1"))
            tasks.append(asyncio.create_task(child()))
            await step()
            if error:
                raise Boom
    except Boom:
        pass
    finally:
        await asyncio.gather(*tasks, return_exceptions=True)


async def failing_savepoint_left_while_a_child_works(uow: UnitOfWork) -> None:
    """The same with its rollback."""
    await savepoint_left_while_a_child_works(uow, error=True)


VICTIMS: list[Victim] = [
    savepoint_left_while_a_child_works,
    failing_savepoint_left_while_a_child_works,
    read,
    load,
    stream,
    savepoint,
    nested_savepoints,
    savepoint_with_children,
    failing_savepoint,
]


@types.coroutine
def cancelled_at_wait(work: Coroutine[Any, Any, None], number: int) -> Generator[Any, Any, bool]:
    """Await `work`, and cancel the task when it waits for the so-and-so-many-th time.

    Returns:
        False: it did not wait so often.
    """
    loop, task = asyncio.get_running_loop(), asyncio.current_task()
    assert task is not None
    resume: Callable[[], Any] = functools.partial(work.send, None)
    waits = 0
    while True:
        try:
            awaited = resume()
        except StopIteration:
            return waits >= number
        waits += 1
        if waits == number:
            loop.call_soon(task.cancel)
        try:
            yield awaited
            resume = functools.partial(work.send, None)
        except BaseException as error:
            resume = functools.partial(work.throw, error)


@pytest.mark.parametrize("victim", VICTIMS, ids=lambda victim: victim.__name__)
async def test_task_that_is_cancelled_at_any_wait(
    uow: UnitOfWork, database: Database, engine: AsyncEngine, victim: Victim
) -> None:
    """The unit commits the work of the others, or says why it cannot; the next unit works."""
    reached, number = True, 0
    while reached:
        number += 1
        await query(database, "delete from items")
        doomed = None
        errors: list[Any] = []
        try:
            async with uow:
                cancelled = asyncio.ensure_future(cancelled_at_wait(victim(uow), number))
                others = [asyncio.ensure_future(other(uow, n)) for n in range(3)]
                errors = await asyncio.gather(*others, return_exceptions=True)
                await asyncio.wait({cancelled})
        except UnitDoomedError as error:
            doomed = str(error)
        names = await database.observer.names()
        where = f"cancelled at wait {number}: {names}, {errors}, {doomed}, {cancelled}"
        reached = cancelled.cancelled() or cancelled.result()

        assert engine.pool.checkedout() == 0, where  # type: ignore[attr-defined]
        assert all(isinstance(e, SQLAlchemyError | UnitOfWorkError | None) for e in errors), where
        if doomed:
            assert "Cancelled" in doomed, where
            assert names == [], where
        else:
            assert errors == [None, None, None], where
            assert [name for name in names if name.startswith("other")] == OTHERS, where
            victims = [name for name in names if name.startswith("victim")]
            assert victims in ([], ["victim 1", "victim 2"]), where
        async with uow:
            uow.session.add(Item(name="next"))


async def test_commit_after_a_cancelled_statement_says_why_it_cannot(
    uow: UnitOfWork, database: Database
) -> None:
    """Also if the commit would begin with a flush, which fails before the COMMIT is sent."""
    with pytest.raises(UnitDoomedError, match="CancelledError"):
        async with uow:
            await uow.session.execute(select(Item))
            cancelled = asyncio.ensure_future(cancelled_at_wait(read(uow), 1))
            await asyncio.wait({cancelled})
            uow.session.add(Item(name="lost"))

    assert await database.observer.names() == []


async def test_changes_beside_a_cancelled_flush_go_without_a_warning(
    uow: UnitOfWork, database: Database, caplog: pytest.LogCaptureFixture
) -> None:
    """Of a unit that is rolled back: SQLAlchemy's warning would be about other tasks' doings."""

    async def flush() -> None:
        uow.session.add(Item(name="flushed"))
        await uow.session.flush()

    with caplog.at_level(logging.WARNING, "starlette_uow"), pytest.raises(Boom):
        async with uow:
            kept, deleted = Item(name="kept"), Item(name="deleted")
            uow.session.add_all([kept, deleted])
            await uow.checkpoint()
            await uow.session.execute(select(Item))
            await uow.session.delete(deleted)
            flushed = asyncio.ensure_future(cancelled_at_wait(flush(), 1))
            await step()
            uow.session.add(Item(name="added"))
            await asyncio.wait({flushed})
            kept.name = "changed"
            raise Boom

    assert flushed.cancelled()
    assert caplog.messages == []
    assert await database.observer.names() == ["deleted", "kept"]


async def test_savepoint_in_a_cancelled_anyio_scope_is_ended(
    uow: UnitOfWork, database: Database
) -> None:
    """Its end is cancelled at every wait; it waits on, and is undone all the same."""
    opened, leave = asyncio.Event(), asyncio.Event()

    async def child() -> None:
        async with uow.savepoint():
            opened.set()
            await leave.wait()

    async with uow:
        with anyio.CancelScope() as scope:
            async with uow.savepoint():
                await uow.session.execute(insert(Item).values(name="victim"))
                task = asyncio.create_task(child())
                await opened.wait()
                scope.cancel()
                asyncio.get_running_loop().call_later(0.02, leave.set)
                await step()
        await task
        uow.session.add(Item(name="kept"))

    assert await database.observer.names() == ["kept"]


@pytest.mark.parametrize("times", [1, 2])
async def test_savepoint_whose_end_is_cancelled_while_it_waits_for_the_turn_is_undone(
    uow: UnitOfWork, database: Database, times: int
) -> None:
    """Left open, it would be committed with the unit. Its task ends only after it."""
    opened, leave = asyncio.Event(), asyncio.Event()
    children: list[asyncio.Task[None]] = []

    async def child() -> None:
        async with uow.savepoint():
            opened.set()
            await leave.wait()

    async def victim() -> None:
        async with uow.savepoint():
            await uow.session.execute(insert(Item).values(name="victim"))
            children.append(asyncio.create_task(child()))
            await opened.wait()

    async with uow:
        task = asyncio.create_task(victim())
        await opened.wait()
        await step()
        for _ in range(times):
            task.cancel()
            await step()
            assert not task.done()
        leave.set()
        await asyncio.wait({task, *children})
        uow.session.add(Item(name="kept"))

    assert task.cancelled()
    assert await database.observer.names() == ["kept"]


async def test_savepoint_left_while_a_childs_is_open_waits_for_it(
    uow: UnitOfWork, database: Database
) -> None:
    """And the session can be used afterwards."""

    async def child() -> None:
        async with uow.savepoint():
            await uow.session.execute(insert(Item).values(name="child"))

    async with uow:
        async with uow.savepoint():
            task = asyncio.create_task(child())
            await step()
        await task
        uow.session.add(Item(name="after"))
        await uow.session.flush()

    assert await database.observer.names() == ["after", "child"]


# --- tasks that outlive their unit ---------------------------------------------------------


async def stray(uow: UnitOfWork, name: str, sent: list[str]) -> None:
    """Writes until it is stopped."""
    for number in itertools.count():
        await uow.session.execute(insert(Item).values(name=f"{name} {number}"))
        sent.append(f"{name} {number}")


@pytest.mark.parametrize("warm", [False, True])
@pytest.mark.parametrize("fails", [False, True])
async def test_stray_tasks_are_stopped_by_the_end(
    uow: UnitOfWork, database: Database, engine: AsyncEngine, warm: bool, fails: bool
) -> None:
    """Each gets an error, holds no connection, and writes nothing after the end."""
    for count in range(12):
        await query(database, "delete from items")
        if not warm:
            await engine.dispose()
        sent: list[str] = []
        try:
            async with uow:
                tasks = [asyncio.ensure_future(stray(uow, name, sent)) for name in "abc"]
                await step(count * count)
                if fails:
                    raise Boom
        except Boom:
            pass
        done, waiting = await asyncio.wait(tasks, timeout=5)
        names = await database.observer.names()
        where = f"left after {count * count} steps: {sent}, {names}, {tasks}"

        assert not waiting, where
        assert {type(task.exception()) for task in done} == {UnitEndedError}, where
        assert names == ([] if fails else sorted(sent)), where
        assert engine.pool.checkedout() == 0, where  # type: ignore[attr-defined]


async def test_rollback_over_the_savepoint_of_a_stray_task(
    uow: UnitOfWork, database: Database
) -> None:
    """The savepoint is gone; what the unit does next is not harmed."""
    opened, leave = asyncio.Event(), asyncio.Event()

    async def hold() -> None:
        async with uow.savepoint():
            await uow.session.execute(insert(Item).values(name="undone"))
            opened.set()
            await leave.wait()

    async with uow:
        task = asyncio.create_task(hold())
        await opened.wait()
        await uow.rollback()
        uow.session.add(Item(name="kept"))
        await uow.session.flush()
        leave.set()
        await asyncio.wait({task})

    assert await database.observer.names() == ["kept"]
