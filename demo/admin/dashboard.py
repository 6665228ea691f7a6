"""The first page of the admin, of starlette-admin's own widgets."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any

from starlette.requests import Request
from starlette_admin.widgets import (
    BaseWidget,
    Breakpoints,
    CardRowWidget,
    ChartWidget,
    Col,
    ColumnWidget,
    StatWidget,
    TableWidget,
)

from demo.admin.login import is_manager
from demo.services.reports import reports
from demo.shop import shop

DAYS = 30
GREY = "#8792a2"
"""Can be read on white and on black."""

HALF = Breakpoints(default=12, lg=6)
THIRD = Breakpoints(default=6, lg=3)


async def show_dashboard(request: Request) -> BaseWidget:
    """Show how the shop does; what it earns is for the manager."""
    summary = await reports.summary()
    days = await reports.per_day(DAYS)
    money = is_manager(request)
    dates = [day.day.strftime("%d %b") for day in days]
    options = {
        "chart": {"toolbar": {"show": False}, "foreColor": GREY},
        "grid": {"borderColor": f"{GREY}40"},
        "dataLabels": {"enabled": False},
        "xaxis": {"categories": dates, "tickAmount": 3, "labels": {"rotate": 0}},
    }
    orders = request.url_for("admin:list", key="order").path
    products = request.url_for("admin:list", key="product").path
    stats = [
        StatWidget("Orders today", _answer(summary.orders_today), link=orders),
        StatWidget("To ship", _answer(summary.orders_to_ship), link=f"{orders}?q=paid"),
        StatWidget("Running out", _answer(len(summary.running_out)), link=products),
    ]
    if money:
        revenue = f"{summary.revenue_30_days:,.2f}"
        stats.append(StatWidget("Revenue, 30 days", _answer(revenue)))
    charts = [
        ChartWidget(
            "Orders a day",
            "bar",
            _answer([{"name": "Orders", "data": [day.orders for day in days]}]),
            options=options,
        )
    ]
    if money:
        revenue_a_day = [{"name": "Revenue", "data": [float(day.revenue) for day in days]}]
        charts.append(ChartWidget("Revenue a day", "area", _answer(revenue_a_day), options=options))
    async with shop as unit:
        latest = await unit.orders.page(limit=8, before=None, of=None)
    tables = [
        TableWidget(
            "Stock running out",
            ["Product", "In stock", "Limit", "Reordered"],
            _answer(
                [
                    [
                        p.name,
                        p.stock,
                        p.reorder_at,
                        f"{p.reordered_at:%d %b}" if p.reordered_at else "-",
                    ]
                    for p in summary.running_out[:8]
                ]
            ),
        ),
        TableWidget(
            "Latest orders",
            ["Order", "Customer", "Status", "Total"],
            _answer([[o.reference, o.customer.name, o.status, o.total] for o in latest]),
        ),
    ]
    return ColumnWidget(
        [
            CardRowWidget([Col(stat, THIRD) for stat in stats]),
            CardRowWidget([Col(chart, HALF) for chart in charts]),
            CardRowWidget([Col(table, HALF) for table in tables]),
        ]
    )


def _answer(value: Any) -> Callable[[Request], Awaitable[Any]]:
    async def answer(request: Request) -> Any:
        return value

    return answer
