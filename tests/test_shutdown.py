"""A uvicorn that is stopped while units are open. `tests/torture` has every way to stop it."""

from __future__ import annotations

import signal

import pytest

from tests.shutdown import complaints, stop_under_load
from tests.wire import witness

SAID = """\
ERROR:    Cancel 2 running task(s), timeout graceful shutdown exceeded
ERROR:    Exception in ASGI application
Traceback (most recent call last):
  File "app.py", line 1, in endpoint
asyncio.exceptions.CancelledError: Task cancelled, timeout graceful shutdown exceeded
"""


async def test_stopped_under_load(postgres_url: str) -> None:
    """It exits in time, its engine is disposed, nobody was told a lie, and nothing is left."""
    async with witness(postgres_url) as seen:
        stop = await stop_under_load(postgres_url, seen, [signal.SIGTERM], each=1, clients=5)

    assert stop.violations == []
    assert stop.complaints == []
    assert stop.disposed
    assert stop.code == -signal.SIGTERM  # uvicorn raises it again when it is done
    assert stop.seconds < stop.grace + 5


@pytest.mark.parametrize(
    ("line", "is_noticed"),
    [
        ("", False),
        ("app.py:1: RuntimeWarning: coroutine 'f' was never awaited", True),
        ("Task was destroyed but it is pending!", True),
        ("The garbage collector is trying to clean up non-checked-in connection", True),
        ("sqlalchemy.exc.InterfaceError: cannot perform operation", True),
    ],
)
def test_complaints_of_a_server_are_noticed(line: str, is_noticed: bool) -> None:
    """What uvicorn says of the requests it cancels is none."""
    assert bool(complaints(SAID + line)) is is_noticed
