"""The end of a unit: it runs to completion, within a deadline, and knows what came of it."""

from __future__ import annotations

import asyncio
import contextvars
import gc
import sqlite3
import weakref
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import anyio
import pytest
from sqlalchemy import event, select, text
from sqlalchemy.dialects import registry
from sqlalchemy.dialects.sqlite.aiosqlite import SQLiteDialect_aiosqlite
from sqlalchemy.exc import DBAPIError, IntegrityError
from sqlalchemy.ext.asyncio import AsyncEngine, AsyncSession, async_sessionmaker
from sqlalchemy.pool import PoolProxiedConnection
from starlette.requests import Request
from starlette.responses import PlainTextResponse, RedirectResponse, Response
from starlette.types import Message, Receive, Scope, Send

from starlette_uow import (
    CommitOutcomeUnknownError,
    EndTimeoutError,
    Outcome,
    UnitEndedError,
    UnitOfWork,
    UnitOfWorkMiddleware,
    create_engine,
)
from starlette_uow.context import current_frame
from tests.asgi import Exchange, http_scope
from tests.databases import Database, PostgresObserver, create_tables
from tests.models import Item, Part
from tests.slow_commit import HERE, LOCK, WAITING, SlowCommit, slow_commits

SLEEPING = f"select count(*) {HERE} = 'PgSleep'"


@pytest.fixture
async def slow_commit(database: Database) -> AsyncIterator[SlowCommit]:
    if not isinstance(database.observer, PostgresObserver):
        pytest.skip("the COMMIT of SQLite cannot be made to wait")
    async with slow_commits(database.observer) as slow_commit:
        yield slow_commit


async def write(uow: UnitOfWork, name: str = "a") -> None:
    async with uow:
        uow.session.add(Item(name=name))


async def test_cancelled_commit_is_carried_through(
    uow: UnitOfWork, database: Database, slow_commit: SlowCommit
) -> None:
    """Any number of native cancellations wait, and are raised when it is done."""
    heard: list[str] = []

    async def work() -> None:
        async with uow:
            uow.on_commit(lambda: heard.append("committed"))
            uow.session.add(Item(name="a"))

    task = asyncio.create_task(work())
    await slow_commit.reached()
    for _ in range(5):
        task.cancel()
        await asyncio.wait({task}, timeout=0)
    assert not task.done()
    await slow_commit.let_go()
    with pytest.raises(asyncio.CancelledError):
        await task

    assert await database.observer.names() == ["a"]
    assert heard == ["committed"]


async def test_commit_in_a_cancelled_anyio_scope_is_carried_through(
    uow: UnitOfWork, database: Database, slow_commit: SlowCommit
) -> None:
    """anyio delivers its cancellation again at every await, but not behind the shield."""
    with anyio.CancelScope() as scope:
        async with anyio.create_task_group() as tg:
            tg.start_soon(write, uow)
            await slow_commit.reached()
            scope.cancel()
            with anyio.CancelScope(shield=True):
                await slow_commit.let_go()

    assert scope.cancelled_caught
    assert await database.observer.names() == ["a"]


async def test_refused_commit_in_a_cancelled_anyio_scope_is_told(
    uow: UnitOfWork, database: Database
) -> None:
    """Behind the shield the commit is not cancelled, so its own error is what the caller hears."""
    await write(uow)

    with pytest.raises(IntegrityError), anyio.CancelScope() as scope:
        async with uow:
            uow.session.add(Item(name="a"))
            scope.cancel()


@pytest.mark.parametrize("lost", [False, True], ids=["there", "lost"])
async def test_client_that_leaves_during_the_commit(
    uow: UnitOfWork, database: Database, slow_commit: SlowCommit, lost: bool
) -> None:
    """The commit was decided, so it stays, and the connection comes back. The answer begins, so
    that the server, which would answer 500, can only break it off.
    """

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        uow.session.add(Item(name="a"))
        await PlainTextResponse("answer", 201)(scope, receive, send)

    def fail(message: Message) -> None:
        raise OSError("the client is gone")

    exchange = Exchange(UnitOfWorkMiddleware(app, uow=uow), database.observer)
    if lost:
        exchange.on_message = fail
    task = asyncio.create_task(exchange.run())
    await slow_commit.reached()
    task.cancel()
    await slow_commit.let_go()
    with pytest.raises(asyncio.CancelledError):
        await task

    assert exchange.events == [("start", 201, ["a"])]


