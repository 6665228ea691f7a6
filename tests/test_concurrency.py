"""One session, many tasks: nothing fails, nothing is lost, and nothing is kept that was undone."""

from __future__ import annotations

import asyncio
import gc
from collections.abc import Coroutine
from typing import Any

import pytest
from sqlalchemy import event, insert, select
from sqlalchemy.exc import InvalidRequestError
from sqlalchemy.ext.asyncio import AsyncEngine, AsyncSession, async_sessionmaker
from sqlalchemy.orm import Session
from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response
from starlette.routing import Route

from starlette_uow import (
    SessionDeadlockError,
    UnitEndedError,
    UnitOfWork,
    UnitOfWorkMiddleware,
    create_engine,
    current_session,
)
from tests.asgi import Exchange, layers
from tests.databases import Database
from tests.models import Item
from tests.scenarios import (
    SCENARIOS,
    TASKS,
    Boom,
    Scenario,
    Stage,
    content,
    fill,
    query,
    statements,
    step,
)

WARM_RUNS = 1


async def at_once(uow: UnitOfWork, scenario: Scenario) -> list[BaseException]:
    """Run a scenario in twenty tasks on one unit's session; what they raised."""
    async with uow, uow:
        stage = Stage(uow.session, uow.savepoint, uow.commit)
        results = await asyncio.gather(
            *(scenario(stage, number) for number in range(TASKS)), return_exceptions=True
        )
    return [result for result in results if result is not None]


async def in_a_row(uow: UnitOfWork, scenario: Scenario) -> None:
    async with uow, uow:
        stage = Stage(uow.session, uow.savepoint, uow.commit)
        for number in range(TASKS):
            await scenario(stage, number)


@pytest.mark.parametrize("scenario", SCENARIOS, ids=lambda scenario: scenario.__name__)
async def test_tasks_on_one_session_do_what_they_would_do_in_a_row(
    uow: UnitOfWork, database: Database, engine: AsyncEngine, scenario: Scenario
) -> None:
    """On a cold pool and a warm one: no error, the same rows, and no statement more."""
    await fill(database)
    cold_errors = await at_once(uow, scenario)
    cold = await content(database)
    await fill(database)
    async with statements(engine) as sent_in_a_row:
        await in_a_row(uow, scenario)
    expected = await content(database)

    assert cold_errors == []
    assert cold == expected
    for _ in range(WARM_RUNS):
        await fill(database)
        async with statements(engine) as sent:
            errors = await at_once(uow, scenario)
        assert errors == []
        assert await content(database) == expected
        assert len(sent) <= len(sent_in_a_row)


@pytest.mark.filterwarnings("ignore")
async def test_plain_session_fails_in_most_scenarios(uow: UnitOfWork, database: Database) -> None:
    """The control: the scenarios can fail, by an error or by the wrong rows."""
    passed: list[str] = []

    for scenario in SCENARIOS:
        await fill(database)
        failed = await plain_session_fails(database.url, scenario)
        rows = await content(database)
        if not failed:
            await fill(database)
            await in_a_row(uow, scenario)
            failed = rows != await content(database)
        if not failed:
            passed.append(scenario.__name__)
    gc.collect()

    assert len(passed) < len(SCENARIOS) / 3


async def plain_session_fails(url: str, scenario: Scenario) -> bool:
    engine = create_engine(url, pool_size=2, max_overflow=0, pool_timeout=5)
    session = AsyncSession(engine, expire_on_commit=False)
    stage = Stage(session, session.begin_nested, session.flush)
    results = await asyncio.gather(
        *(scenario(stage, number) for number in range(TASKS)), return_exceptions=True
    )
    errors = [result for result in results if result is not None]
    for end in (session.commit, session.close, engine.dispose):
        try:
            await end()
        except Exception as error:
            errors.append(error)
    return bool(errors)


# --- what one task does beside another -----------------------------------------------------


