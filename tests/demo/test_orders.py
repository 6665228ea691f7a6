"""Placing orders: what is answered, and what is in the database by then."""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import AsyncIterator, Awaitable, Callable

import httpx
import pytest
from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncEngine
from starlette.applications import Starlette
from starlette.types import Message, Receive, Scope, Send

from demo.api.schemas import MAX_LINES, MAX_QUANTITY
from demo.limit import MAX_BODY
from demo.problems import REFUSED
from demo.seed import OTHER_CUSTOMER
from demo.services.ordering import ordering
from tests.databases import Database
from tests.demo.conftest import ORDERS, Contents, Count, LogIn, connect, order

Refuse = Callable[[str], Awaitable[None]]


async def test_order_is_committed_before_the_client_reads_201(
    app: Starlette, customer: httpx.AsyncClient, count: Count
) -> None:
    """A second connection sees all five tables change no later than the answer starts."""
    at_the_answer: list[int] = []

    async def app_that_looks(scope: Scope, receive: Receive, send: Send) -> None:
        async def look_and_send(message: Message) -> None:
            if message["type"] == "http.response.start":
                for what in (
                    "orders where campaign_code = 'SPRING' and note = 'Ring twice'",
                    "order_lines where unit_price in (4.9, 490) and quantity = 2",
                    "products where sku = 'TEA' and stock = 998",
                    "payments where amount in (21.8, 2180) and state = 'due'",
                    "audit_entries where who = 'ada@example.org' and what like 'order %'",
                ):
                    at_the_answer.append(await count(what))
            await send(message)

        await app(scope, receive, look_and_send)

    async with connect(app_that_looks) as client:
        client.headers = customer.headers
        body = order(("TEA", 2), ("CUP", 1), campaign="SPRING", note="Ring twice")
        answer = await client.post("/api/orders", json=body)

    assert answer.status_code == 201
    assert answer.json()["total"] == "21.80"
    assert answer.json()["created_at"].endswith("Z")
    assert min(at_the_answer) == 1, at_the_answer


async def test_running_out_of_stock_halfway_leaves_nothing(
    customer: httpx.AsyncClient, contents: Contents
) -> None:
    """The order, the first product's stock and the audit entry are all undone."""
    before = await contents()

    answer = await customer.post("/api/orders", json=order(("BOOK", 2), ("LAMP", 5)))

    assert answer.status_code == 409
    assert answer.headers["content-type"] == "application/problem+json"
    assert answer.json() == {
        "type": "about:blank",
        "title": "Conflict",
        "status": 409,
        "detail": "5 of 'LAMP' ordered, 1 in stock. Nothing was written.",
        "sku": "LAMP",
        "left": 1,
    }
    assert await contents() == before


FIVE_TABLES = ("orders", "order_lines", "products", "payments", "audit_entries")


@pytest.fixture
async def refuse(engine: AsyncEngine) -> AsyncIterator[Refuse]:
    """Let the database refuse the next write to a table, whatever it is."""
    is_postgres = engine.dialect.name == "postgresql"

    async def run(*statements: str) -> None:
        async with engine.begin() as connection:
            for statement in statements:
                await connection.execute(text(statement))

    async def refuse(table: str) -> None:
        if is_postgres:
            await run(
                "create function refuse() returns trigger language plpgsql as"
                " $$ begin raise check_violation; end $$",
                f"create trigger refused before insert or update on {table}"
                " for each row execute function refuse()",
            )
        else:
            event = "update" if table == "products" else "insert"
            await run(
                f"create trigger refused before {event} on {table}"
                " begin select raise(abort, 'refused'); end"
            )

    yield refuse
    if is_postgres:
        await run("drop function refuse() cascade")


@pytest.mark.parametrize("table", FIVE_TABLES)
async def test_order_that_fails_at_one_table_leaves_nothing_in_any(
    customer: httpx.AsyncClient, contents: Contents, refuse: Refuse, table: str
) -> None:
    """Whatever was written before it is undone."""
    before = await contents()
    await refuse(table)

    answer = await customer.post("/api/orders", json=order(("TEA", 2), ("CUP", 1)))

    assert answer.status_code == 409
    assert answer.json()["detail"] == REFUSED
    assert await contents() == before


