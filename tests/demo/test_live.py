"""New orders over a websocket."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator

import httpx
import pytest
import websockets
from sqlalchemy.ext.asyncio import AsyncEngine
from starlette.applications import Starlette

from demo.feed import feed
from demo.seed import CLERK, OTHER_CUSTOMER
from tests.demo.conftest import LogIn, order, serve

FEW = 10.0
"""Seconds that news may take."""


@pytest.fixture
async def shop(app: Starlette) -> AsyncIterator[str]:
    """Serve the shop, so that it listens, and give its address."""
    async with serve(app) as url:
        yield url.removeprefix("http")


def live(shop: str, client: httpx.AsyncClient) -> websockets.connect:
    """Open the socket with somebody's token."""
    headers = {"Authorization": client.headers["authorization"]}
    return websockets.connect(f"ws{shop}/api/orders/live", additional_headers=headers, proxy=None)


async def place_until_heard(
    client: httpx.AsyncClient, socket: websockets.ClientConnection
) -> dict[str, object]:
    """Order, again and again until the server listens to its database, and return the news."""
    async with asyncio.timeout(FEW):
        while True:
            placed = (await client.post("/api/orders", json=order(("PEN", 1)))).json()
            try:
                async with asyncio.timeout(0.5):
                    heard = json.loads(await socket.recv())
            except TimeoutError:
                continue
            assert heard["reference"] == placed["reference"]
            return dict(heard)


async def test_new_order_comes_over_the_socket(
    shop: str, customer: httpx.AsyncClient, clerk: httpx.AsyncClient
) -> None:
    """To who placed it, and to the people of the shop."""
    async with live(shop, customer) as mine, live(shop, clerk) as theirs:
        heard = await place_until_heard(customer, mine)
        async with asyncio.timeout(FEW):
            seen = json.loads(await theirs.recv())

    assert heard["total"] == "1.20"
    assert seen["reference"] <= heard["reference"]


async def test_order_that_is_rolled_back_is_no_news(shop: str, customer: httpx.AsyncClient) -> None:
    """The next one that is committed comes first."""
    async with live(shop, customer) as socket:
        await place_until_heard(customer, socket)
        await customer.post("/api/orders", json=order(("PEN", 2), campaign="NOPE"))
        await customer.post("/api/orders?dry_run=1", json=order(("PEN", 3)))
        await customer.post("/api/orders", json=order(("PEN", 4)))
        async with asyncio.timeout(FEW):
            heard = json.loads(await socket.recv())

    assert heard["lines"][0]["quantity"] == 4


async def test_customers_hear_of_their_own_orders(
    shop: str, customer: httpx.AsyncClient, log_in: LogIn
) -> None:
    """Ada hears nothing of Ben's."""
    ben = await log_in(OTHER_CUSTOMER)
    async with live(shop, customer) as socket:
        await place_until_heard(customer, socket)
        await ben.post("/api/orders", json=order(("PEN", 2)))
        await customer.post("/api/orders", json=order(("PEN", 3)))
        async with asyncio.timeout(FEW):
            heard = json.loads(await socket.recv())

    assert heard["lines"][0]["quantity"] == 3


async def test_open_socket_holds_no_connection(
    shop: str, engine: AsyncEngine, log_in: LogIn
) -> None:
    """The unit of the handshake has ended: many sockets share a pool of two."""
    clerk = await log_in(CLERK)
    sockets = [live(shop, clerk) for _ in range(6)]
    for socket in sockets:
        await socket.__aenter__()

    assert engine.pool.checkedout() == 0  # type: ignore[attr-defined]

    for socket in sockets:
        await socket.__aexit__(None, None, None)


@pytest.mark.parametrize("token", ["", "Bearer nonsense"])
async def test_socket_without_a_login_is_refused(shop: str, token: str) -> None:
    """Before it is accepted."""
    with pytest.raises(websockets.InvalidStatus) as refused:
        async with websockets.connect(
            f"ws{shop}/api/orders/live", additional_headers={"Authorization": token}, proxy=None
        ):
            pass

    assert refused.value.response.status_code == 403
    assert not feed._queues
