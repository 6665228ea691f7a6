"""The sandbox of a test: everything is committed, and nothing stays."""

from __future__ import annotations

import asyncio
import os
import warnings
from collections.abc import AsyncIterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any, Literal

import anyio
import anyio.to_thread
import httpx
import pytest
from sqlalchemy import event, func, insert, select, text
from sqlalchemy.exc import DBAPIError, IntegrityError
from sqlalchemy.ext.asyncio import (
    AsyncEngine,
    AsyncSession,
    async_sessionmaker,
    create_async_engine,
)
from sqlalchemy.pool import NullPool
from starlette.applications import Starlette
from starlette.background import BackgroundTask
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from starlette_uow import (
    Outcome,
    UnitDoomedError,
    UnitOfWork,
    UnitOfWorkMiddleware,
    create_engine,
    current_session,
)
from starlette_uow import clone as clone_module
from starlette_uow import outer as outer_module
from starlette_uow.errors import LeftOpenError, SandboxError
from starlette_uow.testing import sandbox
from tests.asgi import layers
from tests.databases import Database, connect, create_tables
from tests.models import Item, Part
from tests.test_server import serve

Kind = Literal["shared", "clone"]
KINDS: list[Kind] = ["shared", "clone"]


async def create(request: Request) -> Response:
    name = request.path_params["name"]
    current_session().add(Item(name=name))
    await current_session().flush()
    return JSONResponse({"name": name}, 422 if name == "bad" else 201)


async def create_part(request: Request) -> Response:
    """Its item does not exist, which is seen at COMMIT only."""
    current_session().add(Part(item_id=4711))
    return Response(status_code=201)


async def find(request: Request) -> Response:
    return JSONResponse(list(await names(current_session())))


async def names(session: AsyncSession) -> list[str]:
    return list(await session.scalars(select(Item.name).order_by(Item.name)))


async def add(uow: UnitOfWork, name: str) -> None:
    async with uow.new():
        uow.session.add(Item(name=name))


async def conflict(request: Request, error: Exception) -> Response:
    return Response("conflict", 409)


def make_app(uow: UnitOfWork, *routes: Route, **options: Any) -> Starlette:
    return Starlette(
        routes=[
            *routes,
            Route("/parts", create_part, methods=["POST"]),
            Route("/{name}", create, methods=["POST"]),
            Route("/", find),
        ],
        middleware=[Middleware(UnitOfWorkMiddleware, uow=uow), *layers(1)],
        exception_handlers={IntegrityError: conflict},
        **options,
    )


def client_of(app: Starlette) -> httpx.AsyncClient:
    return httpx.AsyncClient(transport=httpx.ASGITransport(app=app), base_url="http://test")


@pytest.fixture
async def client(uow: UnitOfWork) -> AsyncIterator[httpx.AsyncClient]:
    async with client_of(make_app(uow)) as client:
        yield client


def turn_of(uow: UnitOfWork) -> asyncio.Lock:
    pool = uow._engines()[0].pool
    assert isinstance(pool, outer_module.OuterPool)
    return pool._turn


@asynccontextmanager
async def fails_with(error: type[Exception], *words: str) -> AsyncIterator[None]:
    with pytest.raises(error) as raised:
        yield
    assert [word for word in words if word not in str(raised.value)] == []


# --- what is the same as in production -----------------------------------------------------


async def test_committed_work_is_there_for_later_units_and_nowhere_else(
    uow: UnitOfWork, client: httpx.AsyncClient, database: Database
) -> None:
    """Through the app and directly, until the block ends."""
    async with sandbox(uow):
        await add(uow, "tea")
        assert (await client.post("/milk")).status_code == 201
        assert (await client.get("/")).json() == ["milk", "tea"]
        assert await database.observer.names() == []

    assert await database.observer.names() == []
    assert (await client.get("/")).json() == []


async def test_what_was_there_before_is_visible_and_can_be_changed(
    uow: UnitOfWork, database: Database
) -> None:
    """And is as before when the block ends."""
    await add(uow, "tea")

    async with sandbox(uow):
        async with uow:
            (await uow.session.scalars(select(Item))).one().name = "coffee"
        async with uow:
            assert await names(uow.session) == ["coffee"]

    assert await database.observer.names() == ["tea"]


