"""The truth about a COMMIT whose connection was lost: `resolve_unknown` on real PostgreSQL."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path

import asyncpg
import pytest
from sqlalchemy import select, text
from sqlalchemy.dialects import registry
from sqlalchemy.dialects.postgresql.asyncpg import PGDialect_asyncpg
from sqlalchemy.engine import make_url
from sqlalchemy.exc import DBAPIError
from sqlalchemy.ext.asyncio import AsyncEngine, async_sessionmaker, create_async_engine
from starlette.applications import Starlette
from starlette.background import BackgroundTask
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response, StreamingResponse
from starlette.routing import Route, WebSocketRoute
from starlette.types import Message
from starlette.websockets import WebSocket

from starlette_uow import (
    CommitOutcomeUnknownError,
    ConfigurationError,
    EndTimeoutError,
    UnitDoomedError,
    UnitOfWork,
    UnitOfWorkMiddleware,
    create_engine,
    current_session,
)
from tests.asgi import Exchange, http_scope, layers
from tests.databases import PostgresObserver, connect, create_tables
from tests.models import Item, Part
from tests.proxy import Fault, Proxy, answers, sends
from tests.servers import Server
from tests.slow_commit import SlowCommit, slow_commits


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    """Nothing reaches its disk by itself, but what is committed."""
    with Server(wal_writer_delay="10s", autovacuum="off", max_prepared_transactions=2) as server:
        yield server


@pytest.fixture
async def observer(server: Server, anyio_backend: str) -> AsyncIterator[PostgresObserver]:
    await create_tables(server.url)
    connection = await connect(server.url)
    await connection.execute("truncate items, parts restart identity")
    if not await connection.fetchval("select count(*) from pg_roles where rolname = 'app'"):
        await connection.execute("create role app login")
    await connection.execute("grant all on all tables in schema public to app")
    await connection.execute("grant all on all sequences in schema public to app")
    yield PostgresObserver(connection)
    await connection.close()


@pytest.fixture
async def slow_commit(observer: PostgresObserver) -> AsyncIterator[SlowCommit]:
    async with slow_commits(observer) as slow_commit:
        yield slow_commit


@pytest.fixture
async def proxy(server: Server, observer: PostgresObserver) -> AsyncIterator[Proxy]:
    """Leads to the server as a role without any rights but those to the tables."""
    url = make_url(server.url).set(username="app")
    async with Proxy(url.render_as_string()) as proxy:
        yield proxy


@pytest.fixture
async def engine(proxy: Proxy) -> AsyncIterator[AsyncEngine]:
    engine = create_engine(proxy.url, pool_size=2, max_overflow=0, pool_timeout=5)
    yield engine
    assert engine.pool.checkedout() == 0  # type: ignore[attr-defined]
    await engine.dispose()


def make_uow(engine: AsyncEngine, end_timeout: float = 20, resolve: bool = True) -> UnitOfWork:
    sessions = async_sessionmaker(engine, expire_on_commit=False)
    return UnitOfWork(sessions, end_timeout=end_timeout, resolve_unknown=resolve)


@pytest.fixture
def uow(engine: AsyncEngine) -> UnitOfWork:
    return make_uow(engine)


class Work:
    """A unit that writes an item, and what its callbacks heard."""

    def __init__(self, uow: UnitOfWork) -> None:
        self.uow = uow
        self.heard: list[str] = []
        self.xid = 0

    async def run(self) -> None:
        async with self.uow as uow:
            uow.on_commit(lambda: self.heard.append("committed"))
            uow.on_rollback(lambda: self.heard.append("rolled back"))
            uow.on_unknown(lambda: self.heard.append("unknown"))
            uow.session.add(Item(name="a"))
            await uow.session.flush()
            xid = await uow.session.scalar(text("select pg_current_xact_id()::text"))
            assert xid is not None
            self.xid = int(xid)


# --- the wire ------------------------------------------------------------------------------------


async def test_answer_to_a_commit_is_lost(
    uow: UnitOfWork, proxy: Proxy, observer: PostgresObserver, caplog: pytest.LogCaptureFixture
) -> None:
    """It is committed, and that is what the unit says; the loss is logged."""
    work = Work(uow)
    proxy.at(answers("COMMIT"), Fault.CUT)

    await work.run()

    assert await observer.names() == ["a"]
    assert work.heard == ["committed"]
    assert "lost during COMMIT" in caplog.text


@pytest.mark.parametrize("fault", [Fault.CUT, Fault.HALF])
async def test_commit_never_arrives(
    uow: UnitOfWork, proxy: Proxy, observer: PostgresObserver, fault: Fault
) -> None:
    """It is rolled back, and the error of the database passes untouched."""
    work = Work(uow)
    proxy.at(sends("COMMIT"), fault)

    with pytest.raises(DBAPIError) as caught:
        await work.run()

    assert caught.value.connection_invalidated
    assert await observer.names() == []
    assert work.heard == ["rolled back"]


async def test_commit_never_arrives_and_the_server_does_not_notice(
    engine: AsyncEngine, proxy: Proxy, observer: PostgresObserver
) -> None:
    """Its backend is terminated, so that nothing stays locked."""
    work = Work(make_uow(engine, end_timeout=3))
    proxy.at(sends("COMMIT"), Fault.STALL)

    with pytest.raises(EndTimeoutError) as caught:
        await work.run()

    assert isinstance(caught.value.__cause__, DBAPIError)
    assert work.heard == ["rolled back"]
    assert await observer.names() == []
    assert await observer.open_transactions() == []


async def test_answer_that_is_late_for_the_deadline(
    engine: AsyncEngine, proxy: Proxy, observer: PostgresObserver
) -> None:
    """The connection is terminated, and the unit is committed all the same."""
    work = Work(make_uow(engine, end_timeout=1))
    proxy.at(answers("COMMIT"), Fault.STALL)

    await work.run()

    assert work.heard == ["committed"]
    assert await observer.names() == ["a"]


@pytest.mark.parametrize("carried_out", [True, False])
async def test_connection_lost_during_a_slow_commit(
    uow: UnitOfWork,
    proxy: Proxy,
    observer: PostgresObserver,
    slow_commit: SlowCommit,
    carried_out: bool,
) -> None:
    """The server goes on with it, and may have a second."""
    work = Work(uow)
    task = asyncio.create_task(work.run())
    await slow_commit.reached()

    proxy.cut()
    if carried_out:
        await asked(proxy, times=2)
        await slow_commit.let_go()
    await asyncio.wait([task])

    assert work.heard == ["committed" if carried_out else "rolled back"]
    assert await observer.names() == (["a"] if carried_out else [])
    assert (task.exception() is None) is carried_out


async def test_app_commits_by_its_own_hand_while_the_end_waits(
    uow: UnitOfWork, proxy: Proxy, observer: PostgresObserver
) -> None:
    """The end is that of the transaction that the app has begun since."""
    entered, go_on = asyncio.Event(), asyncio.Event()

    async def work() -> None:
        async with uow.exclusive():
            entered.set()
            await go_on.wait()
            await current_session().commit()
            current_session().add(Item(name="b"))
            await current_session().flush()
            proxy.at(answers("COMMIT"), Fault.CUT)

    async with uow:
        uow.session.add(Item(name="a"))
        await uow.session.flush()
        task = asyncio.create_task(work())
        await entered.wait()
        asyncio.get_running_loop().call_soon(go_on.set)  # the end is waiting by then
    await task

    assert await observer.names() == ["a", "b"]


async def test_time_to_find_out_is_not_that_of_the_end(
    engine: AsyncEngine, proxy: Proxy, observer: PostgresObserver
) -> None:
    """The connection was lost before the deadline, which has nothing to do with it."""
    work = Work(make_uow(engine, end_timeout=3))
    stalled = proxy.at(sends("COMMIT"), Fault.STALL)
    task = asyncio.create_task(work.run())
    await stalled.sprung.wait()
    proxy.refuse()
    await asyncio.wait([task], timeout=1.5)
    proxy.cut()
    await asyncio.wait([task], timeout=1.7)
    await proxy.accept()
    with pytest.raises(DBAPIError):
        await task

    assert work.heard == ["rolled back"]


async def test_wire_that_swallows_the_question(
    uow: UnitOfWork, proxy: Proxy, observer: PostgresObserver
) -> None:
    """It is asked again on another connection."""
    work = Work(uow)
    proxy.at(answers("COMMIT"), Fault.CUT)
    swallowed = proxy.at(sends("select pg_xact_status"), Fault.STALL)

    await work.run()

    assert swallowed.sprung.is_set()
    assert work.heard == ["committed"]


async def test_pool_in_use_does_not_keep_from_finding_out(
    proxy: Proxy, observer: PostgresObserver
) -> None:
    """It is asked on a connection beside the pool."""
    engine = create_engine(proxy.url, pool_size=1, max_overflow=0, pool_timeout=5)
    work = Work(make_uow(engine))
    told = asyncio.Event()

    async def use_the_pool() -> None:
        while not told.is_set():
            try:
                async with engine.connect():
                    await told.wait()
            except OSError:
                await asyncio.sleep(0)

    stalled = proxy.at(answers("COMMIT"), Fault.STALL)
    task = asyncio.create_task(work.run())
    await stalled.sprung.wait()
    waiting = asyncio.create_task(use_the_pool())
    proxy.refuse()
    proxy.cut()
    await asyncio.wait([task], timeout=0.2)
    await proxy.accept()
    await task
    told.set()
    await waiting

    assert work.heard == ["committed"]
    await engine.dispose()


async def test_caller_that_is_cancelled_meanwhile(
    uow: UnitOfWork, proxy: Proxy, observer: PostgresObserver, slow_commit: SlowCommit
) -> None:
    """It is found out all the same, then the cancellation goes on."""
    work = Work(uow)
    task = asyncio.create_task(work.run())
    await slow_commit.reached()
    proxy.cut()
    await asked(proxy)
    for _ in range(3):
        task.cancel()
        await asyncio.wait([task], timeout=0)
    await slow_commit.let_go()
    with pytest.raises(asyncio.CancelledError):
        await task

    assert work.heard == ["committed"]
    assert await observer.names() == ["a"]


async def test_end_of_the_loop_meanwhile(
    uow: UnitOfWork, proxy: Proxy, observer: PostgresObserver, slow_commit: SlowCommit
) -> None:
    """asyncio.run() cancels every task: it is found out all the same."""
    work = Work(uow)
    before = asyncio.all_tasks()
    task = asyncio.create_task(work.run())
    await slow_commit.reached()
    proxy.cut()
    await asked(proxy)
    for started in asyncio.all_tasks() - before:
        started.cancel()
    await slow_commit.let_go()
    with pytest.raises(asyncio.CancelledError):
        await task

    assert work.heard == ["committed"]
    assert await observer.names() == ["a"]


# --- the server ----------------------------------------------------------------------------------


async def test_server_that_restarts_after_the_commit(
    uow: UnitOfWork, proxy: Proxy, server: Server
) -> None:
    """Stopped in order, it remembers."""
    work = Work(uow)
    stalled = proxy.at(answers("COMMIT"), Fault.STALL)
    task = asyncio.create_task(work.run())
    await stalled.sprung.wait()
    await asyncio.to_thread(server.restart, "fast")
    proxy.cut()
    await task

    assert work.heard == ["committed"]


@pytest.mark.parametrize("stall", ["before", "after"])
async def test_server_that_crashes_around_the_commit(
    uow: UnitOfWork, proxy: Proxy, server: Server, stall: str
) -> None:
    """What it recovers is the truth."""
    work = Work(uow)
    match = sends("COMMIT") if stall == "before" else answers("COMMIT")
    stalled = proxy.at(match, Fault.STALL)
    task = asyncio.create_task(work.run())
    await stalled.sprung.wait()
    await asyncio.to_thread(server.restart, "immediate")
    proxy.cut()
    await asyncio.wait([task])

    committed = stall == "after"
    assert work.heard == ["committed" if committed else "rolled back"]
    assert (task.exception() is None) is committed
    assert await names(server) == (["a"] if committed else [])


async def test_server_that_crashes_during_a_slow_commit(
    uow: UnitOfWork, proxy: Proxy, observer: PostgresObserver, server: Server
) -> None:
    """The transaction is gone with it."""
    work = Work(uow)
    async with slow_commits(observer) as slow_commit:
        task = asyncio.create_task(work.run())
        await slow_commit.reached()
        await asyncio.to_thread(server.restart, "immediate")
        await asyncio.wait([task])
        observer.connection = await connect(server.url)

    assert work.heard == ["rolled back"]
    assert isinstance(task.exception(), DBAPIError)
    assert await observer.names() == []
    await observer.connection.close()


@pytest.mark.parametrize("checkpoint", [False, True])
async def test_number_of_a_transaction_that_a_crash_gave_to_another(
    uow: UnitOfWork, proxy: Proxy, server: Server, checkpoint: bool
) -> None:
    """PostgreSQL then says "committed", of the other. A checkpoint hides that there was a crash."""
    work = Work(uow)
    stalled = proxy.at(sends("COMMIT"), Fault.STALL)
    task = asyncio.create_task(work.run())
    await stalled.sprung.wait()
    proxy.refuse()
    await asyncio.to_thread(server.restart, "immediate")
    async with connected(server) as connection:
        others = [await another(connection)]
        while others[-1] < work.xid:
            others.append(await another(connection))
        if checkpoint:
            await connection.execute("checkpoint")
    proxy.cut()
    await proxy.accept()
    await asyncio.gather(task, return_exceptions=True)

    assert work.xid in others
    assert work.heard == ["unknown" if checkpoint else "rolled back"]
    assert await names(server) == [f"other {xid}" for xid in others]


@pytest.mark.parametrize("written", [False, True])
async def test_checkpoint_meanwhile(
    uow: UnitOfWork, proxy: Proxy, observer: PostgresObserver, written: bool
) -> None:
    """A commit could then be another's; a rollback could not."""
    work = Work(uow)
    stalled = proxy.at(answers("COMMIT") if written else sends("COMMIT"), Fault.STALL)
    task = asyncio.create_task(work.run())
    await stalled.sprung.wait()
    proxy.refuse()
    proxy.cut()
    await observer.connection.execute("checkpoint")
    await proxy.accept()
    await asyncio.gather(task, return_exceptions=True)

    assert work.heard == ["unknown" if written else "rolled back"]


