"""A crowd of fifty, a quarter of whom leave, while everything fails around them.

`TORTURE=full` lets them go on for a minute.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable, Iterator

import pytest

from tests.crowd import besiege
from tests.databases import create_tables
from tests.servers import Server
from tests.wire import witness

pytestmark = pytest.mark.timeout(600)

SECONDS = 60 if os.environ.get("TORTURE") == "full" else 10


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    with Server() as server:
        asyncio.run(create_tables(server.url))
        yield server


@pytest.mark.parametrize("resolve_unknown", [False, True])
async def test_crowd(
    server: Server, record_property: Callable[[str, object], None], resolve_unknown: bool
) -> None:
    """What each was told is held against the tables, and afterwards everybody is served."""
    async with witness(server.url) as seen:
        siege = await besiege(
            server.url,
            seen,
            clients=50,
            seconds=SECONDS,
            every=0.7,
            server=server,
            resolve_unknown=resolve_unknown,
        )

    line = "crowd, told the truth about COMMIT" if resolve_unknown else "crowd"
    requests, broken = len(siege.ledger.entries), len(siege.violations)
    record_property("figures", [line, requests, broken])
    record_property("wire", siege.summary())
    assert siege.violations == []
    assert siege.unexpected_noise == {}
    if resolve_unknown:
        assert siege.ledger.words()["unknown"] == 0
    else:
        assert siege.ledger.words()["unknown"] > 0
