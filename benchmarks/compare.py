"""Requests through starlette-uow, by hand and through the alternatives, in one process.

Prints Markdown tables, and writes them to results.md beside this file, with a picture: the time of
a request relative to the one written by hand, the throughput with slow clients, the time a
connection is held, what is sent to the server, and the memory that is kept.
"""

from __future__ import annotations

import argparse
import asyncio
import functools
import os
import shutil
import statistics
import time
from collections.abc import Awaitable, Callable, Sequence
from contextlib import ExitStack
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from urllib.parse import quote

from sqlalchemy import event, insert, select, text
from sqlalchemy.ext.asyncio import AsyncEngine, AsyncSession, create_async_engine
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response
from starlette.routing import Route
from starlette.types import ASGIApp, Message

from benchmarks import memory, plot, wire
from benchmarks.alternation import Block, Comparison, alternate
from benchmarks.load import requests_a_second, serving
from benchmarks.peers import PEERS, Peer
from benchmarks.server import describe, server_url
from starlette_uow import create_engine

OURS = "starlette-uow"
BY_HAND = "hand-written"
THROUGHPUT = "throughput, hand-written = 1 (more is better)"
RESULTS = Path(__file__).parent / "results.md"
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


async def do_nothing(request: Request) -> Response:
    """An endpoint that does not ask for a session."""
    return PlainTextResponse("done")


Work = Callable[[AsyncSession], Awaitable[None]]
NOTHING = "no database work"
WORK: dict[str, Work] = {
    "one read": read,
    "one write": write,
    "ten statements": ten,
}


Charts = dict[str, dict[str, plot.Bar]]
"""What the picture shows."""


class App:
    """A Starlette app on a peer, and raw requests to it."""

    def __init__(self, name: str, url: str, *, pool_size: int) -> None:
        make_engine = create_engine if name == OURS else create_async_engine
        self.engine: AsyncEngine = make_engine(url, pool_size=pool_size, max_overflow=0)
        self.peer: Peer = PEERS[name](self.engine)
        self.let_go = asyncio.Event()
        routes = [Route(f"/{title}", self.serve(work)) for title, work in WORK.items()]
        routes += [Route("/waits", self.serve(self.wait)), Route(f"/{NOTHING}", do_nothing)]
        self.app = Starlette(routes=routes)
        self.peer.install(self.app)

    def serve(self, work: Work) -> Callable[[Request], Awaitable[Response]]:
        async def endpoint(request: Request) -> Response:
            await self.peer.run(request, work)
            return PlainTextResponse("done")

        return endpoint

    async def wait(self, session: AsyncSession) -> None:
        await self.let_go.wait()

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


async def time_requests(
    url: str, title: str, charts: Charts, *, rounds: int, calls: int
) -> list[str]:
    """The time of a request, relative to the one written by hand."""
    apps = {name: App(name, url, pool_size=1) for name in PEERS}
    blocks = {name: app.block(title) for name, app in apps.items()}
    times = await alternate(blocks, rounds=rounds, calls=calls)
    chart = charts[f"{title}: time of a request, hand-written = 1 (less is better)"] = {}
    rows = []
    for name in PEERS:
        compared = Comparison(times[BY_HAND], times[name])
        low, middle, high = compared.ratios
        chart[name] = plot.Bar(middle, low, high)
        median, more = statistics.median(times[name]) * 1e6, compared.more * 1e6
        rows.append(
            (
                name,
                f"{median:.1f} µs",
                f"{more:+.1f} µs",
                f"{middle:.3f}",
                f"{low:.3f} to {high:.3f}",
            )
        )
    for app in apps.values():
        await app.engine.dispose()
    return table(title, "median", "more", "ratio", "quartiles", rows=rows)


def table(title: str, *columns: str, rows: Sequence[tuple[str, ...]]) -> list[str]:
    """In Markdown, with a heading."""
    lines = [("", *columns), ("---",) * (len(columns) + 1), *rows]
    return [f"### {title}", "", *(f"| {' | '.join(line)} |" for line in lines), ""]


async def slow_clients(
    url: str, charts: Charts, *, seconds: float, clients: int = 60, rounds: int = 3
) -> list[str]:
    """Requests a second, with clients that take 50 ms to accept the body, and a pool of 5."""
    rates: dict[str, list[float]] = {name: [] for name in PEERS}
    for name in [*PEERS] * rounds:
        app = App(name, url, pool_size=5)
        served = 0
        until = time.perf_counter() + seconds

        async def client(app: App = app, until: float = until) -> None:
            nonlocal served
            while time.perf_counter() < until:
                await request(app.app, "/one read", slow=True)
                served += 1

        await asyncio.gather(*(client() for _ in range(clients)))
        rates[name].append(served / seconds)
        await app.engine.dispose()
    title = f"{clients} clients that take {SLOW_BODY * 1000:.0f} ms for the body, a pool of 5"
    charts[f"{title}: {THROUGHPUT}"] = bars(rates)
    return table(title, "requests a second", "from to", rows=[figures(n, rates[n]) for n in PEERS])


def bars(rates: dict[str, list[float]]) -> dict[str, plot.Bar]:
    """Throughput relative to what is written by hand: the median of the rounds, the extremes."""
    one = statistics.median(rates[BY_HAND])
    return {
        name: plot.Bar(statistics.median(rate) / one, min(rate) / one, max(rate) / one)
        for name, rate in rates.items()
    }


