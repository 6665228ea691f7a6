"""Each feature of starlette-admin, and each way in which its request can end.

A subscriber of the feature, which runs after its work was done, decides how.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass
from typing import Any, TypeAlias

import pytest
from sqlalchemy import Column, Integer
from sqlalchemy.ext.asyncio import AsyncEngine
from sqlmodel import Field, SQLModel
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette_admin import route
from starlette_admin.contrib import sqlmodel
from starlette_admin.contrib.sqla import ModelView
from starlette_admin.events import AdminEvent
from starlette_admin.exceptions import FormValidationError
from starlette_admin.helpers import on_commit
from starlette_admin.views import CustomView

from starlette_uow import UnitOfWork
from tests.admin_app import Site, csv, item, open_site, session_of
from tests.admin_models import Base, Seat
from tests.databases import Database
from tests.models import Item, Part

Hook: TypeAlias = Callable[[Any], Awaitable[None]]


class Visitor(SQLModel, table=True):
    id: int | None = Field(default=None, sa_column=Column(Integer, primary_key=True))
    name: str = Field(min_length=2)


class VisitorView(sqlmodel.ModelView):
    fields: Any = ("id", "name")
    inline_editable_fields = ("name",)


class SeatView(ModelView):
    fields: Any = ("row", "number", "guest")
    inline_editable_fields = ("guest",)


class Desk(CustomView):
    """A page of the app's own, whose route writes."""

    hook: Hook

    @route("/write", methods=["POST"])
    async def write(self, request: Request) -> Response:
        session_of(request).add(Item(name="c"))
        self.request = request
        await self.hook(self)
        return JSONResponse({})


@dataclass(frozen=True)
class Feature:
    """A request, the event whose subscriber decides, and the view (or inline form) of it.

    `answers` has the statuses of: success, an error for the form, a refused statement, a refused
    COMMIT on PostgreSQL and on SQLite, an exception.
    """

    path: str
    form: dict[str, Any]
    event: AdminEvent
    answers: tuple[int, int, int, int, int, int]
    of: str = "item"


def part(**values: str) -> dict[str, Any]:
    """The form of the item 2, with its part 1."""
    inlines = {f"inlines.part.0.{name}": value for name, value in values.items()}
    return {"data": {"name": "b", "inlines.part.0.pk": "1", **inlines}}


SAVED = (303, 422, 422, 422, 409, 500)
INLINE = (200, 422, 422, 400, 400, 500)
ACTED = (200, 500, 400, 400, 400, 500)
IMPORTED = (200, 200, 200, 400, 400, 200)
EXPORTED = (200, 500, 400, 409, 409, 500)
ROUTED = (200, 500, 409, 409, 409, 500)
GUEST = {"data": {"row": "A", "number": "1", "guest": "Bob"}}
CREATED, EDITED = AdminEvent.AFTER_CREATE, AdminEvent.AFTER_EDIT
DELETED, ACTION = AdminEvent.AFTER_DELETE, AdminEvent.AFTER_ACTION
API = "/_api/item"

FEATURES = {
    "create": Feature("/item/create", item("c"), CREATED, SAVED),
    "edit": Feature("/item/edit?pk=1", item("c"), EDITED, SAVED),
    "inline edit": Feature(f"{API}/inline-edit?pk=1&field=name", item("c"), EDITED, INLINE),
    "form that adds": Feature("/item/create", item("c", parts=1), CREATED, SAVED, "part"),
    "form that changes": Feature("/item/edit?pk=2", part(id="7"), EDITED, SAVED, "part"),
    "form that deletes": Feature("/item/edit?pk=2", part(DELETE="1"), DELETED, SAVED, "part"),
    "row action": Feature(f"{API}/row-action?pk=1&name=mark-one", {}, ACTION, ACTED),
    "batch action": Feature(f"{API}/action?pks=1&name=mark", {}, ACTION, ACTED),
    "delete one": Feature(f"{API}/row-action?pk=1&name=delete", {}, DELETED, ACTED),
    "delete several": Feature("/_api/seat/action?pks=A,1&name=delete", {}, DELETED, ACTED, "seat"),
    "import a row": Feature(f"{API}/import", csv("c"), CREATED, IMPORTED),
    "import": Feature(f"{API}/import", csv("c"), AdminEvent.AFTER_IMPORT, ACTED),
    "preview": Feature(f"{API}/import?preview=1", csv("c"), AdminEvent.AFTER_IMPORT, ACTED),
    "export": Feature(
        f"{API}/action?all=1&name=export",
        {"data": {"format": "csv"}},
        AdminEvent.AFTER_EXPORT,
        EXPORTED,
    ),
    "two keys, edit": Feature("/seat/edit?pk=A,1", GUEST, EDITED, SAVED, "seat"),
    "two keys, inline edit": Feature(
        "/_api/seat/inline-edit?pk=A,1&field=guest", GUEST, EDITED, INLINE, "seat"
    ),
    "sqlmodel, create": Feature("/visitor/create", item("Eve"), CREATED, SAVED, "visitor"),
    "sqlmodel, edit": Feature("/visitor/edit?pk=1", item("Eve"), EDITED, SAVED, "visitor"),
    "custom view": Feature("/desk/write", {}, CREATED, ROUTED, "desk"),
}


