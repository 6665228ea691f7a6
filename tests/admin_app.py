"""An app with an admin, for the tests of the starlette-admin integration."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from contextlib import ExitStack, asynccontextmanager, contextmanager
from dataclasses import dataclass
from typing import Any, TypeVar, cast

import httpx
from jinja2 import FileSystemBytecodeCache
from sqlalchemy import Connection, event, func, select
from sqlalchemy.ext.asyncio import AsyncEngine, AsyncSession
from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import Response, StreamingResponse
from starlette_admin import action, row_action
from starlette_admin.actions import ActionSelection
from starlette_admin.auth import AdminUser, AuthProvider
from starlette_admin.base import BaseAdmin
from starlette_admin.contrib import sqla
from starlette_admin.contrib.sqla import InlineModelView, ModelView
from starlette_admin.exceptions import ActionFailed, FormValidationError
from starlette_admin.fields import IntegerField
from starlette_admin.views import BaseView

from starlette_uow import UnitOfWork, UnitOfWorkMiddleware, current_session
from starlette_uow.admin import Admin, UnitOfWorkPlugin
from tests.models import Item, Part

AnAdmin = TypeVar("AnAdmin", bound=BaseAdmin)

TEMPLATES = FileSystemBytecodeCache()
KINDS = ["app-has-unit", "plugin"]
"""Our `Admin`, joining the units of its app, and a stock one with our plugin, standing alone."""

CSRF_COOKIE = "starlette_admin_csrftoken"
FLASH_COOKIE = "starlette_admin_flash"


def session_of(request: Request) -> AsyncSession:
    return cast(AsyncSession, request.state.session)


class PartInline(InlineModelView):
    """The form of an item has its parts; three are too many, which the database is asked."""

    model = Part  # type: ignore[misc]  # as the docs of starlette-admin have it
    fields = (IntegerField("id"),)

    async def validate(self, request: Request, data: dict[str, Any]) -> None:
        if await session_of(request).scalar(select(func.count(Part.id))) == 2:
            raise FormValidationError({"id": "An item has two parts at most."})


class PartView(ModelView):
    fields: Any = ("id", "item")


class StrayPartView(ModelView):
    """Takes the key of an item without looking for it: the database does, at COMMIT."""

    key = "stray"
    fields: Any = ("id", "item_id")


class ItemView(ModelView):
    fields: Any = ("id", "name", "parts")
    exclude_fields_from_create = ("parts",)
    exclude_fields_from_edit = ("parts",)
    exclude_fields_from_import = ("id", "parts")
    inline_editable_fields = ("name",)
    inlines = (PartInline,)

    async def validate(self, request: Request, data: dict[str, Any]) -> None:
        """Refuse a name, but only after something was written."""
        if data["name"] == "invalid":
            session_of(request).add(Item(name="written before the validation failed"))
            await session_of(request).flush()
            raise FormValidationError({"name": "This name is taken."})

    @action(name="mark", text="Mark")
    async def mark(self, request: Request, selection: ActionSelection) -> None:
        for item in await selection.rows():
            item.name += "!"

    @action(name="mark-and-fail", text="Mark and fail")
    async def mark_and_fail(self, request: Request, selection: ActionSelection) -> None:
        await self.mark(request, selection)
        await session_of(request).flush()
        raise ActionFailed("No more marks.")

    @action(name="stream", text="Stream", custom_response=True)
    async def stream(self, request: Request, selection: ActionSelection) -> Response:
        return StreamingResponse(self.write_names(request, fail="fail" in request.query_params))

    async def write_names(self, request: Request, *, fail: bool) -> AsyncIterator[str]:
        for name in (await session_of(request).scalars(select(Item.name))).all():
            yield name
        session_of(request).add(Item(name="written by the body"))
        await session_of(request).flush()
        if fail:
            raise RuntimeError("the body failed")

    @row_action(name="mark-one", text="Mark")
    async def mark_one(self, request: Request, pk: Any) -> None:
        (await self.find_by_pk(request, pk)).name += "!"

    @row_action(name="orphan", text="Add a part of no item")
    async def orphan(self, request: Request, pk: Any) -> None:
        session_of(request).add(Part(item_id=999))
        await session_of(request).flush()


class HeaderAuth(AuthProvider):
    """Finds the user, which is an item, in the database, and remembers the sessions it saw."""

    def __init__(self) -> None:
        super().__init__()
        self.sessions: list[AsyncSession] = []

    async def authenticate(self, request: Request) -> AdminUser | None:
        self.sessions += [session_of(request), current_session()]
        query = select(Item).where(Item.name == request.headers.get("x-user"))
        user = await session_of(request).scalar(query)
        return None if user is None else AdminUser(user.name)


@dataclass
class Site:
    """An app, its admin, and a client that has the admin's CSRF token."""

    app: Starlette
    admin: BaseAdmin
    client: httpx.AsyncClient

    async def get(self, path: str, **kwargs: Any) -> httpx.Response:
        return await self.client.get(f"/admin{path}", **kwargs)

    async def post(self, path: str, **kwargs: Any) -> httpx.Response:
        return await self.client.post(f"/admin{path}", **kwargs)

    @property
    def has_flash(self) -> bool:
        return FLASH_COOKIE in self.client.cookies


