"""The demo on a database of the tests, driven in the test's own event loop."""

from __future__ import annotations

import asyncio
import inspect
import logging
import os
import re
import socket
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest
import uvicorn
from pwdlib import PasswordHash
from pwdlib.hashers.argon2 import Argon2Hasher
from sqlalchemy import make_url, text
from sqlalchemy.ext.asyncio import AsyncEngine
from starlette.applications import Starlette
from starlette.types import ASGIApp

from demo import passwords
from demo.app import create_app
from demo.migrate import migrate
from demo.models import Base
from demo.payments import create_provider, provider
from demo.seed import ADMIN, CLERK, CUSTOMER, Person, seed
from demo.shop import sessions
from starlette_uow import UnitOfWork, create_engine
from starlette_uow.testing import sandbox
from tests import databases
from tests.databases import (
    Database,
    PostgresObserver,
    SQLiteObserver,
    create_database,
    drop_database,
)

QUICK = PasswordHash([Argon2Hasher(time_cost=1, memory_cost=8, parallelism=1)])
"""Hashes passwords within milliseconds: the tests make many, of which none is worth stealing."""

FULL = os.environ.get("TORTURE") == "full"
"""Take the time for more of the same: many more examples, longer runs."""

ORDERS = 12
"""How many orders the shop of a test begins with."""

OWN_UNITS = ("login_attempts", "tokens")
"""Tables that a login writes, whatever becomes of the request."""

FILLED: set[str] = set()
"""The databases that are filled, to be copied."""

NAME = {
    "postgresql": "SELECT current_database()",
    "sqlite": "SELECT file FROM pragma_database_list WHERE name = 'main'",
}
"""What the copy is called."""

Contents = Callable[[], Coroutine[Any, Any, dict[str, object]]]
Count = Callable[[str], Awaitable[int]]
LogIn = Callable[[Person], Awaitable[httpx.AsyncClient]]


@pytest.fixture(scope="session")
def postgres_url(server_url: str) -> Iterator[str]:
    """A database for the demo alone: its tables stay from one test to the next."""
    name = f"starlette_uow_demo_{os.getpid()}"
    yield asyncio.run(create_database(server_url, name))
    asyncio.run(drop_database(server_url, name))


async def fill(engine: AsyncEngine) -> None:
    """Fill a shop as `python -m demo` does, if with less."""
    sessions.configure(bind=engine)
    await migrate(engine, fresh=True)
    await seed(orders=ORDERS)
    sessions.configure(bind=None)
    await engine.dispose()  # nobody may be connected to what is copied


@pytest.fixture(params=["postgresql", "sqlite"])
async def database(
    request: pytest.FixtureRequest,
    postgres_url: str,
    tmp_path_factory: pytest.TempPathFactory,
    monkeypatch: pytest.MonkeyPatch,
    anyio_backend: str,
) -> AsyncIterator[Database]:
    """A copy of a shop that was filled once, and a check that the test leaves nothing open."""
    monkeypatch.setattr(passwords, "_hasher", QUICK)
    url = postgres_url
    if request.param == "sqlite":
        url = f"sqlite+aiosqlite:///{tmp_path_factory.getbasetemp() / 'filled.sqlite'}"
    engine = create_engine(url)
    if url not in FILLED:
        await fill(engine)
        FILLED.add(url)
    async with sandbox(UnitOfWork(engine), database="clone"):
        async with engine.connect() as connection:
            name = await connection.scalar(text(NAME[request.param]))
        await engine.dispose()
        copy = make_url(url).set(database=name).render_as_string(hide_password=False)
        observer: PostgresObserver | SQLiteObserver
        if request.param == "sqlite":
            observer = SQLiteObserver(Path(str(name)))
        else:
            observer = PostgresObserver(await databases.connect(copy))
        yield Database(request.param, copy, observer)
        assert await observer.open_transactions() == []
        if inspect.isawaitable(closed := observer.connection.close()):
            await closed
    await engine.dispose()


@pytest.fixture
async def app(engine: AsyncEngine, caplog: pytest.LogCaptureFixture) -> AsyncIterator[Starlette]:
    """Serve the shop, and check at the end that nothing was logged as an error."""
    sessions.configure(bind=engine)
    yield create_app("not-a-secret", engine)
    sessions.configure(bind=None)
    records = [r for r in caplog.get_records("call") if not r.name.startswith("starlette_admin")]
    assert [record for record in records if record.levelno >= logging.ERROR] == []


