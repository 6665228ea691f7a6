"""News of orders, from whichever process took them to whoever listens.

On PostgreSQL by NOTIFY, which is part of the transaction: it is delivered by the commit, to all
processes, and never after a rollback. Elsewhere by `on_commit`, within this process.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import AsyncGenerator, Generator

import asyncpg
from sqlalchemy import func, select
from sqlalchemy.ext.asyncio import AsyncEngine

from demo.models import Order
from demo.shop import Shop, shop

CHANNEL = "orders"
LONGEST_QUEUE = 1000
RECONNECT_AFTER = 2.0
"""How long to wait before listening again, in seconds."""

log = logging.getLogger("demo.feed")


class Feed:
    """Hands the keys of new orders to all who have subscribed."""

    def __init__(self, shop: Shop) -> None:
        self._shop = shop
        self._queues: set[asyncio.Queue[int]] = set()

    async def announce(self, order: Order) -> None:
        """Let everybody know of an order, if it is committed."""
        order_id = order.id
        if self._shop.session.get_bind().dialect.name == "postgresql":
            await self._shop.session.execute(select(func.pg_notify(CHANNEL, str(order_id))))
        else:
            self._shop.on_commit(lambda: self.publish(order_id))

    def publish(self, order_id: int) -> None:
        """Hand an order to the subscribers. One that does not keep up misses it."""
        for queue in self._queues:
            with contextlib.suppress(asyncio.QueueFull):
                queue.put_nowait(order_id)

    @contextlib.contextmanager
    def subscribe(self) -> Generator[asyncio.Queue[int]]:
        """Get a queue of what comes from now on."""
        queue: asyncio.Queue[int] = asyncio.Queue(LONGEST_QUEUE)
        self._queues.add(queue)
        try:
            yield queue
        finally:
            self._queues.discard(queue)

    @contextlib.asynccontextmanager
    async def listen(self, engine: AsyncEngine) -> AsyncGenerator[None]:
        """Listen to the database while the block runs, from a connection of its own."""
        if engine.dialect.name != "postgresql":
            yield
            return
        listening = asyncio.create_task(self._listen(engine))
        try:
            yield
        finally:
            listening.cancel()
            await asyncio.wait([listening])

    async def _listen(self, engine: AsyncEngine) -> None:
        url = engine.url.set(drivername="postgresql").render_as_string(hide_password=False)
        while True:
            try:
                await self._listen_until_lost(url)
            except (OSError, asyncpg.PostgresError, asyncpg.InterfaceError) as error:
                log.warning("feed not listening, trying again: %s", error)
            await asyncio.sleep(RECONNECT_AFTER)

    async def _listen_until_lost(self, url: str) -> None:
        lost = asyncio.Event()
        connection = await asyncpg.connect(url, server_settings={"application_name": "shop feed"})
        try:
            connection.add_termination_listener(lambda _: lost.set())
            await connection.add_listener(CHANNEL, lambda *news: self.publish(int(news[3])))
            await lost.wait()
        finally:
            connection.terminate()


feed = Feed(shop)
