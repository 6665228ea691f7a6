"""A faulty wire: a TCP proxy in front of PostgreSQL that knows where each message begins and ends.

    async with Proxy(database.url) as proxy:
        engine = create_engine(proxy.url)
        trap = proxy.at(sends("COMMIT"), Fault.PASS_AND_CUT)  # the answer to it is lost
        ...
        assert trap.sprung.is_set()

The messages are those of https://www.postgresql.org/docs/current/protocol-message-formats.html.
asyncpg sends BEGIN, COMMIT and ROLLBACK as simple queries, savepoints as well; all else is parsed,
bound and executed.
"""

from __future__ import annotations

import asyncio
import enum
import itertools
import socket
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Self

from sqlalchemy.engine import URL, make_url

SSL_REQUEST, GSS_REQUEST, CANCEL_REQUEST = 80877103, 80877104, 80877102


class Sender(enum.Enum):
    FRONTEND = "frontend"
    BACKEND = "backend"


class Fault(enum.Enum):
    """What befalls a message."""

    CUT = "it does not arrive, and both ends see a reset connection"
    PASS_AND_CUT = "it arrives, and the connection is cut behind it"
    HALF = "half of its bytes arrive, and the connection is cut behind them"
    STALL = "it is held, with all that comes after it in both directions, until flow()"


@dataclass(frozen=True)
class Message:
    """One message.

    Attributes:
        kind: its letter; "startup" and "cancel" are the two that have none.
        data: all its bytes.
        text: the SQL of a Query, Parse or Bind, the tag of a CommandComplete.
    """

    sender: Sender
    kind: str
    data: bytes
    text: str = ""


Match = Callable[[Message], bool]
Action = Callable[[], Awaitable[object]]


def sends(sql: str) -> Match:
    """A statement that begins so, on its way to the server: parsed, or prepared and bound."""
    return lambda m: m.sender is Sender.FRONTEND and m.text.upper().startswith(sql.upper())


def answers(tag: str) -> Match:
    """The server's word that a statement is done: "COMMIT", "INSERT 0 1"."""
    return lambda m: m.sender is Sender.BACKEND and m.text.startswith(tag)


def connects(message: Message) -> bool:
    """The first message of a connection."""
    return message.kind == "startup"


def number(count: int) -> Match:
    """The message that is the so-manyth from now on, whoever sends it."""
    counter = itertools.count(1)
    return lambda m: next(counter) == count


class Trap:
    """A fault that waits for a message.

    Attributes:
        sprung: set when it has happened as often as it should.
    """

    def __init__(self, match: Match, fault: Fault | Action, times: int) -> None:
        self.match = match
        self.fault = fault
        self.times = times
        self.sprung = asyncio.Event()


class Proxy:
    """Listens on a TCP port of its own, and passes on what comes to the server of `url`.

    Attributes:
        url: the same database, through the proxy.
        delay: seconds each packet takes, in each direction.
        round_trips: how often the frontend asked for an answer (Query, Sync, Flush).
        statements: the SQL of each query that was run, prepared or not.
    """

    def __init__(self, url: str) -> None:
        self._target = make_url(url)
        self.delay = 0.0
        self.round_trips = 0
        self.statements: list[str] = []
        self._traps: list[Trap] = []
        self._stalled: set[Sender] = set()
        self._links: set[_Link] = set()
        self._tasks: set[asyncio.Task[None]] = set()
        self._server: asyncio.Server | None = None
        self._port = 0

    async def __aenter__(self) -> Self:
        await self.accept()
        return self

    async def __aexit__(self, *exc_info: object) -> None:
        self.refuse()
        for task in self._tasks:
            _cancel_once(task)
        await asyncio.gather(*self._tasks)

    @property
    def url(self) -> str:
        through = self._target.set(host="127.0.0.1", port=self._port)
        through = through.difference_update_query(["host", "port"])
        return through.render_as_string(hide_password=False)

    @property
    def connections(self) -> int:
        """How many are open."""
        return len(self._links)

    # --- faults ----------------------------------------------------------------------------

    def at(self, match: Match, fault: Fault | Action, *, times: int = 1) -> Trap:
        """Let the next messages that match meet a fault, or wait until an action is done."""
        trap = Trap(match, fault, times)
        self._traps.append(trap)
        return trap

    def cut(self) -> int:
        """Reset every connection at once, and say how many there were."""
        links = list(self._links)
        for link in links:
            link.cut()
        return len(links)

    def stall(self, *senders: Sender) -> None:
        """Hold what these senders send (by default both), on each connection, silently."""
        self._stalled = set(senders or Sender)
        for link in self._links:
            link.stall(self._stalled)

    def flow(self) -> None:
        """Deliver what was held, and forget the traps: the wire is whole again."""
        self._traps.clear()
        self._stalled = set()
        for link in self._links:
            link.flow()

    def refuse(self) -> None:
        """Refuse new connections, as a port that nobody listens on does."""
        if self._server is not None:
            self._server.close()
            self._server = None

    async def accept(self) -> None:
        """Accept connections, on the same port as before."""
        if self._server is None:
            self._server = await asyncio.start_server(self._serve, "127.0.0.1", self._port)
            self._port = self._server.sockets[0].getsockname()[1]

    # --- private ---------------------------------------------------------------------------

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        try:
            server = await _connect(self._target)
            link = _Link(self, task, (reader, writer), server)
            self._links.add(link)
            try:
                link.stall(self._stalled)
                await link.run()
            finally:
                self._links.discard(link)
        except OSError:  # the server is away
            _reset(writer)
        except asyncio.CancelledError:
            # By cut(), or at the end. asyncio's streams do not expect it of a handler.
            _reset(writer)
        finally:
            self._tasks.discard(task)

    def spring(self, message: Message) -> Fault | Action | None:
        """The fault that was set for a message."""
        for trap in self._traps:
            if trap.match(message):
                trap.times -= 1
                if trap.times == 0:
                    self._traps.remove(trap)
                    trap.sprung.set()
                return trap.fault
        return None


