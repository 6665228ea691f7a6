"""The short form of `make load`: many customers at once, and then the books."""

from __future__ import annotations

import httpx
import pytest
from sqlalchemy.ext.asyncio import AsyncEngine
from starlette.applications import Starlette

from demo.load import check_books, create_customers, main, read_books, run_load
from demo.shop import shop
from tests.demo.conftest import FULL, serve


async def test_books_agree_after_many_customers_at_once(
    app: Starlette, payment_provider: httpx.AsyncClient
) -> None:
    """Twelve of them share a pool of two connections; nobody sees a 5xx."""
    people = await create_customers(12)
    before = await read_books()

    async with serve(app) as url:
        tally = await run_load(url, people, seconds=20 if FULL else 1.5)

    ledger = (await payment_provider.get("/ledger")).json()
    assert tally.failures == []
    assert tally.placed > 0
    assert await check_books(before, tally, ledger) == []


async def test_check_of_the_books_finds_what_is_wrong(
    app: Starlette, engine: AsyncEngine, payment_provider: httpx.AsyncClient
) -> None:
    """A pen that is gone without an order, and money that nobody paid."""
    people = await create_customers(1)
    before = await read_books()
    async with serve(app) as url:
        tally = await run_load(url, people, seconds=0.5)
    async with shop as unit:
        await unit.products.take("PEN", 1)
    ledger = {"charges": "1", "total": "1000000.00"}

    wrong = await check_books(before, tally, ledger)

    assert len(wrong) == 2
    assert wrong[0].startswith("PEN: 500 in stock")
    assert wrong[1].endswith("the provider has 1000000.00")


async def test_load_deletes_no_database_unasked(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """DATABASE_URL may well be the shop's."""
    monkeypatch.setattr("sys.argv", ["load"])
    monkeypatch.setenv("DATABASE_URL", "sqlite:////nowhere/shop.sqlite")

    with pytest.raises(SystemExit):
        await main()

    assert "say so with --fresh" in capsys.readouterr().err
