"""What a request sends to PostgreSQL, counted between the driver and the server."""

from __future__ import annotations

import asyncio
import tempfile
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

from sqlalchemy.engine import make_url

Tally = Counter[str]
"""How many messages have passed, by sender and type, such as "client Q".

https://www.postgresql.org/docs/current/protocol-message-formats.html
"""


def statements(tally: Tally) -> int:
    """Those of the driver's transactions included: Query and Execute."""
    return tally["client Q"] + tally["client E"]


def round_trips(tally: Tally) -> int:
    """How often the server said that it is ready for more: ReadyForQuery."""
    return tally["server Z"]


@asynccontextmanager
async def counted(url: str) -> AsyncIterator[tuple[str, Tally]]:
    """A block with a URL of the same database, and the count of what goes through it."""
    server = make_url(url)
    tally: Tally = Counter()
    pumps: set[asyncio.Task[None]] = set()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        folder = server.query.get("host")
        if isinstance(folder, str):
            path = Path(folder) / f".s.PGSQL.{server.query.get('port', server.port or 5432)}"
            upstream = await asyncio.open_unix_connection(path)
        else:
            upstream = await asyncio.open_connection(server.host, server.port or 5432)
        for task in (
            asyncio.create_task(_pump(reader, upstream[1], tally, "client")),
            asyncio.create_task(_pump(upstream[0], writer, tally, "server")),
        ):
            pumps.add(task)
            task.add_done_callback(pumps.discard)

    with tempfile.TemporaryDirectory(dir="/var/tmp") as folder:
        listener = await asyncio.start_unix_server(serve, Path(folder) / ".s.PGSQL.5432")
        through = server.set(host=None, port=None).update_query_dict({"host": folder})
        through = through.difference_update_query(["port"])
        async with listener:
            yield through.render_as_string(hide_password=False), tally
        await asyncio.gather(*pumps)


async def _pump(
    reader: asyncio.StreamReader, writer: asyncio.StreamWriter, tally: Tally, side: str
) -> None:
    """Pass message after message; the first of a client has no type."""
    kind_size = 0 if side == "client" else 1
    try:
        while True:
            head = await reader.readexactly(kind_size + 4)
            size = int.from_bytes(head[kind_size:]) - 4
            writer.write(head + await reader.readexactly(size))
            tally[f"{side} {head[:kind_size].decode()}"] += 1
            kind_size = 1
    except (asyncio.IncompleteReadError, ConnectionError):
        writer.close()
