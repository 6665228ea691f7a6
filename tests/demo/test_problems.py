"""What a client is told when something went wrong: problem details, RFC 9457."""

from __future__ import annotations

from collections.abc import AsyncIterator
from http import HTTPStatus

import httpx
import pytest
from starlette.applications import Starlette

from demo.app import create_app
from demo.seed import CUSTOMER
from demo.shop import connect as connect_shop
from demo.shop import sessions
from tests.demo.conftest import Contents, LogIn, connect, order

NEXT_KEY = "12345678-1234-5678-1234-567812345678"

PROBLEMS: dict[int, tuple[str, str, object]] = {
    401: ("GET", "/api/orders", None),
    403: ("GET", "/api/summary", None),
    404: ("GET", "/api/nowhere", None),
    405: ("PUT", "/api/orders", None),
    409: ("POST", "/api/orders", order(("LAMP", 2))),
    413: ("POST", "/api/orders", order(("TEA", 1), note="x" * 70_000)),
    422: ("POST", "/api/orders", order(("TEA", 0))),
    500: ("POST", f"/trials/exception/{NEXT_KEY}", None),
}


@pytest.fixture
async def caller(app: Starlette, log_in: LogIn) -> AsyncIterator[httpx.AsyncClient]:
    """Call the shop as Ada, and get the answer also of an app that raises, as from a server."""
    transport = httpx.ASGITransport(app, raise_app_exceptions=False)
    headers = (await log_in(CUSTOMER)).headers
    async with httpx.AsyncClient(
        transport=transport, base_url="http://shop.test", headers=headers
    ) as client:
        yield client


async def test_every_error_is_a_problem_and_leaves_nothing(
    caller: httpx.AsyncClient, contents: Contents
) -> None:
    """Each with its status, in words, and with the id that the log line has."""
    for status, (method, path, body) in PROBLEMS.items():
        before = await contents()
        without = {"authorization": ""} if status == 401 else {}

        answer = await caller.request(method, path, json=body, headers=without)

        told = answer.json()
        assert answer.status_code == status, answer.text
        assert answer.headers["content-type"] == "application/problem+json"
        assert (told["type"], told["status"]) == ("about:blank", status)
        assert told["title"] == HTTPStatus(status).phrase
        assert len(told["detail"]) > 8
        assert answer.headers["x-request-id"]
        assert {**await contents(), "trials": None} == {**before, "trials": None}


async def test_bug_is_answered_with_the_id_of_its_log_line(
    caller: httpx.AsyncClient, caplog: pytest.LogCaptureFixture
) -> None:
    """And with nothing of the exception."""
    caplog.set_level("INFO", "demo.requests")

    answer = await caller.post(f"/trials/exception/{NEXT_KEY}")

    request_id = answer.headers["x-request-id"]
    assert answer.json()["request_id"] == request_id
    assert f"request={request_id}" in caplog.text
    assert "on purpose" not in answer.text


@pytest.mark.parametrize("path", ["/nowhere<b>", f"/trials/exception/{NEXT_KEY}"])
async def test_person_gets_a_page(caller: httpx.AsyncClient, path: str) -> None:
    """Which leads back to the first one."""
    method = "GET" if "nowhere" in path else "POST"
    answer = await caller.request(method, path, headers={"accept": "text/html,*/*"})

    assert answer.headers["content-type"].startswith("text/html")
    assert HTTPStatus(answer.status_code).phrase in answer.text
    assert 'href="/"' in answer.text


async def test_database_that_is_away_is_answered_503(app: Starlette) -> None:
    """With a time to come again; nothing listens at the discard port."""
    before = sessions.kw["bind"]
    away = connect_shop("postgresql+asyncpg://nobody@127.0.0.1:9/none")
    try:
        async with connect(create_app("not-a-secret", away)) as client:
            answer = await client.get("/api/products")
    finally:
        sessions.configure(bind=before)
        await away.dispose()

    assert answer.status_code == 503
    assert answer.headers["retry-after"] == "1"
    assert answer.headers["content-type"] == "application/problem+json"
    assert "Nothing was written" in answer.json()["detail"]
