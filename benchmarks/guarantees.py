"""The promise of the rule, held against starlette-uow, code written by hand, and other packages.

The same FastAPI endpoints run on each, on PostgreSQL, and are cancelled at their steps, in every
way that `tests/steps` knows. Prints Markdown tables: how many cases violated what.
"""

from __future__ import annotations

import argparse
import asyncio
import gc
import io
import logging
import sys
import time
import weakref
from collections import Counter
from collections.abc import Callable, Iterable
from contextlib import redirect_stdout
from dataclasses import dataclass, field
from importlib.metadata import version
from typing import Any

from fastapi import FastAPI
from sqlalchemy.exc import IntegrityError
from sqlalchemy.ext.asyncio import AsyncEngine, AsyncSession, create_async_engine
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import Response

from benchmarks.peers import PEERS, Peer
from benchmarks.server import describe, server_url
from starlette_uow import create_engine
from tests.asgi import layers
from tests.databases import Database, PostgresObserver, connect, create_database
from tests.steps.attempt import Attempt
from tests.steps.endpoints import Plain, answer_conflict, endpoints_of
from tests.steps.outside import BACKENDS, Outside, heard
from tests.steps.promise import PROMISES, Endpoint, Tally, broken
from tests.steps.subject import Subject
from tests.steps.ways import UNDISTURBED, WAYS, Within

NAMES = [
    "read",
    "write",
    "write_and_refuse",
    "write_and_raise",
    "fail_at_commit",
    "savepoints",
    "swallow_a_database_error",
    "stream",
    "background_task",
]
"""Endpoints of `tests.steps.endpoints.Plain` that a session of the request is enough for."""

ENDS_WITH_THE_ENDPOINT = {"hand-written"}
"""The session is gone before the body and the background tasks, which need one of their own."""

AFTER_THE_ENDPOINT = {"stream", "background_task"}

NOT_PROMISED = "context changed"
"""A variable that is left set is reported, and by itself not counted as a violation."""

PACKAGES = {
    "context-async-sqlalchemy (ASGI)": "context-async-sqlalchemy",
    "context-async-sqlalchemy (Starlette)": "context-async-sqlalchemy",
    "fastapi-async-sqlalchemy": "fastapi-async-sqlalchemy",
    "fastapi-sqla": "fastapi-sqla",
    "advanced-alchemy": "advanced-alchemy",
    "fastapi-toolsets": "fastapi-toolsets",
    "starlette-admin": "starlette-admin",
}

NOT_APPLICABLE = "n/a"


class OnPeer:
    """The endpoints, in an app that is served by a peer. It has one request at a time."""

    def __init__(self, peer: Peer, *, count: int = 0) -> None:
        self.peer = peer
        self.plain = Plain(self.session)
        self.app = FastAPI(
            openapi_url=None,
            middleware=[*layers(count), Middleware(Within)],
            exception_handlers={IntegrityError: answer_conflict},
        )
        for name in NAMES:
            self.app.add_api_route(
                f"/{name}/", self.serve(getattr(self.plain, name)), methods=["GET", "POST"]
            )
        peer.install(self.app)

    def session(self) -> AsyncSession:
        """Of the request: the endpoint's own, in its body and its background tasks, too."""
        session = self.current()
        assert session is not None, "the session is gone"
        return session

    def serve(self, handler: Callable[[Request], Any]) -> Callable[[Request], Any]:
        async def endpoint(request: Request) -> Response:
            # What a dependency of FastAPI is entered into.
            request.scope["dependencies"] = request.scope["fastapi_inner_astack"]

            async def work(session: AsyncSession) -> Response:
                self.current = weakref.ref(session)  # the peer alone decides how long it lives
                response: Response = await handler(request)
                return response

            return await self.peer.run(request, work)

        return endpoint