async def test_server_that_stays_away(
    engine: AsyncEngine, proxy: Proxy, observer: PostgresObserver
) -> None:
    """Another `end_timeout` has to be enough."""
    work = Work(make_uow(engine, end_timeout=0.5))
    stalled = proxy.at(answers("COMMIT"), Fault.STALL)
    task = asyncio.create_task(work.run())
    await stalled.sprung.wait()
    proxy.refuse()
    with pytest.raises(CommitOutcomeUnknownError):
        async with asyncio.timeout(10):
            await task

    assert work.heard == ["unknown"]


async def test_another_server_in_its_place(
    uow: UnitOfWork, proxy: Proxy, observer: PostgresObserver
) -> None:
    """It has numbers of its own."""
    work = Work(uow)
    current = "select pg_current_xact_id()::text"
    numbers = int(str(await observer.scalar(current)))
    with Server() as other:
        async with connected(other) as connection:
            await connection.execute("create role app login")
            while int(await connection.fetchval(current)) < numbers + 100:
                pass
        other.restart()  # its last checkpoint has seen the number
        stalled = proxy.at(answers("COMMIT"), Fault.STALL)
        task = asyncio.create_task(work.run())
        await stalled.sprung.wait()
        proxy._target = make_url(other.url)
        proxy.cut()
        with pytest.raises(CommitOutcomeUnknownError):
            await task

    assert work.xid < numbers + 100
    assert work.heard == ["unknown"]