async def test_a_unit_that_rolls_back_undoes_its_own_work_alone(
    uow: UnitOfWork, client: httpx.AsyncClient
) -> None:
    """By an error answer, a dry run, or an exception."""
    async with sandbox(uow):
        await add(uow, "tea")
        assert (await client.post("/bad")).status_code == 422
        async with uow:
            uow.session.add(Item(name="milk"))
            await uow.session.flush()
            uow.doom()
        with pytest.raises(IntegrityError):
            await add(uow, "tea")

        assert (await client.get("/")).json() == ["tea"]


async def test_savepoints_nest_in_units(uow: UnitOfWork) -> None:
    """One that fails is undone, its unit is not."""
    async with sandbox(uow):
        async with uow:
            uow.session.add(Item(name="tea"))
            with pytest.raises(IntegrityError):
                async with uow.savepoint():
                    uow.session.add(Item(name="tea"))
        async with uow:
            assert await names(uow.session) == ["tea"]


async def test_deferred_constraint_is_checked_at_each_commit(
    uow: UnitOfWork, client: httpx.AsyncClient
) -> None:
    """As in production, it is not checked before; and the check leaves nothing behind."""
    async with sandbox(uow):
        await add(uow, "tea")
        assert (await client.post("/parts")).status_code == 409
        async with uow:
            part = Part(item_id=1000)
            uow.session.add(part)
            await uow.session.flush()
            uow.session.add(Item(id=1000, name="milk"))
        assert (await client.post("/parts")).status_code == 409
        assert (await client.get("/")).json() == ["milk", "tea"]


async def test_constraint_that_was_broken_before_does_not_refuse_commits(
    uow: UnitOfWork, database: Database
) -> None:
    """A COMMIT looks at its own transaction only, and so does the sandbox on SQLite."""
    if database.is_postgres:
        pytest.skip("PostgreSQL does the checking itself")
    connection = database.observer.connection  # type: ignore[attr-defined]
    connection.execute("insert into parts (item_id) values (4711)")

    async with sandbox(uow):
        await add(uow, "tea")


async def test_callbacks_run_after_their_transaction(uow: UnitOfWork) -> None:
    """One may use the session, in a transaction of its own."""
    called = []

    async def welcome() -> None:
        called.append("committed")
        uow.session.add(Item(name="welcome"))

    async with sandbox(uow):
        async with uow:
            uow.session.add(Item(name="tea"))
            uow.on_commit(welcome)
            uow.on_rollback(lambda: called.append("never"))
        async with uow:
            await names(uow.session)
            uow.on_rollback(lambda: called.append("rolled back"))
            uow.doom()
        async with uow:
            assert await names(uow.session) == ["tea", "welcome"]

    assert called == ["committed", "rolled back"]


async def test_swallowed_database_error_refuses_the_commit(
    uow: UnitOfWork, database: Database
) -> None:
    """PostgreSQL has aborted the transaction, of which here only a savepoint is left."""
    if not database.is_postgres:
        pytest.skip("SQLite goes on after an error")
    async with sandbox(uow):
        await add(uow, "tea")
        async with fails_with(UnitDoomedError, "division by zero"):
            async with uow:
                uow.session.add(Item(name="milk"))
                await uow.session.flush()
                with pytest.raises(Exception, match="division"):
                    await uow.session.execute(text("select 1/0"))
        async with uow:
            assert await names(uow.session) == ["tea"]


async def test_options_of_a_transaction(uow: UnitOfWork, database: Database) -> None:
    """Isolation levels cannot apply, and harm nothing; a read-only unit is the only one."""
    async with sandbox(uow):
        for level in ("SERIALIZABLE", "READ UNCOMMITTED" if not database.is_postgres else None):
            async with uow.new(isolation_level=level):
                uow.session.add(Item(name=str(level)))
        if database.is_postgres:
            async with fails_with(Exception, "read-only transaction"):
                async with uow.new(read_only=True):
                    uow.session.add(Item(name="refused"))
        async with uow.new(read_only=True):
            assert len(await names(uow.session)) == 2
        await add(uow, "tea")

    assert await database.observer.names() == []


