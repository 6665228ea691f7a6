"""A fault at every message of every kind of request.

`TORTURE=full` leaves no message out; otherwise each fault strikes every third, and of the long
answers every few.
"""

from __future__ import annotations

import os
from collections.abc import AsyncIterator, Callable
from typing import Any

import pytest

from tests.proxy import Fault
from tests.wire import (
    Blow,
    Witness,
    late,
    strike_everywhere,
    summary,
    terminated,
    violations,
    witness,
)
from tests.wire_app import SCENARIOS

pytestmark = pytest.mark.timeout(900)

FULL = os.environ.get("TORTURE") == "full"
STEPS = {} if FULL else {"stream": 9, "savepoints": 5}
STEP = 1 if FULL else 3

Record = Callable[[str, object], None]

BLOWS = [
    pytest.param(Fault.CUT, id="cut before it"),
    pytest.param(Fault.PASS_AND_CUT, id="cut behind it"),
    pytest.param(Fault.HALF, id="half of it"),
    pytest.param(Fault.STALL, id="stalled"),
    pytest.param(terminated, id="terminated"),
]
FAULTS = [param.values[0] for param in BLOWS]


@pytest.fixture
async def seen(postgres_url: str) -> AsyncIterator[Witness]:
    async with witness(postgres_url) as seen:
        yield seen


@pytest.fixture
def struck(
    postgres_url: str, seen: Witness, record_property: Record, request: pytest.FixtureRequest
) -> Callable[..., Any]:
    """Strike everywhere, and put the figures into the summary."""

    async def everywhere(scenario: str, blow: Blow, **how: Any) -> None:
        strikes = await strike_everywhere(postgres_url, seen, scenario, blow, **how)

        broken = violations(strikes)
        title = blow.name.lower() if isinstance(blow, Fault) else blow.__name__
        record_property("figures", [f"fault on the wire: {title}", len(strikes), len(broken)])
        record_property("wire", summary(strikes))
        assert broken == []
        assert strikes

    return everywhere


@pytest.mark.parametrize("blow", BLOWS)
@pytest.mark.parametrize("scenario", SCENARIOS)
async def test_fault_at_every_message(
    struck: Callable[..., Any], scenario: str, blow: Blow
) -> None:
    """The client is told the truth, nothing is left open, and the next request is fine."""
    step = STEPS.get(scenario, STEP)
    await struck(scenario, blow, step=step, first=1 + FAULTS.index(blow) % step)


@pytest.mark.parametrize("blow", BLOWS)
async def test_fault_while_it_connects(struck: Callable[..., Any], blow: Blow) -> None:
    """The connection's own messages come first."""
    await struck("create", blow, cold=True, step=STEP, first=1 + FAULTS.index(blow) % STEP)


@pytest.mark.parametrize("blow", [Fault.CUT, terminated])
@pytest.mark.parametrize("count", [1, 2])
@pytest.mark.parametrize("scenario", ["create", "checkpoint", "stream", "body", "background"])
async def test_fault_below_other_middlewares(
    struck: Callable[..., Any], scenario: str, count: int, blow: Blow
) -> None:
    """A `BaseHTTPMiddleware` runs the app in a task of its own."""
    await struck(scenario, blow, count=count, step=STEPS.get(scenario, STEP))


@pytest.mark.parametrize("blow", [late, Fault.STALL])
@pytest.mark.parametrize("scenario", ["create", "refuse", "checkpoint", "websocket"])
async def test_answer_that_comes_after_the_timeout_of_the_driver(
    struck: Callable[..., Any], scenario: str, blow: Blow
) -> None:
    """asyncpg's `command_timeout` gives up a connection that may be whole."""
    await struck(scenario, blow, timeout=0.5, step=STEP)
