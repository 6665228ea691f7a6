"""Figures for people."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from datetime import date, timedelta
from decimal import Decimal
from typing import Any, NamedTuple

from sqlalchemy.ext.asyncio import AsyncResult

from demo.models import Order, Product, now
from demo.shop import Shop, shop


class Summary(NamedTuple):
    """How the shop does."""

    orders_today: int
    orders_to_ship: int
    revenue_30_days: Decimal
    running_out: Sequence[Product]


class Day(NamedTuple):
    """What a day brought."""

    day: date
    orders: int
    revenue: Decimal


class Reports:
    """Figures for people."""

    def __init__(self, shop: Shop) -> None:
        self._shop = shop

    async def summary(self) -> Summary:
        """Ask everything at once. The tasks take turns on the session of the unit: with a plain
        AsyncSession, this `gather` fails.
        """
        at = now()
        today = at.replace(hour=0, minute=0, second=0, microsecond=0)
        async with self._shop as unit:
            return Summary(
                *await asyncio.gather(
                    unit.orders.count(Order.created_at >= today),
                    unit.orders.count(Order.status == "paid"),
                    unit.orders.revenue(Order.created_at >= at - timedelta(days=30)),
                    unit.products.running_out(),
                )
            )

    async def per_day(self, days: int) -> list[Day]:
        """Count orders and revenue for each of the last days, today included."""
        today = now().date()
        listed = [today - timedelta(days=back) for back in reversed(range(days))]
        async with self._shop as unit:
            found = await unit.orders.per_day(since=now() - timedelta(days=days))
        return [Day(day, *found.get(day.isoformat(), (0, Decimal("0.00")))) for day in listed]

    async def stream_lines(self) -> AsyncResult[Any]:
        """Open a cursor on all lines of all orders. The transaction ends with the answer's body."""
        async with self._shop as unit:
            return await unit.orders.stream_lines()


reports = Reports(shop)