async def test_replica_that_is_promoted(
    engine: AsyncEngine, proxy: Proxy, observer: PostgresObserver, server: Server
) -> None:
    """It knows only what had reached it. Before, it is asked in vain."""
    work = Work(make_uow(engine))
    stalled = proxy.at(answers("COMMIT"), Fault.STALL)
    task = asyncio.create_task(work.run())
    await stalled.sprung.wait()
    await asyncio.to_thread(server.stop)
    (server._wheel.pgdata / "standby.signal").touch()
    await asyncio.to_thread(server.start)
    count = len(proxy.statements)
    proxy.cut()
    await asked(proxy, "pg_control_system", since=count)
    async with connected(server) as connection:
        await connection.execute("select pg_promote()")
    with pytest.raises(CommitOutcomeUnknownError):
        await task

    assert work.heard == ["unknown"]


async def test_server_that_is_restored(uow: UnitOfWork, proxy: Proxy, server: Server) -> None:
    """From its archive, to whatever point: that is another history."""
    work = Work(uow)
    stalled = proxy.at(answers("COMMIT"), Fault.STALL)
    task = asyncio.create_task(work.run())
    await stalled.sprung.wait()
    await asyncio.to_thread(server.stop)
    server._settings["restore_command"] = "false"
    (server._wheel.pgdata / "recovery.signal").touch()
    await asyncio.to_thread(server.start)
    proxy.cut()
    with pytest.raises(CommitOutcomeUnknownError):
        await task

    assert work.heard == ["unknown"]


