"""Whatever a client sends: no 5xx, the answer that the OpenAPI promises, and an error that leaves
nothing behind. `TORTURE=full` sends much more.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import anyio
import anyio.from_thread
import httpx
import schemathesis
from fastapi import FastAPI
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.strategies import SearchStrategy
from schemathesis import GenerationMode
from schemathesis.core.result import Ok

from demo.seed import ADMIN, CUSTOMER, Person
from tests.demo.conftest import FULL, Contents, LogIn, serve

EXAMPLES = 50 if FULL else 4
"""Of each operation, by each of two people, both as described and otherwise."""

quiet = settings(
    max_examples=EXAMPLES,
    deadline=None,
    derandomize=True,
    database=None,
    suppress_health_check=list(HealthCheck),
)

Try = Callable[[Callable[[], httpx.Response | Any]], Any]


def trier(contents: Contents) -> Try:
    """Make a function that sends a request from a worker thread, and compares the tables."""

    def attempt(send: Callable[[], Any]) -> Any:
        before = anyio.from_thread.run(contents)
        answer = send()
        after = anyio.from_thread.run(contents)
        assert answer.status_code < 500, answer.text
        if answer.status_code >= 400:
            assert after == before, answer.text
        return answer

    return attempt


async def test_every_operation_keeps_its_promise(
    app: FastAPI, contents: Contents, log_in: LogIn, payment_provider: httpx.AsyncClient
) -> None:
    """Schemathesis makes requests that the document allows, and requests that it does not."""
    document = schemathesis.openapi.from_dict(app.openapi())
    schema = document.exclude(path="/api/logout")  # of whom should the rest be asked then?
    attempt = trier(contents)

    def fuzz(url: str, headers: dict[str, str]) -> None:
        for found in schema.get_all_operations():
            assert isinstance(found, Ok), found
            operation = found.ok()
            cases: SearchStrategy[Any] = st.one_of(
                operation.as_strategy(),
                operation.as_strategy(generation_mode=GenerationMode.NEGATIVE),
            )

            @quiet
            @given(case=cases)
            def one(case: Any) -> None:
                answer = attempt(lambda: case.call(base_url=url, headers=headers))
                case.operation.validate_response(answer)

            one()

    async with serve(app) as url:
        for person in (CUSTOMER, ADMIN):
            await anyio.to_thread.run_sync(fuzz, url, await token_of(log_in, person))


CODES = st.sampled_from(["TEA", "PEN", "LAMP", "SCREEN", "NOPE", "", "tea", "T" * 41])
ORDERS = st.fixed_dictionaries(
    {
        "lines": st.lists(
            st.fixed_dictionaries(
                {"sku": CODES, "quantity": st.sampled_from([0, 1, 2, 900, 10_000, 10_001, "1"])}
            ),
            max_size=3,
        )
    },
    optional={
        "coupon": st.sampled_from(["WELCOME", "LUCKY", "NOPE", None]),
        "campaign": st.sampled_from(["SPRING", "NOPE", None]),
        "note": st.text(max_size=5),
    },
)


async def test_orders_of_every_kind(app: FastAPI, contents: Contents, log_in: LogIn) -> None:
    """Orders that nearly work: each is there after a 201, and nothing is after another answer."""
    attempt = trier(contents)

    def fuzz(url: str, headers: dict[str, str]) -> None:
        with httpx.Client(base_url=url, headers=headers, trust_env=False) as client:

            @settings(quiet, max_examples=10 * EXAMPLES)
            @given(body=ORDERS, dry_run=st.booleans())
            def one(body: dict[str, object], dry_run: bool) -> None:
                path = f"/api/orders?dry_run={int(dry_run)}"
                before = anyio.from_thread.run(contents)
                answer = attempt(lambda: client.post(path, json=body))
                changed = before != anyio.from_thread.run(contents)
                assert changed == (answer.status_code == 201)

            one()

    async with serve(app) as url:
        await anyio.to_thread.run_sync(fuzz, url, await token_of(log_in, CUSTOMER))


async def token_of(log_in: LogIn, person: Person) -> dict[str, str]:
    """Log somebody in, and return the header with the token."""
    return {"authorization": (await log_in(person)).headers["authorization"]}
