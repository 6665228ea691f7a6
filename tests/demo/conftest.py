"""The demo on a database of the tests, driven in the test's own event loop."""

from __future__ import annotations

import asyncio
import logging
import re
import socket
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import asynccontextmanager
from typing import Any

import httpx
import pytest
import uvicorn
from pwdlib import PasswordHash
from pwdlib.hashers.argon2 import Argon2Hasher
from sqlalchemy.ext.asyncio import AsyncEngine
from starlette.applications import Starlette
from starlette.types import ASGIApp

from demo import passwords
from demo.app import create_app
from demo.models import Base, create_tables
from demo.seed import ADMIN, CUSTOMER, seed
from demo.shop import sessions
from tests.databases import Database

QUICK = PasswordHash([Argon2Hasher(time_cost=1, memory_cost=8, parallelism=1)])
"""Hashes passwords within milliseconds: the tests make many, of which none is worth stealing."""

Contents = Callable[[], Coroutine[Any, Any, dict[str, object]]]


@pytest.fixture
async def app(
    engine: AsyncEngine, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> AsyncIterator[Starlette]:
    """Fill a shop, and check at the end that nothing was logged as an error."""
    monkeypatch.setattr(passwords, "_hasher", QUICK)
    sessions.configure(bind=engine)
    await create_tables(engine, fresh=True)
    await seed()
    yield create_app("not-a-secret")
    async with engine.begin() as connection:
        await connection.run_sync(Base.metadata.drop_all)
    sessions.configure(bind=None)
    assert [r for r in caplog.get_records("call") if r.levelno >= logging.ERROR] == []


@pytest.fixture
def contents(database: Database) -> Contents:
    """Look through a second connection: the rows of each table, and the stock of the shop."""

    async def look() -> dict[str, object]:
        seen = {
            name: await database.observer.scalar(f"select count(*) from {name}")
            for name in Base.metadata.tables
        }
        return {**seen, "stock": await database.observer.scalar("select sum(stock) from products")}

    return look


@pytest.fixture
async def client(app: Starlette) -> AsyncIterator[httpx.AsyncClient]:
    """Call the shop without a login."""
    async with connect(app) as client:
        yield client


@pytest.fixture
async def customer(client: httpx.AsyncClient) -> httpx.AsyncClient:
    """Log a customer in."""
    body = {"email": CUSTOMER.email, "password": CUSTOMER.password}
    token = (await client.post("/api/login", json=body)).json()["token"]
    client.headers["authorization"] = f"Bearer {token}"
    return client


def connect(app: ASGIApp) -> httpx.AsyncClient:
    """Call an app in this process."""
    return httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://shop.test")


@asynccontextmanager
async def serve(app: ASGIApp) -> AsyncIterator[str]:
    """Serve an app by uvicorn, in this event loop and on a free port."""
    config = uvicorn.Config(app, log_config=None, access_log=False, ws="none")
    server = uvicorn.Server(config)
    # It listens already, so whoever connects before the server has started just waits.
    with socket.create_server(("127.0.0.1", 0)) as listening:
        serving = asyncio.create_task(server.serve(sockets=[listening]))
        try:
            yield f"http://127.0.0.1:{listening.getsockname()[1]}"
        finally:
            server.should_exit = True
            await serving


async def log_in_to_admin(client: httpx.AsyncClient) -> str:
    """Log the administrator in, and return the CSRF token for forms."""
    page = await client.get("/admin/login")
    token = csrf_token(page)
    form = {"username": ADMIN.email, "password": ADMIN.password, "csrftoken": token}
    answer = await client.post("/admin/login", data=form)
    assert answer.status_code == 303, answer.text
    return token


def csrf_token(page: httpx.Response) -> str:
    """Find the token of the form on a page."""
    found = re.search(r'name="csrftoken" value="([^"]+)"', page.text)
    assert found is not None
    return found[1]
