"""Logging in and out, and guessing."""

from __future__ import annotations

import asyncio
from datetime import timedelta

import httpx
import pytest

from demo.models import now
from demo.seed import CUSTOMER
from demo.services.accounts import MAX_ATTEMPTS, WINDOW, accounts
from demo.shop import shop
from demo.tokens import MAX_AGE
from tests.databases import Database
from tests.demo.conftest import Contents, Count, LogIn

WRONG = {"email": CUSTOMER.email, "password": "wrong"}
RIGHT = {"email": CUSTOMER.email, "password": CUSTOMER.password}


@pytest.mark.parametrize(
    ("body", "status"),
    [
        (WRONG, 401),
        ({"email": "nobody@example.org", "password": "wrong"}, 401),
        ({"email": CUSTOMER.email}, 422),
        ({"email": CUSTOMER.email, "password": 7}, 422),
        ({"email": "\0", "password": "wrong"}, 422),
    ],
)
async def test_wrong_credentials_get_no_token(
    client: httpx.AsyncClient, contents: Contents, body: dict[str, object], status: int
) -> None:
    """The answer does not tell whether there is such an account."""
    before = await contents()

    answer = await client.post("/api/login", json=body)

    assert answer.status_code == status
    assert "token" not in answer.json()
    assert await contents() == before


async def test_failed_login_is_counted_although_the_request_is_rolled_back(
    client: httpx.AsyncClient, count: Count
) -> None:
    """It is counted in a unit of its own."""
    answer = await client.post("/api/login", json=WRONG)

    assert answer.status_code == 401
    assert await count("login_attempts where attempts = 1") == 1
    assert await count("tokens") == 0


async def test_guesses_at_once_are_all_counted(client: httpx.AsyncClient) -> None:
    """Five passwords are looked at, however many are sent; then not even the right one helps."""
    answers = await asyncio.gather(
        *(client.post("/api/login", json=WRONG) for _ in range(4 * MAX_ATTEMPTS))
    )
    right = await client.post("/api/login", json=RIGHT)

    statuses = sorted(answer.status_code for answer in answers)
    assert statuses == [401] * MAX_ATTEMPTS + [429] * 3 * MAX_ATTEMPTS
    assert right.status_code == 429
    assert 0 < int(right.headers["retry-after"]) <= WINDOW.total_seconds()


async def test_attempts_are_forgotten_after_a_while(
    client: httpx.AsyncClient, monkeypatch: pytest.MonkeyPatch, count: Count
) -> None:
    """And by getting in."""
    for _ in range(MAX_ATTEMPTS):
        await client.post("/api/login", json=WRONG)
    later = now() + WINDOW + timedelta(seconds=1)
    monkeypatch.setattr("demo.services.accounts.now", lambda: later)

    answer = await client.post("/api/login", json=RIGHT)

    assert answer.status_code == 200
    assert await count("login_attempts") == 0


async def test_token_ends_with_the_logout(customer: httpx.AsyncClient) -> None:
    """It is revoked in the database."""
    assert (await customer.get("/api/me")).json()["name"] == CUSTOMER.name

    out = await customer.post("/api/logout")
    after = await customer.get("/api/me")

    assert (out.status_code, after.status_code) == (204, 401)
    assert after.headers["www-authenticate"] == "Bearer"


async def test_logout_everywhere_ends_all_tokens(log_in: LogIn) -> None:
    """Those of the account, and no others."""
    one, two = await log_in(CUSTOMER), await log_in(CUSTOMER)

    await one.post("/api/logout?everywhere=1")

    assert (await two.get("/api/me")).status_code == 401
    assert (await (await log_in(CUSTOMER)).get("/api/me")).status_code == 200


@pytest.mark.parametrize("token", ["", "nonsense", "a.b.c", "\u00e9"])
async def test_forged_token_is_refused(customer: httpx.AsyncClient, token: str) -> None:
    """Without asking the database."""
    payload, _, rest = customer.headers["authorization"].partition(".")
    forged = f"Bearer {token}" if token else f"{payload[:-1]}{'AB'[payload[-1] == 'A']}.{rest}"

    answer = await customer.get("/api/me", headers={b"authorization": forged.encode("latin-1")})

    assert answer.status_code == 401


async def test_token_that_is_too_old_is_refused(
    customer: httpx.AsyncClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By its signature first, and by the database, too."""
    monkeypatch.setattr("demo.tokens.MAX_AGE", -1)
    by_signature = await customer.get("/api/me")
    monkeypatch.setattr("demo.tokens.MAX_AGE", MAX_AGE)
    later = now() + timedelta(seconds=MAX_AGE)
    monkeypatch.setattr("demo.services.accounts.now", lambda: later)
    by_database = await customer.get("/api/me")

    assert "forged or too old" in by_signature.json()["detail"]
    assert "has ended" in by_database.json()["detail"]


async def test_token_of_an_account_that_is_gone_is_refused(
    client: httpx.AsyncClient, database: Database
) -> None:
    """The logins go with it."""
    user = await accounts.create("eve@example.org", "Eve", "secret", role="clerk")
    body = {"email": "eve@example.org", "password": "secret"}
    token = (await client.post("/api/login", json=body)).json()["token"]
    async with shop as unit:
        await unit.session.delete(user)

    answer = await client.get("/api/me", headers={"authorization": f"Bearer {token}"})

    assert answer.status_code == 401
    assert await database.observer.scalar("select count(*) from tokens") == 0


async def test_nobody_gets_in_without_a_token(client: httpx.AsyncClient) -> None:
    """A problem says what to do."""
    answer = await client.get("/api/orders")

    assert answer.status_code == 401
    assert answer.json()["detail"] == "Log in first: POST /api/login."
