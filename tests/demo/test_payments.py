"""Payments and refunds: nobody pays twice, and nobody gets back more than was paid."""

from __future__ import annotations

import asyncio

import httpx
import pytest
from sqlalchemy.ext.asyncio import AsyncEngine
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from demo.payments import REFUSED_CARD, provider
from tests.demo.conftest import Contents, Count, order, serve

CARD = {"card": "4242424242424242"}


async def place(customer: httpx.AsyncClient) -> str:
    """Order two teas for 9.80."""
    placed = await customer.post("/api/orders", json=order(("TEA", 2)))
    return f"/api/orders/{placed.json()['reference']}"


async def test_connection_is_given_back_while_the_provider_thinks(
    customer: httpx.AsyncClient, engine: AsyncEngine, count: Count
) -> None:
    """What was done before the call is committed by then."""
    seen: list[int] = []

    async def charge(request: Request) -> Response:
        seen.append(engine.pool.checkedout())  # type: ignore[attr-defined]
        seen.append(await count("payments where state = 'sent'"))
        return JSONResponse({"accepted": True})

    path = await place(customer)
    async with serve(Starlette(routes=[Route("/charges", charge, methods=["POST"])])) as url:
        provider.url = url
        answer = await customer.post(f"{path}/payment", json=CARD)

    assert answer.json()["status"] == "paid"
    assert seen == [0, 1]


async def test_refused_card_leaves_the_order_to_be_paid_with_another(
    customer: httpx.AsyncClient, payment_provider: httpx.AsyncClient, count: Count
) -> None:
    """The refusal is kept by a checkpoint, although the answer is an error."""
    path = await place(customer)

    refused = await customer.post(f"{path}/payment", json={"card": REFUSED_CARD})
    accepted = await customer.post(f"{path}/payment", json=CARD)

    assert (refused.status_code, accepted.status_code) == (402, 200)
    assert await count("payments where state = 'refused'") == 1
    assert (await payment_provider.get("/ledger")).json() == {"charges": 1, "total": "9.80"}


async def test_payment_whose_answer_was_lost_is_sent_again_and_charged_once(
    customer: httpx.AsyncClient, payment_provider: httpx.AsyncClient, count: Count
) -> None:
    """Nobody knows what became of it, so the same key is used."""
    path = await place(customer)
    there = provider.url
    provider.url = "http://127.0.0.1:9"  # nobody listens at the discard port

    lost = await customer.post(f"{path}/payment", json=CARD)
    provider.url = there
    again = await customer.post(f"{path}/payment", json=CARD)

    assert (lost.status_code, again.status_code) == (502, 200)
    assert await count("payments where state = 'sent'") == 0
    assert (await payment_provider.get("/ledger")).json()["charges"] == 1


async def test_paying_five_times_at_once_charges_once(
    customer: httpx.AsyncClient, payment_provider: httpx.AsyncClient
) -> None:
    """Those that come too late are told."""
    path = await place(customer)

    answers = await asyncio.gather(*(customer.post(f"{path}/payment", json=CARD) for _ in range(5)))

    statuses = {answer.status_code for answer in answers}
    assert statuses <= {200, 409}
    assert 200 in statuses
    assert (await payment_provider.get("/ledger")).json() == {"charges": 1, "total": "9.80"}


async def test_paid_order_is_not_paid_again(
    customer: httpx.AsyncClient, payment_provider: httpx.AsyncClient, contents: Contents
) -> None:
    """Nor is one that is not there."""
    path = await place(customer)
    await customer.post(f"{path}/payment", json=CARD)
    before = await contents()

    again = await customer.post(f"{path}/payment", json=CARD)
    unknown = await customer.post("/api/orders/NOPE/payment", json=CARD)

    assert (again.status_code, unknown.status_code) == (409, 404)
    assert await contents() == before


@pytest.mark.parametrize(
    ("amount", "statuses"), [("6.00", [201, 409, 409, 409]), ("1.00", [201, 201, 201, 201])]
)
async def test_refunds_at_once(
    customer: httpx.AsyncClient,
    manager: httpx.AsyncClient,
    payment_provider: httpx.AsyncClient,
    count: Count,
    amount: str,
    statuses: list[int],
) -> None:
    """Each finds enough left; SERIALIZABLE lets all but one fail, and look again: together they
    are never too much, and no manager has to try again what is not.
    """
    path = await place(customer)
    await customer.post(f"{path}/payment", json=CARD)
    refund = {"amount": amount, "reason": "It smells"}

    answers = await asyncio.gather(
        *(manager.post(f"{path}/refunds", json=refund) for _ in range(4))
    )

    assert sorted(answer.status_code for answer in answers) == statuses
    assert await count("refunds where reason = 'It smells'") == statuses.count(201)


async def test_whole_refund_ends_the_order(
    customer: httpx.AsyncClient, manager: httpx.AsyncClient, payment_provider: httpx.AsyncClient
) -> None:
    """In two parts as well as in one."""
    path = await place(customer)
    await customer.post(f"{path}/payment", json=CARD)
    statuses = [
        (await manager.post(f"{path}/refunds", json={"amount": amount, "reason": "x"})).status_code
        for amount in ("4.00", "5.81", "5.80", "0.01")
    ]

    assert statuses == [201, 409, 201, 409]
    assert (await customer.get(path)).json()["status"] == "refunded"


@pytest.mark.parametrize("amount", ["0", "-1", "1.001", "1e99", "NaN", "Infinity", None])
async def test_bad_amount_is_refused(
    customer: httpx.AsyncClient, manager: httpx.AsyncClient, contents: Contents, amount: object
) -> None:
    """Before anybody looks for the order."""
    path = await place(customer)
    before = await contents()

    answer = await manager.post(f"{path}/refunds", json={"amount": amount, "reason": "x"})

    assert answer.status_code == 422
    assert await contents() == before
