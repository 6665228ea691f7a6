"""Counts the violations of any app, by kind: `python -m tests.torture.report --help`.

An app is given by a function that makes it of an engine: see `APPS`.
"""

from __future__ import annotations

import argparse
import asyncio
import logging
import tempfile
from collections.abc import AsyncIterator, Callable, Collection
from contextlib import asynccontextmanager
from pathlib import Path

from sqlalchemy.ext.asyncio import AsyncEngine
from starlette.middleware import Middleware
from starlette.types import ASGIApp

from demo import postgres
from starlette_uow import UnitOfWork, UnitOfWorkMiddleware, create_engine
from tests.databases import (
    Database,
    PostgresObserver,
    SQLiteObserver,
    connect,
    create_database,
    create_tables,
)
from tests.steps.endpoints import Plain, endpoints_of, make_app
from tests.steps.naive import Naive, commit_after_the_answer, naive_session
from tests.steps.outside import Outside
from tests.steps.promise import PROMISES, Tally
from tests.steps.subject import Subject
from tests.steps.ways import WAYS

MakeApp = Callable[[AsyncEngine, int], ASGIApp]
"""Makes an app with the endpoints of `Plain`, and so many BaseHTTPMiddlewares below what serves
its sessions.
"""


def with_units(engine: AsyncEngine, layers: int) -> ASGIApp:
    uow = UnitOfWork(engine)
    units = Middleware(UnitOfWorkMiddleware, uow=uow)
    return make_app(Plain(lambda: uow.session), [units], count=layers)


def by_hand(engine: AsyncEngine, layers: int) -> ASGIApp:
    naive = Middleware(Naive, engine=engine, around=commit_after_the_answer, kept=[])
    return make_app(Plain(naive_session), [naive], count=layers)


APPS: dict[str, MakeApp] = {"starlette-uow": with_units, "written by hand": by_hand}


async def examine(
    make: MakeApp,
    database: Database,
    *,
    layers: int = 0,
    names: Collection[str] = (),
    stride: int = 1,
    patience: float = 1.0,
) -> Tally:
    """Cancel requests to an app at every step, in every way.

    Args:
        make: makes the app.
        database: where its tables are.
        layers: how many BaseHTTPMiddlewares it gets.
        names: of endpoints; all by default.
        stride: 2 to leave out every other step, and so on.
        patience: seconds until a request counts as hanging.
    """
    engine = create_engine(database.url, pool_size=2, max_overflow=0, pool_timeout=1)
    endpoints = endpoints_of(Plain, database.name)
    subject = Subject(
        make(engine, layers),
        engine,
        Outside(database),
        endpoints["write"],
        layers=layers,
        patience=patience,
    )
    total = Tally()
    for name in names or endpoints:
        for number, way in enumerate(WAYS):
            first = 1 + number % stride
            total.add(
                await subject.try_every_step(endpoints[name], way, first=first, stride=stride)
            )
    await engine.dispose()
    return total


def table(tallies: dict[str, Tally]) -> str:
    """Markdown: a column for each app, a row for each kind of violation."""
    rows = [["", *tallies], ["---", *("---:" for _ in tallies)]]
    rows.append(["requests cancelled", *(f"{tally.cases:,}" for tally in tallies.values())])
    for kind in PROMISES:
        rows.append([kind, *(f"{tally.kinds[kind]:,}" for tally in tallies.values())])
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)


@asynccontextmanager
async def new_database(name: str) -> AsyncIterator[Database]:
    """An empty database with the tables of the tests."""
    if name == "sqlite":
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "report.sqlite"
            url = f"sqlite+aiosqlite:///{path}"
            await create_tables(url)
            observer = SQLiteObserver(path)
            yield Database(name, url, observer)
            observer.connection.close()
        return
    server_url = postgres.start(Path("/var/tmp/starlette-uow-tests"))
    url = await create_database(server_url, "starlette_uow_report")
    connection = await connect(url)
    yield Database(name, url, PostgresObserver(connection))
    await connection.close()


async def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--database", choices=["postgresql", "sqlite"], default="postgresql")
    parser.add_argument("--layers", type=int, default=0, help="of BaseHTTPMiddleware")
    parser.add_argument("--endpoint", nargs="*", default=[], choices=endpoints_of(Plain, ""))
    parser.add_argument("--stride", type=int, default=1, help="2: every other step")
    parser.add_argument("--apps", nargs="*", default=[*APPS], choices=APPS)
    arguments = parser.parse_args()
    logging.getLogger().addHandler(logging.NullHandler())  # nobody wants to read it
    async with new_database(arguments.database) as database:
        tallies = {
            name: await examine(
                APPS[name],
                database,
                layers=arguments.layers,
                names=arguments.endpoint,
                stride=arguments.stride,
            )
            for name in arguments.apps
        }
    print(table(tallies))  # noqa: T201 - a program


if __name__ == "__main__":
    asyncio.run(main())
