"""starlette-admin works in the request's unit of work, with and without one around it."""

from __future__ import annotations

import asyncio
import gc
import logging
import subprocess
import sys
import weakref
from collections.abc import AsyncIterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy.exc import IntegrityError
from sqlalchemy.ext.asyncio import AsyncEngine, async_sessionmaker
from starlette.routing import WebSocketRoute
from starlette.types import Message
from starlette.websockets import WebSocket
from starlette_admin.events import AdminEvent
from starlette_admin.helpers import on_commit

import starlette_uow
from starlette_uow import ConfigurationError, UnitOfWork, current_session
from tests.admin_app import (
    KINDS,
    HeaderAuth,
    Site,
    add_items,
    csv,
    item,
    new_admin,
    new_app,
    open_client,
    open_site,
    session_of,
    transactions,
)
from tests.databases import Database
from tests.models import Item

COMMITTED_EVENTS = (
    AdminEvent.AFTER_CREATE_COMMITTED,
    AdminEvent.AFTER_EDIT_COMMITTED,
    AdminEvent.AFTER_DELETE_COMMITTED,
)


@pytest.fixture(params=KINDS)
async def site(uow: UnitOfWork, request: pytest.FixtureRequest) -> AsyncIterator[Site]:
    async with open_site(uow, request.param) as site:
        yield site


@pytest.mark.parametrize(
    ("path", "status", "contains", "done"),
    [
        ("/", 200, "Items", ["begin", "commit"]),
        ("/item/list", 200, "pk=2", ["begin", "commit"]),
        ("/item/list?q=a&sort=name", 200, "pk=1", ["begin", "commit"]),
        ("/item/detail?pk=1", 200, "Item", ["begin", "commit"]),
        ("/item/create", 200, "name", []),
        ("/static/js/list.js", 200, "", []),
        ("/item/edit?pk=1", 200, "name", ["begin", "commit"]),
        ("/_api/item/relation-lookup?q=a", 200, '"total":1', ["begin", "commit"]),
        ("/_api/item/relation-lookup?pks=1&pks=2", 200, '"total":2', ["begin", "commit"]),
        ("/item/detail?pk=9", 404, "", ["begin", "rollback"]),
        ("/nothing/list", 404, "", []),
    ],
)
async def test_page_is_read_in_one_transaction(
    site: Site, engine: AsyncEngine, path: str, status: int, contains: str, done: list[str]
) -> None:
    """Or in none, if it reads nothing."""
    with transactions(engine) as seen:
        response = await site.get(path)

    assert response.status_code == status
    assert contains in response.text
    assert seen == done


@pytest.mark.parametrize(
    ("path", "form", "status", "names", "parts"),
    [
        ("/item/create", item("c"), 303, ["a", "b", "c"], 0),
        ("/item/create", item("c", parts=2), 303, ["a", "b", "c"], 2),
        ("/item/edit?pk=1", item("c"), 303, ["b", "c"], 0),
        ("/item/edit?pk=1", item("c", parts=1), 303, ["b", "c"], 1),
        ("/_api/item/inline-edit?pk=1&field=name", item("c"), 200, ["b", "c"], 0),
        ("/part/create", {"data": {"item": "1"}}, 303, ["a", "b"], 1),
        ("/_api/item/row-action?pk=1&name=delete", {}, 200, ["b"], 0),
        ("/_api/item/row-action?pk=1&name=mark-one", {}, 200, ["a!", "b"], 0),
        ("/_api/item/action?pks=1&pks=2&name=delete", {}, 200, [], 0),
        ("/_api/item/action?pks=1&pks=2&name=mark", {}, 200, ["a!", "b!"], 0),
        ("/_api/item/action?all=1&name=mark", {}, 200, ["a!", "b!"], 0),
        ("/_api/item/action?all=1&name=export", {"data": {"format": "csv"}}, 200, ["a", "b"], 0),
        ("/_api/item/import", csv("c", "a", "d", '""'), 200, ["a", "b", "c", "d"], 0),
    ],
)
async def test_write_is_committed_as_one_transaction(
    site: Site,
    engine: AsyncEngine,
    database: Database,
    path: str,
    form: dict[str, Any],
    status: int,
    names: list[str],
    parts: int,
) -> None:
    """Whatever a request writes, with its inline forms, is one transaction; the rest is kept."""
    with transactions(engine) as seen:
        response = await site.post(path, **form)

    assert response.status_code == status
    assert seen == ["begin", "commit"]
    assert await database.observer.names() == names
    assert await database.observer.scalar("select count(*) from parts") == parts


