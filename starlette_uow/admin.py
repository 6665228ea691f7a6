"""starlette-admin in the request's unit of work. With `admin_views`, the only file that imports
starlette_admin.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any, Concatenate, ParamSpec, TypeAlias, cast

from sqlalchemy.exc import DataError, IntegrityError
from sqlalchemy.ext.asyncio import AsyncEngine, async_sessionmaker
from sqlalchemy.orm.exc import StaleDataError
from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route, request_response
from starlette.types import ASGIApp, Receive, Scope, Send
from starlette_admin.base import BaseAdmin
from starlette_admin.contrib import sqla
from starlette_admin.contrib.sqla.middleware import DBSessionMiddleware
from starlette_admin.plugins import BasePlugin
from starlette_admin.views import DefaultIndexView

import starlette_uow.admin_files  # noqa: F401 - it listens
from starlette_uow.admin_views import UnitAdmin, UnitIndexView, UnitView
from starlette_uow.context import current_unit
from starlette_uow.errors import ConfigurationError
from starlette_uow.middleware import UnitOfWorkMiddleware
from starlette_uow.policy import Doom, Outcome
from starlette_uow.uow import UnitOfWork

P = ParamSpec("P")

Endpoint: TypeAlias = Callable[[Request], Awaitable[Response]]
Units: TypeAlias = UnitOfWork | async_sessionmaker[Any] | AsyncEngine


def _takes_units(
    stock: Callable[Concatenate[Any, Any, P], None],
) -> Callable[[Callable[..., None]], Callable[Concatenate[Admin, Units, P], None]]:
    """Show type checkers the other parameters of the stock method."""
    return lambda method: method


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

    @_takes_units(sqla.Admin.__init__)
    def __init__(
        self,
        session_provider: Units,
        *args: Any,
        **kwargs: Any,
    ) -> None:
        given = session_provider
        self.uow = given if isinstance(given, UnitOfWork) else UnitOfWork(given)
        _check(self.uow)
        super().__init__(self.uow.sessions, *args, **kwargs)

    def mount_to(self, app: Starlette) -> None:
        super().mount_to(app)
        _work_in_units(self, self.uow)


class UnitOfWorkPlugin(BasePlugin):
    """Lets an admin of a class of your own work as `Admin` does.

    Its session middleware is replaced, so the engine or sessionmaker it was given is not used.

    Args:
        uow: the `UnitOfWork` whose units the views work in.

    Raises:
        ConfigurationError: the sessions expire their objects on commit.

    Example:
        ```python
        admin = MyAdmin(engine, plugins=[UnitOfWorkPlugin(uow)])
        ```
    """

    name = "unit-of-work"

    def __init__(self, uow: UnitOfWork) -> None:
        _check(uow)
        self.uow = uow

    def on_mount(self, admin: BaseAdmin) -> None:
        _work_in_units(admin, self.uow)


def _check(uow: UnitOfWork) -> None:
    if uow.expires_on_commit:
        raise ConfigurationError(
            f"The admin reads objects after their commit, and the sessions of {uow!r} expire "
            f"them. Pass `async_sessionmaker(engine, expire_on_commit=False)`."
        )


def _work_in_units(admin: BaseAdmin, uow: UnitOfWork) -> None:
    """Change a mounted admin, whose views are complete and whose app has not been called yet."""
    stack = admin.app.user_middleware
    stock = [middleware for middleware in stack if _is_stock(middleware)]
    if len(stock) != 1:
        raise ConfigurationError(
            f"{admin!r} has {len(stock)} session middlewares of starlette-admin, and needs one "
            f"to be replaced. Give it one UnitOfWorkPlugin, and none to starlette_uow's Admin."
        )
    stack[stack.index(stock[0])] = Middleware(AdminUnitMiddleware, uow=uow)
    _prepend(UnitAdmin, admin, uow)
    for error in (IntegrityError, DataError, StaleDataError):
        admin.app.exception_handlers.setdefault(error, cast(UnitAdmin, admin).answer_refusal)
    for route in admin.app.routes:
        if isinstance(route, Route) and route.name in ("import", "create", "edit"):
            route.app = request_response(_closing_uploads(route.endpoint))
    if isinstance(admin.index_view, DefaultIndexView):
        _prepend(UnitIndexView, admin.index_view, uow)
    for view in admin._model_views:
        for each in (view, *view._inline_instances):
            if isinstance(each, sqla.ModelView):
                _prepend(UnitView, each, uow)


def _prepend(mixin: type, instance: Any, uow: UnitOfWork) -> None:
    """Let the methods of a class come before those of the instance's own."""
    cls = type(instance)
    if not issubclass(cls, mixin):
        members = {"__doc__": cls.__doc__, "__module__": cls.__module__, "_uow": uow}
        instance.__class__ = type(cls.__name__, (mixin, cls), members)


def _closing_uploads(endpoint: Endpoint) -> Endpoint:
    """Close the files of a form, which starlette-admin leaves to the garbage collector."""

    async def closing_uploads(request: Request) -> Response:
        try:
            return await endpoint(request)
        finally:
            await request.close()

    return closing_uploads


def _is_stock(middleware: Middleware) -> bool:
    cls: object = middleware.cls
    return isinstance(cls, type) and issubclass(cls, DBSessionMiddleware)


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
        unit = current_unit(self._uow)
        if unit.outcome is Outcome.ROLLED_BACK and not unit.has_work:
            # What the callback waits for, and the answer will tell of, is gone.
            unit.doom(Doom("a hook of the admin has rolled back the session"))
        self._uow.on_commit(callback)
