"""Requests through starlette-uow, by hand and through the alternatives, in one process.

Prints Markdown tables: the time of a request relative to the one written by hand, the throughput
with slow clients, and the time a connection is held.
"""

from __future__ import annotations

import argparse
import asyncio
import importlib.metadata
import os
import platform
import statistics
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

from sqlalchemy import event, insert, select, text
from sqlalchemy.ext.asyncio import AsyncEngine, AsyncSession, create_async_engine
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response
from starlette.routing import Route
from starlette.types import ASGIApp, Message

from benchmarks.alternation import Block, Comparison, alternate
from benchmarks.peers import PEERS, Peer
from demo import postgres
from starlette_uow import create_engine

BY_HAND = "hand-written"
SLOW_BODY = 0.05
"""Seconds that a slow client takes to accept a body."""


class Base(DeclarativeBase):
    """Of the benchmark's own table."""


class Row(Base):
    """What the requests read and write."""

    __tablename__ = "benchmark_rows"

    id: Mapped[int] = mapped_column(primary_key=True)
    name: Mapped[str]


async def read(session: AsyncSession) -> None:
    """One statement that reads."""
    (await session.execute(select(Row).where(Row.id == 1))).scalar_one()


async def write(session: AsyncSession) -> None:
    """One object that is written."""
    session.add(Row(name="written"))


async def ten(session: AsyncSession) -> None:
    """Ten statements, the last of which writes."""
    for _ in range(9):
        await read(session)
    await session.execute(insert(Row).values(name="written"))


WORK: dict[str, Callable[[AsyncSession], Awaitable[None]]] = {
    "one read": read,
    "one write": write,
    "ten statements": ten,
}


class App:
    """A Starlette app on a peer, and raw requests to it."""

    def __init__(self, name: str, url: str, *, pool_size: int) -> None:
        make_engine = create_engine if name == "starlette-uow" else create_async_engine
        self.engine: AsyncEngine = make_engine(url, pool_size=pool_size, max_overflow=0)
        self.peer: Peer = PEERS[name](self.engine)
        self.app = Starlette(routes=[Route(f"/{title}", self.serve(title)) for title in WORK])
        self.peer.install(self.app)

    def serve(self, title: str) -> Callable[[Request], Awaitable[Response]]:
        async def endpoint(request: Request) -> Response:
            await self.peer.run(request, WORK[title])
            return PlainTextResponse("done")

        return endpoint

    def block(self, title: str) -> Block:
        async def run(calls: int) -> None:
            for _ in range(calls):
                await request(self.app, f"/{title}")

        return run


async def request(app: ASGIApp, path: str, *, slow: bool = False) -> None:
    """One request, as a server would send it."""
    status = None

    async def receive() -> Message:
        return {"type": "http.request", "body": b"", "more_body": False}

    async def send(message: Message) -> None:
        nonlocal status
        if message["type"] == "http.response.start":
            status = message["status"]
        elif slow and message.get("body"):
            await asyncio.sleep(SLOW_BODY)

    scope: dict[str, Any] = {
        "type": "http",
        "asgi": {"version": "3.0", "spec_version": "2.4"},
        "http_version": "1.1",
        "method": "GET",
        "scheme": "http",
        "path": path,
        "raw_path": path.encode(),
        "query_string": b"",
        "root_path": "",
        "headers": [(b"host", b"localhost")],
        "client": ("127.0.0.1", 50000),
        "server": ("127.0.0.1", 8000),
        "state": {},
    }
    await app(scope, receive, send)
    if status != 200:
        raise RuntimeError(f"{path} answered {status}")


async def time_requests(url: str, title: str, *, rounds: int, calls: int) -> list[str]:
    """The time of a request, relative to the one written by hand."""
    apps = {name: App(name, url, pool_size=1) for name in PEERS}
    blocks = {name: app.block(title) for name, app in apps.items()}
    times = await alternate(blocks, rounds=rounds, calls=calls)
    rows = []
    for name in PEERS:
        low, middle, high = Comparison(times[BY_HAND], times[name]).ratios
        median = statistics.median(times[name]) * 1e6
        rows.append(f"| {name} | {median:.0f} µs | {middle:.3f} | {low:.3f} to {high:.3f} |")
    for app in apps.values():
        await app.engine.dispose()
    return [f"### {title}", "", "| | median | ratio | quartiles |", "|---|---|---|---|", *rows, ""]


async def slow_clients(url: str, *, seconds: float, clients: int = 60) -> list[str]:
    """Requests a second, with clients that take 50 ms to accept the body, and a pool of 5."""
    rows = []
    for name in PEERS:
        app = App(name, url, pool_size=5)
        served = 0
        until = time.perf_counter() + seconds

        async def client(app: App = app, until: float = until) -> None:
            nonlocal served
            while time.perf_counter() < until:
                await request(app.app, "/one read", slow=True)
                served += 1

        await asyncio.gather(*(client() for _ in range(clients)))
        rows.append(f"| {name} | {served / seconds:.0f} |")
        await app.engine.dispose()
    title = f"### {clients} clients that take {SLOW_BODY * 1000:.0f} ms for the body, a pool of 5"
    return [title, "", "| | requests a second |", "|---|---|", *rows, ""]


async def held(url: str, *, calls: int) -> list[str]:
    """How long a request keeps its connection."""
    rows = []
    for name in PEERS:
        app = App(name, url, pool_size=1)
        taken, given = marks_of(app.engine, "checkout"), marks_of(app.engine, "checkin")
        await app.block("one write")(calls)
        median = statistics.median(b - a for a, b in zip(taken, given, strict=True)) * 1e3
        rows.append(f"| {name} | {median:.2f} ms |")
        await app.engine.dispose()
    return ["### A connection is held, one write", "", "| | median |", "|---|---|", *rows, ""]


def marks_of(engine: AsyncEngine, name: str) -> list[float]:
    """When an event of the pool happens, from now on."""
    marks: list[float] = []
    event.listen(engine.sync_engine, name, lambda *_: marks.append(time.perf_counter()))
    return marks


async def prepare(url: str) -> str:
    """The table, and the version of the server."""
    engine = create_async_engine(url)
    async with engine.begin() as connection:
        await connection.run_sync(Base.metadata.drop_all)
        await connection.run_sync(Base.metadata.create_all)
        await connection.execute(insert(Row).values(name="first"))
        version = (await connection.execute(text("show server_version"))).scalar_one()
    await engine.dispose()
    return str(version)


async def main(options: argparse.Namespace) -> None:
    """Print the tables."""
    url = os.environ.get("BENCHMARK_DATABASE_URL") or postgres.start(
        Path("/var/tmp/starlette-uow-tests")
    )
    server = await prepare(url)
    packages = ("starlette", "sqlalchemy", "asyncpg")
    versions = ", ".join(f"{name} {importlib.metadata.version(name)}" for name in packages)
    lines = [
        f"{os.cpu_count()} cores ({platform.machine()}), Python {platform.python_version()}, "
        f"PostgreSQL {server}, {versions}; {options.rounds} rounds of {options.calls} calls.",
        "",
    ]
    for title in WORK:
        lines += await time_requests(url, title, rounds=options.rounds, calls=options.calls)
    lines += await slow_clients(url, seconds=options.seconds)
    lines += await held(url, calls=options.rounds)
    print("\n".join(lines))  # noqa: T201 - to a person


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=200)
    parser.add_argument("--calls", type=int, default=10)
    parser.add_argument("--seconds", type=float, default=3.0)
    asyncio.run(main(parser.parse_args()))