async def test_engine_used_without_units_is_inside(
    uow: UnitOfWork, engine: AsyncEngine, database: Database
) -> None:
    """By code of the app that takes the engine or the sessionmaker."""
    async with sandbox(uow):
        async with engine.begin() as connection:
            await connection.execute(text("insert into items (name) values ('tea')"))
        async with engine.connect() as connection:
            await connection.execute(text("insert into items (name) values ('never')"))
        async with uow.sessions.begin() as session:
            session.add(Item(name="milk"))
        async with uow:
            assert await names(uow.session) == ["milk", "tea"]

    assert await database.observer.names() == []


async def test_autocommit_is_inside(
    uow: UnitOfWork, engine: AsyncEngine, database: Database
) -> None:
    """Its statements are kept without a commit (SQLite begins by an event, so there with one)."""
    autocommit = engine.execution_options(isolation_level="AUTOCOMMIT")

    async with sandbox(uow):
        async with autocommit.connect() as connection:
            await connection.execute(text("insert into items (name) values ('tea')"))
            if not database.is_postgres:
                await connection.commit()
        with pytest.raises(DBAPIError):
            async with autocommit.connect() as connection:
                await connection.execute(text("select nothing from nowhere"))
        async with uow:
            assert await names(uow.session) == ["tea"]

    assert await database.observer.names() == []


async def test_rows_are_streamed_in_many_executions(uow: UnitOfWork) -> None:
    """Server-side cursors and executemany work inside."""
    async with sandbox(uow):
        async with uow:
            await uow.session.execute(insert(Item), [{"name": str(n)} for n in range(10)])
        async with uow:
            found = [name async for name in await uow.session.stream_scalars(select(Item.name))]

    assert len(found) == 10


async def test_listeners_of_the_pool_are_called(uow: UnitOfWork, engine: AsyncEngine) -> None:
    """The user's own, once for each time a unit takes the connection."""
    called = []
    await add(uow, "tea")
    for name in ("connect", "checkout", "checkin"):
        event.listen(engine.sync_engine, name, lambda *_, name=name: called.append(name))

    async with sandbox(uow):
        called.clear()
        await add(uow, "milk")

        assert called == ["checkout", "checkin"]


async def test_app_that_disposes_its_engine_does_not_end_the_sandbox(uow: UnitOfWork) -> None:
    """Each client of a test may run the app's lifespan."""
    async with sandbox(uow):
        await add(uow, "tea")
        await uow.dispose()
        async with uow:
            assert await names(uow.session) == ["tea"]


@pytest.mark.parametrize("kind", ["memory", "plain", "null pool"])
async def test_other_engines_of_sqlite(tmp_path: Path, kind: str) -> None:
    """In memory there is one connection; without create_engine() nobody says BEGIN."""
    if kind == "memory":
        engine = create_engine("sqlite+aiosqlite://")
        async with engine.begin() as connection:
            await connection.run_sync(Item.metadata.create_all)
    else:
        url = f"sqlite+aiosqlite:///{tmp_path / 'test.sqlite'}"
        await create_tables(url)
        engine = create_async_engine(url, **({} if kind == "plain" else {"poolclass": NullPool}))
    uow = UnitOfWork(engine)

    async with sandbox(uow):
        await add(uow, "tea")
        with pytest.raises(IntegrityError):
            await add(uow, "tea")
        async with uow:
            await uow.session.execute(insert(Item), [{"name": "never"}, {"name": "ever"}])
            uow.doom()
        async with uow:
            assert await names(uow.session) == ["tea"]
    async with uow:
        assert await names(uow.session) == []
    await engine.dispose()


# --- turns ---------------------------------------------------------------------------------


async def test_units_take_turns(uow: UnitOfWork, client: httpx.AsyncClient) -> None:
    """Requests that meet wait for each other, and all are served."""
    async with sandbox(uow):
        answers = await asyncio.gather(*(client.post(f"/{n}") for n in range(20)))
        found = (await client.get("/")).json()

    assert {answer.status_code for answer in answers} == {201}
    assert len(found) == 20


