"""The app: which middleware stands where."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncGenerator
from typing import Any

from fastapi import FastAPI
from fastapi_offline import FastAPIOffline
from sqlalchemy.ext.asyncio import AsyncEngine
from starlette.middleware import Middleware

from demo import pages, problems, trials
from demo.admin import create_admin
from demo.api import accounts, live, orders, products
from demo.api.schemas import Problem
from demo.feed import feed
from demo.limit import BodyLimit
from demo.log import set_up_logging
from demo.payments import provider
from demo.request_log import RequestLog, TransactionNote
from demo.settings import Settings
from demo.shop import connect, shop
from demo.tokens import Tokens
from starlette_uow import UnitOfWorkMiddleware

PROBLEMS: dict[int | str, dict[str, Any]] = {
    "4XX": {
        "description": "Nothing was written.",
        "content": {"application/problem+json": {"schema": Problem.model_json_schema()}},
    }
}


def start() -> FastAPI:
    """Build the app from the environment: what each worker of `python -m demo` runs."""
    settings = Settings.from_environment()
    set_up_logging()
    engine = connect(settings.database_url, pool_size=settings.pool_size)
    provider.url = settings.payment_url
    return create_app(settings.secret_key, engine)


def create_app(secret_key: str, engine: AsyncEngine) -> FastAPI:
    """Build the app, on the engine that `demo.shop.connect()` has made.

    The unit of work stands outside of everything that may use the database: so the token's user
    is loaded in the request's own transaction.
    """

    @contextlib.asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncGenerator[None]:
        async with feed.listen(engine):
            yield

    app = FastAPIOffline(  # `/docs` with scripts of our own, not from the internet
        redoc_url=None,
        title="Shop",
        description="The demo of starlette-uow.",
        version="1",
        lifespan=lifespan,
        middleware=[
            Middleware(RequestLog),
            Middleware(UnitOfWorkMiddleware, uow=shop, exclude=["/health"]),
            Middleware(TransactionNote, uow=shop),
            Middleware(BodyLimit, below="/api/"),
        ],
        exception_handlers=problems.handlers,
    )
    app.state.tokens = Tokens(secret_key)
    for part in (accounts, products, orders, live):
        app.include_router(part.router, responses=PROBLEMS)
    app.include_router(trials.router)
    app.include_router(pages.router)
    create_admin(secret_key).mount_to(app)
    return app
