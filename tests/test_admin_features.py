"""The features of starlette-admin, one by one, in the request's unit of work."""

from __future__ import annotations

import asyncio
import gc
import re
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from libcloud.storage.drivers.local import LocalStorageDriver
from sqlalchemy import Column, Integer, MetaData, String, select
from sqlalchemy.ext.asyncio import AsyncEngine, async_sessionmaker
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column
from sqlalchemy_file import FileField as FileColumn
from sqlalchemy_file.storage import StorageManager
from sqlmodel import Field, SQLModel
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route
from starlette.types import ASGIApp, Receive, Scope, Send
from starlette_admin import StatWidget, route
from starlette_admin.base import BaseAdmin
from starlette_admin.contrib import sqlmodel
from starlette_admin.contrib.sqla import ModelView
from starlette_admin.contrib.sqla.middleware import DBSessionMiddleware
from starlette_admin.events import AdminEvent
from starlette_admin.exceptions import FormValidationError
from starlette_admin.fields import FileField, StringField
from starlette_admin.i18n import I18nConfig
from starlette_admin.plugins import BasePlugin
from starlette_admin.storage import LocalStorage
from starlette_admin.views import BaseView, CustomView

from starlette_uow import ConfigurationError, UnitOfWork, current_session
from starlette_uow.admin import Admin, AdminUnitMiddleware, UnitOfWorkPlugin
from tests.admin_app import (
    KINDS,
    Site,
    csv,
    item,
    new_admin,
    new_app,
    open_client,
    open_site,
    session_of,
    stock_admin,
    transactions,
)
from tests.admin_models import Base, Document, Seat
from tests.databases import Database
from tests.models import Item, Part

EVENTS = {
    AdminEvent.BEFORE_CREATE: ("/item/create", item("c")),
    AdminEvent.AFTER_CREATE: ("/item/create", item("c")),
    AdminEvent.BEFORE_EDIT: ("/item/edit?pk=1", item("c")),
    AdminEvent.AFTER_EDIT: ("/item/edit?pk=1", item("c")),
    AdminEvent.BEFORE_DELETE: ("/_api/item/action?pks=1&name=delete", {}),
    AdminEvent.AFTER_DELETE: ("/_api/item/action?pks=1&name=delete", {}),
    AdminEvent.BEFORE_ACTION: ("/_api/item/row-action?pk=1&name=mark-one", {}),
    AdminEvent.AFTER_ACTION: ("/_api/item/row-action?pk=1&name=mark-one", {}),
    AdminEvent.BEFORE_EXPORT: (
        "/_api/item/action?all=1&name=export",
        {"data": {"format": "csv"}},
    ),
    AdminEvent.AFTER_EXPORT: (
        "/_api/item/action?all=1&name=export",
        {"data": {"format": "csv"}},
    ),
    AdminEvent.BEFORE_IMPORT: ("/_api/item/import", csv("c")),
    AdminEvent.AFTER_IMPORT: ("/_api/item/import", csv("c")),
}
"""Each event, and the request in which it fires."""


class Upload(DeclarativeBase):
    metadata = MetaData()


class Picture(Upload):
    """Its file is sqlalchemy_file's."""

    __tablename__ = "pictures"
    id: Mapped[int] = mapped_column(primary_key=True)
    name: Mapped[str] = mapped_column(String(50))
    file: Mapped[Any] = mapped_column(FileColumn(upload_storage="pictures"))


class Guest(SQLModel, table=True):
    id: int | None = Field(default=None, sa_column=Column(Integer, primary_key=True))
    name: str = Field(min_length=2)


@pytest.fixture(params=KINDS)
async def site(uow: UnitOfWork, request: pytest.FixtureRequest) -> AsyncIterator[Site]:
    async with open_site(uow, request.param) as site:
        yield site


@pytest.fixture
async def tables(engine: AsyncEngine) -> AsyncIterator[None]:
    tables = [Base.metadata, Upload.metadata, SQLModel.metadata]
    async with engine.begin() as connection:
        for metadata in tables:
            await connection.run_sync(metadata.create_all)
    yield
    async with engine.begin() as connection:
        for metadata in tables:
            await connection.run_sync(metadata.drop_all)


# --- events ------------------------------------------------------------------------------------


@pytest.mark.parametrize("event", EVENTS)
async def test_subscriber_that_raises_undoes_the_request(
    site: Site, database: Database, event: AdminEvent
) -> None:
    """Also where it had written; of an import only the row, which `errors` tells of."""

    @site.admin.events.on(event)
    async def fail(context: Any) -> None:
        session_of(context.request).add(Item(name="written by the subscriber"))
        await session_of(context.request).flush()
        raise RuntimeError("the subscriber failed")

    path, form = EVENTS[event]
    response = await site.post(path, **form)

    assert response.status_code == 500
    assert await database.observer.names() == ["a", "b"]