async def test_live_server_in_the_loop_of_the_test(uow: UnitOfWork, database: Database) -> None:
    """Through real sockets, by several clients."""
    async with sandbox(uow) as box:
        async with serve(make_app(uow)) as server:
            base_url = f"http://127.0.0.1:{server.port}"
            async with httpx.AsyncClient(base_url=base_url) as client:
                answers = await asyncio.gather(*(client.post(f"/{n}") for n in range(10)))
                found = (await client.get("/")).json()

    assert {answer.status_code for answer in answers} == {201}
    assert len(found) == 10
    assert [unit.outcomes for unit in box.units] == [[Outcome.COMMITTED]] * 11
    assert await database.observer.names() == []


async def test_unit_that_is_opened_while_one_is_idle(uow: UnitOfWork) -> None:
    """It is the connection that is shared: a unit that has none is in nobody's way."""
    async with sandbox(uow):
        async with uow:
            await add(uow, "tea")
            uow.session.add(Item(name="milk"))
        async with uow:
            uow.session.add(Item(name="coffee"))
            await uow.checkpoint()
            await add(uow, "cocoa")
            assert len(await names(uow.session)) == 4


async def test_new_unit_inside_an_open_one_points_to_the_clone(uow: UnitOfWork) -> None:
    """At once, in the same task and in one that was started inside."""
    async with sandbox(uow):
        async with uow:
            await names(uow.session)
            async with fails_with(SandboxError, "inside the unit of an `async with`", "clone"):
                await add(uow, "tea")
            async with fails_with(SandboxError, "inside the unit of an `async with`", "clone"):
                await asyncio.create_task(add(uow, "tea"))
        async with uow:
            await asyncio.create_task(names(uow.session))  # which takes the connection
            async with fails_with(SandboxError, "inside the unit of an `async with`", "clone"):
                await add(uow, "tea")
        await add(uow, "tea")


async def test_request_inside_a_block_of_the_test_is_refused(
    uow: UnitOfWork, client: httpx.AsyncClient
) -> None:
    """In production it would not see what the block has not committed yet."""
    async with sandbox(uow):
        async with uow:
            await names(uow.session)
            async with fails_with(SandboxError, "inside the unit of an `async with`", "clone"):
                await client.get("/")
        assert (await client.get("/")).json() == []


