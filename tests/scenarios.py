"""What tasks do on one session: each scenario is run by 20 tasks at once, and in a row.

The tables hold twenty items, each with one part, when a scenario begins. A scenario checks what
it reads; what it writes is compared by the test, so it depends on nothing but `number`.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass
from typing import Any

from sqlalchemy import event, func, insert, select, update
from sqlalchemy.ext.asyncio import AsyncEngine, AsyncSession
from sqlalchemy.orm import Session

from tests.databases import Database, PostgresObserver, SQLiteObserver
from tests.models import Item, Part

TASKS = 20

Rows = list[tuple[Any, ...]]


class Boom(Exception):
    """What a savepoint is left with that is to be undone."""


@dataclass(frozen=True)
class Stage:
    """What a scenario works on: a unit's session, or a plain one as a control.

    Attributes:
        session: of all the tasks.
        savepoint: opens a block that may fail alone.
        commit: `uow.commit()` in a block that joined the unit.
    """

    session: AsyncSession
    savepoint: Callable[[], AbstractAsyncContextManager[Any]]
    commit: Callable[[], Awaitable[None]]


Scenario = Callable[[Stage, int], Awaitable[None]]


# --- the tables ----------------------------------------------------------------------------


async def query(database: Database, sql: str) -> Rows:
    """Run a statement on the connection that looks on from outside."""
    observer = database.observer
    if isinstance(observer, PostgresObserver):
        return [tuple(row) for row in await observer.connection.fetch(sql)]
    assert isinstance(observer, SQLiteObserver)
    return observer.connection.execute(sql).fetchall()


async def fill(database: Database) -> None:
    """Twenty items with the ids 1 to 20, each with one part of the same id."""
    if database.is_postgres:
        await query(database, "truncate items, parts restart identity")
    else:
        await query(database, "delete from parts")
        await query(database, "delete from items")
    names = ", ".join(f"('{seed(number)}')" for number in range(TASKS))
    items = ", ".join(f"({number + 1})" for number in range(TASKS))
    await query(database, f"insert into items (name) values {names}")
    await query(database, f"insert into parts (item_id) values {items}")


async def content(database: Database) -> Rows:
    """What is committed: each item with the number of its parts. Ids depend on the order."""
    return await query(
        database,
        "select name, count(item_id) from items left join parts on item_id = items.id"
        " group by name order by name",
    )


@asynccontextmanager
async def statements(engine: AsyncEngine) -> AsyncIterator[list[str]]:
    """The statements that are sent meanwhile."""
    sent: list[str] = []

    def note(connection: object, cursor: object, statement: str, *args: object) -> None:
        sent.append(statement)

    event.listen(engine.sync_engine, "before_cursor_execute", note)
    try:
        yield sent
    finally:
        event.remove(engine.sync_engine, "before_cursor_execute", note)


def seed(number: int) -> str:
    return f"seed {number:02}"


async def step(count: int = 1) -> None:
    """Let the event loop go round so many times, so that tasks meet in different places."""
    for _ in range(count):
        await asyncio.sleep(0)


# --- one operation each --------------------------------------------------------------------


async def execute(stage: Stage, number: int) -> None:
    await stage.session.execute(insert(Item).values(name=f"new {number}"))
    result = await stage.session.execute(select(Item.name).where(Item.id == number + 1))
    assert result.scalar_one() == seed(number)


async def scalars(stage: Stage, number: int) -> None:
    result = await stage.session.scalars(select(Item).where(Item.id == number + 1))
    assert result.one().name == seed(number)


async def get(stage: Stage, number: int) -> None:
    item = await stage.session.get_one(Item, number + 1)
    assert item.name == seed(number)
    assert await stage.session.get(Item, number + 1) is item


async def stream(stage: Stage, number: int) -> None:
    names = select(Item.name).where(Item.name.like("seed%")).order_by(Item.id)
    result = await stage.session.stream_scalars(names, execution_options={"yield_per": 7})
    await step(number)
    assert [name async for name in result] == [seed(n) for n in range(TASKS)]


async def flush(stage: Stage, number: int) -> None:
    item = Item(name=f"new {number}")
    stage.session.add(item)
    await stage.session.flush()
    assert item.id > TASKS


async def refresh(stage: Stage, number: int) -> None:
    item = await stage.session.get_one(Item, number + 1)
    await stage.session.execute(
        update(Item).where(Item.id == number + 1).values(name=f"renamed {number}"),
        execution_options={"synchronize_session": False},
    )
    await stage.session.refresh(item)
    assert item.name == f"renamed {number}"


async def merge(stage: Stage, number: int) -> None:
    await stage.session.merge(Item(id=number + 1, name=f"merged {number}"))
    await stage.session.merge(Item(id=number + 101, name=f"new {number}"))
    await stage.session.flush()


async def delete(stage: Stage, number: int) -> None:
    part = await stage.session.get_one(Part, number + 1)
    await stage.session.delete(part)
    await stage.session.flush()
    assert await stage.session.get(Part, number + 1) is None


async def commit_in_a_joined_block(stage: Stage, number: int) -> None:
    stage.session.add(Item(name=f"new {number}"))
    await stage.commit()


async def session_commit(stage: Stage, number: int) -> None:
    stage.session.add(Item(name=f"new {number}"))
    await stage.session.commit()
    stage.session.add(Item(name=f"newer {number}"))
    await stage.session.flush()


async def lazy_load(stage: Stage, number: int) -> None:
    item = await stage.session.get_one(Item, number + 1)
    (part,) = await item.awaitable_attrs.parts
    assert part.item_id == number + 1
    stage.session.expire(part)
    assert await part.awaitable_attrs.item is item


async def run_sync(stage: Stage, number: int) -> None:
    def work(session: Session) -> str | None:
        session.add(Item(name=f"new {number}"))
        session.flush()
        return session.scalar(select(Item.name).where(Item.name == f"new {number}"))

    assert await stage.session.run_sync(work) == f"new {number}"


async def autoflush(stage: Stage, number: int) -> None:
    stage.session.add(Item(name=f"new {number}"))
    found = select(func.count()).where(Item.name == f"new {number}")
    assert await stage.session.scalar(found) == 1


# --- savepoints ----------------------------------------------------------------------------


async def begin_nested(stage: Stage, number: int) -> None:
    try:
        async with stage.session.begin_nested():
            stage.session.add(Item(name=f"new {number}"))
            await stage.session.flush()
            if number % 3 == 0:
                raise Boom
    except Boom:
        pass


async def savepoint(stage: Stage, number: int) -> None:
    """Writes before, inside, and after; fails halfway."""
    stage.session.add(Item(name=f"before {number}"))
    try:
        async with stage.savepoint():
            await stage.session.execute(insert(Item).values(name=f"inside {number}"))
            stage.session.add(Item(name=f"pending {number}"))
            if number % 2:
                raise Boom
    except Boom:
        pass
    stage.session.add(Item(name=f"after {number}"))


async def children(stage: Stage, number: int) -> None:
    """Savepoints in children of children, in task groups inside savepoints."""
    await tree(stage, number, f"tree {number}", depth=2 if number % 5 == 0 else 1)


async def tree(stage: Stage, number: int, name: str, depth: int) -> None:
    """A savepoint with two children that have savepoints; some fail at each level."""
    try:
        async with stage.savepoint():
            stage.session.add(Item(name=name))
            if depth:
                async with asyncio.TaskGroup() as group:
                    for child in range(2):
                        group.create_task(tree(stage, child, f"{name}.{child}", depth - 1))
            await stage.session.flush()
            if (number + depth) % 4 == 0:
                raise Boom
    except Boom:
        pass


async def add_beside_operations(stage: Stage, number: int) -> None:
    """add() cannot wait; what it adds while another task's flush runs must not be lost."""
    for turn in range(5):
        stage.session.add(Item(name=f"new {number} {turn}"))
        if number % 2:
            await stage.session.flush()
        await step(number % 7)


