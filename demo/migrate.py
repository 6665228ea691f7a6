"""Brings the tables up to date, by Alembic. It runs at each start, and once at a time."""

from __future__ import annotations

from pathlib import Path

from alembic import command
from alembic.config import Config
from sqlalchemy import Connection, inspect, text
from sqlalchemy.ext.asyncio import AsyncEngine

from demo.models import Base

LOCK = 7274
"""A number for PostgreSQL's advisory lock: whoever starts at the same time waits."""


async def migrate(engine: AsyncEngine, *, fresh: bool = False) -> None:
    """Create or change tables as the migrations say; `fresh` deletes what is there first."""
    async with engine.begin() as connection:
        await connection.run_sync(_migrate, fresh)


def _migrate(connection: Connection, fresh: bool) -> None:
    if connection.dialect.name == "postgresql":
        connection.execute(text("SELECT pg_advisory_xact_lock(:lock)"), {"lock": LOCK})
    tables = inspect(connection).get_table_names()
    if fresh:
        Base.metadata.drop_all(connection)
        connection.execute(text("DROP TABLE IF EXISTS alembic_version"))
    elif "users" in tables and "alembic_version" not in tables:
        raise SystemExit(
            "The database holds the tables of an older demo. Start with --fresh to delete them."
        )
    config = Config()
    config.set_main_option("script_location", str(Path(__file__).with_name("migrations")))
    config.attributes["connection"] = connection
    command.upgrade(config, "head")
