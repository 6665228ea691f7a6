"""The buttons on the first page: each provokes one row of the rule, with a real order.

`GET /trials/{key}` then tells what became of it, from another connection.
"""

from __future__ import annotations

import contextlib
import uuid
from collections.abc import AsyncGenerator, Awaitable, Callable
from typing import Annotated, Any

import anyio
from fastapi import APIRouter, Path, Request
from fastapi.exceptions import HTTPException
from sqlalchemy import func, select
from sqlalchemy.ext.asyncio import AsyncResult
from starlette.responses import (
    JSONResponse,
    PlainTextResponse,
    RedirectResponse,
    Response,
    StreamingResponse,
)

from demo.audit import actor
from demo.errors import OutOfStockError
from demo.models import Order, Product, Trial, User
from demo.seed import CUSTOMER
from demo.services.ordering import ordering
from demo.shop import shop

router = APIRouter(include_in_schema=False)

CLIENT_LEFT = 499
"""Nobody reads it any more; nginx logs this status for it."""


async def commit(request: Request, user: User, note: str) -> Response:
    """Place an order, and say so."""
    order = await ordering.place(user, {"PEN": 1}, note=note)
    return PlainTextResponse(f"order {order}", 201)


async def dry_run(request: Request, user: User, note: str) -> Response:
    """Place an order, and answer 200 without keeping it."""
    order = await ordering.place(user, {"PEN": 1}, note=note, dry_run=True)
    return PlainTextResponse(f"it would cost {order.total}")


async def out_of_stock(request: Request, user: User, note: str) -> Response:
    """Run out of stock when the order and its first line are written: answered 409."""
    await ordering.place(user, {"PEN": 1, "SCREEN": 999}, note=note)
    raise AssertionError("there are never so many screens")


async def exception(request: Request, user: User, note: str) -> Response:
    """Place an order, and then stumble over a bug."""
    await ordering.place(user, {"PEN": 1}, note=note)
    raise ZeroDivisionError("A bug, on purpose.")


async def refused_commit(request: Request, user: User, note: str) -> Response:
    """Place an order of a campaign that does not exist, and say that it worked."""
    order = await ordering.place(user, {"PEN": 1}, campaign="NOPE", note=note)
    return PlainTextResponse(f"order {order}, says the endpoint", 201)


async def hide(request: Request, user: User, note: str) -> Response:
    """Turn the exception into a redirect, which looks like success: it is not let through."""
    with contextlib.suppress(OutOfStockError):
        await ordering.place(user, {"PEN": 1, "SCREEN": 999}, note=note)
    return RedirectResponse("/trials/sorry", 303)


async def redirect(request: Request, user: User, note: str) -> Response:
    """Do the same in a savepoint, which undoes what was half written: the redirect is true."""
    with contextlib.suppress(OutOfStockError):
        async with shop.savepoint():
            await ordering.place(user, {"PEN": 1, "SCREEN": 999}, note=note)
    shop.doom("out of stock")
    return RedirectResponse("/trials/sorry", 303)


async def leave(request: Request, user: User, note: str) -> Response:
    """Place an order, and take so long over it that the client leaves, which cancels the work."""
    async with anyio.create_task_group() as tasks:

        async def cancel_when_left() -> None:
            while (await request.receive())["type"] != "http.disconnect":
                pass
            tasks.cancel_scope.cancel()

        tasks.start_soon(cancel_when_left)
        await ordering.place(user, {"PEN": 1}, note=note)
        await anyio.sleep(30)
        tasks.cancel_scope.cancel()
    return PlainTextResponse("The client has left.", CLIENT_LEFT)


async def failing_stream(request: Request, user: User, note: str) -> Response:
    """Place an order, stream a list from the same transaction, and fail in the middle of it."""
    await ordering.place(user, {"PEN": 1}, note=note)
    products = await shop.session.stream(select(Product.name).order_by(Product.sku))
    return StreamingResponse(_stream_and_fail(products), media_type="text/plain")


async def _stream_and_fail(products: AsyncResult[Any]) -> AsyncGenerator[str]:
    for product in await products.fetchmany(3):
        yield f"{product.name}\n"
    raise RuntimeError("The stream failed, on purpose.")


KINDS: dict[str, Callable[[Request, User, str], Awaitable[Response]]] = {
    "commit": commit,
    "dry-run": dry_run,
    "out-of-stock": out_of_stock,
    "exception": exception,
    "refused-commit": refused_commit,
    "hide": hide,
    "redirect": redirect,
    "leave": leave,
    "failing-stream": failing_stream,
}


@router.get("/trials/sorry")
async def say_sorry() -> Response:
    """Answer where the redirect leads."""
    return PlainTextResponse("Sorry, we are out of screens.")


@router.post("/trials/{kind}/{key}")
async def try_rule(
    request: Request, kind: Annotated[str, Path()], key: Annotated[uuid.UUID, Path()]
) -> Response:
    """Provoke one row of the rule, and note in a unit of its own what became of it."""
    if kind not in KINDS:
        raise HTTPException(404, f"There is no trial {kind!r}.")
    user = await shop.users.by_email(CUSTOMER.email)
    assert user is not None
    actor.set(user.email)

    async def note(outcome: str) -> None:
        async with shop.new() as unit:
            await unit.session.merge(Trial(id=key, outcome=outcome))

    shop.on_commit(lambda: note("committed"))
    shop.on_rollback(lambda: note("rolled back"))
    return await KINDS[kind](request, user, f"trial {key}")


@router.get("/trials/{key}")
async def show_trial(key: Annotated[uuid.UUID, Path()]) -> Response:
    """Answer what a second connection sees of it."""
    session = shop.session
    trial = await session.get(Trial, key)
    orders = await session.scalar(select(func.count()).where(Order.note == f"trial {key}"))
    pens = await session.scalar(select(Product.stock).where(Product.sku == "PEN"))
    outcome = None if trial is None else trial.outcome
    return JSONResponse({"outcome": outcome, "orders": orders, "pens": pens})
