"""The app: which middleware stands where."""

from __future__ import annotations

from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.middleware.authentication import AuthenticationMiddleware
from starlette.routing import Mount

from demo import answers, api, pages
from demo.admin import create_admin
from demo.request_log import RequestLog, TransactionNote
from demo.shop import shop
from demo.tokens import TokenBackend, Tokens, answer_bad_token
from starlette_uow import UnitOfWorkMiddleware


def create_app(secret_key: str) -> Starlette:
    """Build the app. Its database is chosen by `demo.shop.connect()`.

    The unit of work stands outside of everything that may use the database: so the token's user
    is loaded in the request's own transaction.
    """
    tokens = Tokens(secret_key)
    authentication = Middleware(
        AuthenticationMiddleware, backend=TokenBackend(tokens), on_error=answer_bad_token
    )
    app = Starlette(
        routes=[*pages.routes, Mount("/api", routes=api.routes, middleware=[authentication])],
        middleware=[
            Middleware(RequestLog),
            Middleware(UnitOfWorkMiddleware, uow=shop, exclude=["/health"]),
            Middleware(TransactionNote, uow=shop),
        ],
        exception_handlers=answers.handlers,
    )
    app.state.tokens = tokens
    create_admin(secret_key).mount_to(app)
    return app
