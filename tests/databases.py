"""The databases the tests run on, and a second connection that looks at them from outside."""

from __future__ import annotations

import sqlite3
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import asyncpg
from sqlalchemy.engine import make_url
from sqlalchemy.ext.asyncio import create_async_engine

from tests.models import Base


class Observer(Protocol):
    """A connection of its own: it sees what is committed, and nothing else."""

    async def names(self) -> list[str]:
        """The names of all items, sorted."""

    async def scalar(self, sql: str) -> object:
        """The first value of a query."""

    async def open_transactions(self) -> list[str]:
        """What the backends that sit in a transaction did last."""


class PostgresObserver:
    def __init__(self, connection: asyncpg.Connection[asyncpg.Record]) -> None:
        self.connection = connection

    async def names(self) -> list[str]:
        return [r[0] for r in await self.connection.fetch("select name from items order by name")]

    async def scalar(self, sql: str) -> object:
        return await self.connection.fetchval(sql)

    async def open_transactions(self) -> list[str]:
        return [
            r[0]
            for r in await self.connection.fetch(
                "select state || ': ' || query from pg_stat_activity"
                " where datname = current_database() and pid <> pg_backend_pid()"
                " and state <> 'idle' and backend_type = 'client backend'"
            )
        ]


class SQLiteObserver:
    def __init__(self, path: Path) -> None:
        self.connection = sqlite3.connect(path, isolation_level=None)

    async def names(self) -> list[str]:
        return [r[0] for r in self.connection.execute("select name from items order by name")]

    async def scalar(self, sql: str) -> object:
        return self.connection.execute(sql).fetchone()[0]

    async def open_transactions(self) -> list[str]:
        """One that only read cannot be seen from outside; one that wrote holds the lock."""
        try:
            self.connection.execute("BEGIN IMMEDIATE")
        except sqlite3.OperationalError as error:
            return [str(error)]
        self.connection.execute("ROLLBACK")
        return []


@dataclass(frozen=True)
class Database:
    name: str
    url: str
    observer: Observer

    @property
    def is_postgres(self) -> bool:
        return self.name == "postgresql"


async def create_database(server_url: str, name: str) -> str:
    """A new database with the tables, on a PostgreSQL server."""
    await drop_database(server_url, name)
    connection = await connect(server_url)
    await connection.execute(f'CREATE DATABASE "{name}"')
    await connection.close()
    url = make_url(server_url).set(database=name).render_as_string(hide_password=False)
    await create_tables(url)
    return url


async def drop_database(server_url: str, name: str) -> None:
    connection = await connect(server_url)
    await connection.execute(f'DROP DATABASE IF EXISTS "{name}" WITH (FORCE)')
    await connection.close()


async def create_tables(url: str) -> None:
    engine = create_async_engine(url)
    async with engine.begin() as connection:
        await connection.run_sync(Base.metadata.create_all)
    await engine.dispose()


async def connect(url: str) -> asyncpg.Connection[asyncpg.Record]:
    dsn = make_url(url).set(drivername="postgresql").render_as_string(hide_password=False)
    return await asyncpg.connect(dsn)
