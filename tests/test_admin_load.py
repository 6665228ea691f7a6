"""Twenty people at once in an admin under uvicorn, on a pool of five."""

from __future__ import annotations

import logging
import os

import pytest
from sqlalchemy.ext.asyncio import async_sessionmaker

from starlette_uow import UnitOfWork, create_engine
from tests.admin_clients import add_documents, build_app, check_tables, let_people_work
from tests.admin_models import Base
from tests.databases import Database
from tests.test_server import serve

SECONDS = float(os.environ.get("ADMIN_SECONDS", "5"))


async def test_twenty_people_in_an_admin_lose_no_edit_and_see_no_error(
    database: Database, caplog: pytest.LogCaptureFixture
) -> None:
    """Every edit is there with its audit row, or was refused with a message."""
    engine = create_engine(
        database.url, pool_size=5, max_overflow=0, pool_timeout=60, busy_timeout=60
    )
    uow = UnitOfWork(async_sessionmaker(engine, expire_on_commit=False))
    async with engine.begin() as connection:
        await connection.run_sync(Base.metadata.create_all)
    await add_documents(uow)

    async with serve(build_app(uow)) as server:
        tally = await let_people_work(f"http://127.0.0.1:{server.port}", SECONDS)

    logging.getLogger(__name__).info("Answers: %s", sorted(tally.answers.items()))
    assert tally.unexpected == {}
    assert tally.done
    await check_tables(uow, tally)
    names = ("starlette_uow", "uvicorn.error", "asyncio")
    assert [r for r in caplog.records if r.name in names and r.levelno >= logging.WARNING] == []
    assert engine.pool.checkedout() == 0  # type: ignore[attr-defined]
    async with engine.begin() as connection:
        await connection.run_sync(Base.metadata.drop_all)
    await engine.dispose()