@pytest.mark.parametrize(
    ("path", "form", "status"),
    [
        ("/item/create", item(""), 422),  # a field is required
        ("/item/create", item("invalid"), 422),  # the view's validate() refuses
        ("/item/edit?pk=1", item("invalid"), 422),
        ("/item/create", item("c", parts=3), 422),  # the third inline form does
        ("/item/create", item("a"), 422),  # the INSERT is a unique violation
        ("/item/edit?pk=1", item("b"), 422),
        ("/_api/item/inline-edit?pk=1&field=name", item("invalid"), 422),
        ("/_api/item/inline-edit?pk=1&field=name", item("b"), 422),
        ("/_api/item/row-action?pk=1&name=orphan", {}, 400),  # the COMMIT violates a foreign key
        ("/_api/item/action?all=1&name=mark-and-fail", {}, 400),  # ActionFailed
        ("/_api/item/action?all=1&name=unknown", {}, 400),
    ],
)
async def test_error_answer_means_that_nothing_was_written(
    site: Site, database: Database, path: str, form: dict[str, Any], status: int
) -> None:
    """Refused by the form, by a statement or by COMMIT: no row, no callback, no flash."""
    called: list[object] = []

    async def note(context: object) -> None:
        called.append(context)

    for event in COMMITTED_EVENTS:
        site.admin.events.on(event, note)

    response = await site.post(path, **form)

    assert response.status_code == status
    assert await database.observer.names() == ["a", "b"]
    assert await database.observer.scalar("select count(*) from parts") == 0
    assert called == []
    assert not site.has_flash


@pytest.mark.parametrize("event", [AdminEvent.BEFORE_CREATE, AdminEvent.AFTER_CREATE])
async def test_exception_in_a_hook_undoes_the_request(
    site: Site, database: Database, event: AdminEvent
) -> None:
    """Before the row's savepoint ends and after it: nothing is written."""

    @site.admin.events.on(event)
    async def fail(context: Any) -> None:
        session_of(context.request).add(Item(name="written by the hook"))
        await session_of(context.request).flush()
        raise RuntimeError("the hook failed")

    response = await site.post("/item/create", **item("c"))

    assert response.status_code == 500
    assert await database.observer.names() == ["a", "b"]


async def test_request_that_is_cancelled_in_a_hook_writes_nothing(
    site: Site, database: Database
) -> None:
    """The row is flushed already; its connection goes back clean, as the fixtures check."""
    reached = asyncio.Event()

    @site.admin.events.on(AdminEvent.AFTER_CREATE)
    async def stop(context: Any) -> None:
        reached.set()
        await asyncio.Event().wait()

    request = asyncio.create_task(site.post("/item/create", **item("c")))
    await reached.wait()

    request.cancel()

    with pytest.raises(asyncio.CancelledError):
        await request
    assert await database.observer.names() == ["a", "b"]


@pytest.mark.parametrize("part_of", ["1", "999"])
async def test_audit_row_of_a_subscriber_shares_the_fate_of_the_view(
    site: Site, database: Database, part_of: str
) -> None:
    """It is committed with the part, and lost with it if the database refuses that at COMMIT."""

    @site.admin.events.on(AdminEvent.AFTER_CREATE)
    async def audit(context: Any) -> None:
        session_of(context.request).add(Item(name=f"part of {context.obj.item_id}"))

    response = await site.post("/stray/create", data={"item_id": part_of})

    audited = ["part of 1"] if part_of == "1" else []
    assert response.is_redirect == bool(audited)
    assert response.is_client_error != bool(audited)
    assert await database.observer.names() == ["a", "b", *audited]
    assert await database.observer.scalar("select count(*) from parts") == len(audited)


@pytest.mark.parametrize(
    ("event", "path", "form", "name"),
    [
        (AdminEvent.AFTER_CREATE_COMMITTED, "/item/create", item("c"), "c"),
        (AdminEvent.AFTER_EDIT_COMMITTED, "/item/edit?pk=1", item("c"), "c"),
        (AdminEvent.AFTER_DELETE_COMMITTED, "/_api/item/row-action?pk=1&name=delete", {}, "a"),
    ],
)
async def test_committed_event_fires_once_and_after_the_commit(
    site: Site, database: Database, event: AdminEvent, path: str, form: dict[str, Any], name: str
) -> None:
    """Its handler reads the object, and another connection sees what was done."""
    seen: list[tuple[str, bool]] = []

    @site.admin.events.on(event)
    async def look(context: Any) -> None:
        seen.append((context.obj.name, context.obj.name in await database.observer.names()))

    await site.post(path, **form)

    assert seen == [(name, event is not AdminEvent.AFTER_DELETE_COMMITTED)]