async def test_waiting_for_a_turn_ends_with_who_has_it(
    uow: UnitOfWork, client: httpx.AsyncClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where no context shows that nobody can go on."""
    monkeypatch.setattr(outer_module, "TURN_TIMEOUT", 0.1)
    asked, answered = asyncio.Event(), asyncio.Event()

    async def holder() -> None:
        async with uow:
            await names(uow.session)
            asked.set()
            await answered.wait()

    async with sandbox(uow), asyncio.TaskGroup() as group:
        group.create_task(holder())
        await asked.wait()
        async with fails_with(SandboxError, "0.1 seconds", "an `async with` block"):
            await client.get("/")
        answered.set()


async def test_cancelled_wait_costs_nobody_a_turn(uow: UnitOfWork) -> None:
    """The connection goes on to the next."""
    started, go = asyncio.Event(), asyncio.Event()

    async def flush(name: str) -> None:
        async with uow:
            uow.session.add(Item(name=name))
            await uow.session.flush()

    async def holder() -> None:
        async with uow:
            await names(uow.session)
            started.set()
            await go.wait()

    async with sandbox(uow):
        first = asyncio.create_task(holder())
        await started.wait()
        waiting = [asyncio.create_task(flush(str(n))) for n in range(3)]
        while len(turn_of(uow)._waiters or ()) < 3:  # noqa: ASYNC110 - nobody tells us
            await asyncio.sleep(0)
        waiting[0].cancel()
        go.set()
        waiting[1].cancel()
        await asyncio.gather(first, *waiting, return_exceptions=True)
        async with uow:
            assert await names(uow.session) == ["2"]


@pytest.mark.parametrize("source", ["postgresql"], indirect=True)
async def test_clone_that_is_cancelled_while_it_is_made_is_dropped(
    source: UnitOfWork, server_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The server has made it by then, or goes on making it."""
    create = clone_module._create

    async def create_and_be_cancelled(*args: Any) -> None:
        await create(*args)
        raise asyncio.CancelledError

    monkeypatch.setattr(clone_module, "_create", create_and_be_cancelled)
    before = await databases(server_url)
    with pytest.raises(asyncio.CancelledError):
        async with sandbox(source, database="clone"):
            raise AssertionError("it was made")

    assert await databases(server_url) == before


# --- what cannot work ----------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
async def test_other_event_loop_is_refused(uow: UnitOfWork, source: UnitOfWork, kind: Kind) -> None:
    """Starlette's TestClient runs the app in one."""
    uow = source if kind == "clone" else uow
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # newer versions prefer another HTTP client
        from starlette.testclient import TestClient
    async with sandbox(uow, database=kind):
        await add(uow, "milk")
        test_client = TestClient(make_app(uow))
        async with fails_with(SandboxError, "TestClient", "ASGITransport"):
            await anyio.to_thread.run_sync(test_client.get, "/")
        await add(uow, "tea")


async def test_test_client_works_without_a_sandbox(database: Database) -> None:
    """All of its requests run in one loop, at the end of which the engine is disposed."""
    uow = UnitOfWork(create_engine(database.url))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # newer versions prefer another HTTP client
        from starlette.testclient import TestClient

    def use() -> list[str]:
        with TestClient(make_app(uow)) as client:
            assert client.post("/tea").status_code == 201
            return list(client.get("/").json())

    assert await anyio.to_thread.run_sync(use) == ["tea"]


async def test_lost_connection_ends_the_sandbox_alone(
    uow: UnitOfWork, engine: AsyncEngine, database: Database
) -> None:
    """A statement that is cancelled while it runs costs its connection."""
    slow = "select pg_sleep(60)" if database.is_postgres else SLOW_SQLITE

    async with sandbox(uow):
        await add(uow, "tea")
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.2):
                async with uow:
                    await uow.session.execute(text(slow))
        async with fails_with(SandboxError, "cancelled", 'database="clone"'):
            await add(uow, "milk")

    await add(uow, "coffee")
    assert await database.observer.names() == ["coffee"]


SLOW_SQLITE = (
    "with recursive n(i) as (select 1 union all select i + 1 from n where i < 1000000) "
    "select max(i) from n"
)


async def test_open_units_and_other_sandboxes_are_refused(uow: UnitOfWork) -> None:
    """What is open would be outside."""
    async with uow:
        async with fails_with(SandboxError, "an `async with` block", "first"):
            await sandbox(uow).__aenter__()
    async with sandbox(uow):
        async with fails_with(SandboxError, "in a sandbox already"):
            await sandbox(uow).__aenter__()
        await add(uow, "tea")


@pytest.mark.parametrize("kind", KINDS)
async def test_definition_without_engines_is_refused(kind: Kind) -> None:
    """There is nothing to take over."""
    async with fails_with(SandboxError, "asyncpg or aiosqlite"):
        await sandbox(UnitOfWork(async_sessionmaker()), database=kind).__aenter__()


def test_engine_of_an_earlier_loop(postgres_url: str) -> None:
    """A global engine whose pooled connections belong to the loop of an earlier test."""
    uow = UnitOfWork(create_engine(postgres_url))

    async def test() -> list[str]:
        async with sandbox(uow):
            await add(uow, "tea")
            async with uow:
                return await names(uow.session)

    async def leave_a_connection_in_the_pool() -> None:
        async with uow:
            await uow.session.execute(text("truncate items, parts"))

    with asyncio.Runner() as earlier:
        earlier.run(leave_a_connection_in_the_pool())
        found = [asyncio.run(test()) for _ in range(2)]
        earlier.run(uow.dispose())

    assert found == [["tea"], ["tea"]]


# --- what a test leaves open ---------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
async def test_unit_left_open_fails_the_test(
    uow: UnitOfWork, source: UnitOfWork, kind: Kind
) -> None:
    """Its name is told, and its connection is back."""
    uow = source if kind == "clone" else uow
    async with fails_with(LeftOpenError, "the unit of an `async with` block"):
        async with sandbox(uow, database=kind):
            block = uow.new()
            await block.__aenter__()
            uow.session.add(Item(name="tea"))
            await uow.session.flush()
    async with uow.new():
        assert await names(uow.session) == []
    await block.__aexit__(None, None, None)