async def test_reading_on_a_replica(observer: PostgresObserver, server: Server) -> None:
    """Nothing is asked before COMMIT that a replica refuses."""
    await asyncio.to_thread(server.stop)
    (server._wheel.pgdata / "standby.signal").touch()
    await asyncio.to_thread(server.start)
    uow = make_uow(create_engine(server.url))

    async with uow:
        assert await uow.session.scalar(text("select pg_is_in_recovery()"))
    await uow.dispose()
    async with connected(server) as connection:
        await connection.execute("select pg_promote()")


# --- what is not asked ---------------------------------------------------------------------------


@pytest.mark.parametrize("isolation_level", ["READ COMMITTED", "REPEATABLE READ"])
async def test_transaction_that_wrote_nothing(
    uow: UnitOfWork, proxy: Proxy, isolation_level: str
) -> None:
    """It had nothing to lose, so nobody is asked."""
    heard: list[str] = []

    async with uow.new(isolation_level=isolation_level):
        uow.on_commit(lambda: heard.append("committed"))
        await uow.session.execute(select(Item))
        proxy.at(sends("COMMIT"), Fault.CUT)
        proxy.refuse()

    assert heard == ["committed"]


async def test_serializable_transaction_that_wrote_nothing(uow: UnitOfWork, proxy: Proxy) -> None:
    """What it read may be wrong unless it was committed, so the client must not have it."""
    heard: list[str] = []

    with pytest.raises(DBAPIError):
        async with uow.new(isolation_level="SERIALIZABLE"):
            uow.on_rollback(lambda: heard.append("rolled back"))
            await uow.session.execute(select(Item))
            proxy.at(sends("COMMIT"), Fault.CUT)
            proxy.refuse()

    assert heard == ["rolled back"]