async def test_on_commit_callback_runs_after_the_commit_and_may_write(
    site: Site, database: Database
) -> None:
    """What it writes is a transaction of its own."""
    seen: list[list[str]] = []

    @site.admin.events.on(AdminEvent.AFTER_CREATE)
    async def after_create(context: Any) -> None:
        async def callback() -> None:
            seen.append(await database.observer.names())
            session_of(context.request).add(Item(name="written by the callback"))

        on_commit(context.request, callback)

    await site.post("/item/create", **item("c"))

    assert seen == [["a", "b", "c"]]
    assert await database.observer.names() == ["a", "b", "c", "written by the callback"]


async def test_on_commit_callback_is_dropped_with_its_savepoint(site: Site) -> None:
    """The rows of an import that fail are undone alone, and their callbacks with them."""
    called: list[str] = []

    @site.admin.events.on(AdminEvent.BEFORE_CREATE)
    async def before_create(context: Any) -> None:
        on_commit(context.request, lambda: called.append(context.data["name"]))

    response = await site.post("/_api/item/import", **csv("c", "a", "d"))

    assert response.json()["rows_created"] == 2
    assert called == ["c", "d"]


async def test_request_with_an_error_leaves_nothing_in_memory(site: Site) -> None:
    """An error refers to all that was on the stack: the session, the request, its uploads."""
    sessions: list[weakref.ref[object]] = []

    @site.admin.events.on(AdminEvent.AFTER_CREATE)
    async def swallow(context: Any) -> None:
        session = session_of(context.request)
        sessions.append(weakref.ref(session.sync_session))
        with suppress(IntegrityError):
            async with session.begin_nested():
                session.add(Item(name="a"))

    response = await site.post("/item/create", **item("c"))

    gc.collect()
    assert response.status_code == 303
    assert [session() for session in sessions] == [None]


async def test_error_in_a_callback_is_logged_and_changes_no_answer(
    site: Site, database: Database, caplog: pytest.LogCaptureFixture
) -> None:
    """The row is committed by then, and the callbacks after it still run."""
    called: list[str] = []

    @site.admin.events.on(AdminEvent.AFTER_CREATE)
    async def after_create(context: Any) -> None:
        on_commit(context.request, [].pop)
        on_commit(context.request, lambda: called.append(context.obj.name))

    response = await site.post("/item/create", **item("c"))

    assert response.status_code == 303
    assert called == ["c"]
    assert [r.levelno for r in caplog.records if r.name == "starlette_uow"] == [logging.ERROR]
    assert await database.observer.names() == ["a", "b", "c"]


@pytest.mark.parametrize("fail", [False, True])
async def test_body_of_a_custom_response_is_a_second_transaction(
    site: Site, database: Database, fail: bool
) -> None:
    """It is read in an inner task of starlette-admin's own middlewares; lost if it failed."""
    path = "/_api/item/action?all=1&name=stream" + ("&fail=1" if fail else "")

    response = await site.post(path)

    assert response.status_code == 200
    assert response.text == "ab"
    written = [] if fail else ["written by the body"]
    assert await database.observer.names() == ["a", "b", *written]


async def test_websocket_of_the_admin_has_a_unit_for_its_handshake(
    site: Site, database: Database
) -> None:
    """A plugin may bring one: what its handshake writes is committed before it is accepted."""
    sent: list[tuple[str, list[str]]] = []

    async def connect(websocket: WebSocket) -> None:
        current_session().add(Item(name="c"))
        await websocket.accept()

    async def receive() -> Message:
        return {"type": "websocket.connect"}

    async def send(message: Message) -> None:
        sent.append((message["type"], await database.observer.names()))

    site.admin.app.router.routes.append(WebSocketRoute("/socket", connect))
    scope = {"type": "websocket", "path": "/admin/socket", "root_path": "", "headers": []}

    await site.app(scope, receive, send)

    assert sent == [("websocket.accept", ["a", "b", "c"])]


async def test_flash_message_is_shown_once_on_the_page_after_the_redirect(site: Site) -> None:
    """Its cookie travels with the answer that was held back for the commit."""
    response = await site.post("/item/create", **item("c"))
    has_flash = site.has_flash
    pages = [await site.get("/item/list"), await site.get("/item/list")]

    assert response.headers["location"].endswith("/admin/item/list")
    assert has_flash
    assert ["was added successfully" in page.text for page in pages] == [True, False]


async def test_request_without_csrf_token_writes_nothing(site: Site, database: Database) -> None:
    """It is refused before the view; the token of the form is as good as the header's."""
    token = site.client.headers.pop("X-CSRFToken")

    refused = await site.post("/item/create", **item("c"))
    accepted = await site.post("/item/create", data={"name": "d", "csrftoken": token})

    assert refused.status_code == 403
    assert accepted.status_code == 303
    assert await database.observer.names() == ["a", "b", "d"]


