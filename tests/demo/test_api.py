"""The JSON API: what it answers, and what is in the database by then."""

from __future__ import annotations

import asyncio
import json
import logging
from typing import Any

import httpx
import pytest
from sqlalchemy import delete
from starlette.applications import Starlette
from starlette.types import Message, Receive, Scope, Send

from demo import tokens
from demo.answers import REFUSED
from demo.inputs import MAX_BODY, MAX_LINES, MAX_QUANTITY
from demo.models import Order, OrderLine, User
from demo.seed import CUSTOMER, seed
from demo.shop import shop
from tests.databases import Database
from tests.demo.conftest import Contents, connect


def order(*lines: tuple[object, object], **more: object) -> dict[str, Any]:
    """Write the body of an order."""
    return {"lines": [{"sku": sku, "quantity": quantity} for sku, quantity in lines], **more}


async def test_order_is_committed_before_the_client_reads_201(
    app: Starlette, customer: httpx.AsyncClient, contents: Contents
) -> None:
    """A second connection sees all four tables change no later than the answer starts."""
    before = await contents()
    at_the_answer: list[object] = []

    async def app_that_looks(scope: Scope, receive: Receive, send: Send) -> None:
        async def look_and_send(message: Message) -> None:
            if message["type"] == "http.response.start":
                at_the_answer.append(await contents())
            await send(message)

        await app(scope, receive, look_and_send)

    async with connect(app_that_looks) as client:
        client.headers = customer.headers
        answer = await client.post(
            "/api/orders", json=order(("TEA", 2), ("CUP", 1), voucher="SPRING")
        )

    assert answer.status_code == 201
    assert answer.json()["total"] == "21.80"
    assert answer.json()["created_at"].endswith("+00:00")
    assert at_the_answer == [
        before
        | {
            "orders": 4,
            "order_lines": 8,
            "audit_entries": 4,
            "stock": int(str(before["stock"])) - 3,
        }
    ]


async def test_running_out_of_stock_halfway_leaves_nothing(
    customer: httpx.AsyncClient, contents: Contents
) -> None:
    """The order, its audit entry and the first product's stock are all undone."""
    before = await contents()

    answer = await customer.post("/api/orders", json=order(("TEA", 2), ("LAMP", 5)))

    assert answer.status_code == 409
    assert answer.json() == {"error": "5 of 'LAMP' ordered, 1 in stock. Nothing was written."}
    assert await contents() == before


async def test_unknown_voucher_is_refused_by_the_commit(
    customer: httpx.AsyncClient, contents: Contents, caplog: pytest.LogCaptureFixture
) -> None:
    """The endpoint has answered 201 by then; the client never sees that."""
    before = await contents()
    caplog.set_level(logging.INFO, "demo.requests")

    answer = await customer.post("/api/orders", json=order(("TEA", 2), voucher="NOPE"))

    assert answer.status_code == 409
    assert answer.json() == {"error": REFUSED}
    assert await contents() == before
    assert "POST /api/orders 409 rolled back" in caplog.text


async def test_the_last_piece_is_sold_once(customer: httpx.AsyncClient, database: Database) -> None:
    """Two customers who order it at the same time do not both get it."""
    answers = await asyncio.gather(
        *(customer.post("/api/orders", json=order(("LAMP", 1))) for _ in range(4))
    )

    assert sorted(answer.status_code for answer in answers) == [201, 409, 409, 409]
    assert await database.observer.scalar("select stock from products where sku = 'LAMP'") == 0


async def test_customers_see_their_own_orders(customer: httpx.AsyncClient) -> None:
    """The latest comes first."""
    placed = (await customer.post("/api/orders", json=order(("PEN", 1)))).json()

    orders = (await customer.get("/api/orders")).json()["orders"]

    assert orders[0] == placed
    assert [o["total"] for o in orders] == ["1.20", "13.50", "21.80"]