@pytest.mark.parametrize("event", EVENTS)
async def test_request_that_is_cancelled_in_a_subscriber_writes_nothing(
    site: Site, database: Database, event: AdminEvent
) -> None:
    """Its connection goes back clean, as the fixtures check."""
    reached = asyncio.Event()

    @site.admin.events.on(event)
    async def stop(context: Any) -> None:
        session_of(context.request).add(Item(name="written by the subscriber"))
        await session_of(context.request).flush()
        reached.set()
        await asyncio.Event().wait()

    path, form = EVENTS[event]
    request = asyncio.create_task(site.post(path, **form))
    await reached.wait()

    request.cancel()

    with pytest.raises(asyncio.CancelledError):
        await request
    assert await database.observer.names() == ["a", "b"]


async def test_deleted_object_keeps_its_columns_for_the_event_after_the_commit(
    site: Site, database: Database
) -> None:
    """starlette-admin has detached it; each of a batch is told."""
    seen: list[tuple[str, list[str]]] = []

    @site.admin.events.on(AdminEvent.AFTER_DELETE_COMMITTED)
    async def note(context: Any) -> None:
        seen.append((context.obj.name, await database.observer.names()))

    response = await site.post("/_api/item/action?pks=1&pks=2&name=delete")

    assert response.status_code == 200
    assert sorted(seen) == [("a", []), ("b", [])]


# --- pages -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("path", "contains", "lacks"),
    [
        ("/item/list?sort=name__desc", "pk=1", "never"),
        ("/item/list?filter=name__eq=b", "pk=2", "pk=1"),
        ("/item/list?q=nothing", "No", "pk=1"),
        ("/item/list?page=2&page_size=10", "No", "pk=1"),
        ("/_api/item/inline-edit?pk=1&field=name", 'value="a"', "never"),
        ("/_api/item/inline-edit/row?pk=2", "pk=2", "pk=1"),
        ("/part/list", "Part", "never"),
        ("/_api/item/relation-lookup?skip=1&limit=1", '"b"', '"a"'),
    ],
)
async def test_page_reads_in_one_transaction_and_writes_nothing(
    site: Site, engine: AsyncEngine, path: str, contains: str, lacks: str
) -> None:
    """Lists with filters, sorting and pages; the fragments of an inline edit; a picker."""
    with transactions(engine) as seen:
        response = await site.get(path)

    assert response.status_code == 200
    assert contains in response.text
    assert lacks not in response.text
    assert seen == ["begin", "commit"]


class Report(CustomView):
    """A page with a widget that asks the database, and a route that writes."""

    @route("/write", methods=["POST"])
    async def write(self, request: Request) -> Response:
        session_of(request).add(Item(name=request.query_params["name"]))
        return JSONResponse({}, status_code=int(request.query_params["status"]))


@pytest.mark.parametrize("status", [200, 409])
async def test_route_of_a_custom_view_is_a_unit(
    uow: UnitOfWork, database: Database, status: int
) -> None:
    """It follows the rule of every endpoint."""

    async def count(request: Request) -> int:
        return len((await current_session().scalars(select(Item))).all())

    report = Report("Report", path="/report", widget=StatWidget("Items", value_callback=count))
    async with open_site(uow, "plugin", report) as site:
        page = await site.get("/report")
        response = await site.post(f"/report/write?name=c&status={status}")

    assert "2" in re.findall(r"\d+", page.text.partition("Items</div>")[2])
    assert response.status_code == status
    assert await database.observer.names() == (["a", "b", "c"] if status == 200 else ["a", "b"])


# --- views -------------------------------------------------------------------------------------


class GuestView(sqlmodel.ModelView):
    fields: Any = ("id", "name")


@pytest.mark.parametrize(("name", "status"), [("Ada", 303), ("A", 422)])
async def test_view_of_a_sqlmodel_validates_before_it_writes(
    uow: UnitOfWork, database: Database, tables: None, name: str, status: int
) -> None:
    """Its validation is pydantic's; the session is the unit's."""
    async with open_site(uow, "app-has-unit", GuestView(Guest)) as site:
        response = await site.post("/guest/create", data={"name": name})

    assert response.status_code == status
    assert await database.observer.scalar("select count(*) from guest") == (status == 303)


class SeatView(ModelView):
    fields: Any = ("row", "number", "guest")


