"""What there is to buy: pages, and edits that do not overwrite each other."""

from __future__ import annotations

import asyncio

import httpx
import pytest

from demo.seed import PRODUCTS
from tests.demo.conftest import Contents, Count, order


async def test_products_come_page_by_page(client: httpx.AsyncClient) -> None:
    """By SKU, each once."""
    skus = []
    path: str | None = "/api/products?limit=7"
    while path is not None:
        page = (await client.get(path)).json()
        skus += [product["sku"] for product in page["items"]]
        path = page["next"]

    assert skus == [product[0] for product in PRODUCTS]


async def test_category_is_kept_on_the_next_page(client: httpx.AsyncClient) -> None:
    """The path of the next page has everything in it."""
    first = (await client.get("/api/products?limit=3&category=office")).json()
    second = (await client.get(first["next"])).json()

    assert [p["sku"] for p in first["items"] + second["items"]] == [
        "KEY",
        "LAMP",
        "MAT",
        "MOUSE",
        "SCREEN",
    ]


@pytest.mark.parametrize(
    "path",
    [
        "/api/products?limit=0",
        "/api/products?limit=101",
        "/api/products?after=%00",
        "/api/products/%00",
        "/api/orders?before=99999999999",
    ],
)
async def test_bad_page_is_refused(customer: httpx.AsyncClient, path: str) -> None:
    """With a reason."""
    answer = await customer.get(path)

    assert answer.status_code == 422
    assert answer.json()["errors"]


async def test_edit_of_an_old_version_gets_the_current_state(
    clerk: httpx.AsyncClient, contents: Contents
) -> None:
    """Nothing is written, and the answer shows what to look at."""
    changed = await clerk.patch("/api/products/TEA", json={"version": 1, "price": "5.20"})
    before = await contents()

    answer = await clerk.patch("/api/products/TEA", json={"version": 1, "name": "Green tea"})

    assert changed.json()["version"] == 2
    assert answer.status_code == 409
    assert answer.json()["current"] == changed.json()
    assert await contents() == before


async def test_edits_at_once_do_not_overwrite_each_other(
    clerk: httpx.AsyncClient, count: Count
) -> None:
    """One is written; the others are told how it is now."""
    answers = await asyncio.gather(
        *(
            clerk.patch("/api/products/TEA", json={"version": 1, "price": f"{n}.00"})
            for n in range(1, 7)
        )
    )

    won = [answer.json() for answer in answers if answer.status_code == 200]
    lost = [answer.json() for answer in answers if answer.status_code == 409]
    assert (len(won), len(lost)) == (1, 5)
    assert all(answer["current"] == won[0] for answer in lost)
    assert await count("audit_entries where what like '%(TEA)' and action = 'changed'") == 1


async def test_sale_does_not_outdate_an_edit(
    customer: httpx.AsyncClient, clerk: httpx.AsyncClient
) -> None:
    """The stock moves by amounts, which need no version."""
    await customer.post("/api/orders", json=order(("TEA", 1)))

    answer = await clerk.patch("/api/products/TEA", json={"version": 1, "price": "5.20"})

    assert answer.status_code == 200
    assert answer.json()["stock"] == 999


async def test_edit_is_noted_with_the_values(clerk: httpx.AsyncClient, count: Count) -> None:
    """By the subscriber to the flush, not by the code that edits."""
    await clerk.patch("/api/products/TEA", json={"version": 1, "price": "5.20"})

    noted = "who = 'clerk@example.org' and changes like '%price: 4.90 -> 5.20%'"
    assert await count(f"audit_entries where {noted}") == 1


async def test_customer_edits_nothing(customer: httpx.AsyncClient, contents: Contents) -> None:
    """Neither prices nor anything else."""
    before = await contents()

    answer = await customer.patch("/api/products/TEA", json={"version": 1, "price": "0.01"})

    assert answer.status_code == 403
    assert await contents() == before
