"""Every test runs on PostgreSQL and SQLite, and leaves nothing behind.

PostgreSQL comes out of a wheel; `TEST_DATABASE_URL` (with the asyncpg driver, and a user who may
create databases) points at another server.
"""

from __future__ import annotations

import asyncio
import gc
import inspect
import itertools
import os
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest
from sqlalchemy.ext.asyncio import AsyncEngine, AsyncSession, async_sessionmaker

from demo import postgres
from starlette_uow import UnitOfWork, create_engine
from starlette_uow.context import current_frame
from tests.databases import (
    Database,
    PostgresObserver,
    SQLiteObserver,
    connect,
    create_database,
    create_tables,
    drop_database,
)


@pytest.hookimpl(tryfirst=True)
def pytest_pycollect_makeitem(obj: object) -> None:
    """Coroutine functions are tests for anyio's plugin."""
    if inspect.iscoroutinefunction(obj):
        pytest.mark.anyio(obj)


_tests = itertools.count()


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup() -> None:
    """Let the collections of garbage after each test look at what the last tests made alone.

    What others keep adds up: FastAPI's routers, each app that they were included in.
    """
    if next(_tests) % 8 == 0:
        gc.collect()
        gc.freeze()


@pytest.fixture(scope="session")
def anyio_backend() -> str:
    return "asyncio"


@pytest.fixture(scope="session")
def server_url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    if url := os.environ.get("TEST_DATABASE_URL"):
        yield url
        return
    folder = Path(os.environ.get("TEST_POSTGRES", "/var/tmp/starlette-uow-tests"))
    yield postgres.start(folder)


@pytest.fixture(scope="session")
def postgres_url(server_url: str) -> Iterator[str]:
    name = f"starlette_uow_{os.getpid()}"
    yield asyncio.run(create_database(server_url, name))
    asyncio.run(drop_database(server_url, name))


@pytest.fixture(scope="session")
def source_url(server_url: str) -> Iterator[str]:
    """A PostgreSQL database to be copied, so nobody stays connected to it."""
    name = f"starlette_uow_source_{os.getpid()}"
    yield asyncio.run(create_database(server_url, name))
    asyncio.run(drop_database(server_url, name))


@pytest.fixture(params=["postgresql", "sqlite"])
async def database(
    request: pytest.FixtureRequest, postgres_url: str, tmp_path: Path, anyio_backend: str
) -> AsyncIterator[Database]:
    """An empty database, and a check that the test left it without open transactions."""
    if request.param == "sqlite":
        path = tmp_path / "test.sqlite"
        url = f"sqlite+aiosqlite:///{path}"
        await create_tables(url)
        sqlite = SQLiteObserver(path)
        yield Database("sqlite", url, sqlite)
        assert await sqlite.open_transactions() == []
        sqlite.connection.close()
        return
    connection = await connect(postgres_url)
    observer = PostgresObserver(connection)
    await connection.execute("truncate items, parts restart identity")
    yield Database("postgresql", postgres_url, observer)
    assert await observer.open_transactions() == []
    await connection.close()


@pytest.fixture
async def engine(database: Database) -> AsyncIterator[AsyncEngine]:
    """A pool of two, and a check that both came back."""
    engine = create_engine(database.url, pool_size=2, max_overflow=0, pool_timeout=5)
    yield engine
    gc.collect()
    assert engine.pool.checkedout() == 0, "a connection was not given back"  # type: ignore[attr-defined]
    await engine.dispose()


@pytest.fixture
def sessions(engine: AsyncEngine) -> async_sessionmaker[AsyncSession]:
    return async_sessionmaker(engine, expire_on_commit=False)


@pytest.fixture
async def uow(sessions: async_sessionmaker[AsyncSession]) -> AsyncIterator[UnitOfWork]:
    """A unit of work, and a check that the test ended all its units."""
    uow = UnitOfWork(sessions, end_timeout=5, callback_timeout=5)
    yield uow
    assert_nothing_is_open(uow)


def assert_nothing_is_open(uow: UnitOfWork) -> None:
    """No unit and no context outlives the test."""
    assert current_frame.get() is None
    assert uow._units == set()