def figures(name: str, *rates: list[float]) -> tuple[str, ...]:
    """The row of a table: the median of the rounds, and the extremes."""
    columns = [
        (f"{statistics.median(rate):.0f}", f"{min(rate):.0f} to {max(rate):.0f}") for rate in rates
    ]
    return (name, *(column for pair in columns for column in pair))


def served_app() -> ASGIApp:
    """For uvicorn: the app on one peer."""
    return App(os.environ["BENCHMARK_PEER"], server_url(), pool_size=5).app


def through_a_server(url: str, charts: Charts, *, rounds: int = 3, seconds: int = 2) -> list[str]:
    """Requests a second behind uvicorn, as wrk counts them."""
    titles = [NOTHING, "one read"]
    rates: dict[str, list[list[float]]] = {name: [[] for _ in titles] for name in PEERS}
    with ExitStack() as stack:
        factory, environment = "benchmarks.compare:served_app", {"BENCHMARK_DATABASE_URL": url}
        servers = {
            name: stack.enter_context(serving(factory, BENCHMARK_PEER=name, **environment))
            for name in PEERS
        }
        for _ in range(rounds):
            for name, address in servers.items():
                for title, counted in zip(titles, rates[name], strict=True):
                    path = f"{address}/{quote(title)}"
                    counted.append(requests_a_second(path, seconds=seconds))
    for number, title in enumerate(titles):
        charts[f"uvicorn and wrk, {title}: {THROUGHPUT}"] = bars(
            {name: of_peer[number] for name, of_peer in rates.items()}
        )
    title = "Requests a second through uvicorn, one process, 32 clients of wrk, a pool of 5"
    columns = [column for title in titles for column in (title, "from to")]
    return table(title, *columns, rows=[figures(name, *rates[name]) for name in PEERS])


async def held(url: str, *, calls: int) -> list[str]:
    """How long a request keeps its connection."""
    rows: list[tuple[str, ...]] = []
    for name in PEERS:
        app = App(name, url, pool_size=1)
        taken, given = marks_of(app.engine, "checkout"), marks_of(app.engine, "checkin")
        await app.block("one write")(calls)
        median = statistics.median(b - a for a, b in zip(taken, given, strict=True)) * 1e3
        rows.append((name, f"{median:.2f} ms"))
        await app.engine.dispose()
    return table("A connection is held, one write", "median", rows=rows)


async def sent(url: str, *, calls: int = 50) -> list[str]:
    """What a request sends to the server, counted on the wire: statements and round trips."""
    rows = []
    for name in PEERS:
        counts = []
        for title in WORK:
            async with wire.counted(url) as (through, tally):
                app = App(name, through, pool_size=1)
                await app.block(title)(calls)  # the driver prepares its statements
                before = tally.copy()
                await app.block(title)(calls)
                passed = tally - before
                counts.append(
                    f"{wire.statements(passed) / calls:g} / {wire.round_trips(passed) / calls:g}"
                )
                await app.engine.dispose()
        rows.append((name, *counts))
    return table("Statements / round trips of a request, BEGIN and COMMIT too", *WORK, rows=rows)


async def kept(url: str, *, requests: int) -> list[str]:
    """The memory of requests that wait, and of those that are over."""
    rows = []
    for name in PEERS:
        app = App(name, url, pool_size=1)
        app.let_go.set()
        await request(app.app, "/waits")  # what is made once
        waiting = functools.partial(request, app.app, "/waits")
        size = await memory.of_waiting(waiting, app.let_go)
        rows.append((name, f"{size / 1024:.1f} KiB"))
        await app.engine.dispose()
    lines = table("Memory of a request that has its session and waits", "", rows=rows)
    app = App(OURS, url, pool_size=1)
    await app.block("one read")(requests // 10)
    before = memory.resident()
    await app.block("one read")(requests - requests // 10)
    more = (memory.resident() - before) / 1024
    await app.engine.dispose()
    tail = f"{requests:,} requests with one read through {OURS}, the first tenth as a warm-up: "
    return [*lines, f"{tail}{more:+.0f} KiB of resident memory.", ""]


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
    url = server_url()
    server = await prepare(url)
    today = datetime.now(tz=UTC).date()
    machine = f"{today:%-d %B %Y}, {describe(server, 'starlette', 'sqlalchemy', 'asyncpg')}"
    lines = [
        f"{machine}; {options.rounds} rounds of {options.calls} calls. Of each: the median, "
        f"and the quartiles of the ratios of neighbouring blocks; of throughput, three rounds.",
        "",
    ]
    charts: Charts = {}
    lines += await time_requests(
        url, NOTHING, charts, rounds=options.rounds, calls=options.calls * 10
    )
    for title in WORK:
        lines += await time_requests(url, title, charts, rounds=options.rounds, calls=options.calls)
    lines += await slow_clients(url, charts, seconds=options.seconds)
    lines += through_a_server(url, charts) if shutil.which("wrk") else ["wrk is missing.", ""]
    lines += await held(url, calls=options.rounds)
    lines += await sent(url)
    lines += await kept(url, requests=options.requests)
    RESULTS.write_text("\n".join(["# Results", "", "![](results.svg)", "", *lines]))
    note = f"Whiskers: quartiles, and of throughput the extremes.\n{machine}"
    RESULTS.with_suffix(".svg").write_text(plot.draw(charts, ours=OURS, note=note))
    print("\n".join(lines))  # noqa: T201 - to a person


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=120)
    parser.add_argument("--calls", type=int, default=10)
    parser.add_argument("--seconds", type=float, default=3.0)
    parser.add_argument("--requests", type=int, default=100_000)
    asyncio.run(main(parser.parse_args()))
