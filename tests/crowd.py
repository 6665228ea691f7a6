"""A crowd of clients on raw sockets, a quarter of whom leave at random, while faults come.

A ledger of what each was told is held against the tables afterwards.
"""

from __future__ import annotations

import asyncio
import itertools
import logging
import os
import random
from collections import Counter
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from typing import Any

from starlette_uow import UnitOfWork, create_engine
from starlette_uow.handlers import unavailable_handlers
from tests.proxy import Fault, Proxy, answers, number, sends
from tests.servers import Mode, Server
from tests.test_server import serve
from tests.wire import Witness, eventually
from tests.wire_app import Told, broken_promises, make_app

REQUESTS = {
    "create": 6,
    "savepoints": 2,
    "checkpoint": 2,
    "stream": 1,
    "body": 1,
    "background": 2,
    "redirect": 1,
    "swallow": 1,
    "refuse": 1,
    "crash": 1,
}
"""What the clients ask for, and how often."""


class Client:
    """One keep-alive connection to the server, opened again when it is gone."""

    def __init__(self, port: int) -> None:
        self._port = port
        self._stream: tuple[asyncio.StreamReader, asyncio.StreamWriter] | None = None

    async def post(self, path: str, size: int = 0, *, leave_after: float | None = None) -> Told:
        """Send a request with a body, and read its answer, or leave before that.

        Whoever leaves may do so in the middle of the body, or of the answer.
        """
        told = Told()
        try:
            async with asyncio.timeout(leave_after):
                await self._post(path, size, told)
        except TimeoutError:
            await self.leave()
        except (OSError, asyncio.IncompleteReadError) as error:
            told.error = error
            await self.leave()
        return told

    async def leave(self) -> None:
        """Close the connection: with a reset, if something was on its way."""
        if self._stream is not None:
            _, writer = self._stream
            self._stream = None
            writer.close()
            with suppress(OSError):
                await writer.wait_closed()

    async def _post(self, path: str, size: int, told: Told) -> None:
        if self._stream is None:
            self._stream = await asyncio.open_connection("127.0.0.1", self._port)
        reader, writer = self._stream
        head = f"POST {path} HTTP/1.1\r\nHost: test\r\nContent-Length: {size}\r\n\r\n".encode()
        body = b"x" * size
        writer.write(head + body[: size // 2])
        await writer.drain()
        await asyncio.sleep(0)
        writer.write(body[size // 2 :])
        head = await reader.readuntil(b"\r\n\r\n")
        told.status = int(head.split(b" ", 2)[1])
        headers = head.lower()
        if b"transfer-encoding: chunked" in headers:
            while (chunk := int(await reader.readuntil(b"\r\n"), 16)) >= 0:
                await reader.readexactly(chunk + 2)
                if chunk == 0:
                    break
        else:
            await reader.readexactly(int(headers.split(b"content-length: ")[1].split(b"\r\n")[0]))
        told.complete = True
        if b"connection: close" in headers:
            await self.leave()


async def post(port: int, path: str) -> Told:
    """One request, on a connection of its own."""
    client = Client(port)
    try:
        return await client.post(path)
    finally:
        await client.leave()


@dataclass
class Ledger:
    """What each client was told.

    Attributes:
        prefix: of the units' names.
        entries: what was asked for, the unit's name, and the answer.
        left: how many requests their clients gave up.
    """

    prefix: str
    entries: list[tuple[str, str, Told]] = field(default_factory=list)
    left: int = 0

    def violations(self, written: dict[str, bool]) -> list[str]:
        """Hold it against the tables."""
        by_name: dict[str, dict[str, bool]] = {}
        for unit, whole in written.items():
            number = unit.removeprefix(f"{self.prefix}-").partition("-")[0]
            by_name.setdefault(f"{self.prefix}-{number}", {})[unit] = whole
        broken = [
            violation
            for scenario, name, told in self.entries
            for violation in broken_promises(scenario, name, told.word, by_name.pop(name, {}))
        ]
        return broken + [f"{name} is written, and nobody asked for it" for name in by_name]

    def words(self) -> Counter[str]:
        return Counter(told.word for _, _, told in self.entries)

    def summary(self, written: dict[str, bool]) -> str:
        words = self.words()
        unknown = [name for _, name, told in self.entries if told.word == "unknown"]
        nothing = [name for _, name, told in self.entries if told.word == "nothing"]
        return (
            f"{len(self.entries)} requests: {words['success']} told success,"
            f" {words['failure']} failure,"
            f" {words['unknown']} unknown ({sum(n in written for n in unknown)} of them written),"
            f" {words['nothing']} nothing ({self.left} clients left,"
            f" {sum(n in written for n in nothing)} of them written)"
        )


_crowds = itertools.count(1)


async def crowd(port: int, ledger: Ledger, *, clients: int, seconds: float, seed: int) -> None:
    """Let so many clients ask for as long; every fourth request is given up at a random moment."""
    numbers = itertools.count(1)
    clock = asyncio.get_running_loop().time
    end = clock() + seconds
    chance = random.Random(seed)
    scenarios = random.Random(seed).choices(list(REQUESTS), list(REQUESTS.values()), k=997)

    async def ask(client: Client) -> None:
        while clock() < end:
            turn = next(numbers)
            scenario = scenarios[turn % len(scenarios)]
            name = f"{ledger.prefix}-{turn}"
            leave_after = chance.expovariate(20) if chance.random() < 0.25 else None
            size = chance.choice([0, 10, 1000, 70_000, 200_000])
            told = await client.post(f"/{scenario}/{name}", size, leave_after=leave_after)
            ledger.left += leave_after is not None and not told.complete
            ledger.entries.append((scenario, name, told))
            if isinstance(told.error, ConnectionRefusedError):
                return

    async def ask_and_leave(client: Client) -> None:
        try:
            await ask(client)
        finally:
            await client.leave()

    await asyncio.gather(*(ask_and_leave(Client(port)) for _ in range(clients)))


@dataclass
class Siege:
    """How a crowd fared.

    Attributes:
        violations: promises that were broken.
        noise: what was logged as a warning or an error, and how often.
        faults: how often each kind came.
    """

    ledger: Ledger
    written: dict[str, bool]
    violations: list[str]
    noise: Counter[str]
    faults: Counter[str]

    @property
    def unexpected_noise(self) -> dict[str, int]:
        """All but a lost ROLLBACK and the end of a cancelled task, of which nobody else hears, and
        what uvicorn writes to a client who has just left.
        """
        known = (
            "starlette_uow: A rollback failed",
            "starlette_uow: The transaction of %s",
            "starlette_uow: %s: the connection was lost during COMMIT; it was committed.",
            "asyncio: socket.send() raised exception.",
        )
        return {line: n for line, n in self.noise.items() if not line.startswith(known)}

    def summary(self) -> str:
        return (
            f"{self.ledger.summary(self.written)};"
            f" {self.faults.total()} faults, {len(self.violations)} violations"
        )


async def besiege(
    url: str,
    seen: Witness,
    *,
    clients: int,
    seconds: float,
    every: float,
    seed: int = 1,
    server: Server | None = None,
    **options: Any,
) -> Siege:
    """Let a crowd use an app under uvicorn while there is trouble on the wire to its database.

    Args:
        url: the database's.
        seen: looks at it from outside.
        clients: how many at once.
        seconds: how long.
        every: seconds between two faults, on average.
        seed: of what is random.
        server: to be restarted, too.
        **options: of `UnitOfWork`.
    """
    user = f"crowd-{os.getpid()}-{next(_crowds)}"
    with _listening() as noise:
        async with Proxy(url) as proxy:
            engine = create_engine(
                proxy.url, pool_size=10, max_overflow=0, pool_timeout=5, application_name=user
            )
            uow = UnitOfWork(engine, **options)
            app = make_app(uow)
            app.exception_handlers.update(unavailable_handlers)
            trouble = Trouble(proxy, seen, user, seed, server)
            async with serve(app, log_config=None) as app_server:
                port = app_server.port
                making = asyncio.create_task(trouble.make(every))
                ledger = Ledger(f"{user}-asked")
                await crowd(port, ledger, clients=clients, seconds=seconds, seed=seed)
                trouble.over.set()
                await making
                calm = [f"{user}-calm-{number}" for number in range(clients)]
                told = await asyncio.gather(*(post(port, f"/create/{n}") for n in calm))
            written = await seen.units(ledger.prefix)
            violations = ledger.violations(written)
            for name, word in zip(calm, (t.word for t in told), strict=True):
                if word != "success" or name not in await seen.units(name):
                    violations.append(f"afterwards, {word} was told to {name}")
            if taken := engine.pool.checkedout():  # type: ignore[attr-defined]
                violations.append(f"{taken} connections were not given back")
            if uow._units:
                violations.append(f"units were not ended: {uow._units}")
            if connected := await eventually(lambda: seen.backends(user), []):
                violations.append(f"still connected: {connected}")
    return Siege(ledger, written, violations, noise, trouble.count)


@contextmanager
def _listening() -> Iterator[Counter[str]]:
    """Count what is logged, but for uvicorn's tracebacks of what the apps here raise."""
    noise: Counter[str] = Counter()

    class Ear(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            noise[f"{record.name}: {record.msg}"] += 1

    ear = Ear(logging.WARNING)
    root, uvicorn = logging.getLogger(), logging.getLogger("uvicorn.error")
    root.addHandler(ear)
    uvicorn.disabled = True
    try:
        yield noise
    finally:
        uvicorn.disabled = False
        root.removeHandler(ear)


class Trouble:
    """Faults at random, until it is stopped: on the wire, and backends that the server ends.

    Attributes:
        count: how often each kind came.
        over: set to stop it.
    """

    def __init__(
        self, proxy: Proxy, seen: Witness, user: str, seed: int, server: Server | None
    ) -> None:
        self.count: Counter[str] = Counter()
        self.over = asyncio.Event()
        self._server = server
        self._proxy = proxy
        self._seen = seen
        self._user = user
        self._chance = random.Random(seed)
        kinds: list[Callable[[], Awaitable[None]]] = [
            self.lose_a_commit,
            self.lose_an_answer_to_a_commit,
            self.cut_at_a_message,
            self.cut_all,
            self.stall,
            self.refuse,
            self.terminate,
        ]
        self._kinds = kinds if server is None else [*kinds, self.restart]

    async def make(self, every: float) -> None:
        """Make trouble until it is over, on average so many seconds apart; then mend the wire."""
        while not self.over.is_set():
            with suppress(TimeoutError):
                async with asyncio.timeout(self._chance.expovariate(1 / every)):
                    await self.over.wait()
                    break
            kind = self._chance.choice(self._kinds)
            self.count[kind.__name__] += 1
            await kind()
        self._proxy.flow()

    async def lose_a_commit(self) -> None:
        self._proxy.at(sends("COMMIT"), self._any_cut())

    async def lose_an_answer_to_a_commit(self) -> None:
        self._proxy.at(answers("COMMIT"), self._any_cut())

    async def cut_at_a_message(self) -> None:
        self._proxy.at(number(self._chance.randint(1, 200)), self._any_cut())

    async def cut_all(self) -> None:
        self._proxy.cut()

    async def stall(self) -> None:
        self._proxy.stall()
        await asyncio.sleep(self._chance.uniform(0.05, 0.5))
        self._proxy.flow()

    async def refuse(self) -> None:
        self._proxy.refuse()
        await asyncio.sleep(self._chance.uniform(0.02, 0.2))
        await self._proxy.accept()

    async def restart(self) -> None:
        assert self._server is not None
        mode: Mode = self._chance.choice(["fast", "immediate"])
        await asyncio.to_thread(self._server.restart, mode)

    async def terminate(self) -> None:
        await self._seen.terminate(self._user, self._chance.randint(1, 3))

    def _any_cut(self) -> Fault:
        return self._chance.choice([Fault.CUT, Fault.PASS_AND_CUT, Fault.HALF])