@dataclass(frozen=True)
class Fresh(Subject):
    """Cleans up after a case that violated something: the next is judged by itself."""

    database: Database = field(kw_only=True)

    async def judge(self, endpoint: Endpoint, attempt: Attempt, tally: Tally) -> None:
        """Run one case, and note what it violates."""
        before = len(tally.violations)
        await super().judge(endpoint, attempt, tally)
        if len(tally.violations) > before:
            with heard():
                await self.clean_up()

    async def clean_up(self) -> None:
        """End all connections, whoever forgot them."""
        await self.database.observer.scalar(f"select count(pg_terminate_backend(pid)) {BACKENDS}")
        await self.engine.dispose(close=False)
        for _ in range(2):
            gc.collect()
            await asyncio.sleep(0)

    async def can_serve(self, endpoint: Endpoint) -> bool:
        """Whether an undisturbed request does what it should, or is told that it failed, or a lie.

        Where it does something else without a word, the peer does not offer this.
        """
        await self.outside.clear(endpoint.before)
        attempt = Attempt(UNDISTURBED, None)
        with heard():
            await attempt.run(self.app, endpoint.scope(), endpoint.body, patience=self.patience)
            names = (await self.outside.look()).names
            await self.clean_up()
        wanted = frozenset().union(*(unit.names for unit in endpoint.units))
        failed = attempt.status is not None and attempt.status >= 400
        return names == wanted or failed or any(broken(endpoint, attempt, names))


@dataclass
class Verdict:
    """What became of the cases of a peer and an endpoint.

    Attributes:
        cases: how many requests were cancelled.
        kinds: in how many of them something of this kind was violated.
        violated: in how many of them anything was.
        first: an example of each kind.
    """

    cases: int
    kinds: Counter[str]
    violated: int
    first: dict[str, str] = field(default_factory=dict)

    @classmethod
    def of(cls, tally: Tally) -> Verdict:
        """Each case counts once for each kind, however often it violated it."""
        pairs = {(violation.kind, violation.where) for violation in tally.violations}
        kinds = Counter(kind for kind, _ in pairs)
        first = {v.kind: f"{v.where}: {v.detail}" for v in reversed(tally.violations)}
        violated = {where for kind, where in pairs if kind != NOT_PROMISED}
        return cls(tally.cases, kinds, len(violated), first)

    @classmethod
    def sum(cls, verdicts: Iterable[Verdict | None]) -> Verdict:
        """Of those that apply."""
        known = [verdict for verdict in verdicts if verdict is not None]
        kinds = sum((verdict.kinds for verdict in known), Counter[str]())
        return cls(sum(v.cases for v in known), kinds, sum(v.violated for v in known))


Verdicts = dict[str, Verdict | None]
"""Of a peer, by endpoint; None where it does not apply."""


async def examine(
    name: str, database: Database, *, names: Iterable[str], stride: int, count: int, patience: float
) -> Verdicts:
    """Cancel requests to an app on this peer."""
    make_engine = create_engine if name == "starlette-uow" else create_async_engine
    engine: AsyncEngine = make_engine(
        database.url, pool_size=2, max_overflow=0, pool_timeout=patience
    )
    endpoints = endpoints_of(Plain, database.name)
    app = OnPeer(PEERS[name](engine), count=count).app
    subject = Fresh(
        app,
        engine,
        Outside(database),
        endpoints["write"],
        layers=count,
        patience=patience,
        database=database,
    )
    verdicts: Verdicts = {}
    for endpoint_name in names:
        endpoint = endpoints[endpoint_name]
        ends = name in ENDS_WITH_THE_ENDPOINT and endpoint_name in AFTER_THE_ENDPOINT
        if ends or not await subject.can_serve(endpoint):
            verdicts[endpoint_name] = None
            continue
        verdicts[endpoint_name] = Verdict.of(await try_all_ways(subject, endpoint, stride))
    await subject.clean_up()
    await engine.dispose()
    return verdicts


