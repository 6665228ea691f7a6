"""`select 1` through a unit's session, against a plain AsyncSession, on PostgreSQL."""

from __future__ import annotations

import argparse
import asyncio

from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncSession, async_sessionmaker

from benchmarks.alternation import Comparison, compare
from benchmarks.server import server_url
from starlette_uow import UnitOfWork, create_engine

SELECT = text("select 1")


async def measure(url: str, *, pairs: int, calls: int) -> Comparison:
    """One statement after another in one transaction, on one connection each."""
    engine = create_engine(url)
    sessions = async_sessionmaker(engine, expire_on_commit=False)
    uow = UnitOfWork(sessions)

    async def through(session: AsyncSession, calls: int) -> None:
        for _ in range(calls):
            await session.execute(SELECT)

    async with sessions() as plain, uow:
        result = await compare(
            lambda calls: through(plain, calls),
            lambda calls: through(uow.session, calls),
            pairs=pairs,
            calls=calls,
        )
    await engine.dispose()
    return result


def main() -> None:
    """Print the ratio."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--pairs", type=int, default=2000)
    parser.add_argument("--calls", type=int, default=10)
    options = parser.parse_args()
    url = server_url()
    result = asyncio.run(measure(url, pairs=options.pairs, calls=options.calls))
    print(result.report("select 1"))  # noqa: T201 - to a person


if __name__ == "__main__":
    main()