@pytest.fixture
def contents(database: Database) -> Contents:
    """Look through a second connection: all rows of all tables, except those of logins."""

    async def look() -> dict[str, object]:
        seen = {}
        for table in Base.metadata.sorted_tables:
            if table.name not in OWN_UNITS:
                columns = ", ".join(f'"{column.name}"' for column in table.columns)
                row = f"row({columns})::text" if database.is_postgres else f"json_array({columns})"
                joined = "string_agg(r, ' ' order by r)"
                if not database.is_postgres:
                    joined = "group_concat(r, ' ')"
                sql = f"select {joined} from (select {row} as r from {table.name} order by 1) rows"
                seen[table.name] = await database.observer.scalar(sql)
        return seen

    return look


@pytest.fixture
def count(database: Database) -> Count:
    """Count rows through a second connection: `count("orders where status = 'paid'")`."""

    async def look(what: str) -> int:
        return int(str(await database.observer.scalar(f"select count(*) from {what}")))

    return look


@pytest.fixture
async def client(app: Starlette) -> AsyncIterator[httpx.AsyncClient]:
    """Call the shop without a login."""
    async with connect(app) as client:
        yield client


@pytest.fixture
async def log_in(app: Starlette) -> AsyncIterator[LogIn]:
    """Log somebody in, and get a client of their own."""
    clients: list[httpx.AsyncClient] = []

    async def log_in(person: Person) -> httpx.AsyncClient:
        client = connect(app)
        clients.append(client)
        body = {"email": person.email, "password": person.password}
        token = (await client.post("/api/login", json=body)).json()["token"]
        client.headers["authorization"] = f"Bearer {token}"
        return client

    yield log_in
    for client in clients:
        await client.aclose()


@pytest.fixture
async def customer(log_in: LogIn) -> httpx.AsyncClient:
    """Call the shop as Ada, who buys."""
    return await log_in(CUSTOMER)


@pytest.fixture
async def clerk(log_in: LogIn) -> httpx.AsyncClient:
    """Call the shop as Chris, who ships."""
    return await log_in(CLERK)


@pytest.fixture
async def manager(log_in: LogIn) -> httpx.AsyncClient:
    """Call the shop as Alex, who may do everything."""
    return await log_in(ADMIN)


@pytest.fixture
async def payment_provider() -> AsyncIterator[httpx.AsyncClient]:
    """Serve a payment provider that thinks as fast as it can, and look into its ledger."""
    async with serve(create_provider(thinks_for=0)) as url:
        provider.url = url
        async with httpx.AsyncClient(base_url=url, trust_env=False) as client:
            yield client


def connect(app: ASGIApp) -> httpx.AsyncClient:
    """Call an app in this process."""
    return httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://shop.test")


@asynccontextmanager
async def serve(app: ASGIApp) -> AsyncIterator[str]:
    """Serve an app by uvicorn, in this event loop and on a free port."""
    config = uvicorn.Config(app, log_config=None, access_log=False, ws="websockets-sansio")
    server = uvicorn.Server(config)
    # It listens already, so whoever connects before the server has started just waits.
    with socket.create_server(("127.0.0.1", 0)) as listening:
        serving = asyncio.create_task(server.serve(sockets=[listening]))
        try:
            yield f"http://127.0.0.1:{listening.getsockname()[1]}"
        finally:
            server.should_exit = True
            await serving


async def log_in_to_admin(client: httpx.AsyncClient, person: Person = ADMIN) -> str:
    """Log somebody of the shop in, and return the CSRF token for forms."""
    page = await client.get("/admin/login")
    token = csrf_token(page)
    form = {"username": person.email, "password": person.password, "csrftoken": token}
    answer = await client.post("/admin/login", data=form)
    assert answer.status_code == 303, answer.text
    return token


def csrf_token(page: httpx.Response) -> str:
    """Find the token of the form on a page."""
    found = re.search(r'name="csrftoken" value="([^"]+)"', page.text)
    assert found is not None
    return found[1]


def order(*lines: tuple[object, object], **more: object) -> dict[str, object]:
    """Write the body of an order."""
    return {"lines": [{"sku": sku, "quantity": quantity} for sku, quantity in lines], **more}
