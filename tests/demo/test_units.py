"""What the requests of the demo cost: their units and statements, as a sandbox records them."""

from __future__ import annotations

import httpx
import pytest
from starlette.applications import Starlette

from demo.shop import Shop, shop
from starlette_uow import Outcome
from starlette_uow.testing import Sandbox
from tests.demo.conftest import Count, order


@pytest.fixture
def uow(app: Starlette) -> Shop:
    """What `uow_sandbox` takes over."""
    return shop


async def test_list_of_products_is_one_unit_of_few_statements(
    client: httpx.AsyncClient, uow_sandbox: Sandbox
) -> None:
    """However many products there are."""
    answer = await client.get("/api/products")

    [unit] = uow_sandbox.units
    assert answer.status_code == 200
    assert unit.name == "GET /api/products"
    assert unit.outcomes == [Outcome.COMMITTED]
    assert len(unit.statements) <= 2, unit.statements


async def test_order_is_one_unit_and_stays_in_the_sandbox(
    customer: httpx.AsyncClient, uow_sandbox: Sandbox, count: Count
) -> None:
    """Committed for the app that reads it back, and for nobody else."""
    before = await count("orders")
    answer = await customer.post("/api/orders", json=order(("TEA", 2)))
    orders = await customer.get("/api/orders")

    placed = uow_sandbox.units[0]
    assert answer.status_code == 201
    assert answer.json()["reference"] in orders.text
    assert placed.name == "POST /api/orders"
    assert placed.outcomes[0] is Outcome.COMMITTED
    assert len(placed.statements) <= 20, placed.statements
    assert await count("orders") == before


async def test_order_that_is_refused_is_one_rollback(
    customer: httpx.AsyncClient, uow_sandbox: Sandbox
) -> None:
    """With what had been written by then."""
    answer = await customer.post("/api/orders", json=order(("LAMP", 5)))

    assert answer.status_code == 409
    assert uow_sandbox.units[0].outcomes == [Outcome.ROLLED_BACK]