async def try_all_ways(subject: Subject, endpoint: Endpoint, stride: int) -> Tally:
    """Every way leaves out other steps."""
    total = Tally()
    for number, way in enumerate(WAYS):
        first = 1 + number % stride
        tally = await subject.try_every_step(endpoint, way, first=first, stride=stride)
        # The last case is not cancelled any more: no need to count the request before the first.
        tally.violations = [v for v in tally.violations if v.where != endpoint.name]
        total.add(tally)
    return total


def markdown(header: list[str], rows: list[list[str]]) -> str:
    """A table with figures in all columns but the first."""
    lines = [header, ["---", *("---:" for _ in header[1:])], *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def kinds_table(found: dict[str, Verdicts]) -> str:
    """In how many requests each kind of promise was violated, if any peer violated it."""
    totals = {name: Verdict.sum(verdicts.values()) for name, verdicts in found.items()}
    kinds = [kind for kind in PROMISES if any(total.kinds[kind] for total in totals.values())]
    rows = [
        [labelled(name), f"**{total.violated:,} / {total.cases:,}**"]
        + [f"{total.kinds[kind]:,}" for kind in kinds]
        for name, total in totals.items()
    ]
    return markdown(["", "violated", *kinds], rows)


def endpoints_table(found: dict[str, Verdicts], names: Iterable[str]) -> str:
    """In how many of the requests to each endpoint anything was violated."""
    rows = [
        [labelled(name)]
        + [
            f"{verdict.violated:,} / {verdict.cases:,}" if verdict else NOT_APPLICABLE
            for verdict in verdicts.values()
        ]
        for name, verdicts in found.items()
    ]
    return markdown(["", *(name.replace("_", " ") for name in names)], rows)


def labelled(name: str) -> str:
    """With its version."""
    return f"{name} {version(PACKAGES[name])}" if name in PACKAGES else name


def say(line: str) -> None:
    """Beside the tables."""
    print(line, file=sys.stderr)  # noqa: T201 - to a person


async def main(options: argparse.Namespace) -> None:
    """Print the tables."""
    url = server_url()
    url = await create_database(url, "starlette_uow_guarantees")
    connection = await connect(url)
    database = Database("postgresql", url, PostgresObserver(connection))
    server = await connection.fetchval("show server_version")
    logging.getLogger().addHandler(logging.NullHandler())  # nobody wants to read it
    found = {}
    for name in options.peers:
        began = time.monotonic()
        with redirect_stdout(io.StringIO()):  # of those who log there
            found[name] = await examine(
                name,
                database,
                names=options.endpoints,
                stride=options.stride,
                count=options.layers,
                patience=options.patience,
            )
        say(f"{name}: {time.monotonic() - began:.0f} s")
        for verdict in found[name].values() if options.show else ():
            for kind, example in verdict.first.items() if verdict else ():
                say(f"  {kind}: {example}")
    await connection.close()
    print(report(found, options, server))  # noqa: T201 - to a person


def report(found: dict[str, Verdicts], options: argparse.Namespace, server: str) -> str:
    """What was run, and the tables."""
    machine = describe(server, "fastapi", "starlette", "sqlalchemy", "asyncpg")
    lines = [
        f"{machine}; {len(WAYS)} ways to cancel, one step of "
        f"{options.stride}, below {options.layers} BaseHTTPMiddlewares.",
        "",
        kinds_table(found),
        "",
        "The same, by endpoint:",
        "",
        endpoints_table(found, options.endpoints),
    ]
    return "\n".join(lines)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--stride", type=int, default=6, help="1: every step; 6: one of six")
    parser.add_argument("--layers", type=int, default=0, help="of BaseHTTPMiddleware")
    parser.add_argument("--show", action="store_true", help="an example of each violation")
    parser.add_argument("--patience", type=float, default=0.5, help="seconds until it hangs")
    parser.add_argument("--endpoints", nargs="*", default=NAMES, choices=NAMES)
    parser.add_argument("--peers", nargs="*", default=[*PEERS], choices=PEERS)
    asyncio.run(main(parser.parse_args()))
