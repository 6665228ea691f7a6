"""One request while one message on the wire meets a fault, and what has to be true afterwards."""

from __future__ import annotations

import asyncio
import itertools
import os
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

import asyncpg
from sqlalchemy.ext.asyncio import AsyncEngine
from starlette.types import ASGIApp

from starlette_uow import UnitOfWork, create_engine
from tests.databases import connect
from tests.proxy import Action, Fault, Match, Proxy, number
from tests.wire_app import Told, ask, broken_promises, make_app

PATIENCE = 5.0
"""Seconds for a server to notice that a client is gone."""

END_TIMEOUT = 1.0
LATE = 0.6
"""Seconds that a message is late: less than `END_TIMEOUT`, more than a driver's timeout."""


class Witness:
    """A connection of its own to the server, which no fault reaches. Any task may ask it.

    It connects again to a server that was restarted.
    """

    def __init__(self, url: str, connection: asyncpg.Connection[asyncpg.Record]) -> None:
        self._url = url
        self.connection = connection
        self._turn = asyncio.Lock()

    async def fetch(self, sql: str, *args: object) -> list[asyncpg.Record]:
        async with self._turn:
            while True:
                try:
                    if self.connection.is_closed():
                        self.connection = await connect(self._url)
                    return await self.connection.fetch(sql, *args)
                except (OSError, asyncpg.PostgresConnectionError, asyncpg.CannotConnectNowError):
                    await asyncio.sleep(0.05)

    async def units(self, prefix: str) -> dict[str, bool]:
        """The units whose name begins so, and whether each is whole."""
        rows = await self.fetch(
            "select i.name, count(p.id) = 1 from items i left join parts p on p.item_id = i.id"
            " where starts_with(i.name, $1) group by i.id",
            prefix,
        )
        return {row[0]: row[1] for row in rows}

    async def backends(self, user: str, *, busy: bool = False) -> list[str]:
        """What the backends of an application did last: all of them, or those in a transaction."""
        rows = await self.fetch(
            "select state || ': ' || query from pg_stat_activity where application_name = $1"
            " and not ($2 and state = 'idle')",
            user,
            busy,
        )
        return [row[0] for row in rows]

    async def terminate(self, user: str, limit: int | None = None) -> None:
        """End backends of an application, at random, and wait until they are gone."""
        await self.fetch(
            "select pg_terminate_backend(pid, 5000) from (select pid from pg_stat_activity"
            " where application_name = $1 order by random() limit $2) victims",
            user,
            limit,
        )


@asynccontextmanager
async def witness(url: str) -> AsyncIterator[Witness]:
    seen = Witness(url, await connect(url))
    try:
        yield seen
    finally:
        await seen.connection.close()


async def eventually(ask: Callable[[], Awaitable[Any]], wanted: Any) -> Any:
    """Ask again until the answer is the wanted one, or patience is over; the last answer."""
    clock = asyncio.get_running_loop().time
    deadline = clock() + PATIENCE
    while (answer := await ask()) != wanted and clock() < deadline:  # noqa: ASYNC110 - nobody tells
        await asyncio.sleep(0.01)
    return answer


Blow = Fault | Callable[[Witness, str], Action]
"""A fault, or what makes one of a witness and the application's name."""

AppFactory = Callable[[AsyncEngine, int, float], ASGIApp]
"""Makes an app of an engine, so many `BaseHTTPMiddleware`s, and the `end_timeout` of its units."""


def terminated(seen: Witness, user: str) -> Action:
    """Before the message arrives, the server ends the backend."""
    return lambda: seen.terminate(user)


def late(seen: Witness, user: str) -> Action:
    """The message arrives late."""
    return lambda: asyncio.sleep(LATE)


def usual_app(engine: AsyncEngine, count: int, end_timeout: float) -> ASGIApp:
    return make_app(UnitOfWork(engine, end_timeout=end_timeout), count)


@dataclass
class Strike:
    """What a fault did.

    Attributes:
        struck: whether the request was long enough to meet it.
        violations: promises that were broken.
    """

    name: str
    struck: bool = False
    told: Told = field(default_factory=Told)
    written: dict[str, bool] = field(default_factory=dict)
    violations: list[str] = field(default_factory=list)


_names = itertools.count(1)


