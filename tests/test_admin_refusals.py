"""What starlette-admin catches, what a database refuses, what a hook does to the transaction."""

from __future__ import annotations

import gc
import re
from collections.abc import AsyncIterator
from typing import Any

import httpx
import pytest
from sqlalchemy import Select, text
from sqlalchemy.ext.asyncio import AsyncEngine
from starlette.requests import Request
from starlette_admin.auth import AdminUser
from starlette_admin.contrib.sqla import ModelView
from starlette_admin.events import AdminEvent
from starlette_admin.exceptions import ActionFailed
from starlette_admin.helpers import on_commit

from starlette_uow import UnitOfWork
from tests.admin_app import (
    KINDS,
    HeaderAuth,
    ItemView,
    Site,
    csv,
    item,
    new_admin,
    new_app,
    open_site,
    session_of,
)
from tests.admin_models import Base, Document, Seat
from tests.databases import Database
from tests.models import Item, Part

MESSAGE = re.compile(
    r'(?:alert-description">|invalid-feedback[^>]*>|cross-errors[^>]*>\s*<div>|subtitle[^>]*>)([^<]+)'
)
"""What a page tells its reader: above the form, below a field, on an error page."""

TAKEN = {
    "postgresql": "The database refused this: Key (name)=(b) already exists.",
    "sqlite": "The database refused this: UNIQUE constraint failed: items.name",
}


class DocumentView(ModelView):
    fields: Any = ("id", "title", "version")
    inline_editable_fields = ("title",)


class SeatView(ModelView):
    """Its first lookup of several keys fails, as on a database without `(a, b) IN (...)`."""

    fields: Any = ("row", "number", "guest")
    lookups = 0

    def get_detail_query(self, request: Request) -> Select[Any]:
        query = super().get_detail_query(request)
        SeatView.lookups += 1
        if SeatView.lookups == 1:
            return query.where(text("no_such_function(1) = 1"))
        return query


@pytest.fixture(params=KINDS)
async def site(uow: UnitOfWork, request: pytest.FixtureRequest) -> AsyncIterator[Site]:
    async with open_site(uow, request.param) as site:
        yield site


@pytest.fixture
async def tables(engine: AsyncEngine) -> AsyncIterator[None]:
    async with engine.begin() as connection:
        await connection.run_sync(Base.metadata.create_all)
    yield
    async with engine.begin() as connection:
        await connection.run_sync(Base.metadata.drop_all)


def messages(page: str) -> list[str]:
    return [match.strip() for match in MESSAGE.findall(page) if match.strip()]


# --- what the database refuses -----------------------------------------------------------------


@pytest.mark.parametrize(
    ("path", "form"),
    [
        ("/item/create", item("b")),
        ("/item/edit?pk=1", item("b")),
        ("/_api/item/inline-edit?pk=1&field=name", item("b")),
    ],
)
async def test_form_tells_what_the_database_refuses(
    site: Site, database: Database, path: str, form: dict[str, Any]
) -> None:
    """At the field it is about, with what was typed, and with nothing written."""
    response = await site.post(path, **form)

    assert response.status_code == 422
    assert messages(response.text) == [TAKEN[database.name]]
    assert 'value="b"' in response.text
    assert await database.observer.names() == ["a", "b"]


@pytest.mark.parametrize("path", ["/item/create", "/item/edit?pk=1"])
async def test_refusal_of_what_a_hook_adds_is_told_above_the_form(
    site: Site, database: Database, path: str
) -> None:
    """No field is to blame; the hook has not flushed it, so nothing else would notice in time."""

    async def add(context: Any) -> None:
        session_of(context.request).add(Item(name=""))

    site.admin.events.on(AdminEvent.AFTER_CREATE, add)
    site.admin.events.on(AdminEvent.AFTER_EDIT, add)

    response = await site.post(path, **item("c"))

    assert response.status_code == 422
    assert ["item_has_name" in message for message in messages(response.text)] == [True]
    assert not site.has_flash
    assert await database.observer.names() == ["a", "b"]


