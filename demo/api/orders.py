"""Orders: placing, paying, refunding, reading."""

from __future__ import annotations

import csv
import io
from collections.abc import AsyncGenerator
from typing import Annotated, Any
from urllib.parse import urlencode

from fastapi import APIRouter, BackgroundTasks, Path, Response
from sqlalchemy.ext.asyncio import AsyncResult
from starlette.responses import StreamingResponse

from demo.api.caller import Caller, Manager, Staff
from demo.api.products import Limit
from demo.api.schemas import (
    Code,
    Key,
    OrderIn,
    OrderOut,
    OrdersOut,
    PaymentIn,
    RefundIn,
    RefundOut,
)
from demo.models import Refund
from demo.services.ordering import ordering
from demo.services.paying import paying
from demo.services.reports import reports

router = APIRouter(prefix="/api", tags=["orders"])

Reference = Annotated[Code, Path()]
COLUMNS = ("order", "at", "status", "customer", "city", "sku", "product", "quantity", "price")


@router.get("/orders")
async def list_orders(caller: Caller, limit: Limit = 20, before: Key | None = None) -> OrdersOut:
    """List your orders (who works in the shop: all orders), the latest first, page by page."""
    found = await ordering.page(caller, limit=limit + 1, before=before)
    items = [OrderOut.of(order) for order in found[:limit]]
    more = {"limit": limit, "before": found[limit - 1].id} if len(found) > limit else None
    return OrdersOut(items=items, next=f"/api/orders?{urlencode(more)}" if more else None)


@router.post("/orders", status_code=201, responses={200: {"model": OrderOut}})
async def place_order(
    caller: Caller,
    body: OrderIn,
    response: Response,
    tasks: BackgroundTasks,
    dry_run: bool = False,
) -> OrderOut:
    """Place an order: when you read 201, it is committed.

    With `dry_run` it is priced by the same code, answered 200, and leaves nothing behind.
    """
    quantities = {line.sku: line.quantity for line in body.lines}
    order = await ordering.place(
        caller,
        quantities,
        coupon=body.coupon,
        campaign=body.campaign,
        note=body.note,
        dry_run=dry_run,
    )
    if dry_run:
        response.status_code = 200
    else:
        tasks.add_task(ordering.watch_stock, list(quantities))
    return OrderOut.of(order)


@router.get("/orders/{reference}")
async def show_order(caller: Caller, reference: Reference) -> OrderOut:
    """Show an order."""
    return OrderOut.of(await ordering.find(caller, reference))


@router.post("/orders/{reference}/payment")
async def pay_order(caller: Caller, reference: Reference, body: PaymentIn) -> OrderOut:
    """Pay an order by card. Sent again, it is not charged again."""
    return OrderOut.of(await paying.pay(caller, reference, body.card))


@router.post("/orders/{reference}/refunds", status_code=201, response_model=RefundOut)
async def refund_order(caller: Manager, reference: Reference, body: RefundIn) -> Refund:
    """Give money back, in total at most what was paid."""
    return await paying.refund(reference, body.amount, body.reason)


@router.get("/export/orders.csv", response_class=Response)
async def export_orders(caller: Staff) -> StreamingResponse:
    """Stream all order lines as CSV, however many there are."""
    lines = await reports.stream_lines()
    headers = {"Content-Disposition": "attachment; filename=orders.csv"}
    return StreamingResponse(_as_csv(lines), media_type="text/csv", headers=headers)


async def _as_csv(lines: AsyncResult[Any]) -> AsyncGenerator[str]:
    text = io.StringIO(newline="")
    writer = csv.writer(text)
    writer.writerow(COLUMNS)
    async for partition in lines.partitions():
        writer.writerows([_as_cell(value) for value in line] for line in partition)
        yield text.getvalue()
        text.seek(0)
        text.truncate()
    yield text.getvalue()


def _as_cell(value: object) -> object:
    """No cell begins like a formula: a spreadsheet would compute what a customer typed."""
    return (
        f"'{value}" if isinstance(value, str) and value.startswith(("=", "+", "-", "@")) else value
    )