def new_admin(uow: Any, *views: BaseView, **kwargs: Any) -> Admin:
    return _prepare(Admin(uow, secret_key="secret", **kwargs), *views)


def stock_admin(uow: UnitOfWork, *views: BaseView) -> sqla.Admin:
    """An admin of a class that is not ours."""
    plugins = [UnitOfWorkPlugin(uow)]
    return _prepare(sqla.Admin(uow.sessions, secret_key="secret", plugins=plugins), *views)


def _prepare(admin: AnAdmin, *views: BaseView) -> AnAdmin:
    admin.templates.env.bytecode_cache = TEMPLATES  # compiled once for all tests
    for view in (ItemView(Item), PartView(Part), StrayPartView(Part), *views):
        admin.add_view(view)
    return admin


@asynccontextmanager
async def open_site(uow: UnitOfWork, kind: str, *views: BaseView) -> AsyncIterator[Site]:
    """An admin with the items 1 and 2."""
    await add_items(uow, "a", "b")
    admin = stock_admin(uow, *views) if kind == "plugin" else new_admin(uow, *views)
    app = new_app(admin, uow=uow if kind == "app-has-unit" else None)
    async with open_client(app) as client:
        yield Site(app, admin, client)


def new_app(*admins: BaseAdmin, uow: UnitOfWork | None = None, **kwargs: Any) -> Starlette:
    """An app with admins, and with units of work of its own if `uow` is given."""
    middleware = [] if uow is None else [Middleware(UnitOfWorkMiddleware, uow=uow)]
    app = Starlette(middleware=middleware, **kwargs)
    for admin in admins:
        admin.mount_to(app)
    return app


@asynccontextmanager
async def open_client(app: Starlette, base_url: str = "/admin") -> AsyncIterator[httpx.AsyncClient]:
    transport = httpx.ASGITransport(app, raise_app_exceptions=False)
    async with httpx.AsyncClient(transport=transport, base_url="http://test") as client:
        await client.get(f"{base_url}/")
        client.headers["X-CSRFToken"] = client.cookies[CSRF_COOKIE]
        yield client


def item(name: str, *, parts: int = 0) -> dict[str, Any]:
    """What the form of an item sends, with its inline forms."""
    inlines = {f"inlines.part.{n}.id": "1" for n in range(parts)}
    return {"data": {"name": name, **inlines}}


def csv(*names: str) -> dict[str, Any]:
    """What the form of an import sends."""
    content = "\n".join(("name", *names)).encode()
    return {"data": {"format": "csv"}, "files": {"file": ("items.csv", content, "text/csv")}}


async def add_items(uow: UnitOfWork, *names: str) -> None:
    async with uow:
        for name in names:
            uow.session.add(Item(name=name))
            await uow.session.flush()


@contextmanager
def transactions(engine: AsyncEngine) -> Iterator[list[str]]:
    """What happens to the transactions of an engine, in order."""
    seen: list[str] = []
    with ExitStack() as stack:
        for name in ("begin", "commit", "rollback"):

            def note(connection: Connection, name: str = name) -> None:
                seen.append(name)

            event.listen(engine.sync_engine, name, note)
            stack.callback(event.remove, engine.sync_engine, name, note)
        yield seen