async def test_refused_commit_is_told_in_the_form_or_on_a_page(
    site: Site, database: Database
) -> None:
    """PostgreSQL can be asked before the COMMIT, while the form can still be shown again."""
    response = await site.post("/stray/create", data={"item_id": "999"})

    [message] = messages(response.text)
    if database.is_postgres:
        assert response.status_code == 422
        assert message.endswith("Key (item_id)=(999) is not present in table &#34;items&#34;.")
        assert 'value="999"' in response.text
    else:
        assert response.status_code == 409
        assert message.startswith("Nothing was saved. The database refused this: FOREIGN KEY")
    assert not site.has_flash
    assert await database.observer.scalar("select count(*) from parts") == 0


async def test_inline_form_tells_what_the_database_refuses(site: Site, database: Database) -> None:
    """The other rows and the parent are not written either."""

    @site.admin.events.on(AdminEvent.AFTER_CREATE)
    async def look(context: Any) -> None:
        seen.append(context.obj.name)

    seen: list[str] = []
    part = site.admin._find_view_by_key("item")._inline_instances[0]

    @part.events.on(AdminEvent.BEFORE_CREATE)
    async def refuse(context: Any) -> None:
        session_of(context.request).add(Item(name="b"))

    response = await site.post("/item/create", **item("c", parts=1))

    assert response.status_code == 422
    assert seen == ["c"]
    assert messages(response.text) == [TAKEN[database.name]]
    assert await database.observer.names() == ["a", "b"]
    assert await database.observer.scalar("select count(*) from parts") == 0


async def test_refused_commit_takes_the_messages_of_the_inline_forms_with_it(
    site: Site, database: Database
) -> None:
    """Their rows were added, until the COMMIT was asked for."""

    @site.admin.events.on(AdminEvent.AFTER_CREATE)
    async def add_stray(context: Any) -> None:
        session_of(context.request).add(Part(item_id=999))

    response = await site.post("/item/create", **item("c", parts=1))

    [message] = messages(response.text)
    assert response.status_code == (422 if database.is_postgres else 409)
    assert "refused" in message
    assert await database.observer.names() == ["a", "b"]


@pytest.mark.parametrize("flushed", [True, False])
async def test_action_tells_what_the_database_refuses_without_the_sql(
    site: Site, database: Database, flushed: bool
) -> None:
    """A statement of it, or what it left to be flushed."""

    @site.admin.events.on(AdminEvent.AFTER_ACTION)
    async def look(context: Any) -> None:
        session_of(context.request).add(Item(name="b"))
        if flushed:
            await session_of(context.request).flush()

    response = await site.post("/_api/item/row-action?pk=1&name=mark-one")

    assert response.status_code == 400
    assert response.json() == {"msg": TAKEN[database.name]}
    assert await database.observer.names() == ["a", "b"]


async def test_action_that_fails_otherwise_is_told_as_starlette_admin_does(site: Site) -> None:
    """What is not about the data is no message of ours."""

    @site.admin.events.on(AdminEvent.BEFORE_ACTION)
    async def fail(context: Any) -> None:
        await session_of(context.request).execute(text("select * from nowhere"))

    response = await site.post("/_api/item/row-action?pk=1&name=mark-one")

    assert response.status_code == 400
    assert "nowhere" in response.json()["msg"]
    assert "refused" not in response.json()["msg"]


async def test_field_of_a_relation_tells_of_its_column(site: Site, database: Database) -> None:
    """NOT NULL is violated in `item_id`, and the form has the field `item`."""
    view = site.admin._find_view_by_key("part")
    next(field for field in view.fields if field.name == "item").required = False

    response = await site.post("/part/create", data={})

    assert response.status_code == 422
    assert ["item_id" in message for message in messages(response.text)] == [True]
    assert "is-invalid" in response.text


@pytest.mark.parametrize("part_of", [1, 999])
async def test_refusal_in_a_view_of_the_app_is_answered_with_a_page(
    site: Site, database: Database, part_of: int
) -> None:
    """A hook of a page that is no form: the admin answers 409, not a bare 500."""

    @site.admin.events.on(AdminEvent.BEFORE_EXPORT)
    async def write(context: Any) -> None:
        session_of(context.request).add(Item(name="b" if part_of == 1 else "c"))

    response = await site.post("/_api/item/action?all=1&name=export", data={"format": "csv"})

    assert response.status_code == (400 if part_of == 1 else 200)