async def test_transaction_on_two_databases(
    engine: AsyncEngine, proxy: Proxy, observer: PostgresObserver, tmp_path: Path
) -> None:
    """One may have committed and the other not: there is no one answer."""
    url = f"sqlite+aiosqlite:///{tmp_path}/parts.sqlite"
    await create_tables(url)
    parts = create_engine(url)
    uow = UnitOfWork(async_sessionmaker(binds={Item: engine, Part: parts}), resolve_unknown=True)
    proxy.at(answers("COMMIT"), Fault.CUT)

    with pytest.raises(CommitOutcomeUnknownError):
        async with uow:
            uow.session.add(Item(name="a"))
            await uow.session.flush()
            await uow.session.execute(select(Part))
    await parts.dispose()


async def test_two_phase_commit(
    engine: AsyncEngine, proxy: Proxy, observer: PostgresObserver
) -> None:
    """It has no trace, as the transaction is over when it has been prepared."""
    heard: list[str] = []
    uow = UnitOfWork(async_sessionmaker(engine, twophase=True), resolve_unknown=True)
    proxy.at(answers("COMMIT PREPARED"), Fault.CUT)

    with pytest.raises(CommitOutcomeUnknownError):
        async with uow:
            uow.on_rollback(lambda: heard.append("rolled back"))
            uow.session.add(Item(name="a"))

    assert heard == []
    assert await observer.names() == ["a"]


# --- its price -----------------------------------------------------------------------------------


@pytest.mark.parametrize("swallow", [False, True])
async def test_price_is_one_round_trip(
    engine: AsyncEngine, proxy: Proxy, observer: PostgresObserver, swallow: bool
) -> None:
    """And none where the transaction has to be asked anyway whether it is alive."""

    async def cost(uow: UnitOfWork) -> int:
        for _ in range(2):  # a connection prepares the statement once
            before = proxy.round_trips
            async with uow:
                await uow.session.execute(text("insert into items (name) values (random())"))
                if swallow:
                    with pytest.raises(DBAPIError):
                        async with uow.savepoint():
                            await uow.session.execute(text("select 1/0"))
        return proxy.round_trips - before

    plain = await cost(make_uow(engine, resolve=False))

    assert await cost(make_uow(engine)) == plain + (0 if swallow else 1)


