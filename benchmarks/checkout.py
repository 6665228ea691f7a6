"""A unit of one `select 1`, on PostgreSQL: what it costs to know that the connection is alive.

Ours, and SQLAlchemy's `pool_pre_ping`, each against no check at all. A connection that was used a
few milliseconds ago is trusted; the second line is what a check costs where it is not.
"""

from __future__ import annotations

import argparse
import asyncio
import functools

from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncEngine, async_sessionmaker, create_async_engine

from benchmarks.alternation import compare
from benchmarks.server import server_url
from starlette_uow import UnitOfWork, create_engine, postgres

SELECT = text("select 1")


async def work(uow: UnitOfWork, calls: int) -> None:
    """One transaction after another."""
    for _ in range(calls):
        async with uow:
            await uow.session.execute(SELECT)


def uow_of(engine: AsyncEngine) -> UnitOfWork:
    """Units of an engine, which gets the guard wherever it comes from."""
    return UnitOfWork(async_sessionmaker(engine, expire_on_commit=False))


async def measure(url: str, *, pairs: int, calls: int) -> None:
    """Print the ratios, each to no check at all."""
    unchecked = uow_of(create_async_engine(url))
    for name, engine, trusted_for in [
        ("create_engine()", create_engine(url), postgres.TRUSTED_FOR),
        ("create_engine(), trusting no connection", create_engine(url), 0.0),
        ("pool_pre_ping", create_async_engine(url, pool_pre_ping=True), 0.0),
    ]:
        postgres.TRUSTED_FOR = trusted_for
        checked = uow_of(engine)
        result = await compare(
            functools.partial(work, unchecked),
            functools.partial(work, checked),
            pairs=pairs,
            calls=calls,
        )
        print(result.report(name))  # noqa: T201 - to a person
        await checked.dispose()
    await unchecked.dispose()


def main() -> None:
    """Run with the server of BENCHMARK_DATABASE_URL, or that of the tests."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--pairs", type=int, default=2000)
    parser.add_argument("--calls", type=int, default=10)
    options = parser.parse_args()
    url = server_url()
    asyncio.run(measure(url, pairs=options.pairs, calls=options.calls))


if __name__ == "__main__":
    main()
