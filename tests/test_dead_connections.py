"""A connection that died in the pool is replaced before a unit of work notices."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager
from typing import Any, Literal

import httpx
import pytest
from sqlalchemy import event, func, insert, select, text
from sqlalchemy.engine import Connection, make_url
from sqlalchemy.exc import DBAPIError
from sqlalchemy.ext.asyncio import AsyncEngine, AsyncSession, async_sessionmaker
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response
from starlette.routing import Route

from starlette_uow import (
    UnitOfWork,
    UnitOfWorkMiddleware,
    create_engine,
    current_session,
    postgres,
)
from tests.databases import connect, create_tables
from tests.models import Item
from tests.proxy import Fault, Proxy, sends
from tests.servers import Server

SIZE = 5

FIELDS = b"SFATAL\0VFATAL\0C57P01\0Mterminating connection\0\0"
ADMIN_SHUTDOWN = b"E" + (4 + len(FIELDS)).to_bytes(4) + FIELDS
"""https://www.postgresql.org/docs/current/protocol-error-fields.html"""


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    with Server() as server:
        asyncio.run(create_tables(server.url))
        yield server


@pytest.fixture(autouse=True)
async def no_items(server: Server, anyio_backend: str) -> None:
    connection = await connect(server.url)
    await connection.execute("truncate items, parts")
    await connection.close()


@asynccontextmanager
async def full_pool(url: str, **options: Any) -> AsyncIterator[AsyncEngine]:
    """An engine with as many connections as its pool holds."""
    engine = create_engine(url, pool_size=SIZE, max_overflow=0, **options)
    connections = [await engine.connect() for _ in range(SIZE)]
    for connection in connections:
        await connection.close()
    try:
        yield engine
        assert engine.pool.checkedout() == 0  # type: ignore[attr-defined]
    finally:
        await engine.dispose()


@pytest.fixture
async def engine(server: Server) -> AsyncIterator[AsyncEngine]:
    async with full_pool(server.url) as engine:
        yield engine


@pytest.fixture
async def uow(engine: AsyncEngine) -> UnitOfWork:
    return UnitOfWork(async_sessionmaker(engine, expire_on_commit=False))


def kill_backends(server: Server) -> None:
    """All but ours, before the event loop hears of it: it stands still meanwhile. For longer than
    a connection is trusted after its last use.
    """

    async def kill() -> None:
        connection = await connect(server.url)
        await connection.execute(
            f"select pg_sleep({2 * postgres.TRUSTED_FOR}), pg_terminate_backend(pid, 5000)"
            " from pg_stat_activity"
            " where backend_type = 'client backend' and pid <> pg_backend_pid()"
        )
        await connection.close()

    thread = threading.Thread(target=lambda: asyncio.run(kill()))
    thread.start()
    thread.join()


async def create(request: Request) -> Response:
    """Adds, so that the first statement is that of a flush: it could not be repeated."""
    current_session().add(Item(name=request.path_params["name"]))
    return PlainTextResponse("created", 201)


async def post(engine: AsyncEngine, names: list[str]) -> list[int]:
    """As many requests at once."""
    app = Starlette(routes=[Route("/{name}", create, methods=["POST"])])
    app.add_middleware(UnitOfWorkMiddleware, uow=UnitOfWork(engine))
    transport = httpx.ASGITransport(app, raise_app_exceptions=False)
    async with httpx.AsyncClient(transport=transport, base_url="http://test") as client:
        answers = await asyncio.gather(*(client.post(f"/{name}") for name in names))
    return [answer.status_code for answer in answers]


async def count(engine: AsyncEngine) -> int:
    async with engine.connect() as connection:
        return (await connection.execute(select(func.count()).select_from(Item))).scalar_one()


NAMES = [f"item {number}" for number in range(100)]


@pytest.mark.parametrize("mode", ["fast", "immediate"])
@pytest.mark.parametrize("heard", [True, False])
async def test_no_request_after_a_restart_fails(
    server: Server, engine: AsyncEngine, mode: Literal["fast", "immediate"], heard: bool
) -> None:
    """Whether or not the event loop has had the time to hear of it."""
    if heard:
        await asyncio.to_thread(server.restart, mode)
    else:
        server.restart(mode)

    answers = await post(engine, NAMES)

    assert answers == [201] * 100
    assert await count(engine) == 100


