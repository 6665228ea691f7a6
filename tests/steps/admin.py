"""Requests to starlette-admin, with an auth provider that asks the database and writes."""

from __future__ import annotations

from typing import Any

import httpx
from sqlalchemy import select
from starlette.applications import Starlette
from starlette.requests import Request
from starlette_admin.auth import AdminUser, AuthProvider

from starlette_uow import UnitOfWork
from tests.admin_app import csv, item, new_admin, open_client, session_of
from tests.models import Item
from tests.steps.outside import Outside
from tests.steps.promise import Endpoint, Rows

BEFORE = ("user", "item")
"""Rows that are there, with the keys -1 and -2."""


class SeenProvider(AuthProvider):
    """Finds the user in the database, and writes down whom it saw if asked to."""

    async def authenticate(self, request: Request) -> AdminUser | None:
        session = session_of(request)
        user = await session.scalar(select(Item).where(Item.name == request.headers.get("x-user")))
        if seen := request.headers.get("x-seen"):
            session.add(Item(name=seen))
            await session.flush()
        return None if user is None else AdminUser(user.name)


def mount_admin(app: Starlette, uow: UnitOfWork) -> None:
    new_admin(uow, auth_provider=SeenProvider()).mount_to(app)


async def admin_endpoints(app: Starlette, outside: Outside) -> dict[str, Endpoint]:
    """Requests that a browser which has logged in would send."""
    await outside.clear(BEFORE)
    async with open_client(app) as client:

        def request(
            name: str, method: str, path: str, *rows: Rows, status: int, **kwargs: Any
        ) -> Endpoint:
            kwargs["headers"] = {"x-user": "user", "x-seen": "seen 1", **kwargs.get("headers", {})}
            built = client.build_request(method, f"/admin{path}", **kwargs)
            return _endpoint(f"admin: {name}", built, rows, status)

        seen = Rows(frozenset({"seen 1"}))
        created = Rows(frozenset({"seen 1", "new", "part of new 1", "part of new 2"}))
        edited = Rows(frozenset({"seen 1", "part of item 1"}))
        endpoints = [
            request("list", "GET", "/item/list", seen, status=200),
            request("login", "GET", "/item/list", seen, status=303, headers={"x-user": "nobody"}),
            request("create", "POST", "/item/create", created, status=303, **item("new", parts=2)),
            request(
                "edit",
                "POST",
                "/item/edit?pk=-2",
                edited,
                status=303,
                **item("item", parts=1),
            ),
            request("refused form", "POST", "/item/create", status=422, **item("invalid")),
            request(
                "import",
                "POST",
                "/_api/item/import",
                Rows(frozenset({"seen 1", "a", "b"})),
                status=200,
                **csv("a", "b"),
            ),
            request(
                "streaming action",
                "POST",
                "/_api/item/action?all=1&name=stream",
                seen,
                Rows(frozenset({"written by the body"}), "end"),
                status=200,
            ),
        ]
    return {endpoint.name: endpoint for endpoint in endpoints}


def _endpoint(name: str, request: httpx.Request, rows: tuple[Rows, ...], status: int) -> Endpoint:
    return Endpoint(
        name,
        request.url.raw_path.decode(),
        rows,
        status,
        method=request.method,
        headers=tuple((key.lower(), value) for key, value in request.headers.raw),
        body=request.read(),
        before=BEFORE,
        expected=("Unclosed file <tempfile.SpooledTemporaryFile",),  # starlette-admin's import
    )