async def test_request_that_is_cancelled_while_its_commit_is_lost(
    uow: UnitOfWork, database: Database, slow_commit: SlowCommit
) -> None:
    """It may be committed, or not, so that an error would be a lie, and so would an answer that
    is complete with its headers.
    """
    sent: list[Message] = []

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        uow.session.add(Item(name="a"))
        await RedirectResponse("/done", 303)(scope, receive, send)

    async def receive() -> Message:
        raise NotImplementedError

    async def send(message: Message) -> None:
        sent.append(message)

    serve = UnitOfWorkMiddleware(app, uow=uow)
    task = asyncio.ensure_future(serve(http_scope(), receive, send))
    await slow_commit.reached()
    task.cancel()
    await asyncio.wait({task}, timeout=0)
    await slow_commit.cut()
    with pytest.raises(asyncio.CancelledError):
        await task

    start = {"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"1")]}
    assert sent == [start]


async def test_client_that_leaves_during_an_on_commit_callback(
    uow: UnitOfWork, database: Database
) -> None:
    """What the callback wrote is rolled back, which says nothing of the commit before it."""
    started = asyncio.Event()

    async def callback() -> None:
        uow.session.add(Item(name="callback"))
        await uow.session.flush()
        started.set()
        await asyncio.Event().wait()

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        uow.on_commit(callback)
        uow.session.add(Item(name="a"))
        await PlainTextResponse("answer", 201)(scope, receive, send)

    exchange = Exchange(UnitOfWorkMiddleware(app, uow=uow), database.observer)
    task = asyncio.create_task(exchange.run())
    await started.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task

    assert exchange.events == [("start", 201, ["a"])]
    assert await database.observer.names() == ["a"]


async def test_websocket_that_is_cancelled_during_the_commit(
    uow: UnitOfWork, database: Database, slow_commit: SlowCommit
) -> None:
    """It is accepted, so that the server makes no error of it."""
    sent: list[str] = []

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        uow.session.add(Item(name="a"))
        await send({"type": "websocket.accept"})

    async def receive() -> Message:
        return {"type": "websocket.connect"}

    async def send(message: Message) -> None:
        sent.append(message["type"])

    scope = {"type": "websocket", "path": "/"}
    task = asyncio.ensure_future(UnitOfWorkMiddleware(app, uow=uow)(scope, receive, send))
    await slow_commit.reached()
    task.cancel()
    await slow_commit.let_go()
    with pytest.raises(asyncio.CancelledError):
        await task

    assert sent == ["websocket.accept"]
    assert await database.observer.names() == ["a"]


async def test_cancellation_before_the_decision_rolls_back(
    uow: UnitOfWork, database: Database
) -> None:
    """Whatever was flushed."""
    flushed = asyncio.Event()

    async def work() -> None:
        async with uow:
            uow.session.add(Item(name="a"))
            await uow.session.flush()
            flushed.set()
            await asyncio.get_running_loop().create_future()

    task = asyncio.create_task(work())
    await flushed.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task

    assert await database.observer.names() == []


async def test_cancelled_statement_rolls_back(uow: UnitOfWork, database: Database) -> None:
    """Its connection is lost to the driver, and is not pooled."""
    if not database.is_postgres:
        pytest.skip("needs a statement that waits")
    assert isinstance(database.observer, PostgresObserver)
    await database.observer.connection.execute(f"select pg_advisory_lock({LOCK})")

    async def work() -> None:
        async with uow:
            uow.session.add(Item(name="a"))
            await uow.session.flush()
            await uow.session.execute(text(f"select pg_advisory_lock({LOCK})"))

    task = asyncio.create_task(work())
    while not await database.observer.scalar(WAITING):
        pass
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    await database.observer.connection.execute("select pg_advisory_unlock_all()")
    await write(uow, "next")

    assert await database.observer.names() == ["next"]


async def test_cancelled_statement_that_the_app_swallows_is_refused(
    uow: UnitOfWork, database: Database
) -> None:
    """A timeout around a statement takes the transaction with it, and a 2xx would be a lie."""
    if not database.is_postgres:
        pytest.skip("needs a statement that waits")

    async def app(scope: object, receive: object, send: object) -> None:
        uow.session.add(Item(name="a"))
        await uow.session.flush()
        try:
            async with asyncio.timeout(0.1):
                await uow.session.execute(text("select pg_sleep(60)"))
        except TimeoutError:
            pass
        await PlainTextResponse("answer", 201)(scope, receive, send)  # type: ignore[arg-type]

    exchange = await Exchange(UnitOfWorkMiddleware(app, uow=uow), database.observer).run()

    assert exchange.events == []
    assert "pg_sleep" in str(exchange.error)
    assert await database.observer.names() == []


async def test_connection_lost_during_commit_is_unknown(
    uow: UnitOfWork, database: Database, slow_commit: SlowCommit
) -> None:
    """Never reported as committed or rolled back: a callback of its own is told."""
    heard: list[str] = []

    async def work() -> None:
        async with uow:
            uow.on_commit(lambda: heard.append("committed"))
            uow.on_rollback(lambda: heard.append("rolled back"))
            uow.on_unknown(lambda: heard.append("unknown"))
            uow.session.add(Item(name="a"))

    task = asyncio.create_task(work())
    await slow_commit.reached()
    await slow_commit.cut()
    with pytest.raises(CommitOutcomeUnknownError, match="unknown") as caught:
        await task

    assert isinstance(caught.value.__cause__, DBAPIError)
    assert heard == ["unknown"]


async def test_commit_that_the_driver_gives_up_is_unknown(
    database: Database, slow_commit: SlowCommit
) -> None:
    """asyncpg's `command_timeout` keeps the connection, and cancels what the server does: in time,
    or too late.
    """
    engine = create_engine(database.url, pool_size=1, connect_args={"command_timeout": 0.5})
    uow = UnitOfWork(engine)

    with pytest.raises(CommitOutcomeUnknownError) as caught:
        await write(uow)

    assert isinstance(caught.value.__cause__, TimeoutError)
    await engine.dispose()


@pytest.mark.parametrize("end", ["commit", "rollback", "block"])
async def test_connection_lost_during_a_commit_by_the_apps_own_hand(
    uow: UnitOfWork, slow_commit: SlowCommit, end: str
) -> None:
    """The database's error is the app's to handle; the unit knows no more than it does."""
    heard: list[str] = []

    async def work() -> None:
        async with uow:
            uow.on_commit(lambda: heard.append("committed"))
            uow.on_rollback(lambda: heard.append("rolled back"))
            uow.on_unknown(lambda: heard.append("unknown"))
            uow.session.add(Item(name="a"))
            try:
                await uow.session.commit()
            except DBAPIError:
                if end == "commit":
                    raise
                if end == "rollback":
                    await uow.session.rollback()

    task = asyncio.create_task(work())
    await slow_commit.reached()
    await slow_commit.cut()
    await asyncio.wait([task])

    assert heard == ["unknown"]
    expected = {"commit": DBAPIError, "block": CommitOutcomeUnknownError, "rollback": type(None)}
    assert isinstance(task.exception(), expected[end])


async def test_cancelled_rollback_after_a_refused_commit_is_no_unknown_outcome(
    uow: UnitOfWork, database: Database
) -> None:
    """COMMIT was answered, whatever happens to the connection later."""
    heard: list[str] = []

    async def work() -> None:
        async with uow:
            uow.on_rollback(lambda: heard.append("rolled back"))
            uow.on_unknown(lambda: heard.append("unknown"))
            uow.session.add(Part(item_id=999))
            with pytest.raises(IntegrityError):
                await uow.session.commit()
            task.cancel()
            await uow.session.rollback()

    task = asyncio.create_task(work())
    await asyncio.wait([task])

    assert heard == ["rolled back"]


class FailsAfterCommit(SQLiteDialect_aiosqlite):
    """A driver with a bug."""

    supports_statement_cache = True

    def do_commit(self, dbapi_connection: PoolProxiedConnection) -> None:
        super().do_commit(dbapi_connection)  # type: ignore[no-untyped-call]
        if dbapi_connection.info.get("fails"):
            raise RuntimeError("the driver failed")


async def test_error_of_nobody_during_commit_is_unknown(tmp_path: Path) -> None:
    """It is no answer of the database."""
    registry.register("sqlite.failing", __name__, "FailsAfterCommit")
    url = f"sqlite+failing:///{tmp_path}/test.sqlite"
    await create_tables(url)
    uow = UnitOfWork(create_engine(url))

    with pytest.raises(CommitOutcomeUnknownError):
        async with uow:
            uow.session.add(Item(name="a"))
            connection = await uow.session.connection()
            connection.sync_connection.info["fails"] = True  # type: ignore[union-attr]

    async with uow:
        assert await uow.session.scalar(select(Item.name)) == "a"
    await uow.dispose()


async def test_commit_of_a_cancelled_task_that_is_lost_is_logged(
    uow: UnitOfWork, slow_commit: SlowCommit, caplog: pytest.LogCaptureFixture
) -> None:
    """The task hears of its cancellation alone."""
    task = asyncio.create_task(write(uow))
    await slow_commit.reached()
    task.cancel()
    await slow_commit.cut()
    with pytest.raises(asyncio.CancelledError):
        await task

    assert "an `async with` block: unknown" in caplog.text


async def test_callback_does_not_change_the_outcome_of_its_unit(uow: UnitOfWork) -> None:
    """A task that comes too late reads what became of the work."""
    with pytest.raises(LookupError):
        async with uow:
            session = uow.session
            uow.on_rollback(lambda: None)
            session.add(Item(name="a"))
            await session.flush()
            raise LookupError

    with pytest.raises(UnitEndedError, match="rolled back"):
        await session.execute(select(Item))


async def test_connection_lost_before_commit_is_rolled_back(
    uow: UnitOfWork, database: Database
) -> None:
    """The error passes untouched, and the outcome is known."""
    if not isinstance(database.observer, PostgresObserver):
        pytest.skip("SQLite has no connection to lose")
    heard: list[str] = []

    with pytest.raises(DBAPIError):
        async with uow:
            uow.on_rollback(lambda: heard.append("rolled back"))
            pid = await uow.session.scalar(text("select pg_backend_pid()"))
            await database.observer.connection.execute(f"select pg_terminate_backend({pid})")
            uow.session.add(Item(name="a"))

    assert heard == ["rolled back"]


async def test_commit_on_two_databases_that_one_refuses_is_unknown(
    engine: AsyncEngine, tmp_path: Path
) -> None:
    """The other may have committed already: without a two-phase commit nobody knows."""
    url = f"sqlite+aiosqlite:///{tmp_path}/parts.sqlite"
    await create_tables(url)
    parts = create_engine(url)
    uow = UnitOfWork(async_sessionmaker(binds={Item: engine, Part: parts}))

    with pytest.raises(CommitOutcomeUnknownError) as caught:
        async with uow:
            uow.session.add_all([Item(name="a"), Part(item_id=999)])

    assert isinstance(caught.value.__cause__, IntegrityError)
    await parts.dispose()


async def test_commit_that_takes_longer_than_the_deadline_is_unknown(
    sessions: async_sessionmaker[AsyncSession], database: Database, slow_commit: SlowCommit
) -> None:
    """The connection is terminated while COMMIT is in flight: nobody knows."""
    uow = UnitOfWork(sessions, end_timeout=0.2)

    with pytest.raises(CommitOutcomeUnknownError):
        await write(uow)

    await slow_commit.let_go()
    while not await database.observer.names():  # the server carries it through by itself
        pass


@pytest.mark.parametrize("fails", [False, True])
async def test_statement_that_outlives_the_deadline_is_rolled_back(
    sessions: async_sessionmaker[AsyncSession], database: Database, fails: bool
) -> None:
    """A stray task's statement is waited for, never rolled back over; then it is cut. Where a
    rollback was wanted anyway, that is no error of its own.
    """
    if not database.is_postgres:
        pytest.skip("needs a statement that waits")
    uow = UnitOfWork(sessions, end_timeout=0.2)
    strays: list[asyncio.Task[object]] = []

    expected = (LookupError, "the app") if fails else (EndTimeoutError, r"0\.2 seconds")
    with pytest.raises(expected[0], match=expected[1]):
        async with uow:
            uow.session.add(Item(name="a"))
            await uow.session.flush()
            stray = asyncio.ensure_future(uow.session.execute(text("select pg_sleep(60)")))
            strays.append(stray)
            while not await database.observer.scalar(SLEEPING):
                pass
            if fails:
                raise LookupError("the app failed")
    with pytest.raises(DBAPIError):
        await strays[0]

    assert await database.observer.names() == []
    assert isinstance(database.observer, PostgresObserver)
    await database.observer.connection.execute(
        f"select pg_terminate_backend(pid) {HERE} = 'PgSleep'"
    )
    while await database.observer.scalar(SLEEPING):
        pass


async def test_short_statement_of_a_stray_task_is_waited_for(
    uow: UnitOfWork, database: Database
) -> None:
    """A rollback over a running statement would pool a connection inside a transaction."""
    strays: list[asyncio.Task[object]] = []

    async with uow:
        await uow.session.execute(select(Item))
        query = "select pg_sleep(0.1)" if database.is_postgres else "select 1"
        strays.append(asyncio.ensure_future(uow.session.execute(text(query))))
        await asyncio.wait(strays, timeout=0)
        uow.session.add(Item(name="a"))
    await strays[0]

    assert await database.observer.names() == ["a"]


async def test_end_of_the_loop_during_a_commit(
    sessions: async_sessionmaker[AsyncSession], database: Database, slow_commit: SlowCommit
) -> None:
    """asyncio.run() cancels every task. None is the COMMIT's own, so it is carried through."""
    uow = UnitOfWork(sessions)
    heard: list[str] = []

    async def work() -> None:
        async with uow:
            uow.on_rollback(lambda: heard.append("rolled back"))
            uow.on_unknown(lambda: heard.append("unknown"))
            uow.session.add(Item(name="a"))

    before = asyncio.all_tasks()
    task = asyncio.create_task(work())
    await slow_commit.reached()
    for started in asyncio.all_tasks() - before:
        started.cancel()
    await slow_commit.let_go()
    with pytest.raises(asyncio.CancelledError):
        await task

    assert uow._units == set()
    assert heard == []
    assert await database.observer.names() == ["a"]


async def test_rollback_that_fails_leaves_nothing_open(
    uow: UnitOfWork, database: Database, engine: AsyncEngine, caplog: pytest.LogCaptureFixture
) -> None:
    """It is logged; the answer of the app stays true, so it passes."""
    pids: list[object] = []

    def fail(connection: object) -> None:
        raise OSError("no route to host")

    async with uow:
        uow.session.add(Item(name="a"))
        await uow.session.flush()
        uow.doom()
        event.listen(engine.sync_engine, "rollback", fail)
    event.remove(engine.sync_engine, "rollback", fail)
    async with uow:
        pids.append(await uow.session.scalar(select(Item.name)))

    assert pids == [None]
    assert "no route to host" in caplog.text


async def test_connection_whose_rollback_failed_is_not_pooled(
    uow: UnitOfWork, database: Database, engine: AsyncEngine, caplog: pytest.LogCaptureFixture
) -> None:
    """A statement is in flight on it, or it refuses once: the next unit gets another one."""
    strays: list[asyncio.Task[object]] = []
    drivers: list[object] = []

    async with uow:
        uow.session.add(Item(name="a"))
        await uow.session.flush()
        raw = await (await uow.session.connection()).get_raw_connection()
        driver = raw.driver_connection
        drivers.append(driver)
        assert driver is not None
        if database.is_postgres:
            await driver.execute("rollback")  # so that it is not seen to be in a transaction
            strays.append(asyncio.create_task(driver.execute("select pg_sleep(60)")))
            await asyncio.wait(strays, timeout=0)
        else:
            await driver.set_authorizer(refuse_once("ROLLBACK"))
        uow.doom()
    async with uow:
        raw = await (await uow.session.connection()).get_raw_connection()
        drivers.append(raw.driver_connection)
        assert await uow.session.scalar(select(Item.name)) is None
    await asyncio.gather(*strays, return_exceptions=True)

    assert drivers[0] is not drivers[1]
    assert "rollback failed" in caplog.text


def refuse_once(statement: str) -> Callable[..., int]:
    """An authorizer, https://www.sqlite.org/c3ref/set_authorizer.html, of one statement."""
    refusals = [sqlite3.SQLITE_DENY]

    def authorize(action: int, what: str | None, *more: object) -> int:
        if action == sqlite3.SQLITE_TRANSACTION and what == statement and refusals:
            return refusals.pop()
        return sqlite3.SQLITE_OK

    return authorize


async def test_error_after_the_commit_changes_nothing(
    uow: UnitOfWork, database: Database, caplog: pytest.LogCaptureFixture
) -> None:
    """A listener of the app that fails after COMMIT cannot make it undone."""

    def fail(session: object) -> None:
        raise OSError("the listener failed")

    async with uow:
        event.listen(uow.session.sync_session, "after_commit", fail)
        uow.session.add(Item(name="a"))

    assert await database.observer.names() == ["a"]
    assert "the listener failed" in caplog.text


async def test_connection_that_comes_back_in_a_transaction_is_discarded(
    engine: AsyncEngine, database: Database, caplog: pytest.LogCaptureFixture
) -> None:
    """Whoever put it there: nobody after it inherits a transaction."""
    async with engine.connect() as connection:
        raw = await connection.get_raw_connection()
        driver = raw.driver_connection
        assert driver is not None
        await driver.execute("begin")
        await driver.execute("insert into items (name) values ('a')")

        async def nothing() -> None: ...

        if not database.is_postgres:
            driver.rollback = nothing  # SQLAlchemy would end it here; a cancelled one does not

    assert "discarded" in caplog.text
    assert await database.observer.open_transactions() == []
    assert await database.observer.names() == []


async def test_nothing_is_kept_of_a_transaction_that_has_ended(uow: UnitOfWork) -> None:
    """A process that serves for months would grow with each request."""
    async with uow:
        connection = weakref.ref((await uow.session.connection()).sync_connection)
    gc.collect()

    assert connection() is None


async def test_outcome_of_each_transaction(uow: UnitOfWork) -> None:
    """The unit knows how its last transaction ended."""
    async with uow:
        frame = current_frame.get()
        assert frame is not None
        assert frame.unit is not None
        unit = frame.unit
        assert unit.outcome is None
        uow.session.add(Item(name="a"))
        await uow.rollback()
        assert unit.outcome is Outcome.ROLLED_BACK
        uow.session.add(Item(name="b"))

    assert unit.outcome is Outcome.COMMITTED


async def test_cancelled_request_gives_its_connection_back(
    uow: UnitOfWork, database: Database, engine: AsyncEngine
) -> None:
    """More of them than the pool has connections, at every step of the way."""
    from starlette.applications import Starlette
    from starlette.middleware import Middleware
    from starlette.routing import Route

    from tests.asgi import layers

    async def endpoint(request: Request) -> Response:
        uow.session.add(Item(name="a"))
        await uow.session.flush()
        await uow.session.execute(select(Item))
        return PlainTextResponse("answer", 201)

    app = Starlette(
        routes=[Route("/", endpoint)],
        middleware=[Middleware(UnitOfWorkMiddleware, uow=uow), *layers(1)],
    )
    for steps in range(60):
        exchange = Exchange(app, database.observer)
        task = asyncio.create_task(exchange.run())
        for _ in range(steps):
            await asyncio.wait({task}, timeout=0)
        task.cancel()
        await asyncio.wait({task})
        assert engine.pool.checkedout() == 0  # type: ignore[attr-defined]
        if exchange.is_complete:
            assert await database.observer.names() == ["a"]
        while await database.observer.open_transactions():
            pass  # the server may need a moment to see that its client is gone
        async with uow:
            await uow.session.execute(text("delete from items"))


async def test_request_leaves_its_context_as_it_was(uow: UnitOfWork, database: Database) -> None:
    """A server may serve the next request of a connection in it."""

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        async with uow.savepoint():
            uow.session.add(Item(name="a"))
        await PlainTextResponse("answer", 201)(scope, receive, send)

    exchange = Exchange(UnitOfWorkMiddleware(app, uow=uow), database.observer)
    context = contextvars.copy_context()
    await asyncio.create_task(exchange.run(), context=context)

    variables = {variable.name: value for variable, value in context.items()}
    assert exchange.status == 201
    assert variables["starlette_uow"] is None
    assert variables["starlette_uow_holds"] == ()
