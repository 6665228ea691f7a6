"""Random programs: tasks that use one session in every way at once, and know what they wrote.

Each task works on rows of its own and chooses by a generator of its own, so a number stands
for the same operations whenever its tasks meet. A ledger says which rows there have to be; one that
was begun with a savepoint is dropped with it.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import random
from collections import ChainMap
from collections.abc import Awaitable, Callable, Coroutine, Iterable, Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import asyncpg
from sqlalchemy import (
    Select,
    insert,
    inspect,
    literal,
    or_,
    select,
    true,
    union_all,
    update,
)
from sqlalchemy.exc import IntegrityError, InvalidRequestError, SQLAlchemyError
from sqlalchemy.ext.asyncio import AsyncSession
from sqlalchemy.orm import Session

from starlette_uow import UnitDoomedError, UnitOfWork, UnitOfWorkError
from tests.databases import Database
from tests.models import Item, Part
from tests.scenarios import TASKS, Boom, Rows, content, fill, seed, step

DEPTH = 3
"""How many blocks and groups are inside each other at most."""

PAUSES = [0, 1, 5, 25, 100]
"""How often the event loop goes round, so that tasks meet in different places."""


class Row(NamedTuple):
    """An item and its parts, as they have to be in the database.

    Attributes:
        item: the object; None if the row was inserted without one.
    """

    item: Item | None
    name: str
    parts: tuple[Part, ...] = ()


Ledger = ChainMap[tuple[str, int], Row | None]
"""The rows by task and number; None where one was deleted."""

Child = Callable[[], Coroutine[Any, Any, None]]
Block = Callable[[], AbstractAsyncContextManager[object]]


# --- where a program runs ------------------------------------------------------------------


@dataclass
class Stage:
    """A unit's session for tasks that run at once; or a plain one, for one after the other.

    Attributes:
        session: of all the tasks.
        savepoint: opens a block that may fail alone.
        exclusive: opens a block in which objects may be changed.
        joined: opens a block that joins the unit.
        commit: what ends a joined block.
        groups: ways to run children to their end.
    """

    session: AsyncSession
    savepoint: Block
    exclusive: Block
    joined: Block
    commit: Callable[[], Awaitable[None]]
    groups: Sequence[Callable[[list[Child]], Awaitable[None]]]


def in_a_row(session: AsyncSession) -> Stage:
    async def run(children: list[Child]) -> None:
        for child in children:
            await child()

    nothing: Block = contextlib.nullcontext
    return Stage(session, session.begin_nested, nothing, nothing, session.flush, [run, run, run])


def at_once(uow: UnitOfWork, tasks: list[asyncio.Task[None]]) -> Stage:
    async def run_in_task_group(children: list[Child]) -> None:
        async with asyncio.TaskGroup() as group:
            tasks.extend(group.create_task(child()) for child in children)

    async def run_in_unit_tasks(children: list[Child]) -> None:
        async with uow.tasks() as tg:
            for child in children:
                tg.start_soon(child)

    async def run_in_turns(children: list[Child]) -> None:
        async with uow.tasks(limit=1) as tg:
            for child in children:
                tg.start_soon(child)

    groups = [run_in_task_group, run_in_unit_tasks, run_in_turns]
    return Stage(uow.session, uow.savepoint, uow.exclusive, lambda: uow, uow.commit, groups)


# --- what a program does -------------------------------------------------------------------


@dataclass
class Program:
    """What the tasks of one program share.

    Attributes:
        number: the seed of all choices.
        stage: where it runs.
        commits: whether tasks commit the session. Then none streams, because a commit closes
            the cursors of PostgreSQL.
        cancel_at: before which operations some task is cancelled.
        tasks: that may be cancelled.
        operations: how many were begun.
        ledger: what there is outside of all savepoints.
        untouched: the names of the items that are there before, by id, until a task takes one.
    """

    number: int
    stage: Stage
    commits: bool
    cancel_at: set[int] = field(default_factory=set)
    tasks: list[asyncio.Task[None]] = field(default_factory=list)
    operations: int = 0
    ledger: Ledger = field(default_factory=Ledger)
    untouched: dict[int, str] = field(
        default_factory=lambda: {number + 1: seed(number) for number in range(TASKS)}
    )

    def roots(self) -> list[Child]:
        """Its first tasks. They have the rows of the tables among them."""
        count = random.Random(self.number).randint(2, 4)
        ids = list(self.untouched)
        workers = [Worker(self, str(n), ids[n::count]) for n in range(count)]
        return [functools.partial(worker.work, self.ledger) for worker in workers]

    def begin_operation(self) -> None:
        """Count it, and cancel a task if its number says so."""
        self.operations += 1
        if self.operations in self.cancel_at:
            running = [task for task in self.tasks if not task.done()]
            random.Random(self.operations).choice(running).cancel()

    def expected(self) -> Rows:
        """What the database has to hold."""
        rows = [(row.name, len(row.parts)) for row in self.ledger.values() if row is not None]
        return sorted(rows + [(name, 1) for name in self.untouched.values()])


class Worker:
    """One task of a program.

    Args:
        program: whose.
        path: its number, after those of its parents.
        ids: of the items that are its own and its children's.
    """

    def __init__(self, program: Program, path: str, ids: list[int]) -> None:
        self.program = program
        self.stage = program.stage
        self.session = program.stage.session
        self.path = path
        self.ids = ids
        self.own_id = -1
        self.random = random.Random(f"{program.number}/{path}")
        self.rows = 0
        self.names = 0
        self.children = 0

    async def work(self, ledger: Ledger) -> None:
        """Find the row that is there already, and do a few things."""
        if self.ids:
            self.own_id = self.ids.pop()
            item = await self.session.get_one(Item, self.own_id)
            parts = await item.awaitable_attrs.parts
            self.add_row(self.program.ledger, Row(item, item.name, tuple(parts)))
            del self.program.untouched[self.own_id]
        await self.act(ledger, depth=self.path.count("."))

    async def act(self, ledger: Ledger, depth: int) -> None:
        for _ in range(self.random.randint(1, 3)):
            await step(self.random.choice(PAUSES))
            self.program.begin_operation()
            if depth < DEPTH and self.random.random() < 0.4:
                await self.random.choice(BLOCKS)(self, ledger, depth + 1)
            elif self.program.commits and len(ledger.maps) == 1 and self.random.random() < 0.2:
                await self.session.commit()
            else:
                await self.random.choice(OPERATIONS)(self, ledger)

    # --- its rows ---

    def new_name(self) -> str:
        self.names += 1
        return f"{self.path}: {self.names}"

    def add_row(self, ledger: Ledger, row: Row) -> None:
        self.rows += 1
        ledger[self.path, self.rows] = row

    def own(self, ledger: Ledger) -> list[tuple[tuple[str, int], Row]]:
        keys = sorted(key for key in ledger if key[0] == self.path)
        return [(key, row) for key in keys if (row := ledger[key]) is not None]

    async def pick(self, ledger: Ledger) -> tuple[tuple[str, int], Row, Item]:
        """A row of this task, with its object, which is in the database."""
        rows = [(key, row, row.item) for key, row in self.own(ledger) if row.item is not None]
        if not rows:
            await add(self, ledger)
            return await self.pick(ledger)
        key, row, item = self.random.choice(rows)
        if inspect(item).identity is None:
            await self.session.flush()
        return key, row, item

    def select_names(self) -> Select[Any]:
        mine = or_(Item.name.like(f"{self.path}: %"), Item.id == self.own_id)
        return select(Item.name).where(mine).order_by(Item.name)

    def check_names(self, ledger: Ledger, names: list[str]) -> None:
        expected = sorted(row.name for _, row in self.own(ledger))
        assert sorted(names) == expected, f"task {self.path} read {names}, wrote {expected}"


def identity(item: Item) -> int:
    """Its id, which is known although the object may be expired.

    Raises:
        InvalidRequestError: it is gone, with a transaction that another task has lost.
    """
    key = inspect(item).identity
    if key is None:
        raise InvalidRequestError(f"{item!r} is not in the database.")
    return int(key[0])


# --- operations ----------------------------------------------------------------------------


async def execute_insert(worker: Worker, ledger: Ledger) -> None:
    name = worker.new_name()
    await worker.session.execute(insert(Item).values(name=name))
    worker.add_row(ledger, Row(None, name))


async def add(worker: Worker, ledger: Ledger) -> None:
    name = worker.new_name()
    parts = [Part() for _ in range(worker.random.randrange(3))]
    item = Item(name=name, parts=parts)
    flush = worker.random.random() < 0.5
    worker.session.add(item)
    worker.add_row(ledger, Row(item, name, tuple(parts)))
    if flush:
        await worker.session.flush()


async def add_part(worker: Worker, ledger: Ledger) -> None:
    """Which changes its item, too."""
    key, row, item = await worker.pick(ledger)
    await worker.session.flush()
    await step(worker.random.choice(PAUSES))
    part = Part(item=item)
    worker.session.add(part)
    ledger[key] = row._replace(parts=(*row.parts, part))


async def get(worker: Worker, ledger: Ledger) -> None:
    _, _, item = await worker.pick(ledger)
    refresh = worker.random.random() < 0.3
    found = await worker.session.get(Item, identity(item), populate_existing=refresh)
    assert found is item
    assert await worker.session.get(Item, -1) is None


async def scalars(worker: Worker, ledger: Ledger) -> None:
    names = (await worker.session.scalars(worker.select_names())).all()
    worker.check_names(ledger, list(names))


async def stream(worker: Worker, ledger: Ledger) -> None:
    """Of all rows, several times: more than the driver fetches at once."""
    rows_at_once = worker.random.randint(1, 30)
    if worker.program.commits:
        return
    times = union_all(*(select(literal(n)) for n in range(8))).subquery()
    result = await worker.session.stream(
        select(Item.id, Item.name).join(times, true()),
        execution_options={"yield_per": rows_at_once},
    )
    names = set()
    async for number, name in result:
        if number == worker.own_id or name.startswith(f"{worker.path}: "):
            names.add(name)
    worker.check_names(ledger, list(names))


async def merge(worker: Worker, ledger: Ledger) -> None:
    name = worker.new_name()
    if worker.random.random() < 0.3:
        worker.add_row(ledger, Row(await worker.session.merge(Item(name=name)), name))
        return
    key, row, item = await worker.pick(ledger)
    merged = await worker.session.merge(Item(id=identity(item), name=name))
    assert merged is item
    ledger[key] = row._replace(name=name)


async def change(worker: Worker, ledger: Ledger) -> None:
    """Where no flush can be writing the object just now, for that change would be lost."""
    key, row, item = await worker.pick(ledger)
    await worker.session.flush()
    await step(worker.random.choice(PAUSES))
    item.name = worker.new_name()
    ledger[key] = row._replace(name=item.name)


async def execute_update(worker: Worker, ledger: Ledger) -> None:
    key, row, item = await worker.pick(ledger)
    name = worker.new_name()
    synchronize = worker.random.choice(["auto", "evaluate", "fetch", False])
    if len(ledger.maps) > 1:  # SQLAlchemy does not know what a failing savepoint makes stale
        synchronize = synchronize or "auto"
    await worker.session.execute(
        update(Item).where(Item.id == identity(item)).values(name=name),
        execution_options={"synchronize_session": synchronize},
    )
    ledger[key] = row._replace(name=name)
    if not synchronize:
        await worker.session.refresh(item)
    assert await item.awaitable_attrs.name == name


async def refresh(worker: Worker, ledger: Ledger) -> None:
    _, row, item = await worker.pick(ledger)
    await worker.session.flush()  # a refresh drops what was not written
    await worker.session.refresh(item)
    assert item.name == row.name


async def delete_item(worker: Worker, ledger: Ledger) -> None:
    key, row, item = await worker.pick(ledger)
    flush = worker.random.random() < 0.5
    if row.parts:
        return
    await worker.session.delete(item)
    ledger[key] = None
    if flush:
        await worker.session.flush()


async def delete_part(worker: Worker, ledger: Ledger) -> None:
    key, row, item = await worker.pick(ledger)
    if not row.parts:
        return
    await worker.session.flush()
    parts = await item.awaitable_attrs.parts
    await worker.session.delete(row.parts[0])
    parts.remove(row.parts[0])
    ledger[key] = row._replace(parts=row.parts[1:])
    await worker.session.flush()


async def lazy_load(worker: Worker, ledger: Ledger) -> None:
    _, row, item = await worker.pick(ledger)
    assert await item.awaitable_attrs.name == row.name
    parts = await item.awaitable_attrs.parts
    assert set(parts) == set(row.parts)


async def run_sync(worker: Worker, ledger: Ledger) -> None:
    item = Item(name=worker.new_name())

    def work(session: Session) -> None:
        session.add(item)
        worker.add_row(ledger, Row(item, item.name))
        session.flush()
        assert session.scalar(select(Item.name).where(Item.id == item.id)) == item.name

    await worker.session.run_sync(work)


async def read_without_autoflush(worker: Worker, ledger: Ledger) -> None:
    _, _, item = await worker.pick(ledger)
    with worker.session.no_autoflush:
        statement = select(Item.id).where(Item.id == identity(item))
        assert await worker.session.scalar(statement) == identity(item)


Operation = Callable[[Worker, Ledger], Awaitable[None]]

OPERATIONS: list[Operation] = [
    execute_insert,
    add,
    add,
    add_part,
    get,
    scalars,
    stream,
    merge,
    change,
    execute_update,
    refresh,
    delete_item,
    delete_part,
    lazy_load,
    run_sync,
    read_without_autoflush,
]


# --- blocks of operations ------------------------------------------------------------------


async def savepoint(worker: Worker, ledger: Ledger, depth: int) -> None:
    """A savepoint that is kept, or fails in one of several ways."""
    end = worker.random.choice([None, None, None, fail, fail, insert_twice, add_twice])
    blocks: list[Block] = [worker.stage.savepoint, worker.session.begin_nested]
    block = worker.random.choice(blocks)
    inside = ledger.new_child()
    try:
        async with block():
            await worker.act(inside, depth)
            if end is not None:
                await end(worker, inside)
    except (Boom, IntegrityError):
        assert end is not None
    else:
        assert end is None
        ledger.update(inside.maps[0])


async def fail(worker: Worker, ledger: Ledger) -> None:
    raise Boom


async def insert_twice(worker: Worker, ledger: Ledger) -> None:
    """Fails in the database."""
    _, row, _ = await worker.pick(ledger)
    await worker.session.execute(insert(Item).values(name=row.name))


async def add_twice(worker: Worker, ledger: Ledger) -> None:
    """Fails in a flush."""
    _, row, _ = await worker.pick(ledger)
    worker.session.add(Item(name=row.name))
    await worker.session.flush()


async def children(worker: Worker, ledger: Ledger, depth: int) -> None:
    """A group of tasks, which are inside whatever their parent is inside of."""
    run = worker.random.choice(worker.stage.groups)
    workers = []
    for _ in range(worker.random.randint(1, 3)):
        worker.children += 1
        ids = [worker.ids.pop()] if worker.ids else []
        workers.append(Worker(worker.program, f"{worker.path}.{worker.children}", ids))
    await run([functools.partial(child.work, ledger) for child in workers])


async def exclusive(worker: Worker, ledger: Ledger, depth: int) -> None:
    """An object is changed, and something else is done beside it."""
    key, row, item = await worker.pick(ledger)
    flush = worker.random.random() < 0.5
    name = worker.new_name()
    async with worker.stage.exclusive():
        for new_name in (f"{name}, for now", name):
            item.name = new_name
            ledger[key] = row._replace(name=new_name)
            await step(worker.random.choice(PAUSES))
        if flush:
            await worker.session.flush()
            await worker.act(ledger, depth)


async def joined(worker: Worker, ledger: Ledger, depth: int) -> None:
    """A block that joins the unit, where a commit is a flush."""
    async with worker.stage.joined():
        await worker.act(ledger, depth)
        await worker.stage.commit()


Kind = Callable[[Worker, Ledger, int], Awaitable[None]]

BLOCKS: list[Kind] = [savepoint, savepoint, savepoint, children, children, exclusive, joined]


# --- running it ----------------------------------------------------------------------------

WHEN_DOOMED = (
    SQLAlchemyError,
    UnitOfWorkError,
    asyncio.CancelledError,
    asyncpg.InterfaceError,
    ValueError,
)
"""What tasks may be told on a session whose transaction is lost. The errors of a cursor that is
being read are the driver's own, which is a ValueError with aiosqlite.
"""


async def run_programs(
    numbers: Iterable[int], uow: UnitOfWork, database: Database, *, cancellations: int = 0
) -> int:
    """Run programs in tasks, and compare what is in the tables with what they know, and with what
    the same tasks write in a row, on a plain session.

    Args:
        numbers: of the programs; a note tells which one failed.
        uow: on an engine whose connections all have to come back.
        database: to look into.
        cancellations: how many tasks of each are cancelled; then none can be run in a row.

    Returns:
        how many were committed: a statement that is cancelled dooms the unit.
    """
    committed = 0
    for number in numbers:
        try:
            committed += await run_program(number, uow, database, cancellations)
        except BaseException as error:
            error.add_note(f"This was program {number}, with {cancellations} cancellations.")
            raise
    return committed


async def run_program(number: int, uow: UnitOfWork, database: Database, cancellations: int) -> bool:
    choice = random.Random(f"program {number}")
    commits = choice.random() < 0.2 and not cancellations
    cancel_at = {choice.randrange(1, 20) for _ in range(cancellations)}
    plain = None if cancellations else await run_in_a_row(number, commits, uow, database)
    await fill(database)
    before = await content(database)
    tasks: list[asyncio.Task[None]] = []
    errors: list[BaseException] = []
    doomed = False
    try:
        async with asyncio.timeout(20), uow:
            program = Program(number, at_once(uow, tasks), commits, cancel_at, tasks)
            tasks += [asyncio.create_task(root()) for root in program.roots()]
            for result in await asyncio.gather(*tasks, return_exceptions=True):
                errors += leaves(result)
    except UnitDoomedError:
        doomed = True

    rows = await content(database)
    allowed = () if not cancellations else WHEN_DOOMED if doomed else (asyncio.CancelledError,)
    if unexpected := [error for error in errors if not isinstance(error, allowed)]:
        raise BaseExceptionGroup("what tasks were told", unexpected)
    assert cancellations or not doomed
    assert uow.sessions.kw["bind"].pool.checkedout() == 0
    expected = before if doomed else program.expected()
    assert rows == expected, difference(rows, expected)
    assert plain in (None, rows), difference(rows, plain or [])
    return not doomed


async def run_in_a_row(number: int, commits: bool, uow: UnitOfWork, database: Database) -> Rows:
    """What the program writes on a plain session, where it has to be right about it, too."""
    await fill(database)
    async with AsyncSession(uow.sessions.kw["bind"], expire_on_commit=False) as session:
        program = Program(number, in_a_row(session), commits)
        for root in program.roots():
            await root()
        await session.commit()
    rows = await content(database)
    assert rows == program.expected(), difference(rows, program.expected())
    return rows


def difference(rows: Rows, expected: Rows) -> str:
    return f"too much: {set(rows) - set(expected)}, missing: {set(expected) - set(rows)}"


def leaves(error: BaseException | None) -> list[BaseException]:
    """The errors of a task and of the tasks in its groups."""
    if isinstance(error, BaseExceptionGroup):
        return [leaf for inner in error.exceptions for leaf in leaves(inner)]
    return [] if error is None else [error]