async def test_no_request_fails_after_all_backends_were_terminated(
    server: Server, engine: AsyncEngine
) -> None:
    """However short ago they were used."""
    assert await post(engine, NAMES[:SIZE]) == [201] * SIZE

    kill_backends(server)
    answers = await post(engine, NAMES[SIZE:])

    assert answers == [201] * 95
    assert await count(engine) == 100


async def test_last_words(engine: AsyncEngine) -> None:
    """The server has said that it goes, and its end of the connection is still to be closed:
    asyncpg then refuses with "cannot switch to state".
    """
    connections = [await engine.connect() for _ in range(SIZE)]
    for connection in connections:
        driver = (await connection.get_raw_connection()).driver_connection
        assert driver is not None
        driver._protocol.data_received(ADMIN_SHUTDOWN)
    for connection in connections:
        await connection.close()

    answers = await post(engine, NAMES[:SIZE])

    assert answers == [201] * SIZE


async def test_connection_that_is_busy(server: Server) -> None:
    """It came back to the pool with a statement that went past SQLAlchemy."""
    async with full_pool(server.url) as engine:
        connection = await engine.connect()
        driver = (await connection.get_raw_connection()).driver_connection
        assert driver is not None
        statement = asyncio.ensure_future(driver.execute("select pg_sleep(30)"))
        await asyncio.sleep(0)
        await connection.close()

        answers = await post(engine, NAMES[:SIZE])

        assert answers == [201] * SIZE
        await asyncio.wait([statement])
        assert statement.exception() is not None