async def test_task_left_running_fails_the_test(
    uow: UnitOfWork, engine: AsyncEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is cancelled, before its next statement would reach the real database."""
    monkeypatch.setattr("starlette_uow.testing.GRACE", 0.1)
    never = asyncio.Event()

    async def poll() -> None:
        async with uow:
            uow.session.add(Item(name="tea"))
            await uow.session.flush()
            await never.wait()

    async with fails_with(LeftOpenError, "the task 'poller'", "poll", "the unit of"):
        async with sandbox(uow):
            task = asyncio.create_task(poll(), name="poller")
            await asyncio.sleep(0)

    assert task.cancelled()


async def test_task_that_is_about_to_finish_is_waited_for(uow: UnitOfWork) -> None:
    """As is a task from before, which is none of the test's."""
    never = asyncio.Event()
    older = asyncio.create_task(never.wait())

    async with sandbox(uow):
        task = asyncio.create_task(add(uow, "tea"))

    assert task.done()
    assert not older.done()
    never.set()
    await older


@pytest.mark.parametrize("kind", KINDS)
async def test_connection_left_open_fails_the_test(
    uow: UnitOfWork, source: UnitOfWork, kind: Kind
) -> None:
    """One that was taken from the engine directly."""
    uow = source if kind == "clone" else uow
    async with fails_with(LeftOpenError, "connection"):
        async with sandbox(uow, database=kind):
            connection = await uow._engines()[0].connect()
            await connection.execute(text("select 1"))
    await connection.invalidate()
    await connection.close()


async def test_failing_test_keeps_its_own_error(uow: UnitOfWork) -> None:
    """What it left open is a note."""
    with pytest.raises(ZeroDivisionError) as raised:
        async with sandbox(uow):
            block = uow.new()
            await block.__aenter__()
            raise ZeroDivisionError

    assert "the unit of an `async with` block" in raised.value.__notes__[0]
    await block.__aexit__(None, None, None)


# --- the recorder --------------------------------------------------------------------------


async def test_recorder_tells_units_outcomes_and_statements(uow: UnitOfWork) -> None:
    """What a test of a number of statements needs. A request that asks for no unit has none."""

    async def remember() -> None:
        current_session().add(Item(name="remembered"))

    async def serve_tea(request: Request) -> Response:
        current_session().add(Item(name="tea"))
        return Response(background=BackgroundTask(remember))

    async def idle(request: Request) -> Response:
        return Response()

    app = make_app(uow, Route("/tea", serve_tea), Route("/idle", idle))
    async with sandbox(uow) as box, client_of(app) as client:
        await client.get("/tea")
        await client.get("/idle")
        await client.post("/bad")
        await client.post("/parts")
        async with uow:
            async with uow.savepoint():
                await names(uow.session)

    committed, rolled_back = Outcome.COMMITTED, Outcome.ROLLED_BACK
    assert [(unit.name, unit.outcomes) for unit in box.units] == [
        ("GET /tea", [committed, committed]),
        ("POST /bad", [rolled_back]),
        ("POST /parts", [rolled_back]),
        ("an `async with` block", [committed]),
    ]
    assert [len(unit.statements) for unit in box.units] == [2, 1, 1, 3]
    assert box.units[3].statements[0].startswith("SAVEPOINT")
    await add(uow, "after the block")
    assert len(box.units) == 4


# --- a database of its own -----------------------------------------------------------------


@pytest.fixture(params=["postgresql", "sqlite"])
async def source(
    request: pytest.FixtureRequest, source_url: str, tmp_path: Path, anyio_backend: str
) -> AsyncIterator[UnitOfWork]:
    """A unit of work on a database that is to be copied, and must stay empty."""
    url = source_url
    if request.param == "sqlite":
        url = f"sqlite+aiosqlite:///{tmp_path / 'source.sqlite'}"
        await create_tables(url)
    uow = UnitOfWork(create_engine(url))
    yield uow
    async with uow.new():
        assert await names(uow.session) == []
    await uow.dispose()


def is_postgres(uow: UnitOfWork) -> bool:
    return uow._engines()[0].dialect.name == "postgresql"


async def databases(server_url: str) -> list[str]:
    """The source of this process and its copies."""
    connection = await connect(server_url)
    try:
        rows = await connection.fetch("select datname from pg_database")
    finally:
        await connection.close()
    return [row[0] for row in rows if row[0].startswith(f"starlette_uow_source_{os.getpid()}")]


async def test_clone_is_as_production(source: UnitOfWork) -> None:
    """Units commit for real, beside each other."""
    async with sandbox(source, database="clone"), client_of(make_app(source)) as client:
        await add(source, "tea")
        async with source:
            assert await names(source.session) == ["tea"]
            if is_postgres(source):  # SQLite has one writer
                await add(source, "milk")
                assert await names(source.session) == ["milk", "tea"]
        await client.post("/coffee")
        assert (await client.post("/parts")).status_code == 409
        assert "coffee" in (await client.get("/")).json()


async def test_clone_has_what_the_original_has(source: UnitOfWork) -> None:
    """What was committed before is copied, rows and tables."""
    await add(source, "tea")

    async with sandbox(source, database="clone"), source:
        assert await names(source.session) == ["tea"]
        await source.session.delete((await source.session.scalars(select(Item))).one())

    async with source:
        assert await names(source.session) == ["tea"]
        await source.session.execute(text("delete from items"))


async def test_clones_are_dropped(source: UnitOfWork, source_url: str, server_url: str) -> None:
    """Also when the test fails, and when an app has disposed its engine meanwhile."""
    with pytest.raises(ZeroDivisionError):
        async with sandbox(source, database="clone"):
            await add(source, "tea")
            await source.dispose()
            await add(source, "milk")
            assert len(await databases(server_url)) == 1 + is_postgres(source)
            raise ZeroDivisionError

    assert len(await databases(server_url)) == 1


def test_clones_of_one_database_at_the_same_time(source_url: str) -> None:
    """As the processes of pytest-xdist make them."""

    async def test(number: int) -> list[str]:
        uow = UnitOfWork(create_engine(source_url))
        async with sandbox(uow, database="clone"):
            await add(uow, str(number))
            async with uow:
                return await names(uow.session)

    with ThreadPoolExecutor() as threads:
        found = list(threads.map(lambda number: asyncio.run(test(number)), range(4)))

    assert found == [["0"], ["1"], ["2"], ["3"]]


async def test_clone_of_a_database_in_use_tells_by_whom(
    source_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """PostgreSQL refuses to copy it; the engine is as before."""
    monkeypatch.setattr(clone_module, "COPY_TIMEOUT", 0.5)
    other = await connect(source_url)
    await other.execute("set application_name = 'somebody'")
    uow = UnitOfWork(create_engine(source_url))

    async with fails_with(SandboxError, "somebody (process", "starlette_uow_source"):
        await sandbox(uow, database="clone").__aenter__()
    async with uow:
        assert "source" in str(await uow.session.scalar(func.current_database()))

    await other.close()
    await uow.dispose()


async def test_engine_that_cannot_be_redirected_is_refused(source_url: str) -> None:
    """One whose connections are made by a function: they would write into the original."""

    async def make(*args: Any, **kwargs: Any) -> Any:
        return await connect(source_url)

    uow = UnitOfWork(create_engine(source_url, async_creator=make))

    async with fails_with(SandboxError, "went on connecting to the original"):
        await sandbox(uow, database="clone").__aenter__()


async def test_engines_on_one_url_share_the_clone(source_url: str) -> None:
    """Two binds of one definition see each other's work, as in production."""
    engines = [create_engine(source_url) for _ in range(2)]
    binds = {Item: engines[0], Part: engines[1]}
    uow = UnitOfWork(async_sessionmaker(binds=binds, expire_on_commit=False))

    async with sandbox(uow, database="clone"), AsyncExitStack() as stack:
        found = []
        for engine in engines:
            connection = await stack.enter_async_context(engine.connect())
            found.append(await connection.scalar(func.current_database()))

    assert found[0] == found[1]
