"""The buttons on the first page: what the client gets, what the transaction did, what is there."""

from __future__ import annotations

import asyncio
import logging
import uuid
from typing import Any

import httpx
import pytest
from starlette.applications import Starlette

from demo.trials import KINDS
from tests.demo.conftest import connect, serve

ANSWERS = {
    "commit": (201, "committed"),
    "dry-run": (200, "rolled back"),
    "out-of-stock": (409, "rolled back"),
    "refused-commit": (409, "rolled back"),
    "redirect": (303, "rolled back"),
}


async def look(client: httpx.AsyncClient, key: uuid.UUID) -> dict[str, Any]:
    """Ask what became of a trial, as soon as it is known."""
    async with asyncio.timeout(10):
        while True:
            seen: dict[str, Any] = (await client.get(f"/trials/{key}")).json()
            if seen["outcome"]:
                return seen


def kept(outcome: str) -> dict[str, object]:
    """Tell what another connection sees after this outcome."""
    orders = 1 if outcome == "committed" else 0
    return {"outcome": outcome, "orders": orders, "pens": 500 - orders}


@pytest.mark.parametrize("kind", ANSWERS)
async def test_answer_and_database_say_the_same(client: httpx.AsyncClient, kind: str) -> None:
    """An order is there if the client was told so, and only then."""
    status, outcome = ANSWERS[kind]
    key = uuid.uuid4()

    answer = await client.post(f"/trials/{kind}/{key}")

    assert answer.status_code == status
    assert await look(client, key) == kept(outcome)


@pytest.mark.parametrize("kind", ["exception", "hide"])
async def test_bug_is_rolled_back_and_answered_500(
    app: Starlette, client: httpx.AsyncClient, kind: str
) -> None:
    """So is an exception that the app hides behind a redirect."""
    key = uuid.uuid4()
    async with httpx.AsyncClient(
        transport=httpx.ASGITransport(app, raise_app_exceptions=False), base_url="http://shop.test"
    ) as browser:
        answer = await browser.post(f"/trials/{kind}/{key}")

    assert answer.status_code == 500
    assert await look(client, key) == kept("rolled back")


async def test_client_that_leaves_leaves_nothing(
    app: Starlette, caplog: pytest.LogCaptureFixture
) -> None:
    """Its order was written, and is undone when the server notices."""
    caplog.set_level(logging.INFO, "demo.requests")
    key = uuid.uuid4()
    async with serve(app) as url, httpx.AsyncClient(base_url=url, trust_env=False) as client:
        with pytest.raises(httpx.ReadTimeout):
            await client.post(f"/trials/leave/{key}", timeout=0.5)
        seen = await look(client, key)

    assert seen == kept("rolled back")
    assert f"POST /trials/leave/{key} 499 rolled back" in caplog.text


async def test_stream_that_fails_is_broken_off_and_rolled_back(
    app: Starlette, caplog: pytest.LogCaptureFixture
) -> None:
    """The client has read half of a 200, and can tell that it is not complete."""
    key = uuid.uuid4()
    async with serve(app) as url, httpx.AsyncClient(base_url=url, trust_env=False) as client:
        lines: list[str] = []
        with pytest.raises(httpx.RemoteProtocolError):
            async with client.stream("POST", f"/trials/failing-stream/{key}") as answer:
                lines += [line async for line in answer.aiter_lines()]
        seen = await look(client, key)

    assert answer.status_code == 200
    assert seen == kept("rolled back")
    assert "The stream failed, on purpose." in caplog.text
    caplog.clear()


async def test_unknown_trial_is_not_found(client: httpx.AsyncClient) -> None:
    """Nor is one without a key."""
    assert (await client.post(f"/trials/nope/{uuid.uuid4()}")).status_code == 404
    assert (await client.post("/trials/commit/nope")).status_code == 422


async def test_first_page_has_a_button_for_each(app: Starlette) -> None:
    """And none for anything else."""
    async with connect(app) as client:
        page = await client.get("/")

    assert [part.split('"')[0] for part in page.text.split('data-kind="')[1:]] == list(KINDS)