async def test_unknown_campaign_is_refused_by_the_commit(
    customer: httpx.AsyncClient, contents: Contents, caplog: pytest.LogCaptureFixture
) -> None:
    """The endpoint has answered 201 by then; the client never sees that, and no mail is sent."""
    before = await contents()
    caplog.set_level(logging.INFO, "demo")

    answer = await customer.post("/api/orders", json=order(("TEA", 2), campaign="NOPE"))

    assert answer.status_code == 409
    assert answer.json()["detail"] == REFUSED
    assert await contents() == before
    assert "POST /api/orders 409 rolled back" in caplog.text
    assert "mail" not in caplog.text


async def test_mail_is_sent_after_the_commit(
    customer: httpx.AsyncClient, caplog: pytest.LogCaptureFixture
) -> None:
    """It names the order that is there."""
    caplog.set_level(logging.INFO, "demo.mail")

    placed = (await customer.post("/api/orders", json=order(("TEA", 1)))).json()

    assert f"mail to=ada@example.org text='We have your order {placed['reference']}.'" in (
        caplog.text
    )


async def test_dry_run_prices_an_order_and_leaves_nothing(
    customer: httpx.AsyncClient, contents: Contents, caplog: pytest.LogCaptureFixture
) -> None:
    """It is answered 200, by the same code that would write it."""
    before = await contents()
    caplog.set_level(logging.INFO, "demo")

    body = order(("TEA", 10), coupon="WELCOME")
    answer = await customer.post("/api/orders?dry_run=1", json=body)

    assert answer.status_code == 200
    assert (answer.json()["total"], answer.json()["discount"]) == ("44.10", "4.90")
    assert await contents() == before
    assert "POST /api/orders 200 rolled back" in caplog.text
    assert "mail" not in caplog.text


@pytest.mark.parametrize("coupon", ["NOPE", "LUCKY"])
async def test_coupon_that_is_refused_does_not_refuse_the_order(
    customer: httpx.AsyncClient, log_in: LogIn, database: Database, coupon: str
) -> None:
    """It fails in a savepoint: the order stands, at the full price. LUCKY is used up by then."""
    ben = await log_in(OTHER_CUSTOMER)
    assert (await ben.post("/api/orders", json=order(("TEA", 1), coupon="LUCKY"))).json()[
        "discount"
    ] == "2.45"

    answer = await customer.post("/api/orders", json=order(("TEA", 1), coupon=coupon))

    assert answer.status_code == 201
    assert answer.json()["coupon"] is None
    assert (answer.json()["total"], answer.json()["discount"]) == ("4.90", "0.00")
    left = await database.observer.scalar("select uses_left from coupons where code = 'LUCKY'")
    assert left == 0


async def test_coupon_is_used_once_by_each_customer(
    customer: httpx.AsyncClient, database: Database
) -> None:
    """The second use breaks a constraint in the savepoint, which gives the coupon back."""
    answers = [
        (await customer.post("/api/orders", json=order(("TEA", 1), coupon="WELCOME"))).json()
        for _ in range(2)
    ]

    assert [answer["coupon"] for answer in answers] == ["WELCOME", None]
    assert [answer["total"] for answer in answers] == ["4.41", "4.90"]
    left = await database.observer.scalar("select uses_left from coupons where code = 'WELCOME'")
    assert left == 999


async def test_the_last_piece_is_sold_once(customer: httpx.AsyncClient, database: Database) -> None:
    """Customers who order it at the same time do not all get it."""
    answers = await asyncio.gather(
        *(customer.post("/api/orders", json=order(("LAMP", 1))) for _ in range(4))
    )

    assert sorted(answer.status_code for answer in answers) == [201, 409, 409, 409]
    assert await database.observer.scalar("select stock from products where sku = 'LAMP'") == 0


async def test_background_task_reorders_once_in_a_unit_of_its_own(
    customer: httpx.AsyncClient, count: Count, caplog: pytest.LogCaptureFixture
) -> None:
    """Two orders that leave little behind ask the supplier once."""
    caplog.set_level(logging.INFO, "demo.mail")

    for _ in range(2):
        await customer.post("/api/orders", json=order(("CHAIR", 1)))

    assert caplog.text.count("Please send more Office chair (CHAIR): 5 left.") == 1
    assert await count("products where sku = 'CHAIR' and reordered_at is not null") == 1