async def test_view_of_a_key_with_two_columns_creates_edits_and_deletes(
    uow: UnitOfWork, database: Database, tables: None
) -> None:
    """Its key in the URL is both, with a comma."""
    async with open_site(uow, "plugin", SeatView(Seat)) as site:
        seat = {"row": "A", "number": "1", "guest": "Ada"}
        created = await site.post("/seat/create", data=seat)
        again = await site.post("/seat/create", data=seat)
        edited = await site.post("/seat/edit?pk=A,1", data={**seat, "guest": "Bob"})
        guest = await database.observer.scalar("select guest from seats")
        deleted = await site.post("/_api/seat/action?pks=A,1&name=delete")

    statuses = [r.status_code for r in (created, again, edited, deleted)]
    assert statuses == [303, 422, 303, 200]
    assert guest == "Bob"
    assert await database.observer.scalar("select count(*) from seats") == 0


# --- files -------------------------------------------------------------------------------------


def file(content: bytes) -> dict[str, Any]:
    return {"files": {"file": ("a.txt", content, "text/plain")}}


class DocumentView(ModelView):
    """Refuses the title "late" when the file is stored already."""

    async def validate(self, request: Request, data: dict[str, Any]) -> None:
        if data["title"] == "late":
            raise FormValidationError({"title": "Too late."})


@pytest.mark.parametrize("path", ["/document/create", "/document/edit?pk=1"])
@pytest.mark.parametrize(("title", "status"), [("two", 303), ("late", 422), ("taken", 422)])
async def test_upload_is_removed_when_its_row_is_not_written(
    uow: UnitOfWork,
    database: Database,
    tables: None,
    tmp_path: Path,
    path: str,
    title: str,
    status: int,
) -> None:
    """starlette-admin stores it first. Neither half is left: no file without row, nor the other
    way around. The upload is closed, or there would be a warning.
    """
    folder = tmp_path / "files"
    fields = [StringField("title"), FileField("file", storage=LocalStorage(folder, "here"))]
    view = type("View", (DocumentView,), {"fields": fields})(Document)
    async with uow:
        old = Document(title="one", file={"storage": "here", "key": "old.txt"})
        uow.session.add_all([old, Document(title="taken")])
    (folder / "old.txt").write_text("old")
    async with open_site(uow, "plugin", view) as site:
        response = await site.post(path, data={"title": title}, **file(b"new"))

    assert response.status_code == status
    stored = ["a.txt", "old.txt"] if status == 303 else ["old.txt"]
    assert sorted(path.name for path in folder.iterdir()) == stored


class PictureView(ModelView):
    fields: Any = ("id", "name", "file")


@pytest.mark.filterwarnings("ignore:Unclosed file:ResourceWarning")  # of sqlalchemy_file itself
@pytest.mark.parametrize("fail", [False, True])
@pytest.mark.parametrize("what", ["create", "edit", "delete"])
async def test_files_of_sqlalchemy_file_follow_the_transaction(
    uow: UnitOfWork, database: Database, tables: None, tmp_path: Path, what: str, fail: bool
) -> None:
    """It acts when a savepoint ends, which here is before the hook that fails."""
    container = local_container(tmp_path)
    StorageManager._clear()
    StorageManager.add_storage("pictures", container)
    async with open_site(uow, "app-has-unit", PictureView(Picture)) as site:
        await site.post("/picture/create", data={"name": "one"}, **file(b"old"))
        before = contents(container)

        async def note(context: Any) -> None:
            if fail:
                raise RuntimeError("after the savepoint")

        for event in (AdminEvent.AFTER_CREATE, AdminEvent.AFTER_EDIT, AdminEvent.AFTER_DELETE):
            site.admin.events.on(event, note)
        if what == "delete":
            response = await site.post("/_api/picture/row-action?pk=1&name=delete")
        else:
            path = f"/picture/{what}" + ("?pk=1" if what == "edit" else "")
            response = await site.post(path, data={"name": "two"}, **file(b"new"))

    done = {"create": [b"new", b"old"], "edit": [b"new"], "delete": []}[what]
    assert response.is_server_error == fail
    assert before == [b"old"]
    assert contents(container) == (before if fail else done)
    gc.collect()  # while the warning is ignored


def contents(container: Any) -> list[bytes]:
    """Of the files, without those that sqlalchemy_file keeps what it knows of them in."""
    files = [b"".join(stored.as_stream()) for stored in container.list_objects()]
    return sorted(content for content in files if not content.startswith(b"{"))


def local_container(path: Path) -> Any:
    driver: Any = LocalStorageDriver
    return driver(str(path)).create_container("pictures")


# --- languages and plugins ---------------------------------------------------------------------


async def test_admin_speaks_the_language_of_its_reader(uow: UnitOfWork, database: Database) -> None:
    """In the error of a form, which is rolled back, and in a message that waits for the commit."""
    admin = new_admin(uow, i18n_config=I18nConfig(default_locale="de"))
    async with open_client(new_app(admin, uow=uow)) as client:
        refused = await client.post("/admin/item/create", data={"name": ""})
        created = await client.post("/admin/item/create", data={"name": "c"})
        page = await client.get("/admin/item/list")

    assert (refused.status_code, created.status_code) == (422, 303)
    assert "Dieses Feld ist erforderlich" in refused.text
    assert "erfolgreich" in page.text
    assert await database.observer.names() == ["c"]