async def strike(
    url: str,
    seen: Witness,
    scenario: str,
    blow: Blow,
    where: Match | int,
    *,
    count: int = 0,
    cold: bool = False,
    timeout: float | None = None,
    factory: AppFactory = usual_app,
) -> Strike:
    """Send one request while a message on the wire meets a fault.

    If the wire stalls, the request is cancelled, unless the driver has a timeout of its own.

    Args:
        url: the server's.
        seen: looks at it from outside.
        scenario: what the request asks for.
        blow: the fault.
        where: the message, or the so-manyth.
        count: how many `BaseHTTPMiddleware`s stand below the unit's.
        cold: the request has to connect first.
        timeout: seconds the driver waits for an answer.
        factory: makes the app.
    """
    user = f"wire-{os.getpid()}-{next(_names)}"
    name = f"{user}-unit"
    title = blow.name if isinstance(blow, Fault) else blow.__name__
    result = Strike(f"{scenario}, {title} at {where if isinstance(where, int) else 'a message'}")
    connect_args = {"command_timeout": timeout, "server_settings": {"application_name": user}}
    async with Proxy(url) as proxy:
        engine = create_engine(
            proxy.url, pool_size=1, max_overflow=0, pool_timeout=2, connect_args=connect_args
        )
        patient_app = factory(engine, count, PATIENCE)
        await _warm_up(engine, patient_app, user)
        if cold:
            await engine.dispose()
        fault = blow if isinstance(blow, Fault) else blow(seen, user)
        trap = proxy.at(number(where) if isinstance(where, int) else where, fault)

        stalls = fault is Fault.STALL
        app = factory(engine, count, END_TIMEOUT) if stalls or timeout else patient_app
        request = asyncio.create_task(ask(app, f"/{scenario}/{name}"))
        if stalls and timeout is None:
            await _cancel_when(trap.sprung, request)
        result.told = await request

        result.struck = trap.sprung.is_set()
        proxy.flow()
        result.violations += await _what_is_left(engine, seen, user)
        result.written = await seen.units(name)
        result.violations += broken_promises(scenario, name, result.told.word, result.written)
        after = await _insist(patient_app, f"/create/{user}-after", 1 if timeout is None else 10)
        if after.word != "success" or not await seen.units(f"{user}-after"):
            result.violations.append(f"the next request was told {after}")
        await engine.dispose()
        if connected := await eventually(lambda: seen.backends(user), []):
            result.violations.append(f"still connected: {connected}")
    return result


async def _warm_up(engine: AsyncEngine, app: ASGIApp, user: str) -> None:
    """Connect, and prepare the statements."""
    told = await _insist(app, f"/create/{user}-warm", 10)
    assert told.word == "success", f"the request fails without a fault: {told}"


async def _insist(app: ASGIApp, path: str, times: int) -> Told:
    """Ask again after a failure: a driver with a timeout needs luck on a busy machine."""
    told = await ask(app, path)
    while told.word == "failure" and times > 1:
        told = await ask(app, path)
        times -= 1
    return told


async def _cancel_when(event: asyncio.Event, request: asyncio.Task[Told]) -> None:
    waiting = asyncio.create_task(event.wait())
    await asyncio.wait([request, waiting], return_when=asyncio.FIRST_COMPLETED)
    waiting.cancel()
    await asyncio.wait([request, waiting], timeout=0.02)
    request.cancel()


async def _what_is_left(engine: AsyncEngine, seen: Witness, user: str) -> list[str]:
    left = []
    if taken := engine.pool.checkedout():  # type: ignore[attr-defined]
        left.append(f"{taken} connections were not given back")
    if busy := await eventually(lambda: seen.backends(user, busy=True), []):
        left.append(f"left on the server: {busy}")
    return left


async def strike_everywhere(
    url: str,
    seen: Witness,
    scenario: str,
    blow: Blow,
    *,
    first: int = 1,
    step: int = 1,
    width: int = 8,
    **how: Any,
) -> list[Strike]:
    """Strike the first message of a request, then the next, until the request runs through.

    Args:
        url: the server's.
        seen: looks at it from outside.
        scenario: what the requests ask for.
        blow: the fault.
        first: the message to begin with.
        step: leaves out messages.
        width: how many requests at once, each on a wire of its own.
        **how: as for `strike`.
    """
    strikes: list[Strike] = []
    numbers = itertools.count(first, step)
    before = asyncio.all_tasks()
    while all(result.struck for result in strikes):
        wave = [strike(url, seen, scenario, blow, next(numbers), **how) for _ in range(width)]
        strikes += await asyncio.gather(*wave)
    strikes[-1].violations += await tasks_since(before)
    return [result for result in strikes if result.struck or result.violations]


async def tasks_since(before: set[asyncio.Task[Any]]) -> list[str]:
    """The tasks that were started since, and do not end."""

    async def left() -> set[asyncio.Task[Any]]:
        return asyncio.all_tasks() - before

    return [f"tasks were left: {task}" for task in await eventually(left, set())]


def violations(strikes: list[Strike]) -> list[str]:
    return [f"{result.name}: {broken}" for result in strikes for broken in result.violations]


def summary(strikes: list[Strike]) -> str:
    words = Counter(result.told.word for result in strikes)
    told = ", ".join(
        f"{words[word]} {word}" for word in ("success", "failure", "unknown", "nothing")
    )
    return f"{len(strikes)} faults, told {told}, {len(violations(strikes))} violations"