async def test_silent_peers(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    """A firewall has forgotten the connections, and answers nothing."""
    monkeypatch.setattr(postgres, "TRUSTED_FOR", 0)
    monkeypatch.setattr(postgres, "BEGIN_TIMEOUT", 0.2)
    async with Proxy(server.url) as proxy:
        async with full_pool(proxy.url) as engine:
            silent = proxy.at(sends("BEGIN"), Fault.STALL, times=SIZE)

            answers = await post(engine, NAMES[:SIZE])

            assert silent.sprung.is_set()
            assert answers == [201] * SIZE


async def test_silent_peer_and_a_timeout_of_the_driver(server: Server) -> None:
    """asyncpg's own, which is no error of a database."""
    async with (
        Proxy(server.url) as proxy,
        full_pool(proxy.url, connect_args={"command_timeout": 0.5}) as engine,
    ):
        proxy.at(sends("BEGIN"), Fault.STALL)

        assert await post(engine, NAMES[:1]) == [201]


async def test_begin_that_is_cancelled(server: Server) -> None:
    """Its connection is of no use, and is not replaced: nobody wants one any more."""
    async with Proxy(server.url) as proxy, full_pool(proxy.url) as engine:
        trap = proxy.at(sends("BEGIN"), Fault.STALL)

        async def work() -> None:
            async with UnitOfWork(engine) as uow:
                await execute(uow.session)

        task = asyncio.create_task(work())
        await trap.sprung.wait()
        task.cancel()
        proxy.flow()
        await asyncio.wait([task])

        assert task.cancelled()
        assert await count(engine) == 0


async def test_timeout_is_of_begin_alone(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    """What the transaction does may take longer."""
    monkeypatch.setattr(postgres, "BEGIN_TIMEOUT", 0.2)
    async with full_pool(server.url) as engine, UnitOfWork(engine) as uow:
        assert await uow.session.scalar(text("select 1 from pg_sleep(0.4)")) == 1


@pytest.mark.parametrize("trusted_for", [0, 1000])
async def test_busy_connection_begins_with_its_first_statement(
    server: Server, monkeypatch: pytest.MonkeyPatch, trusted_for: float
) -> None:
    """It has just been used; another has to show first that it is alive."""
    monkeypatch.setattr(postgres, "TRUSTED_FOR", trusted_for)
    async with full_pool(server.url) as engine, engine.connect() as connection:
        async with connection.begin():
            await connection.execute(text("select 1"))

        async with connection.begin():
            driver = (await connection.get_raw_connection()).driver_connection
            assert driver is not None
            assert driver.is_in_transaction() is (trusted_for == 0)


@pytest.mark.parametrize("ping", ["BEGIN", "by the pool"])
async def test_adapter_that_cannot_begin(
    server: Server, monkeypatch: pytest.MonkeyPatch, ping: str
) -> None:
    """Of a later SQLAlchemy: the pool pings instead."""
    monkeypatch.setattr(postgres, "CAN_BEGIN", ping == "BEGIN")
    async with full_pool(server.url) as engine:
        kill_backends(server)

        answers = await post(engine, NAMES[:SIZE])

        assert answers == [201] * SIZE
        assert engine.pool._pre_ping is (ping != "BEGIN")


# --- whatever the unit does first ------------------------------------------------------------


async def flush(session: AsyncSession) -> None:
    session.add(Item(name="a"))
    await session.flush()


async def savepoint(session: AsyncSession) -> None:
    async with session.begin_nested():
        session.add(Item(name="a"))


async def execute(session: AsyncSession) -> None:
    await session.execute(insert(Item).values(name="a"))


async def stream(session: AsyncSession) -> None:
    result = await session.stream(insert(Item).values(name="a").returning(Item.id))
    await result.one()


async def raw(session: AsyncSession) -> None:
    """Past SQLAlchemy, but in its transaction."""
    connection = await session.connection()
    driver = (await connection.get_raw_connection()).driver_connection
    assert driver is not None
    await driver.execute("insert into items (name) values ('a')")


@pytest.mark.parametrize("do", [flush, savepoint, execute, stream, raw])
async def test_first_operation(
    server: Server,
    engine: AsyncEngine,
    uow: UnitOfWork,
    do: Callable[[AsyncSession], Awaitable[None]],
) -> None:
    """It is not repeated: the connection is replaced before."""
    kill_backends(server)

    async with uow:
        await do(uow.session)

    assert await count(engine) == 1


@pytest.mark.parametrize("read_only", [True, False])
@pytest.mark.parametrize("isolation_level", [None, "SERIALIZABLE", "REPEATABLE READ"])
async def test_transaction_that_was_asked_for(
    server: Server, uow: UnitOfWork, isolation_level: str | None, read_only: bool
) -> None:
    """On a live connection, and on the one that replaces a dead one."""
    for kill in (False, True):
        if kill:
            kill_backends(server)

        async with uow.new(isolation_level=isolation_level, read_only=read_only) as unit:
            isolation = await unit.session.scalar(text("show transaction_isolation"))
            only = await unit.session.scalar(text("show transaction_read_only"))

        assert isolation == (isolation_level or "READ COMMITTED").lower()
        assert only == ("on" if read_only else "off")


async def test_one_round_trip_for_begin(server: Server) -> None:
    """As without a check: BEGIN, the statement, COMMIT."""
    async with Proxy(server.url) as proxy, full_pool(proxy.url) as engine:
        uow = UnitOfWork(engine)
        for _ in range(2 * SIZE):  # the first time, the statement is prepared
            proxy.round_trips = 0
            proxy.statements.clear()
            async with uow:
                await uow.session.execute(text("select 1"))

        assert proxy.statements == ["BEGIN;", "select 1", "COMMIT;"]
        assert proxy.round_trips == 3


# --- what is not replaced --------------------------------------------------------------------


async def test_death_in_the_middle(server: Server, engine: AsyncEngine, uow: UnitOfWork) -> None:
    """What was done on the connection is lost, and the unit with it."""
    with pytest.raises(DBAPIError) as caught:
        async with uow:
            uow.session.add(Item(name="a"))
            await uow.session.flush()
            kill_backends(server)
            uow.session.add(Item(name="b"))
            await uow.session.flush()

    assert caught.value.connection_invalidated
    assert await count(engine) == 0


async def test_death_before_a_savepoint(
    server: Server, engine: AsyncEngine, uow: UnitOfWork
) -> None:
    """The savepoint is not what the connection was taken for."""
    with pytest.raises(DBAPIError) as caught:
        async with uow:
            await uow.session.execute(select(Item))
            kill_backends(server)
            async with uow.savepoint():
                uow.session.add(Item(name="a"))

    assert caught.value.connection_invalidated
    assert await count(engine) == 0


async def test_death_of_the_replacement(server: Server) -> None:
    """Once is a restart, twice is trouble: the error goes on."""
    async with Proxy(server.url) as proxy, full_pool(proxy.url) as engine:
        trap = proxy.at(sends("BEGIN"), Fault.CUT, times=2)

        answers = await post(engine, NAMES[:1])

        assert trap.sprung.is_set()
        assert answers == [500]


async def test_server_that_refuses(server: Server) -> None:
    """It is asked once: nothing has died."""
    engine = create_engine(str(make_url(server.url).set(database="nowhere")))
    attempts: list[object] = []
    event.listen(engine.sync_engine, "do_connect", lambda *args: attempts.append(args))

    with pytest.raises(Exception, match='"nowhere" does not exist'):
        async with UnitOfWork(engine) as uow:
            await uow.session.execute(select(Item))

    assert len(attempts) == 1


async def test_death_while_a_listener_prepares_the_transaction(
    server: Server, engine: AsyncEngine
) -> None:
    """What it has set is gone, and it is not asked again: so the unit fails."""
    uow = UnitOfWork(async_sessionmaker(engine))

    def after_begin(session: object, transaction: object, connection: Connection) -> None:
        kill_backends(server)
        connection.exec_driver_sql("set local search_path to public")

    with pytest.raises(DBAPIError):
        async with uow:
            event.listen(uow.session.sync_session, "after_begin", after_begin)
            await uow.session.execute(select(Item))


async def test_connection_that_was_used_before(server: Server, engine: AsyncEngine) -> None:
    """What a transaction before has set on it (a temporary table, a lock) is gone with it."""
    async with engine.connect() as connection:
        await connection.execute(text("set search_path to public"))
        await connection.commit()
        kill_backends(server)

        with pytest.raises(DBAPIError) as caught:
            await connection.execute(select(Item))

    assert caught.value.connection_invalidated


async def test_session_on_a_connection_of_the_app(server: Server, engine: AsyncEngine) -> None:
    """It is the app's, which knows what is on it."""
    async with engine.connect() as connection:
        uow = UnitOfWork(async_sessionmaker(connection))
        kill_backends(server)

        with pytest.raises(DBAPIError):
            async with uow:
                await uow.session.execute(select(Item))


# --- outside of units ------------------------------------------------------------------------


async def test_replaced_outside_of_units(server: Server, engine: AsyncEngine) -> None:
    """Once the event loop has heard of the end."""
    await asyncio.to_thread(kill_backends, server)

    async with engine.begin() as connection:
        await connection.execute(insert(Item).values(name="a"))

    assert await count(engine) == 1


async def test_raw_work_outside_of_a_transaction(engine: AsyncEngine) -> None:
    """It commits by itself, as with every other engine."""
    async with engine.connect() as connection:
        driver = (await connection.get_raw_connection()).driver_connection
        assert driver is not None
        await driver.copy_records_to_table("items", records=[("a",)], columns=["name"])

    assert await count(engine) == 1


async def test_autocommit(server: Server, engine: AsyncEngine) -> None:
    """There is no BEGIN."""
    autocommit = engine.execution_options(isolation_level="AUTOCOMMIT")

    async with autocommit.connect() as connection:
        await connection.execute(insert(Item).values(name="a"))
        driver = (await connection.get_raw_connection()).driver_connection
        assert driver is not None
        assert not driver.is_in_transaction()

    assert await count(engine) == 1


async def test_nothing_begins_twice(engine: AsyncEngine) -> None:
    """A listener of the app has run a statement before."""
    event.listen(engine.sync_engine, "begin", lambda c: c.exec_driver_sql("select 1"))

    async with engine.begin() as connection:
        await connection.execute(insert(Item).values(name="a"))

    assert await count(engine) == 1
