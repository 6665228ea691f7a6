"""The JSON API."""

from __future__ import annotations

from typing import Any

from starlette.authentication import requires
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from demo.inputs import read_object, read_quantities, read_text, read_voucher
from demo.models import Order
from demo.services import accounts, ordering


async def log_in(request: Request) -> Response:
    """Answer a token to the right address and password."""
    body = await read_object(request)
    user = await accounts.log_in(read_text(body, "email"), read_text(body, "password"))
    return JSONResponse({"token": request.app.state.tokens.sign(user)})


@requires("authenticated", status_code=401)
async def list_orders(request: Request) -> Response:
    """Answer the caller's orders."""
    orders = await ordering.orders_of(request.user.account)
    return JSONResponse({"orders": [_as_json(order) for order in orders]})


@requires("authenticated", status_code=401)
async def place_order(request: Request) -> Response:
    """Place an order. When the client reads 201, it is committed."""
    body = await read_object(request)
    order = await ordering.place(
        request.user.account, read_quantities(body), voucher=read_voucher(body)
    )
    return JSONResponse(_as_json(order), 201)


def _as_json(order: Order) -> dict[str, Any]:
    return {
        "reference": order.reference,
        "status": order.status,
        "created_at": order.created_at.isoformat(),
        "voucher": order.voucher_code,
        "lines": [
            {
                "sku": line.product.sku,
                "quantity": line.quantity,
                "unit_price": str(line.unit_price),
            }
            for line in order.lines
        ],
        "total": str(order.total),
    }


routes = [
    Route("/login", log_in, methods=["POST"]),
    Route("/orders", list_orders, methods=["GET"]),
    Route("/orders", place_order, methods=["POST"]),
]