async def test_auth_provider_and_view_share_one_session_and_one_transaction(
    uow: UnitOfWork, engine: AsyncEngine
) -> None:
    """The list of an authenticated user costs one BEGIN; so does the redirect of a stranger."""
    await add_items(uow, "root")
    auth = HeaderAuth()
    admin = new_admin(uow, auth_provider=auth)

    @admin.events.on(AdminEvent.BEFORE_ACTION)
    async def look(context: Any) -> None:
        auth.sessions += [session_of(context.request), current_session()]

    async with open_client(new_app(admin, uow=uow)) as client:
        auth.sessions.clear()

        with transactions(engine) as seen:
            marked = await client.post(
                "/admin/_api/item/action?pks=1&name=mark", headers={"x-user": "root"}
            )
            listed = await client.get("/admin/item/list", headers={"x-user": "root!"})
            stranger = await client.get("/admin/item/list", headers={"x-user": "root"})

    sessions = [id(session) for session in auth.sessions]
    assert [marked.status_code, listed.status_code, stranger.status_code] == [200, 200, 303]
    assert seen == ["begin", "commit"] * 3
    assert len(sessions) == 8
    assert len(set(sessions[:4])) == len(set(sessions[4:6])) == 1


async def test_two_admins_on_one_app_serve_the_same_units(
    uow: UnitOfWork, database: Database
) -> None:
    """Each has its own URL, routes and cookies' key."""
    admins = [
        new_admin(uow, base_url="/one", route_name="one"),
        new_admin(uow, base_url="/two", route_name="two"),
    ]
    app = new_app(*admins, uow=uow)

    for name in ("one", "two"):
        async with open_client(app, f"/{name}") as client:
            response = await client.post(f"/{name}/item/create", data={"name": name})
            assert response.headers["location"].endswith(f"/{name}/item/list")

    assert await database.observer.names() == ["one", "two"]


async def test_admin_takes_an_engine(engine: AsyncEngine, database: Database) -> None:
    """It makes the sessions itself, and they keep their objects after a commit."""
    admin = new_admin(engine)

    async with open_client(new_app(admin)) as client:
        created = await client.post("/admin/item/create", data={"name": "c"})
        listed = await client.get("/admin/item/list")

    assert (created.status_code, listed.status_code) == (303, 200)
    assert await database.observer.names() == ["c"]


def test_sessions_that_expire_their_objects_are_refused(engine: AsyncEngine) -> None:
    """The message says what to pass instead."""
    with pytest.raises(ConfigurationError, match="expire_on_commit=False"):
        new_admin(async_sessionmaker(engine))


def test_package_does_not_import_starlette_admin() -> None:
    """It is an extra, imported by its own path."""
    program = "import sys, starlette_uow; sys.exit('starlette_admin' in sys.modules)"

    process = subprocess.run(
        [sys.executable, "-c", program], cwd=Path(starlette_uow.__file__).parents[1], check=False
    )

    assert process.returncode == 0


@pytest.mark.parametrize("joined", [True, False], ids=["app-has-unit", "admin-alone"])
async def test_twenty_requests_at_once_share_a_pool_of_two(
    uow: UnitOfWork, database: Database, joined: bool
) -> None:
    """An edit page with its relation lookups, lists and writes, all past the auth provider."""
    await add_items(uow, "root", "a", "b", "c", "d")
    app = new_app(new_admin(uow, auth_provider=HeaderAuth()), uow=uow if joined else None)
    async with open_client(app) as client:
        client.headers["x-user"] = "root"

        responses = await asyncio.gather(
            *(client.get(f"/admin/item/edit?pk={pk}") for pk in range(2, 6)),
            *(client.get(f"/admin/_api/item/relation-lookup?pks={pk}") for pk in range(2, 6)),
            *(client.get("/admin/item/list") for _ in range(4)),
            *(client.post(f"/admin/item/edit?pk={pk}", data={"name": f"x{pk}"}) for pk in (2, 3)),
            *(client.post("/admin/item/create", data={"name": f"y{n}"}) for n in range(4)),
            *(client.post("/admin/stray/create", data={"item_id": key}) for key in (1, 999)),
        )

    statuses = [response.status_code for response in responses]
    refused = 422 if database.is_postgres else 409
    assert statuses == [200] * 12 + [303] * 7 + [refused]
    assert len(statuses) == 20
    names = ["c", "d", "root", "x2", "x3", "y0", "y1", "y2", "y3"]
    assert await database.observer.names() == names
    assert await database.observer.scalar("select count(*) from parts") == 1