async def test_orders_come_page_by_page(customer: httpx.AsyncClient) -> None:
    """The latest first, each once."""
    placed = [
        (await customer.post("/api/orders", json=order(("PEN", n)))).json() for n in range(1, 6)
    ]
    pages = []
    path: str | None = "/api/orders?limit=2"
    while path is not None:
        page = (await customer.get(path)).json()
        pages.append(page["items"])
        path = page["next"]

    listed = [item for page in pages for item in page]
    assert listed[:5] == placed[::-1]
    assert max(len(page) for page in pages) == 2
    assert len({item["reference"] for item in listed}) == len(listed)


async def test_customers_see_their_own_orders(
    customer: httpx.AsyncClient, clerk: httpx.AsyncClient, log_in: LogIn
) -> None:
    """The people of the shop see all."""
    placed = (await customer.post("/api/orders", json=order(("PEN", 1)))).json()
    path = f"/api/orders/{placed['reference']}"
    ben = await log_in(OTHER_CUSTOMER)

    assert (await customer.get(path)).json() == placed
    assert (await clerk.get(path)).json() == placed
    assert (await ben.get(path)).status_code == 404
    assert len((await clerk.get("/api/orders?limit=100")).json()["items"]) == ORDERS + 1


async def test_who_works_in_the_shop_cannot_order_in_it(
    manager: httpx.AsyncClient, contents: Contents
) -> None:
    """They have an account, and are no customers."""
    before = await contents()

    answer = await manager.post("/api/orders", json=order(("PEN", 1)))

    assert answer.status_code == 403
    assert await contents() == before


BAD_ORDERS: dict[str, tuple[object, int]] = {
    "nothing": (b"", 422),
    "no JSON": (b"nope", 422),
    "not UTF-8": (b'{"lines": "\xff"}', 400),
    "nested too deep": (b"[" * 50_000, 400),
    "a number of a million digits": (b"1" * 60_000, 400),
    "no object": ([], 422),
    "no lines": ({}, 422),
    "empty lines": (order(), 422),
    "lines that are no list": ({"lines": "TEA"}, 422),
    "a line that is no object": ({"lines": ["TEA"]}, 422),
    "a SKU that is no text": (order((1, 1)), 422),
    "an empty SKU": (order(("", 1)), 422),
    "a SKU with NUL": (order(("TEA\0", 1)), 422),
    "half a character": (order(("\ud83d", 1)), 422),
    "half a character as a name": ({"\ud83d": 1, **order(("TEA", 1))}, 422),
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
    "a campaign that is no text": (order(("TEA", 1), campaign=7), 422),
    "a coupon that is too long": (order(("TEA", 1), coupon="V" * 41), 422),
    "something that nobody asked for": (order(("TEA", 1), price=0), 422),
    "too long": (b" " * (MAX_BODY + 1), 413),
}


async def test_bad_orders_get_a_reason_and_leave_nothing(
    customer: httpx.AsyncClient, contents: Contents
) -> None:
    """Each of them is answered 4xx with an error in words."""
    before = await contents()

    for what, (body, status) in BAD_ORDERS.items():
        content = body if isinstance(body, bytes) else json.dumps(body).encode()
        json_type = {"content-type": "application/json"}
        answer = await customer.post("/api/orders", content=content, headers=json_type)
        assert answer.status_code == status, (what, answer.text)
        assert answer.json()["detail"], what
        assert answer.json()["status"] == status

    assert await contents() == before


async def test_gather_of_reads_shares_the_session(clerk: httpx.AsyncClient) -> None:
    """Four questions at once, in one transaction: each gets its own answer."""
    summary = (await clerk.get("/api/summary")).json()

    assert summary["orders_today"] >= 0
    assert [product["sku"] for product in summary["running_out"]][:2] == ["SCREEN", "LAMP"]


async def test_service_works_without_a_request(app: Starlette, count: Count) -> None:
    """Its block then opens a unit, and ends it."""
    await ordering.watch_stock(["SCREEN"])

    assert await count("products where reordered_at is not null") == 1