async def add_beside_savepoints(stage: Stage, number: int) -> None:
    """add() while another task's savepoint is open lands outside, and survives its rollback."""
    if number % 2:
        for turn in range(5):
            stage.session.add(Item(name=f"kept {number} {turn}"))
            await step(number)
        return
    try:
        async with stage.savepoint():
            stage.session.add(Item(name=f"undone {number}"))
            await stage.session.flush()
            await step(5)
            raise Boom
    except Boom:
        pass


async def write_beside_savepoints(stage: Stage, number: int) -> None:
    """Nothing overlaps on the wire, so a plain session loses rows without any error."""
    if number % 2:
        await step(number)
        stage.session.add(Item(name=f"kept {number}"))
        await stage.session.flush()
        return
    try:
        async with stage.savepoint():
            stage.session.add(Item(name=f"undone {number}"))
            await stage.session.flush()
            await step(20)
            raise Boom
    except Boom:
        pass


# --- relationships -------------------------------------------------------------------------


async def cascades(stage: Stage, number: int) -> None:
    """Children follow their parents into the session while other tasks operate."""
    item = await stage.session.get_one(Item, number + 1)
    parts = await item.awaitable_attrs.parts
    await step(number % 5)
    parts.append(Part())
    stage.session.add(Item(name=f"new {number}", parts=[Part(), Part()]))
    await step(number % 3)
    stage.session.add(Part(item=item))
    await stage.session.flush()


async def change(stage: Stage, number: int) -> None:
    """A changed attribute of a task's own object, while the others' flushes run."""
    item = await stage.session.get_one(Item, number + 1)
    for turn in range(4):
        await step(number + turn)
        item.name = f"changed {number} {turn}"
        await stage.session.flush()


# --- all of it -----------------------------------------------------------------------------


async def mix(stage: Stage, number: int) -> None:
    """Every task does something else."""
    others: list[Scenario] = [scalars, flush, get, begin_nested, delete, lazy_load, run_sync]
    others += [autoflush, savepoint, cascades, stream, write_beside_savepoints]
    await others[number % len(others)](stage, number)


async def mix_in_savepoints(stage: Stage, number: int) -> None:
    """The same, each in a savepoint of its own, of which some fail."""
    try:
        async with stage.savepoint():
            await mix(stage, number)
            if number % 5 == 0:
                raise Boom
    except Boom:
        pass


SCENARIOS: list[Scenario] = [
    execute,
    scalars,
    get,
    stream,
    flush,
    refresh,
    merge,
    delete,
    commit_in_a_joined_block,
    session_commit,
    lazy_load,
    run_sync,
    autoflush,
    begin_nested,
    savepoint,
    children,
    add_beside_operations,
    add_beside_savepoints,
    write_beside_savepoints,
    cascades,
    change,
    mix,
    mix_in_savepoints,
]