# --- two who edit the same row -----------------------------------------------------------------


async def test_edit_of_what_somebody_else_has_changed_is_refused(
    uow: UnitOfWork, database: Database, tables: None
) -> None:
    """Two windows have the same form open; the version that it carries tells."""
    async with open_site(uow, "app-has-unit", DocumentView(Document)) as site:
        await site.post("/document/create", data={"title": "one", "version": "1"})

        first = await site.post("/document/edit?pk=1", data={"title": "two", "version": "1"})
        second = await site.post("/document/edit?pk=1", data={"title": "three", "version": "1"})
        third = await site.post("/document/edit?pk=1", data={"title": "four", "version": "2"})

    assert [r.status_code for r in (first, second, third)] == [303, 422, 303]
    assert "Somebody else has changed this" in messages(second.text)[-1]
    assert 'value="three"' in second.text
    assert await database.observer.scalar("select title from documents") == "four"


async def test_two_edits_at_the_same_time_end_in_one_and_a_message(
    uow: UnitOfWork, database: Database, tables: None
) -> None:
    """Neither form carries a version; the row changes between one's reading and its writing."""
    view = DocumentView(Document)
    if not database.is_postgres:
        pytest.skip("SQLite has one writer at a time")
    async with open_site(uow, "plugin", view) as site:
        await site.post("/document/create", data={"title": "one", "version": "1"})

        @view.events.on(AdminEvent.BEFORE_EDIT)
        async def change(context: Any) -> None:
            async with uow.new():
                (await uow.session.get_one(Document, 1)).title = "by somebody else"

        path = "/_api/document/inline-edit?pk=1&field=title"
        response = await site.post(path, data={"title": "mine"})

    assert response.status_code == 422
    assert "Somebody else has changed this" in messages(response.text)[0]
    assert await database.observer.scalar("select title from documents") == "by somebody else"


# --- what starlette-admin catches --------------------------------------------------------------


@pytest.mark.parametrize("how", ["raise", "statement", "flush"])
@pytest.mark.parametrize(
    "event",
    [AdminEvent.BEFORE_CREATE, AdminEvent.AFTER_CREATE, AdminEvent.AFTER_EDIT],
)
async def test_row_of_an_import_fails_alone_with_its_hooks(
    site: Site, database: Database, event: AdminEvent, how: str
) -> None:
    """The import view answers 200 for the rows that are fine. Of a bad one nothing is left."""
    called: list[str] = []

    @site.admin.events.on(event, priority=1)
    async def write(context: Any) -> None:
        session = session_of(context.request)
        session.add(Item(name=f"audit of {context.obj.name}"))
        on_commit(context.request, lambda: called.append(context.obj.name))
        if context.obj.name != "bad":
            return
        if how == "raise":
            raise RuntimeError("the hook failed")
        if how == "statement":
            await session.execute(text("select * from nowhere"))
        session.add(Item(name=""))

    view = site.admin._find_view_by_key("item")
    view.exclude_fields_from_import = ("parts",)
    for field in view._all_fields:
        field.exclude_from_import = field.name == "parts"
    edits = event is AdminEvent.AFTER_EDIT
    rows = b"id,name\n1,A\n2,bad\n" if edits else b"id,name\n,c\n,bad\n,d\n"
    form = {"format": "csv", "update_existing": "1"}

    response = await site.post(
        "/_api/item/import", data=form, files={"file": ("items.csv", rows, "text/csv")}
    )

    done = ["A"] if edits else ["c", "d"]
    assert response.status_code == 200
    assert [error["row"] for error in response.json()["errors"]] == [2]
    assert called == done
    kept = ["b"] if edits else ["a", "b"]
    audits = [f"audit of {name}" for name in done]
    assert sorted(await database.observer.names()) == sorted([*kept, *done, *audits])


