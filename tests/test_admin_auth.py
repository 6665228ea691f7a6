"""The login of an admin: what it costs, what it keeps, and who gets in."""

from __future__ import annotations

import asyncio
import json
import secrets
import time
from base64 import b64encode
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import httpx
import itsdangerous
import pytest
from sqlalchemy import event, select, update
from sqlalchemy.ext.asyncio import AsyncEngine
from starlette.middleware import Middleware
from starlette.middleware.sessions import SessionMiddleware
from starlette.requests import Request
from starlette.responses import Response
from starlette_admin.auth import AdminUser, AuthProvider
from starlette_admin.events import AdminEvent
from starlette_admin.exceptions import LoginFailed

from starlette_uow import UnitOfWork, current_session
from tests.admin_app import new_admin, new_app, open_client, session_of, transactions
from tests.admin_models import Account, Base, Ticket
from tests.databases import Database
from tests.models import Item

KEY = "the key of the session cookies"
MAX_AGE = 3600


@dataclass
class TicketUser(AdminUser):
    """Keeps the ticket alive for the request: SQLAlchemy's identity map alone does not."""

    ticket: Ticket | None = None


class TicketAuth(AuthProvider):
    """Keeps logins in the database, and counts them."""

    def __init__(self, uow: UnitOfWork) -> None:
        super().__init__()
        self.uow = uow

    async def login(
        self, username: str, password: str, remember_me: bool, request: Request
    ) -> Response | None:
        if password != "right":
            async with self.uow.new():  # the answer is 400, which rolls the request back
                failed = update(Account).where(Account.name == username)
                await self.uow.session.execute(failed.values(failures=Account.failures + 1))
        session = session_of(request)
        session.add(Item(name=f"attempt of {username}"))
        await session.flush()
        if password != "right":
            raise LoginFailed("Wrong name or password.")
        token = secrets.token_hex(8)
        session.add(Ticket(token=token, name=username))
        if account := await session.get(Account, username):
            account.logins += 1
        request.session["token"] = token
        return None

    async def authenticate(self, request: Request) -> AdminUser | None:
        token = request.session.get("token")
        ticket = token and await current_session().get(Ticket, token)
        return TicketUser(ticket.name, ticket=ticket) if ticket else None

    async def logout(self, request: Request) -> Response | None:
        ticket = await current_session().get(Ticket, request.session.pop("token"))
        await current_session().delete(ticket)
        return None


@pytest.fixture(params=[True, False], ids=["app-has-unit", "admin-alone"])
async def client(
    uow: UnitOfWork, engine: AsyncEngine, request: pytest.FixtureRequest
) -> AsyncIterator[httpx.AsyncClient]:
    """A stranger at the login page."""
    async with engine.begin() as connection:
        await connection.run_sync(Base.metadata.create_all)
    async with uow:
        uow.session.add(Account(name="ada"))
    sessions = Middleware(SessionMiddleware, secret_key=KEY, max_age=MAX_AGE)
    admin = new_admin(uow, auth_provider=TicketAuth(uow), middlewares=[sessions])

    @admin.events.on(AdminEvent.BEFORE_ACTION)
    async def ask_again(context: Any) -> None:
        assert await admin.auth_provider.authenticate(context.request)  # type: ignore[union-attr]

    @admin.events.on(AdminEvent.AFTER_LOGIN)
    async def fail(context: Any) -> None:
        failures = {"refused": LoginFailed("Not today."), "broken": RuntimeError("broken")}
        if name := context.request.headers.get("x-fail"):
            raise failures[name]

    app = new_app(admin, uow=uow if request.param else None)
    async with open_client(app, "/admin/login") as client:
        yield client
    async with engine.begin() as connection:
        await connection.run_sync(Base.metadata.drop_all)


async def log_in(
    client: httpx.AsyncClient, name: str = "ada", password: str = "right"
) -> httpx.Response:
    return await client.post("/admin/login", data={"username": name, "password": password})


@contextmanager
def statements(engine: AsyncEngine, containing: str) -> Iterator[list[str]]:
    """The statements that mention something."""
    seen: list[str] = []

    def note(connection: Any, cursor: Any, statement: str, *args: Any) -> None:
        if containing in statement:
            seen.append(statement)

    event.listen(engine.sync_engine, "before_cursor_execute", note)
    yield seen
    event.remove(engine.sync_engine, "before_cursor_execute", note)


async def test_request_authenticates_with_one_query_in_its_one_transaction(
    client: httpx.AsyncClient, engine: AsyncEngine, database: Database
) -> None:
    """Whoever asks again, in the view or a subscriber, finds the user in the identity map."""
    await log_in(client)

    with transactions(engine) as seen, statements(engine, "FROM tickets") as queries:
        response = await client.post("/admin/_api/item/row-action?pk=1&name=mark-one")

    assert response.status_code == 200
    assert seen == ["begin", "commit"]
    assert len(queries) == 1
    assert await database.observer.names() == ["attempt of ada!"]


