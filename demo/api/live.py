"""New orders, as they are committed, over a websocket."""

from __future__ import annotations

import asyncio
import contextlib

import anyio
from fastapi import APIRouter, WebSocket, WebSocketDisconnect

from demo.api.schemas import OrderOut
from demo.errors import NotLoggedInError
from demo.feed import feed
from demo.models import User
from demo.services.accounts import accounts
from demo.shop import shop

router = APIRouter(prefix="/api")

POLICY_VIOLATION = 1008
"""Close code, https://www.rfc-editor.org/rfc/rfc6455#section-7.4.1"""


@router.websocket("/orders/live")
async def show_new_orders(websocket: WebSocket, token: str = "") -> None:
    """Send each new order that the caller may see. The token is in the header or the query.

    The login is read in the unit of the handshake, which ends with `accept`. Afterwards each
    order is read in a unit of its own: a socket that is open for hours holds no transaction.
    """
    given = websocket.headers.get("authorization", "").removeprefix("Bearer ") or token
    try:
        caller = (await accounts.find(websocket.app.state.tokens.read(given))).user
    except NotLoggedInError as error:
        await websocket.close(POLICY_VIOLATION, str(error))
        return
    with feed.subscribe() as news:
        await websocket.accept()
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(_send_news, websocket, news, caller)
            await _wait_until_left(websocket)
            tasks.cancel_scope.cancel()


async def _send_news(websocket: WebSocket, news: asyncio.Queue[int], caller: User) -> None:
    while True:
        order_id = await news.get()
        async with shop as unit:
            order = await unit.orders.by_id(order_id)
        if order is None or (caller.role == "customer" and order.customer.user_id != caller.id):
            continue
        with contextlib.suppress(WebSocketDisconnect):  # the other task sees it, too
            await websocket.send_text(OrderOut.of(order).model_dump_json())


async def _wait_until_left(websocket: WebSocket) -> None:
    while (await websocket.receive())["type"] != "websocket.disconnect":
        pass