async def test_aborted_transaction_is_noticed(uow: UnitOfWork, observer: PostgresObserver) -> None:
    """The same question tells, and the error names the statement that aborted it."""
    with pytest.raises(UnitDoomedError, match="select 1/0"):
        async with uow:
            uow.session.add(Item(name="a"))
            await uow.session.flush()
            with pytest.raises(DBAPIError):
                await uow.session.execute(text("select 1/0"))


async def test_sqlite_has_no_connection_to_lose(tmp_path: Path) -> None:
    """The option may stay where tests run on it."""
    url = f"sqlite+aiosqlite:///{tmp_path}/test.sqlite"
    await create_tables(url)
    uow = UnitOfWork(create_engine(url), resolve_unknown=True)

    async with uow:
        uow.session.add(Item(name="a"))

    async with uow:
        assert await uow.session.scalar(select(Item.name)) == "a"
    await uow.dispose()


class OtherDialect(PGDialect_asyncpg):
    """Speaks PostgreSQL's protocol, as several databases do that have no such numbers."""

    name = "other"
    supports_statement_cache = True


def test_other_databases_cannot_be_asked() -> None:
    """An option that does nothing would be believed."""
    registry.register("other.asyncpg", __name__, "OtherDialect")
    engine = create_async_engine("other+asyncpg://host/name")

    with pytest.raises(ConfigurationError, match="needs PostgreSQL"):
        UnitOfWork(engine, resolve_unknown=True)


# --- in an app -----------------------------------------------------------------------------------


def make_app(uow: UnitOfWork, count: int) -> Starlette:
    """Each endpoint loses its first COMMIT. It writes "a" there, and "b" later if it does."""

    def write(name: str) -> None:
        current_session().add(Item(name=name))

    async def endpoint(request: Request) -> Response:
        write("a")
        return PlainTextResponse("answer", 201)

    async def stream(request: Request) -> Response:
        write("a")
        await current_session().flush()
        rows = await current_session().stream(text("select n from generate_series(1, 120) n"))

        async def chunks() -> AsyncIterator[str]:
            async for row in rows:
                yield str(row.n)

        return StreamingResponse(chunks(), 201)

    async def body(request: Request) -> Response:
        async def chunks() -> AsyncIterator[str]:
            yield "1"
            write("a")
            await current_session().flush()
            yield "2"

        return StreamingResponse(chunks(), 201)

    async def background(request: Request) -> Response:
        async def task() -> None:
            write("a")

        return PlainTextResponse("answer", 201, background=BackgroundTask(task))

    async def checkpoint(request: Request) -> Response:
        write("a")
        await uow.checkpoint()
        write("b")
        return PlainTextResponse("answer", 201)

    async def new(request: Request) -> Response:
        async with uow.new():
            write("a")
        write("b")
        return PlainTextResponse("answer", 201)

    async def socket(websocket: WebSocket) -> None:
        write("a")
        await websocket.accept()

    endpoints = (endpoint, stream, body, background, checkpoint, new)
    return Starlette(
        routes=[
            *(Route(f"/{function.__name__}", function) for function in endpoints),
            WebSocketRoute("/", socket),
        ],
        middleware=[Middleware(UnitOfWorkMiddleware, uow=uow), *layers(count)],
    )


@pytest.mark.parametrize("count", [0, 1])
@pytest.mark.parametrize("arrives", [True, False])
@pytest.mark.parametrize("path", ["endpoint", "stream", "body", "background", "checkpoint", "new"])
async def test_client_is_told_the_truth(
    uow: UnitOfWork,
    proxy: Proxy,
    observer: PostgresObserver,
    path: str,
    arrives: bool,
    count: int,
) -> None:
    """Whichever transaction of the request it is."""
    lost = proxy.at(answers("COMMIT") if arrives else sends("COMMIT"), Fault.CUT)

    exchange = await Exchange(make_app(uow, count), observer).run(f"/{path}")

    assert lost.sprung.is_set()
    if arrives:
        assert (exchange.status, exchange.is_complete, exchange.error) == (201, True, None)
        both = path in ("checkpoint", "new")
        assert await observer.names() == (["a", "b"] if both else ["a"])
    else:
        assert isinstance(exchange.error, DBAPIError)
        assert await observer.names() == []
        answered = path in ("stream", "body", "background")
        assert exchange.status == (201 if answered else 500)
        assert exchange.is_complete is (path not in ("stream", "body"))


