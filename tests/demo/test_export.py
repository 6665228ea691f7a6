"""The CSV export: a hundred thousand lines, in the memory of a few.

On SQLite a quarter of them, except with `TORTURE=full`.
"""

from __future__ import annotations

import asyncio
import csv
import logging
import os
from pathlib import Path
from time import perf_counter

import httpx
import pytest
from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncEngine
from starlette.applications import Starlette

from tests.demo.conftest import FULL, serve

LINES = 100_000
A_FEW_PARTITIONS = 16 * 1024 * 1024
"""In bytes. All lines at once take several times as much."""

log = logging.getLogger(__name__)


def memory() -> int:
    """Tell how much memory the process has, in bytes."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


async def add_lines(engine: AsyncEngine, lines: int) -> None:
    """Give the shop orders of twenty lines each."""
    series = "with recursive n(i) as (select 1 union all select i + 1 from n where i < :many) "
    orders = (
        "insert into orders"
        " (reference, customer_id, created_at, status, discount, total, note)"
        " select 'L' || i, 1, o.created_at, 'shipped', 0, 0, '' from n,"
        " (select created_at from orders limit 1) o"
    )
    order_lines = (
        "insert into order_lines (order_id, product_id, quantity, unit_price)"
        " select o.id, p.id, 1, p.price from orders o,"
        " (select id, price from products order by id limit 20) p where o.reference like 'L%'"
    )
    async with engine.begin() as connection:
        if connection.dialect.name == "sqlite":
            orders = f"{orders.replace('select', series + 'select', 1)}"
        else:
            orders = orders.replace("select", f"{series} select", 1)
        await connection.execute(text(orders), {"many": lines // 20})
        await connection.execute(text(order_lines))
        await connection.execute(text("analyze"))  # or the plan is for the few orders before


@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="needs Linux")
async def test_export_streams_in_constant_memory(
    app: Starlette, engine: AsyncEngine, clerk: httpx.AsyncClient
) -> None:
    """The first line is there long before the last, and the server keeps a few partitions."""
    lines = LINES if FULL or engine.dialect.name == "postgresql" else LINES // 4
    await add_lines(engine, lines)
    read = 0
    async with (
        serve(app) as url,
        httpx.AsyncClient(base_url=url, headers=clerk.headers, trust_env=False) as client,
    ):
        await client.get("/api/me")
        await client.get("/api/orders")
        before = peak = memory()
        started = perf_counter()
        first = 0.0
        async with client.stream("GET", "/api/export/orders.csv", timeout=60) as answer:
            async for chunk in answer.aiter_bytes():
                first = first or perf_counter() - started
                read += chunk.count(b"\n")
                peak = max(peak, memory())
        last = perf_counter() - started

    figures = f"first byte {first:.3f} s, last {last:.3f} s, {(peak - before) / 1e6:.1f} MB"
    assert answer.headers["content-type"].startswith("text/csv")
    assert read > lines
    assert first < last / 5, figures
    assert peak - before < A_FEW_PARTITIONS, figures
    log.info("%s lines: %s", read, figures)


async def test_reader_who_leaves_gives_the_connection_back(
    app: Starlette, engine: AsyncEngine, clerk: httpx.AsyncClient
) -> None:
    """The transaction of the cursor ends with the answer, complete or not."""
    await add_lines(engine, LINES // 10)
    async with serve(app) as url:
        async with httpx.AsyncClient(base_url=url, headers=clerk.headers, trust_env=False) as one:
            async with one.stream("GET", "/api/export/orders.csv") as answer:
                async for _ in answer.aiter_bytes():
                    break
        async with asyncio.timeout(10):
            while engine.pool.checkedout():  # type: ignore[attr-defined]  # noqa: ASYNC110 - no event
                await asyncio.sleep(0.01)


async def test_cells_are_no_formulas(
    customer: httpx.AsyncClient, clerk: httpx.AsyncClient, engine: AsyncEngine
) -> None:
    """What a customer typed is text, for a spreadsheet, too."""
    await customer.post("/api/orders", json={"lines": [{"sku": "PEN", "quantity": 1}]})
    async with engine.begin() as connection:
        await connection.execute(text("update customers set name = '=1+1' where user_id = 3"))

    rows = list(csv.DictReader((await clerk.get("/api/export/orders.csv")).text.splitlines()))

    assert rows[-1]["customer"] == "'=1+1"
    assert rows[-1]["price"] == "1.20"


@pytest.mark.parametrize("path", ["/api/export/orders.csv", "/api/summary"])
async def test_figures_are_for_the_people_of_the_shop(
    customer: httpx.AsyncClient, path: str
) -> None:
    """A customer gets a problem instead."""
    answer = await customer.get(path)

    assert answer.status_code == 403
    assert answer.headers["content-type"] == "application/problem+json"
