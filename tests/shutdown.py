"""Stops a uvicorn of its own process by signals, while units of every kind are open on it."""

from __future__ import annotations

import asyncio
import itertools
import os
import re
import signal
import socket
import sys
from dataclasses import dataclass
from pathlib import Path

from websockets.asyncio.client import connect
from websockets.exceptions import ConnectionClosed

from tests.crowd import Ledger, crowd, post
from tests.proxy import Proxy
from tests.shutdown_app import ENDLESS
from tests.wire import Witness, eventually
from tests.wire_app import Told, broken_promises

ROOT = Path(__file__).parent.parent

_names = itertools.count(1)


@dataclass
class Stop:
    """How a server stopped.

    Attributes:
        code: its exit code; below 0 for the signal that killed it.
        grace: seconds that uvicorn gave its requests to end.
        seconds: from the first signal to its exit.
        disposed: whether its engine was.
        complaints: what it wrote, but for uvicorn's words about requests that it cancelled and the
            tracebacks of the app's own errors.
        violations: promises that were broken.
        ledger: of the crowd that used it meanwhile.
    """

    code: int
    grace: int
    seconds: float
    disposed: bool
    complaints: list[str]
    violations: list[str]
    ledger: Ledger

    def summary(self) -> str:
        return (
            f"exit {self.code} after {self.seconds:.1f} s with a grace of {self.grace} s,"
            f" {'disposed' if self.disposed else 'not disposed'},"
            f" {len(self.complaints)} complaints, {len(self.violations)} violations"
        )


async def stop_under_load(
    url: str,
    seen: Witness,
    signals: list[signal.Signals],
    *,
    grace: int = 1,
    each: int = 3,
    clients: int = 10,
    wire: Proxy | None = None,
) -> Stop:
    """Open units that have no end, let a crowd in, send the signals, and look at what is left.

    Args:
        url: the database's.
        seen: looks at it from outside.
        signals: half of the grace period apart.
        grace: seconds that uvicorn gives its requests to end.
        each: how many endless requests of each kind.
        clients: how large the crowd is.
        wire: to be stalled from the first signal until the server is gone.
    """
    user = f"stop-{os.getpid()}-{next(_names)}"
    listener = socket.create_server(("127.0.0.1", 0))
    port = listener.getsockname()[1]
    arguments = ["-W", "always", "-m", "tests.shutdown_app", url, user, listener.fileno(), grace]
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        *map(str, arguments),
        cwd=ROOT,
        pass_fds=[listener.fileno()],
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    listener.close()
    output = asyncio.create_task(process.communicate())
    assert (await post(port, f"/create/{user}-first")).status == 201
    endless = [
        (endpoint.__name__, f"{user}-{number}-{endpoint.__name__}")
        for endpoint in ENDLESS
        for number in range(each)
    ]
    asked = [asyncio.create_task(post(port, f"/{path}/{n}")) for path, n in endless]
    chats = [asyncio.create_task(_chat(port, f"{user}-{n}-chat")) for n in range(each)]

    async def busy() -> bool:
        return len(await seen.backends(user, busy=True)) >= len(asked) + len(chats)

    assert await eventually(busy, True), "The endless requests did not begin."
    ledger = Ledger(user.replace("stop", "crowd"))
    crowding = asyncio.create_task(crowd(port, ledger, clients=clients, seconds=60, seed=1))

    async def busy_crowd() -> bool:
        return ledger.words()["success"] >= 2 * clients

    assert await eventually(busy_crowd, True), "The crowd gets no answers."
    clock = asyncio.get_running_loop().time
    start = clock()
    if wire is not None:
        wire.stall()
    for signal_ in signals:
        process.send_signal(signal_)
        await asyncio.sleep(grace / 2)
    out, err = await output
    seconds = clock() - start
    if wire is not None:
        wire.flow()
    crowding.cancel()
    await asyncio.wait([crowding])
    violations = ledger.violations(await seen.units(ledger.prefix))
    for (path, name), told in zip(endless, await asyncio.gather(*asked), strict=True):
        violations += broken_promises(path, name, told.word, await seen.units(name))
    for number, told in enumerate(await asyncio.gather(*chats)):
        name = f"{user}-{number}-chat"
        violations += broken_promises("chat", name, told.word, await seen.units(name))
    if later := [name for name in await seen.units(user) if name.endswith("-later")]:
        violations.append(f"a unit that never ended is written: {later}")
    if left := await eventually(lambda: seen.backends(user), []):
        violations.append(f"left on the server: {left}")
    assert process.returncode is not None
    return Stop(
        process.returncode,
        grace,
        seconds,
        b"disposed\n" in out,
        complaints(err.decode()),
        violations,
        ledger,
    )


async def _chat(port: int, name: str) -> Told:
    told = Told()
    try:
        async with connect(f"ws://127.0.0.1:{port}/chat/{name}", proxy=None) as socket:
            told.status, told.complete = 101, True
            await socket.recv()
    except (ConnectionClosed, OSError) as error:
        told.error = error
    return told


def complaints(output: str) -> list[str]:
    """The lines that are neither part of a traceback nor to be expected."""
    lines = [line for line in output.splitlines() if line and not line.startswith((" ", "\t"))]
    return [line for line in lines if not _EXPECTED.match(line)]


_EXPECTED = re.compile(
    r"ERROR: +Exception in ASGI application$"
    r"|ERROR: +Cancel \d+ running task\(s\), timeout graceful shutdown exceeded$"
    r"|(ERROR: +)?Traceback \(most recent call last\):$"
    r"|(asyncio\.exceptions\.)?CancelledError(: Task cancelled, timeout graceful .* exceeded)?$"
    r"|LookupError$"
    r"|socket\.send\(\) raised exception\.$"  # rows at hand go on to a client that has just left
    r"|KeyboardInterrupt$|During handling of the above exception, another exception occurred:$"
)