async def started(work: Coroutine[Any, Any, Any]) -> asyncio.Task[Any]:
    """A task that has run up to its first wait."""
    task = asyncio.create_task(work)
    await step()
    return task


async def test_object_of_another_session_is_refused_where_it_is_added(
    uow: UnitOfWork, database: Database
) -> None:
    """And not in the task whose operation runs just then."""
    foreign = Item(name="foreign")
    other_session = AsyncSession()
    other_session.add(foreign)

    async with uow:
        operation = await started(uow.session.execute(select(Item)))
        with pytest.raises(InvalidRequestError, match="already attached"):
            uow.session.add(foreign)
        await operation


async def test_autoflush_is_back_after_two_tasks_turned_it_off(uow: UnitOfWork) -> None:
    """`no_autoflush` restores what it found, which is another task's setting."""

    async def read() -> None:
        with uow.session.no_autoflush:
            await uow.session.execute(select(Item))

    async with uow:
        await asyncio.gather(read(), read(), read())
        uow.session.add(Item(name="a"))

        assert await uow.session.scalar(select(Item.name)) == "a"


async def test_commit_of_one_task_waits_for_the_savepoint_of_another(
    uow: UnitOfWork, database: Database
) -> None:
    """It would release what is still to be undone."""

    async def fail() -> None:
        async with uow.savepoint():
            uow.session.add(Item(name="undone"))
            await uow.session.flush()
            opened.set()
            await step(20)
            raise Boom

    async def commit() -> None:
        await opened.wait()
        uow.session.add(Item(name="kept"))
        await uow.session.commit()
        assert await database.observer.names() == ["kept"]

    opened = asyncio.Event()
    async with uow:
        results = await asyncio.gather(commit(), fail(), return_exceptions=True)

    assert results[0] is None
    assert isinstance(results[1], Boom)
    assert await database.observer.names() == ["kept"]


async def test_end_of_a_unit_waits_for_the_savepoint_of_a_task(
    uow: UnitOfWork, database: Database
) -> None:
    """Half a savepoint is never committed."""
    entered, leave = asyncio.Event(), asyncio.Event()

    async def child() -> None:
        async with uow.savepoint():
            await uow.session.execute(insert(Item).values(name="a"))
            entered.set()
            await leave.wait()
            await uow.session.execute(insert(Item).values(name="b"))

    async with uow:
        task = asyncio.create_task(child())
        await entered.wait()
        asyncio.get_running_loop().call_soon(leave.set)
    await task

    assert await database.observer.names() == ["a", "b"]


async def test_end_of_a_unit_goes_before_statements_that_wait(
    uow: UnitOfWork, database: Database
) -> None:
    """A stray task's statement that runs already is part of the unit; the next one is refused."""

    async def stray(name: str) -> None:
        await uow.session.execute(insert(Item).values(name=name))

    async with uow:
        strays = [asyncio.create_task(stray(name)) for name in "ab"]
        await asyncio.wait(strays, timeout=0)
    first, second = await asyncio.gather(*strays, return_exceptions=True)

    assert first is None
    assert isinstance(second, UnitEndedError)
    assert await database.observer.names() == ["a"]


async def test_savepoint_entered_by_a_task_that_is_gone_is_nobodys(
    uow: UnitOfWork, database: Database
) -> None:
    """`wait_for()` around `__aenter__()` enters so, on Python 3.11."""
    async with uow:
        savepoint = uow.session.begin_nested()
        await asyncio.create_task(savepoint.__aenter__())
        uow.session.add(Item(name="a"))
        await asyncio.create_task(uow.session.flush())
        await savepoint.__aexit__(None, None, None)
        uow.session.add(Item(name="b"))

    assert await database.observer.names() == ["a", "b"]


