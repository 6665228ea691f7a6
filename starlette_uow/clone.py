"""A database of its own for a test: a copy, to which the engines connect meanwhile."""

from __future__ import annotations

import asyncio
import tempfile
import uuid
from collections.abc import AsyncGenerator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any

import anyio
from sqlalchemy import event, text
from sqlalchemy.engine import URL, Dialect
from sqlalchemy.ext.asyncio import AsyncEngine
from sqlalchemy.pool import StaticPool
from sqlalchemy.util import greenlet_spawn

from starlette_uow.errors import SandboxError

COPY_TIMEOUT = 15.0
"""Seconds to wait for other connections to the original to go away."""

OBJECT_IN_USE = "55006"
"""SQLSTATE, https://www.postgresql.org/docs/current/errcodes-appendix.html"""

MAINTENANCE = "postgres"
"""The database from which others are created and dropped."""

WHO = """SELECT format('%s (process %s, %s)', nullif(application_name, ''), pid, state)
FROM pg_stat_activity WHERE datname = $1"""


@asynccontextmanager
async def clones(engines: list[AsyncEngine]) -> AsyncGenerator[None]:
    """A block in which engines work on copies of their databases, which are dropped at its end.

    Engines with the same URL have the same copy.

    Raises:
        SandboxError: a database is in use, or an engine cannot be redirected.
    """
    copies: dict[URL, str] = {}
    for engine in engines:
        if engine.url.get_driver_name() not in _HOW:
            raise SandboxError.unsupported(repr(engine))
        if not isinstance(engine.pool, StaticPool):  # which is an SQLite database in memory
            await engine.dispose()  # PostgreSQL copies only what nobody is connected to
    async with AsyncExitStack() as stack:
        for engine in engines:
            copy, where_am_i = _HOW[engine.url.get_driver_name()]
            if engine.url not in copies:
                copies[engine.url] = await stack.enter_async_context(copy(engine))
            await stack.enter_async_context(_redirected(engine, copies[engine.url]))
            async with engine.connect() as connection:
                if await connection.scalar(text(where_am_i)) != copies[engine.url]:
                    raise SandboxError.elsewhere(engine)
        yield


@asynccontextmanager
async def _redirected(engine: AsyncEngine, database: str) -> AsyncGenerator[None]:
    """A block in which an engine has a new pool, of connections to another database."""
    sync_engine, loop = engine.sync_engine, asyncio.get_running_loop()

    def check_loop(*_: object) -> None:
        if asyncio.get_running_loop() is not loop:
            raise SandboxError.other_loop()

    def connect(dialect: Dialect, record: object, args: Any, kwargs: Any) -> Any:
        if dialect.name == "sqlite":
            return dialect.connect(database, *args[1:], **kwargs)
        return dialect.connect(*args, **{**kwargs, "database": database})

    event.listen(sync_engine, "do_connect", connect)
    before, sync_engine.pool = sync_engine.pool, sync_engine.pool.recreate()
    event.listen(sync_engine.pool, "checkout", check_loop)
    try:
        yield
    finally:
        pool, sync_engine.pool = sync_engine.pool, before
        event.remove(sync_engine, "do_connect", connect)
        with anyio.CancelScope(shield=True):
            await greenlet_spawn(pool.dispose)


@asynccontextmanager
async def _postgres_copy(engine: AsyncEngine) -> AsyncGenerator[str]:
    original = engine.url.database
    if original is None:
        raise SandboxError.unsupported(f"{engine!r}, whose URL names no database")
    name = f"{original[:40]}_{uuid.uuid4().hex[:12]}"
    quote = engine.dialect.identifier_preparer.quote_identifier
    try:
        async with _administration(engine) as connection:
            await _create(connection, quote(name), original, quote(original))
        yield name
    finally:
        # A cancellation may have hit the creation, which the server carries out all the same.
        with anyio.CancelScope(shield=True):
            async with _administration(engine) as connection:
                await connection.execute(f"DROP DATABASE IF EXISTS {quote(name)} WITH (FORCE)")


@asynccontextmanager
async def _administration(engine: AsyncEngine) -> AsyncGenerator[Any]:
    """A connection of the driver, past the listeners of the pool, which expect their database."""
    async with _redirected(engine, MAINTENANCE):
        creator: Any = engine.sync_engine.pool._invoke_creator
        connection = (await greenlet_spawn(creator, None)).driver_connection
        try:
            yield connection
        finally:
            await connection.close()


async def _create(connection: Any, name: str, original: str, template: str) -> None:
    created = False
    try:
        async with asyncio.timeout(COPY_TIMEOUT):
            while not created:  # the server itself waits some seconds for others to leave
                created = await _try_to_create(connection, name, template)
    except TimeoutError:
        users = await connection.fetch(WHO, original)
        raise SandboxError.in_use(original, [user[0] for user in users]) from None


async def _try_to_create(connection: Any, name: str, template: str) -> bool:
    try:
        await connection.execute(f"CREATE DATABASE {name} TEMPLATE {template}")
    except Exception as error:
        if getattr(error, "sqlstate", None) != OBJECT_IN_USE:
            raise
        return False
    return True


@asynccontextmanager
async def _sqlite_copy(engine: AsyncEngine) -> AsyncGenerator[str]:
    with tempfile.TemporaryDirectory() as folder:
        path = _path_in(folder)
        raw = await engine.raw_connection()
        driver: Any = raw.driver_connection
        await driver.execute_fetchall("VACUUM INTO ?", (path,))
        await greenlet_spawn(raw.close)
        yield path


def _path_in(folder: str) -> str:
    return str(Path(folder).resolve() / "clone.sqlite")  # as SQLite tells it


_HOW = {
    "asyncpg": (_postgres_copy, "SELECT current_database()"),
    "aiosqlite": (_sqlite_copy, "SELECT file FROM pragma_database_list WHERE name = 'main'"),
}