BAD_ORDERS = {
    "nothing": (b"", 422),
    "no JSON": (b"nope", 422),
    "not UTF-8": (b'{"lines": "\xff"}', 422),
    "nested too deep": (b"[" * 50_000, 422),
    "a number of a million digits": (b"1" * 60_000, 422),
    "no object": ([], 422),
    "no lines": ({}, 422),
    "empty lines": (order(), 422),
    "lines that are no list": ({"lines": "TEA"}, 422),
    "a line that is no object": ({"lines": ["TEA"]}, 422),
    "a SKU that is no text": (order((1, 1)), 422),
    "an empty SKU": (order(("", 1)), 422),
    "a SKU with NUL": (order(("TEA\0", 1)), 422),
    "half a character": (order(("\ud83d", 1)), 422),
    "an unknown SKU": (order(("TEA", 1), ("NOPE", 1)), 422),
    "one SKU twice": (order(("TEA", 1), ("TEA", 1)), 422),
    "too many lines": (order(*((f"S{n}", 1) for n in range(MAX_LINES + 1))), 422),
    "no quantity": ({"lines": [{"sku": "TEA"}]}, 422),
    "none of it": (order(("TEA", 0)), 422),
    "less than none": (order(("TEA", -1)), 422),
    "half of it": (order(("TEA", 1.5)), 422),
    "a quantity in words": (order(("TEA", "2")), 422),
    "true": (order(("TEA", True)), 422),
    "infinity": (b'{"lines": [{"sku": "TEA", "quantity": 1e999}]}', 422),
    "too much": (order(("TEA", MAX_QUANTITY + 1)), 422),
    "far too much": (order(("TEA", 10**30)), 422),
    "a voucher that is no text": (order(("TEA", 1), voucher=7), 422),
    "a voucher that is too long": (order(("TEA", 1), voucher="V" * 41), 422),
    "too long": (b" " * (MAX_BODY + 1), 413),
}


async def test_bad_orders_get_a_reason_and_leave_nothing(
    customer: httpx.AsyncClient, contents: Contents
) -> None:
    """Each of them is answered 4xx with an error in words."""
    before = await contents()

    for what, (body, status) in BAD_ORDERS.items():
        content = body if isinstance(body, bytes) else json.dumps(body).encode()
        answer = await customer.post("/api/orders", content=content)
        assert answer.status_code == status, (what, answer.text)
        assert answer.json()["error"], what

    assert await contents() == before


@pytest.mark.parametrize(
    ("body", "status"),
    [
        ({"email": CUSTOMER.email, "password": "wrong"}, 401),
        ({"email": "nobody@example.org", "password": "wrong"}, 401),
        ({"email": CUSTOMER.email}, 422),
        ({"email": CUSTOMER.email, "password": 7}, 422),
        ({"email": "\0", "password": "wrong"}, 422),
    ],
)
async def test_wrong_credentials_get_no_token(
    client: httpx.AsyncClient, body: dict[str, object], status: int
) -> None:
    """Whether the address or the password is wrong makes no difference."""
    answer = await client.post("/api/login", json=body)

    assert answer.status_code == status
    assert set(answer.json()) == {"error"}


@pytest.mark.parametrize("authorization", ["", "Bearer", "Bearer forged", "Basic YTpi"])
async def test_orders_need_a_token(client: httpx.AsyncClient, authorization: str) -> None:
    """Neither reading nor ordering works without."""
    client.headers["authorization"] = authorization

    listed = await client.get("/api/orders")
    placed = await client.post("/api/orders", json=order(("TEA", 1)))

    assert [listed.status_code, placed.status_code] == [401, 401]
    assert listed.json()["error"]


async def test_token_ends_with_time(
    customer: httpx.AsyncClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A token that is too old is no token."""
    monkeypatch.setattr(tokens, "MAX_AGE", -1)

    answer = await customer.get("/api/orders")

    assert answer.status_code == 401
    assert "too old" in answer.json()["error"]


async def test_token_ends_with_the_account(customer: httpx.AsyncClient) -> None:
    """The user is looked up for each request anew."""
    async with shop:
        for table in (OrderLine, Order, User):
            await shop.session.execute(delete(table))

    answer = await customer.get("/api/orders")

    assert answer.status_code == 401


async def test_health_needs_no_transaction(
    customer: httpx.AsyncClient, caplog: pytest.LogCaptureFixture
) -> None:
    """It is excluded from the units of work, with a token as without."""
    caplog.set_level(logging.INFO, "demo.requests")

    answer = await customer.get("/health")

    assert answer.json() == {"status": "ok"}
    assert "GET /health 200 no transaction" in caplog.text


async def test_filling_the_shop_again_changes_nothing(app: Starlette, contents: Contents) -> None:
    """A restart keeps what was there."""
    before = await contents()

    await seed()

    assert await contents() == before