@pytest.mark.parametrize("preview", [True, False])
async def test_row_of_an_import_fails_alone_before_it_comes_to_its_view(
    site: Site, database: Database, preview: bool
) -> None:
    """A validator asks the database, which fails; PostgreSQL would refuse all that follows."""

    async def ask(request: Request, field: object, value: str, form: object) -> None:
        session_of(request).add(Item(name=f"seen {value}"))
        await session_of(request).execute(text("select 1 from items"))
        if value == "bad":
            await session_of(request).execute(text("select * from nowhere"))

    view = site.admin._find_view_by_key("item")
    next(field for field in view.fields if field.name == "name").validators = [ask]

    response = await site.post(f"/_api/item/import?preview={preview:d}", **csv("c", "bad", "d"))

    told = response.json()
    assert response.status_code == 200
    assert [error["row"] for error in told["errors"]] == [2]
    assert told["rows_new" if preview else "rows_created"] == 2
    done = [] if preview else ["c", "d", "seen c", "seen d"]
    assert await database.observer.names() == ["a", "b", *done]


async def test_preview_of_an_import_writes_no_row(site: Site, database: Database) -> None:
    """It says what would happen."""
    response = await site.post("/_api/item/import?preview=1", **csv("c", '""'))

    assert (response.json()["rows_new"], response.json()["has_errors"]) == (1, True)
    assert await database.observer.names() == ["a", "b"]


async def test_import_that_breaks_off_writes_no_row(site: Site, database: Database) -> None:
    """The file cannot be read to its end. Left open, it would be a warning."""
    file = ("items.csv", b"name\nc\nd\n\xff\n", "text/csv")

    response = await site.post("/_api/item/import", data={"format": "csv"}, files={"file": file})

    assert response.status_code == 400
    assert await database.observer.names() == ["a", "b"]


@pytest.mark.parametrize("event", [AdminEvent.BEFORE_EXPORT, AdminEvent.AFTER_EXPORT])
@pytest.mark.parametrize("error", [ActionFailed("Not today."), ImportError("Not today.")])
async def test_export_that_fails_undoes_what_its_hooks_wrote(
    site: Site, database: Database, event: AdminEvent, error: Exception
) -> None:
    """It is answered with a redirect and a message, which would be a commit."""

    @site.admin.events.on(event)
    async def fail(context: Any) -> None:
        session_of(context.request).add(Item(name="exported"))
        await session_of(context.request).flush()
        raise error

    response = await site.post("/_api/item/action?all=1&name=export", data={"format": "csv"})
    page = await site.get("/item/list")

    assert response.status_code == 303
    assert messages(page.text) == ["Not today."]
    assert await database.observer.names() == ["a", "b"]


async def test_export_that_succeeds_keeps_what_its_hooks_wrote(
    site: Site, database: Database
) -> None:
    """An audit row, say."""

    @site.admin.events.on(AdminEvent.AFTER_EXPORT)
    async def note(context: Any) -> None:
        session_of(context.request).add(Item(name="exported"))

    response = await site.post("/_api/item/action?all=1&name=export", data={"format": "csv"})

    assert response.status_code == 200
    assert await database.observer.names() == ["a", "b", "exported"]


async def test_index_page_shows_the_other_counts_when_one_fails(
    uow: UnitOfWork, database: Database
) -> None:
    """A table that was not created yet fails on PostgreSQL with all that follows it."""

    class Stamping(HeaderAuth):
        async def authenticate(self, request: Request) -> AdminUser | None:
            if request.url.path == "/admin/":
                session_of(request).add(Item(name="stamp"))
            return AdminUser("anybody")

    views = (DocumentView(Document), ItemView(Item, key="late"))
    admin = new_admin(uow, *views, auth_provider=Stamping())
    transport = httpx.ASGITransport(new_app(admin))
    async with httpx.AsyncClient(transport=transport, base_url="http://test") as client:
        response = await client.get("/admin/")

    counts = re.findall(r"<strong>(.+)</strong> total records", response.text)
    assert response.status_code == 200
    assert counts == ["1", "0", "0", "?", "1"]
    assert await database.observer.names() == ["stamp"]


