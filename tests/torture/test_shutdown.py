"""Every way to stop a uvicorn that is busy. `TORTURE=full` also gives it more time to stop."""

from __future__ import annotations

import os
from collections.abc import Callable
from signal import SIGINT, SIGTERM, Signals

import pytest

from tests.proxy import Proxy
from tests.shutdown import stop_under_load
from tests.wire import witness

pytestmark = pytest.mark.timeout(300)

GRACES = [1, 3] if os.environ.get("TORTURE") == "full" else [1]
"""Seconds for the requests to end."""

Record = Callable[[str, object], None]

DISPOSE_TIMEOUT = 10
SPARE = 5
"""Seconds, on a busy machine."""


@pytest.mark.parametrize(
    ("signals", "code", "is_disposed"),
    [
        ([SIGTERM], -SIGTERM, True),
        ([SIGTERM, SIGTERM], -SIGTERM, True),
        ([SIGINT], 0, True),
        # Forced: uvicorn waits for nobody, cancels nothing, and the signal then kills it.
        ([SIGTERM, SIGINT], -SIGTERM, False),
        # Forced: KeyboardInterrupt ends the event loop, which cancels everything.
        ([SIGINT, SIGINT], 0, True),
    ],
)
@pytest.mark.parametrize("grace", GRACES)
async def test_stopped_under_load(
    postgres_url: str,
    record_property: Record,
    signals: list[Signals],
    code: int,
    is_disposed: bool,
    grace: int,
) -> None:
    """It exits in time, nobody was told a lie, and nothing is left on the server."""
    async with witness(postgres_url) as seen:
        stop = await stop_under_load(postgres_url, seen, signals, grace=grace, clients=20)

    requests, broken = len(stop.ledger.entries), len(stop.violations)
    record_property("figures", ["shutdown under load", requests, broken])
    record_property("wire", f"{'+'.join(s.name for s in signals)}: {stop.summary()}")
    assert stop.violations == []
    assert stop.complaints == []
    assert (stop.code, stop.disposed) == (code, is_disposed)
    assert stop.seconds < grace + SPARE


async def test_stopped_while_the_wire_stalls(postgres_url: str, record_property: Record) -> None:
    """Neither a unit that cannot end nor a connection that cannot close keeps it for ever."""
    async with witness(postgres_url) as seen, Proxy(postgres_url) as proxy:
        stop = await stop_under_load(proxy.url, seen, [SIGTERM], wire=proxy, clients=20)

    record_property("wire", f"SIGTERM on a wire that stalls: {stop.summary()}")
    assert stop.violations == []
    assert stop.seconds < stop.grace + DISPOSE_TIMEOUT + SPARE