class Notes(BasePlugin):
    """Brings what a plugin can bring: a middleware, a route, a view, and a subscriber."""

    name = "notes"

    def middlewares(self) -> list[Middleware]:
        return [Middleware(NoteMiddleware)]

    def routes(self) -> list[Route]:
        return [Route("/fail", self.fail, methods=["POST"])]

    def views(self) -> list[BaseView]:
        return [PlainView(Part, key="plain")]

    def setup(self, admin: BaseAdmin) -> None:
        admin.events.on(AdminEvent.AFTER_CREATE, self.note)

    async def fail(self, request: Request) -> Response:
        session_of(request).add(Item(name="written by the route"))
        return JSONResponse({}, status_code=409)

    async def note(self, context: Any) -> None:
        session_of(context.request).add(Item(name="noted by the subscriber"))


class NoteMiddleware:
    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http" and scope["method"] == "POST":
            current_session().add(Item(name="noted by the middleware"))
        await self.app(scope, receive, send)


class PlainView(ModelView):
    fields: Any = ("id", "item_id")


async def test_plugin_works_in_the_unit_of_the_request(uow: UnitOfWork, database: Database) -> None:
    """All of it is committed together, or not at all."""
    admin = new_admin(uow, plugins=[Notes()])
    async with uow:
        uow.session.add(Item(name="a"))
    async with open_client(new_app(admin, uow=uow)) as client:
        failed = await client.post("/admin/plugins/notes/fail")
        refused = await client.post("/admin/plain/create", data={"item_id": "999"})
        before = await database.observer.names()
        created = await client.post("/admin/plain/create", data={"item_id": "1"})

    noted = ["noted by the middleware", "noted by the subscriber"]
    assert failed.status_code == 409
    assert refused.status_code == (422 if database.is_postgres else 409)
    assert before == ["a"]
    assert created.status_code == 303
    assert await database.observer.names() == ["a", *noted]
    assert await database.observer.scalar("select count(*) from parts") == 1


# --- admins ------------------------------------------------------------------------------------


async def test_two_admins_with_databases_of_their_own_are_two_units(
    uow: UnitOfWork, engine: AsyncEngine, database: Database
) -> None:
    """A view of each writes with its own; `request.state.session` is that of its admin."""
    other = UnitOfWork(engine)
    admins = [
        new_admin(uow, base_url="/one", route_name="one"),
        new_admin(other, base_url="/two", route_name="two"),
    ]
    seen: list[bool] = []

    @admins[1].events.on(AdminEvent.AFTER_CREATE)
    async def look(context: Any) -> None:
        seen.append(session_of(context.request) is other.session is current_session())
        seen.append(session_of(context.request) is uow.session)

    async with open_client(new_app(*admins, uow=uow), "/two") as client:
        response = await client.post("/two/item/create", data={"name": "two"})

    assert response.status_code == 303
    assert seen == [True, False]
    assert await database.observer.names() == ["two"]


async def test_admin_of_several_databases_writes_each_view_to_its_own(
    engine: AsyncEngine, database: Database
) -> None:
    """The session has no bind of its own, but one for each model."""
    uow = UnitOfWork(async_sessionmaker(binds={Item: engine, Part: engine}, expire_on_commit=False))
    async with open_site(uow, "app-has-unit") as site:
        responses = [
            await site.post("/item/create", **item("c")),
            await site.post("/part/create", data={"item": "1"}),
            await site.post("/item/create", **item("c")),
        ]

    assert [response.status_code for response in responses] == [303, 303, 422]
    assert await database.observer.names() == ["a", "b", "c"]


async def test_plugin_replaces_one_middleware_and_leaves_the_others(uow: UnitOfWork) -> None:
    """It stands where starlette-admin's own stood: outside of all that use the session."""
    admin = stock_admin(uow)
    names = [str(middleware.cls) for middleware in admin.middlewares]

    new_app(admin)

    ours = [str(middleware.cls) for middleware in admin.app.user_middleware]
    assert [(a, b) for a, b in zip(names, ours, strict=False) if a != b] == [
        (str(DBSessionMiddleware), str(AdminUnitMiddleware))
    ]


def test_plugin_in_an_admin_of_ours_is_refused(uow: UnitOfWork) -> None:
    """It would replace what is replaced already."""
    admin = Admin(uow, secret_key="secret", plugins=[UnitOfWorkPlugin(uow)])

    with pytest.raises(ConfigurationError, match="0 session middlewares"):
        new_app(admin)