Stream = tuple[asyncio.StreamReader, asyncio.StreamWriter]


class _Link:
    """One connection through the proxy."""

    def __init__(
        self, proxy: Proxy, task: asyncio.Task[None], client: Stream, server: Stream
    ) -> None:
        self._proxy = proxy
        self._task = task
        self._readers = {Sender.FRONTEND: client[0], Sender.BACKEND: server[0]}
        self._writers = {Sender.FRONTEND: server[1], Sender.BACKEND: client[1]}  # by who is heard
        self._flows = {sender: asyncio.Event() for sender in Sender}
        self.flow()

    async def run(self) -> None:
        pumps = [asyncio.create_task(self._pump(sender)) for sender in Sender]
        try:
            await asyncio.wait(pumps, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for pump in pumps:
                pump.cancel()
            for writer in self._writers.values():  # before the wait, which may be cancelled
                writer.close()
            await asyncio.gather(*pumps, return_exceptions=True)

    def stall(self, senders: set[Sender]) -> None:
        for sender in senders:
            self._flows[sender].clear()

    def flow(self) -> None:
        for flow in self._flows.values():
            flow.set()

    def cut(self) -> None:
        for writer in self._writers.values():
            _reset(writer)
        _cancel_once(self._task)

    async def _pump(self, sender: Sender) -> None:
        frames = _Frames(sender)
        writer = self._writers[sender]
        while True:
            try:
                chunk = await self._readers[sender].read(65536)
            except OSError:
                chunk = b""
            if self._proxy.delay:
                await asyncio.sleep(self._proxy.delay)
            for message in frames.feed(chunk):
                if not await self._deliver(message, writer):
                    return
            await self._flows[sender].wait()
            try:
                await writer.drain()
            except OSError:
                return
            if not chunk:
                return

    async def _deliver(self, message: Message, writer: asyncio.StreamWriter) -> bool:
        """Pass a message on, or let it meet its fault. False: the connection is gone."""
        if message.kind == "encryption?":
            self._writers[Sender.BACKEND].write(b"N")
            return True
        if message.sender is Sender.FRONTEND:
            self._count(message)
        fault = self._proxy.spring(message)
        if fault is Fault.STALL:
            self.stall(set(Sender))
        elif fault is not None and not isinstance(fault, Fault):
            await fault()
        await self._flows[message.sender].wait()
        if fault is Fault.CUT:
            self.cut()
            return False
        if writer.is_closing():
            return False
        half = len(message.data) // 2
        writer.write(message.data[:half] if fault is Fault.HALF else message.data)
        if fault not in (Fault.HALF, Fault.PASS_AND_CUT):
            return True
        # Closed, not reset: a reset could overtake what was written.
        writer.close()
        _reset(next(w for w in self._writers.values() if w is not writer))
        return False

    def _count(self, message: Message) -> None:
        self._proxy.round_trips += message.kind in ("Q", "S", "H")
        if message.kind in ("Q", "B"):
            self._proxy.statements.append(message.text)


class _Frames:
    """Cuts what one side sends into messages."""

    def __init__(self, sender: Sender) -> None:
        self._sender = sender
        self._typed = sender is Sender.BACKEND  # the frontend's first messages have no letter
        self._buffer = b""
        self._prepared: dict[bytes, str] = {}

    def feed(self, chunk: bytes) -> list[Message]:
        self._buffer += chunk
        messages: list[Message] = []
        while (message := self._next()) is not None:
            messages.append(message)
        return messages

    def _next(self) -> Message | None:
        start = 1 if self._typed else 0
        head = self._buffer[start : start + 4]
        length = start + int.from_bytes(head)
        if len(head) < 4 or len(self._buffer) < length:
            return None
        data, self._buffer = self._buffer[:length], self._buffer[length:]
        if not self._typed:
            return Message(self._sender, self._first(data), data)
        kind = chr(data[0])
        return Message(self._sender, kind, data, self._text(kind, data[5:].split(b"\0")))

    def _text(self, kind: str, strings: list[bytes]) -> str:
        if self._sender is Sender.BACKEND:
            return strings[0].decode() if kind == "C" else ""
        if kind == "Q":
            return strings[0].decode()
        if kind == "P":  # the statement's name, and its SQL
            self._prepared[strings[0]] = strings[1].decode()
        if kind in ("P", "B"):  # Bind: the portal's name, and the statement's
            return self._prepared[strings[kind == "B"]]
        return ""

    def _first(self, data: bytes) -> str:
        code = int.from_bytes(data[4:8])
        if code in (SSL_REQUEST, GSS_REQUEST):
            return "encryption?"
        if code == CANCEL_REQUEST:
            return "cancel"
        self._typed = True
        return "startup"


async def _connect(url: URL) -> Stream:
    host = url.host or str(url.query.get("host", "127.0.0.1"))
    port = url.port or int(str(url.query.get("port", 5432)))
    if host.startswith("/"):
        return await asyncio.open_unix_connection(f"{host}/.s.PGSQL.{port}")
    return await asyncio.open_connection(host, port)


def _cancel_once(task: asyncio.Task[None]) -> None:
    if not task.cancelling():
        task.cancel()


def _reset(writer: asyncio.StreamWriter) -> None:
    """Close without a goodbye: what is on its way is lost."""
    if writer.is_closing():
        return
    sock = writer.get_extra_info("socket")
    if sock.family is not socket.AF_UNIX:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
    writer.transport.abort()