async def write(context: Any) -> None:
    session_of(context.request).add(Item(name="written by the subscriber"))


async def blame_the_form(context: Any) -> None:
    await write(context)
    await session_of(context.request).flush()
    raise FormValidationError({"name": "Not this one."})


async def be_refused(context: Any) -> None:
    session_of(context.request).add(Item(name="taken"))


async def be_refused_at_commit(context: Any) -> None:
    await write(context)
    session_of(context.request).add(Part(item_id=999))


async def fail(context: Any) -> None:
    await write(context)
    await session_of(context.request).flush()
    raise RuntimeError("the subscriber failed")


ENDS: tuple[Hook, ...] = (write, blame_the_form, be_refused, be_refused_at_commit, fail)


@pytest.fixture
async def site(uow: UnitOfWork, engine: AsyncEngine) -> AsyncIterator[Site]:
    """With the items 1 (a), 2 (b) and "taken", a part of the second, a seat and a visitor."""
    async with engine.begin() as connection:
        await connection.run_sync(Base.metadata.create_all)
        await connection.run_sync(Visitor.metadata.create_all)
    views = (SeatView(Seat), VisitorView(Visitor), Desk("Desk", path="/desk"))
    async with open_site(uow, "app-has-unit", *views) as site:
        async with uow:
            uow.session.add_all([Item(name="taken"), Part(item_id=2), Visitor(name="Ada")])
            uow.session.add(Seat(row="A", number=1, guest="Ada"))
        yield site
    async with engine.begin() as connection:
        await connection.run_sync(Base.metadata.drop_all)
        await connection.run_sync(Visitor.metadata.drop_all)


def subscribe(site: Site, feature: Feature, hook: Hook) -> None:
    if feature.of == "desk":
        next(view for view in site.admin._views if isinstance(view, Desk)).hook = hook
        return
    views = {view.key: view for view in site.admin._model_views}
    inline = views["item"]._inline_instances[0]
    view = inline if feature.of == "part" else views[feature.of]
    view.events.on(feature.event, hook)


async def contents(database: Database) -> list[object]:
    """The names of all items, and of the other tables the newest row."""
    questions = ("max(id) from parts", "max(guest) from seats", "max(name) from visitor")
    newest = [await database.observer.scalar(f"select {question}") for question in questions]
    return [await database.observer.names(), *newest]


@pytest.mark.parametrize("end", ENDS)
@pytest.mark.parametrize("feature", FEATURES)
async def test_request_of_a_feature_is_committed_whole_or_not_at_all(
    site: Site, database: Database, feature: str, end: Hook
) -> None:
    """It succeeds, is refused by the form, a statement or COMMIT, or fails."""
    told = FEATURES[feature]
    before = await contents(database)
    called: list[str] = []

    async def hook(context: Any) -> None:
        on_commit(context.request, lambda: called.append(feature))
        await end(context)

    subscribe(site, told, hook)

    response = await site.post(told.path, **told.form)

    good, form, statement, on_postgres, on_sqlite, error = told.answers
    at_commit = on_postgres if database.is_postgres else on_sqlite
    expected = dict(zip(ENDS, (good, form, statement, at_commit, error), strict=True))
    assert response.status_code == expected[end]
    after = await contents(database)
    if end is write:
        assert after != before
        assert "written by the subscriber" in await database.observer.names()
        assert called == [feature]
    else:
        assert after == before
        assert called == []
        assert not site.has_flash


@pytest.mark.parametrize("feature", FEATURES)
async def test_feature_whose_client_leaves_writes_nothing(
    site: Site, database: Database, feature: str
) -> None:
    """Its work was done already, and its connection goes back clean, as the fixtures check."""
    told = FEATURES[feature]
    before = await contents(database)
    reached = asyncio.Event()

    async def stop(context: Any) -> None:
        await write(context)
        await session_of(context.request).flush()
        reached.set()
        await asyncio.Event().wait()

    subscribe(site, told, stop)
    request = asyncio.create_task(site.post(told.path, **told.form))
    await reached.wait()

    request.cancel()

    with pytest.raises(asyncio.CancelledError):
        await request
    assert await contents(database) == before
