"""Alembic's entry, with the connection of `demo.migrate`.

By hand, where the connection comes from DATABASE_URL, it makes the next migration:

alembic --config demo/migrations/alembic.ini revision --autogenerate --message "what changes"
"""

from __future__ import annotations

import asyncio

from alembic import context
from sqlalchemy import Connection
from sqlalchemy.ext.asyncio import create_async_engine

from demo.models import Base
from demo.settings import database_url


def run(connection: Connection) -> None:
    """Run the migrations in the caller's transaction."""
    context.configure(
        connection=connection,
        target_metadata=Base.metadata,
        render_as_batch=connection.dialect.name == "sqlite",  # it cannot alter a table
        user_module_prefix="",
    )
    with context.begin_transaction():
        context.run_migrations()


async def run_by_hand() -> None:
    """Connect to DATABASE_URL, for the command line."""
    engine = create_async_engine(database_url())
    async with engine.begin() as connection:
        await connection.run_sync(run)
    await engine.dispose()


if (given := context.config.attributes.get("connection")) is not None:
    run(given)
else:
    asyncio.run(run_by_hand())