async def test_savepoint_that_waits_for_a_task_outside_of_it_is_told(
    sessions: async_sessionmaker[AsyncSession], database: Database
) -> None:
    """Instead of a hang; the rest of the unit is not harmed."""
    uow = UnitOfWork(sessions, wait_timeout=0.1)
    opened = asyncio.Event()

    async def outside() -> None:
        await opened.wait()
        await uow.session.execute(select(Item))

    async with uow:
        task = asyncio.create_task(outside(), name="outside")
        async with uow.savepoint():
            uow.session.add(Item(name="a"))
            opened.set()
            with pytest.raises(SessionDeadlockError, match="outside"):
                await task

    assert await database.observer.names() == ["a"]


async def test_stream_is_read_beside_other_tasks(uow: UnitOfWork, database: Database) -> None:
    """Its rows are fetched in turn; a savepoint of another task does not break it."""
    await fill(database)

    async def write(number: int) -> None:
        async with uow.savepoint():
            uow.session.add(Item(name=f"new {number}"))

    async with uow:
        result = await uow.session.stream_scalars(
            select(Item.name).where(Item.name.like("seed%")), execution_options={"yield_per": 2}
        )
        tasks = [asyncio.create_task(write(number)) for number in range(5)]
        names = [name async for name in result]
        await asyncio.gather(*tasks)

    assert len(names) == TASKS


@pytest.mark.parametrize("ending", ["commit", "rollback", "commit by hand"])
async def test_abandoned_stream_leaves_nothing_on_its_connection(
    uow: UnitOfWork, database: Database, ending: str
) -> None:
    """SQLite lets a connection see the past as long as a statement is not finished, and write
    nothing.
    """
    await fill(database)
    async with uow:
        names = select(Item.name).execution_options(yield_per=1)
        abandoned = await uow.session.stream(names)
        await anext(abandoned)
        uow.session.add(Item(name="first"))
        if ending == "rollback":
            uow.doom()
        elif ending == "commit by hand":
            await uow.session.commit()
    await query(database, "delete from parts")
    async with uow:
        uow.session.add(Item(name="second"))

    names_there = await database.observer.names()
    assert "second" in names_there
    assert ("first" in names_there) == (ending != "rollback")
    await abandoned.close()


async def test_savepoint_that_is_left_after_the_end(uow: UnitOfWork) -> None:
    """A task that is cancelled in there is cancelled, although its savepoint is gone."""
    inside = asyncio.Event()

    async def stray() -> None:
        async with uow.savepoint():
            inside.set()
            await asyncio.Event().wait()

    with pytest.raises(Boom):
        async with uow:
            task = asyncio.create_task(stray())
            await inside.wait()
            raise Boom
    task.cancel()

    with pytest.raises(asyncio.CancelledError):
        await task


async def test_stream_may_be_closed_after_the_end(uow: UnitOfWork, database: Database) -> None:
    """`finally: await result.close()` in a generator runs late; there is nothing left to do."""
    await fill(database)
    async with uow:
        result = await uow.session.stream(select(Item.name), execution_options={"yield_per": 2})
        await result.fetchone()

    await result.close()


@pytest.mark.parametrize("how", ["yield_per", "scalars", "option", "query", "listener"])
async def test_rows_of_run_sync_are_fetched_in_turn(
    uow: UnitOfWork, database: Database, how: str
) -> None:
    """Where they stream, however that was asked for."""
    names = ", ".join(f"('{number}')" for number in range(300))
    await query(database, f"insert into items (name) values {names}")
    every = select(Item.id)
    options = {"yield_per": 1}

    def read(session: Session) -> int:
        if how == "option":
            return len(list(session.execute(every.execution_options(yield_per=1))))
        if how == "query":
            return len(list(session.query(Item.id).yield_per(1)))
        if how == "scalars":
            return len(list(session.scalars(every, execution_options=options)))
        if how == "listener":
            event.listen(session, "do_orm_execute", lambda state: state.invoke_statement())
        return len(list(session.execute(every, execution_options=options)))

    async def work() -> None:
        for _ in range(5):
            async with uow.savepoint():
                await uow.session.execute(every.limit(1))

    async with uow, uow.tasks() as tg:
        await uow.session.execute(every.limit(1))
        for _ in range(3):
            tg.start_soon(work)
        assert await uow.session.run_sync(read) == 300