async def test_lookup_of_keys_that_is_tried_again_is_committed_or_an_error(
    uow: UnitOfWork, database: Database, tables: None
) -> None:
    """starlette-admin catches the first failure. PostgreSQL then refuses all that follows."""
    SeatView.lookups = 0
    async with uow:
        uow.session.add_all([Seat(row="A", number=n, guest="Ada") for n in (1, 2)])
    async with open_site(uow, "app-has-unit", SeatView(Seat)) as site:
        response = await site.post("/_api/seat/action?pks=A,1&pks=A,2&name=delete")

    left = await database.observer.scalar("select count(*) from seats")
    if database.is_postgres:
        assert (response.status_code, left) == (400, 2)
    else:
        assert (response.status_code, left) == (200, 0)


# --- what hooks do to the transaction ----------------------------------------------------------


# The admin reads a row that the rollback has expired. SQLAlchemy refuses to wait for that, and
# drops what it made to open a cursor: a plain coroutine it would close, aiosqlite's it does not.
@pytest.mark.filterwarnings("ignore:coroutine .Connection.cursor. was never awaited:RuntimeWarning")
@pytest.mark.parametrize(
    ("event", "path", "form"),
    [
        (AdminEvent.AFTER_CREATE, "/item/create", item("c")),
        (AdminEvent.AFTER_EDIT, "/item/edit?pk=1", item("c")),
        (AdminEvent.AFTER_DELETE, "/_api/item/row-action?pk=1&name=delete", {}),
    ],
)
async def test_hook_that_rolls_back_is_not_answered_as_a_success(
    site: Site, database: Database, event: AdminEvent, path: str, form: dict[str, Any]
) -> None:
    """starlette-admin goes on as if the row were there, down to the event after its commit."""
    called: list[object] = []

    @site.admin.events.on(event)
    async def roll_back(context: Any) -> None:
        await session_of(context.request).rollback()

    @site.admin.events.on(f"{event}_committed")
    async def note(context: Any) -> None:
        called.append(context)

    response = await site.post(path, **form)

    assert response.status_code == 500
    assert called == []
    assert not site.has_flash
    assert await database.observer.names() == ["a", "b"]
    gc.collect()  # while the warning is ignored


async def test_hook_that_rolls_back_what_was_not_the_views_is_none_of_ours(
    site: Site, database: Database
) -> None:
    """An action may give up a first try and go on."""

    @site.admin.events.on(AdminEvent.BEFORE_ACTION)
    async def try_first(context: Any) -> None:
        session_of(context.request).add(Item(name="tried"))
        await session_of(context.request).flush()
        await session_of(context.request).rollback()

    response = await site.post("/_api/item/action?pks=1&name=delete")

    assert response.status_code == 200
    assert await database.observer.names() == ["b"]


async def test_what_a_hook_commits_by_itself_stays(site: Site, database: Database) -> None:
    """`session.commit()` does what it says, at once; what follows has a fate of its own."""
    called: list[str] = []

    @site.admin.events.on(AdminEvent.AFTER_CREATE)
    async def commit(context: Any) -> None:
        await session_of(context.request).commit()
        session_of(context.request).add(Item(name="lost"))
        await session_of(context.request).flush()
        raise RuntimeError("after the commit")

    @site.admin.events.on(AdminEvent.AFTER_CREATE_COMMITTED)
    async def note(context: Any) -> None:
        called.append(context.obj.name)

    response = await site.post("/item/create", **item("c"))

    assert response.status_code == 500
    assert await database.observer.names() == ["a", "b", "c"]


async def test_hook_that_commits_in_the_savepoint_of_a_view_is_an_error(
    site: Site, database: Database
) -> None:
    """SQLAlchemy refuses to go on inside of a savepoint that is gone."""

    @site.admin.events.on(AdminEvent.BEFORE_CREATE)
    async def commit(context: Any) -> None:
        await session_of(context.request).commit()

    response = await site.post("/item/create", **item("c"))

    assert response.status_code == 500
    assert await database.observer.names() == ["a", "b"]