async def test_login_is_committed_with_what_it_counts(
    client: httpx.AsyncClient, engine: AsyncEngine, database: Database
) -> None:
    """One transaction: the ticket, the stamp of the last login, the audit row."""
    with transactions(engine) as seen:
        response = await log_in(client)

    assert response.status_code == 303
    assert seen == ["begin", "commit"]
    assert await database.observer.scalar("select logins from accounts") == 1
    assert (await client.get("/admin/item/list")).status_code == 200


async def test_failed_logins_are_counted_although_the_answer_is_400(
    client: httpx.AsyncClient, database: Database
) -> None:
    """In units of their own, all of them, also at once; what else the request wrote is lost."""
    responses = await asyncio.gather(*(log_in(client, password="wrong") for _ in range(5)))

    assert [response.status_code for response in responses] == [400] * 5
    assert await database.observer.scalar("select failures from accounts") == 5
    assert await database.observer.names() == []


async def test_login_whose_commit_is_refused_hands_out_no_cookie(
    client: httpx.AsyncClient, database: Database
) -> None:
    """The account is gone by then: the answer is dropped with its cookie."""
    response = await log_in(client, name="nobody")

    assert response.status_code == 409
    assert "session" not in client.cookies
    assert await database.observer.scalar("select count(*) from tickets") == 0


@pytest.mark.parametrize(("failure", "status"), [("refused", 400), ("broken", 500)])
async def test_login_whose_subscriber_raises_is_undone(
    client: httpx.AsyncClient, database: Database, failure: str, status: int
) -> None:
    """No ticket and no stamp; the cookie of a 400 opens nothing, as its ticket is not there."""
    client.headers["x-fail"] = failure

    response = await log_in(client)

    assert response.status_code == status
    assert (await client.get("/admin/item/list")).status_code == 303
    assert await database.observer.scalar("select count(*) from tickets") == 0
    assert await database.observer.scalar("select logins from accounts") == 0
    assert await database.observer.names() == []


async def test_revoked_login_has_no_access_with_the_next_request(
    client: httpx.AsyncClient, uow: UnitOfWork
) -> None:
    """Nobody remembers it outside of the database."""
    await log_in(client)
    before = await client.get("/admin/item/list")
    async with uow:
        await uow.session.delete((await uow.session.scalars(select(Ticket))).one())

    after = await client.get("/admin/item/list")
    written = await client.post("/admin/item/create", data={"name": "c"})

    assert before.status_code == 200
    assert [r.headers["location"].partition("?")[0] for r in (after, written)] == [
        "http://test/admin/login"
    ] * 2


async def test_logout_revokes_the_cookie_that_somebody_has_kept(
    client: httpx.AsyncClient, database: Database
) -> None:
    """Signing alone would let it in until it expires."""
    await log_in(client)
    kept = client.cookies["session"]
    await client.post("/admin/logout")
    client.cookies.set("session", kept)

    response = await client.get("/admin/item/list")

    assert response.status_code == 303
    assert await database.observer.scalar("select count(*) from tickets") == 0


def signed(token: str, *, key: str = KEY, age: float = 0) -> str:
    """The cookie of Starlette's SessionMiddleware, made `age` seconds ago."""

    class Signer(itsdangerous.TimestampSigner):
        def get_timestamp(self) -> int:
            return int(time.time() - age)

    data = b64encode(json.dumps({"token": token}).encode())
    return Signer(key).sign(data).decode()


@pytest.mark.parametrize("bad", ["another key", "expired", "tampered", "unsigned", "stolen name"])
async def test_cookie_that_is_not_ours_gets_nothing(
    client: httpx.AsyncClient, engine: AsyncEngine, uow: UnitOfWork, database: Database, bad: str
) -> None:
    """Not even a query, unless it is signed."""
    async with uow:
        uow.session.add(Ticket(token="t", name="ada"))
    good = signed("t")
    cookies = {
        "another key": signed("t", key="another"),
        "expired": signed("t", age=MAX_AGE + 60),
        "tampered": signed("x").partition(".")[0] + good[good.index(".") :],
        "unsigned": good.partition(".")[0],
        "stolen name": signed("ada"),
    }
    client.cookies.set("session", good)
    accepted = await client.get("/admin/item/list")
    client.cookies.delete("session")
    client.cookies.set("session", cookies[bad])

    with transactions(engine) as seen:
        refused = [
            await client.get("/admin/item/list"),
            await client.post("/admin/item/create", data={"name": "c"}),
            await client.post("/admin/_api/item/action?all=1&name=delete"),
        ]

    assert accepted.status_code == 200
    assert [response.status_code for response in refused] == [303] * 3
    assert seen == (["begin", "commit"] * 3 if bad == "stolen name" else [])
    assert await database.observer.names() == []