async def test_object_of_a_scalar_is_not_taken_for_a_result(
    uow: UnitOfWork, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nothing is read of it, which could load what is deferred."""
    monkeypatch.setattr(Item, "raw", property(lambda item: item / 0), raising=False)

    async with uow:
        uow.session.add(Item(name="a"))
        assert isinstance(await uow.session.scalar(select(Item)), Item)


@pytest.mark.parametrize("count", [0, 1, 2])
async def test_gather_in_an_endpoint(uow: UnitOfWork, database: Database, count: int) -> None:
    """Reads and writes at once, below BaseHTTPMiddlewares that run the app in tasks."""

    async def write(number: int) -> None:
        current_session().add(Item(name=f"{number:02}"))
        await current_session().flush()

    async def read() -> None:
        await current_session().execute(select(Item))

    async def fail() -> None:
        async with uow.savepoint():
            await write(99)
            raise Boom

    async def endpoint(request: Request) -> Response:
        work = [write(number) for number in range(10)] + [read() for _ in range(10)]
        errors = await asyncio.gather(*work, fail(), fail(), return_exceptions=True)
        assert [type(error) for error in errors if error is not None] == [Boom, Boom]
        return PlainTextResponse("answer", 201)

    app = Starlette(
        routes=[Route("/", endpoint)],
        middleware=[Middleware(UnitOfWorkMiddleware, uow=uow), *layers(count)],
    )
    exchange = await Exchange(app, database.observer).run()

    assert exchange.status == 201
    assert exchange.is_complete
    assert exchange.events[0][2] == [f"{number:02}" for number in range(10)]


# --- sessions that people bring ------------------------------------------------------------


class AuditingSession(Session):
    """Its listeners call back into the session, during a flush."""


@event.listens_for(AuditingSession, "before_flush")
def _audit(session: Session, context: object, instances: object) -> None:
    names = [item.name for item in session.new if isinstance(item, Item)]
    session.add_all(Item(name=f"audit {name}") for name in names if "audit" not in name)


@event.listens_for(AuditingSession, "after_flush")
def _count(session: Session, context: object) -> None:
    session.info["flushes"] += 1
    session.execute(select(Item.id))


class OwnAsyncSession(AsyncSession):
    """As SQLModel's, it adds methods that go straight to the sync session."""

    sync_session_class = AuditingSession

    async def save(self, name: str) -> None:
        self.add(Item(name=name))
        await self.flush()


async def test_own_session_classes_are_kept(database: Database, engine: AsyncEngine) -> None:
    """With their listeners, their methods and their `info`."""
    sessions = async_sessionmaker(
        engine, class_=OwnAsyncSession, expire_on_commit=False, info={"flushes": 0}
    )
    uow = UnitOfWork(sessions)

    async with uow:
        session = uow.session
        assert isinstance(session, OwnAsyncSession)
        assert isinstance(session.sync_session, AuditingSession)
        await asyncio.gather(*(session.save(str(number)) for number in range(8)))
        flushes = session.info["flushes"]

    expected = [str(number) for number in range(8)] + [f"audit {number}" for number in range(8)]
    assert await database.observer.names() == sorted(expected)
    assert 1 <= flushes <= 8


async def test_sqlmodel_session(database: Database, engine: AsyncEngine) -> None:
    """Its `exec` takes turns, too."""
    module = pytest.importorskip("sqlmodel.ext.asyncio.session")
    uow = UnitOfWork(async_sessionmaker(engine, class_=module.AsyncSession))

    async def work(number: int) -> None:
        session: Any = uow.session
        session.add(Item(name=f"{number:02}"))
        found = await session.exec(select(Item.name).where(Item.name == f"{number:02}"))
        assert found.one() == (f"{number:02}",)

    async with uow:
        await asyncio.gather(*(work(number) for number in range(TASKS)))

    assert await database.observer.names() == [f"{number:02}" for number in range(TASKS)]