@pytest.mark.parametrize("arrives", [True, False])
async def test_websocket_is_told_the_truth(
    uow: UnitOfWork, proxy: Proxy, observer: PostgresObserver, arrives: bool
) -> None:
    """Accepted, or closed with 1011."""
    sent: list[Message] = []
    proxy.at(answers("COMMIT") if arrives else sends("COMMIT"), Fault.CUT)

    async def receive() -> Message:
        return {"type": "websocket.connect"}

    async def send(message: Message) -> None:
        sent.append(message)

    scope = http_scope("/")
    scope["type"] = "websocket"
    handshake = asyncio.ensure_future(make_app(uow, 0)(scope, receive, send))
    await asyncio.wait([handshake])

    if arrives:
        assert [message["type"] for message in sent] == ["websocket.accept"]
        assert await observer.names() == ["a"]
    else:
        assert [message.get("code") for message in sent] == [1011]
        assert await observer.names() == []
    assert (handshake.exception() is None) is arrives


async def test_checkpoint_of_unknown_outcome_that_the_app_swallows(
    engine: AsyncEngine, proxy: Proxy, observer: PostgresObserver
) -> None:
    """That nothing was committed would be a guess."""
    uow = make_uow(engine, resolve=False)
    proxy.at(answers("COMMIT"), Fault.CUT)

    with pytest.raises(CommitOutcomeUnknownError):
        async with uow:
            uow.session.add(Item(name="a"))
            with pytest.raises(CommitOutcomeUnknownError):
                await uow.checkpoint()
            uow.session.add(Item(name="b"))

    assert await observer.names() == ["a"]


async def test_ledger(
    engine: AsyncEngine, proxy: Proxy, server: Server, observer: PostgresObserver
) -> None:
    """Of all that are told success everything is there, of the others nothing, whatever is cut."""
    uow = make_uow(engine)
    told: dict[str, bool] = {}
    numbers = itertools.count()
    is_over = asyncio.Event()

    async def client() -> None:
        while not is_over.is_set():
            name = f"{next(numbers):05}"
            try:
                async with uow:
                    uow.session.add(Item(name=name))
            except CommitOutcomeUnknownError:
                raise
            except Exception:
                told[name] = False
            else:
                told[name] = True

    async def vandal() -> None:
        faults = itertools.product(
            [sends("COMMIT"), answers("COMMIT"), sends("INSERT"), answers("INSERT")],
            [Fault.CUT, Fault.HALF, Fault.PASS_AND_CUT],
        )
        for match, fault in faults:
            await proxy.at(match, fault).sprung.wait()
        await asyncio.to_thread(server.restart, "immediate")
        is_over.set()

    async with asyncio.TaskGroup() as tasks:
        tasks.create_task(vandal())
        for _ in range(4):
            tasks.create_task(client())

    assert await names(server) == sorted(name for name, success in told.items() if success)
    assert set(told.values()) == {True, False}


# --- helpers -------------------------------------------------------------------------------------


async def asked(
    proxy: Proxy, what: str = "pg_xact_status", *, since: int = 0, times: int = 1
) -> None:
    """Wait until it has been asked what became of a COMMIT."""
    while sum(what in sql for sql in proxy.statements[since:]) < times:  # noqa: ASYNC110
        await asyncio.sleep(0.01)


@asynccontextmanager
async def connected(server: Server) -> AsyncIterator[asyncpg.Connection[asyncpg.Record]]:
    connection = await connect(server.url)
    yield connection
    await connection.close()


async def names(server: Server) -> list[str]:
    """The items that are stored, on a server that has restarted."""
    async with connected(server) as connection:
        return await PostgresObserver(connection).names()


async def another(connection: asyncpg.Connection[asyncpg.Record]) -> int:
    """Commit another item, and return the number of its transaction."""
    return int(
        await connection.fetchval(
            "insert into items (name) values ('other ' || pg_current_xact_id()::text)"
            " returning pg_current_xact_id()::text"
        )
    )
