"""starlette-admin in the request's unit of work. The only file that imports starlette_admin."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from sqlalchemy.ext.asyncio import AsyncEngine, async_sessionmaker
from starlette.middleware import Middleware
from starlette.types import ASGIApp, Receive, Scope, Send
from starlette_admin.contrib import sqla
from starlette_admin.contrib.sqla.middleware import DBSessionMiddleware

from starlette_uow.errors import ConfigurationError
from starlette_uow.middleware import UnitOfWorkMiddleware
from starlette_uow.uow import UnitOfWork


class Admin(sqla.Admin):
    """starlette-admin's `contrib.sqla.Admin`, whose requests are units of work.

    What a view, an action, an import, an inline form, the auth provider and an event subscriber
    write in one request is committed together, before the client is answered, or rolled back
    together: the rule of `UnitOfWorkMiddleware`. Callbacks of `on_commit(request, callback)` and
    the `AFTER_*_COMMITTED` events run after that commit, and never after a rollback; an error in
    one of them is logged.

    `request.state.session` is the unit's session, and what a callback writes through it is
    committed, too. A websocket below the admin uses `current_session()`.

    On an app with `UnitOfWorkMiddleware` for the same unit of work, the admin joins its units;
    on an app without, it opens one for each request by itself.

    Args:
        session_provider: the `UnitOfWork` whose units the views work in: the same that the app's
            middleware serves, or the admin opens a second unit for each request. An
            `async_sessionmaker` or `AsyncEngine` is accepted for an admin that stands alone. The
            sessions need `expire_on_commit=False`, because views read an object's key after its
            commit.
        *args: all other arguments of `starlette_admin.contrib.sqla.Admin`.
        **kwargs: the same.

    Raises:
        ConfigurationError: the sessions expire their objects on commit.
    """

    def __init__(
        self,
        session_provider: UnitOfWork | async_sessionmaker[Any] | AsyncEngine,
        *args: Any,
        **kwargs: Any,
    ) -> None:
        given = session_provider
        self.uow = given if isinstance(given, UnitOfWork) else UnitOfWork(given)
        if self.uow.expires_on_commit:
            raise ConfigurationError(
                f"The admin reads objects after their commit, and the sessions of {self.uow!r} "
                f"expire them. Pass `async_sessionmaker(engine, expire_on_commit=False)`."
            )
        super().__init__(self.uow.sessions, *args, **kwargs)
        ours = Middleware(AdminUnitMiddleware, uow=self.uow)
        self.middlewares = [
            ours if _is_stock(middleware) else middleware for middleware in self.middlewares
        ]


def _is_stock(middleware: Middleware) -> bool:
    cls: object = middleware.cls
    return cls is DBSessionMiddleware


class AdminUnitMiddleware(UnitOfWorkMiddleware):
    """Takes the place of starlette-admin's own session middleware."""

    def __init__(self, app: ASGIApp, *, uow: UnitOfWork) -> None:
        async def show_unit(scope: Scope, receive: Receive, send: Send) -> None:
            if scope["type"] == "http":
                scope["state"]["session"] = uow.session
                scope["state"]["on_commit_callbacks"] = _CommitCallbacks(uow)
            await app(scope, receive, send)

        super().__init__(show_unit, uow=uow)


class _CommitCallbacks(list[Callable[[], Any]]):
    """Where `starlette_admin.helpers.on_commit` appends to: each callback goes to the unit, which
    drops it with the savepoint or transaction that it belongs to.
    """

    def __init__(self, uow: UnitOfWork) -> None:
        super().__init__()
        self._uow = uow

    def append(self, callback: Callable[[], Any], /) -> None:
        self._uow.on_commit(callback)
