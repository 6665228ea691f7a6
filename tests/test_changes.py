"""Objects that a task changes while another task uses the session."""

from __future__ import annotations

import asyncio
import contextvars
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest
from sqlalchemy import event
from sqlalchemy.exc import SAWarning
from sqlalchemy.ext.asyncio import AsyncEngine

from starlette_uow import UnitOfWork
from starlette_uow.session import UnitSession
from tests.databases import Database
from tests.gates import turn
from tests.models import Item, Part
from tests.scenarios import Boom, content


async def make_item(uow: UnitOfWork, name: str = "item") -> Item:
    item = Item(name=name)
    uow.session.add(item)
    await uow.session.flush()
    return item


@asynccontextmanager
async def savepoint_beside(uow: UnitOfWork, *, fails: bool) -> AsyncIterator[None]:
    """A block beside the savepoint of another task, which then flushes, and ends."""
    opened, leave = asyncio.Event(), asyncio.Event()

    async def other() -> None:
        try:
            async with uow.savepoint():
                uow.session.add(Item(name="other"))
                opened.set()
                await leave.wait()
                await uow.session.flush()
                if fails:
                    raise Boom
        except Boom:
            pass

    async with uow.tasks() as tg:
        tg.start_soon(other)
        await opened.wait()
        yield
        leave.set()


@pytest.mark.parametrize("fails", [False, True])
@pytest.mark.parametrize("expunged", [False, True])
async def test_change_beside_a_savepoint_is_kept(
    uow: UnitOfWork, database: Database, fails: bool, expunged: bool
) -> None:
    """It is written outside of the savepoint, and does not fail with it."""
    async with uow:
        item = await make_item(uow)
        if expunged:
            uow.session.expunge_all()
            item = await uow.session.get_one(Item, item.id)
        async with savepoint_beside(uow, fails=fails):
            item.name = "changed"

    assert await database.observer.names() == ["changed", *([] if fails else ["other"])]


@pytest.mark.parametrize("fails", [False, True])
async def test_parent_and_child_are_joined_beside_a_savepoint(
    uow: UnitOfWork, database: Database, fails: bool
) -> None:
    """Both wait, so that no flush warns of a parent whose child is not in the session."""
    async with uow:
        item = await make_item(uow)
        async with savepoint_beside(uow, fails=fails):
            uow.session.add(Part(item=item))

    assert ("item", 1) in await content(database)


async def test_parent_and_child_are_joined_beside_an_exclusive_block(
    uow: UnitOfWork, database: Database
) -> None:
    """The block can undo nothing, so nothing has to wait for its end, and its flush writes both."""
    opened, leave = asyncio.Event(), asyncio.Event()

    async def other() -> None:
        async with uow.exclusive():
            opened.set()
            await leave.wait()
            await uow.session.flush()

    async with uow:
        item = await make_item(uow)
        item.name = "changed"
        async with uow.tasks() as tg:
            tg.start_soon(other)
            await opened.wait()
            uow.session.add(Part(item=item))
            leave.set()

    assert await content(database) == [("changed", 1)]


async def test_object_changed_and_expunged_beside_a_savepoint(
    uow: UnitOfWork, database: Database
) -> None:
    """Nothing is left to be written."""
    async with uow:
        item = await make_item(uow)
        async with savepoint_beside(uow, fails=True):
            item.name = "changed"
            uow.session.expunge(item)

    assert await database.observer.names() == ["item"]


@pytest.mark.parametrize("inside", [False, True])
async def test_change_during_the_rollback_of_a_savepoint(
    uow: UnitOfWork, database: Database, engine: AsyncEngine, inside: bool
) -> None:
    """It is undone if it was made inside of the savepoint."""
    context = contextvars.copy_context()

    @event.listens_for(engine.sync_engine, "rollback_savepoint")
    def change(*args: Any) -> None:
        asyncio.get_running_loop().call_soon(setattr, item, "name", "changed", context=context)

    async with uow:
        item = await make_item(uow)
        with pytest.raises(Boom):
            async with uow.savepoint():
                if inside:
                    context = contextvars.copy_context()
                await make_item(uow, "undone")
                raise Boom

    assert await database.observer.names() == (["item"] if inside else ["changed"])


async def test_change_during_a_commit_by_hand(uow: UnitOfWork, database: Database) -> None:
    """It is written by the transaction that comes next, and is reason enough to begin one."""
    context = contextvars.copy_context()  # of another task

    def change(*args: Any) -> None:
        asyncio.get_running_loop().call_soon(setattr, item, "name", "changed", context=context)

    async with uow:
        item = await make_item(uow)
        connection = await uow.session.connection()
        event.listen(connection.sync_connection, "commit", change)
        await uow.session.commit()

    assert await database.observer.names() == ["changed"]


async def test_change_in_a_thread_beside_an_operation(uow: UnitOfWork, database: Database) -> None:
    """As in a synchronous endpoint, which has no task to be recognised by."""
    async with uow:
        item = await make_item(uow)
        session = uow.session.sync_session
        assert isinstance(session, UnitSession)
        async with turn(session.gate):
            await asyncio.to_thread(setattr, item, "name", "changed")

    assert await database.observer.names() == ["changed"]


async def test_change_by_a_listener_of_the_flush_is_dropped_with_a_warning(
    uow: UnitOfWork, database: Database
) -> None:
    """SQLAlchemy's own rule: it is not taken for a change by another task."""

    def change_all(mapper: object, connection: object, target: object) -> None:
        a.name = b.name = "changed by the listener"

    async with uow:
        a, b = await make_item(uow, "a"), await make_item(uow, "b")
        event.listen(Item, "after_update", change_all)
        a.name = "changed"
        with pytest.warns(SAWarning, match="1 previously clean"):
            await uow.session.flush()
        event.remove(Item, "after_update", change_all)

    assert await database.observer.names() == ["b", "changed"]
