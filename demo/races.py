"""Transactions that were stopped because another one was faster: they can be done again."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Awaitable, Callable
from typing import TypeVar

from sqlalchemy.exc import DBAPIError

T = TypeVar("T")

RACES = {"40001", "40P01"}
"""SQLSTATE: serialization failure, deadlock."""

ATTEMPTS = 5
WAIT = 0.05
"""How long to wait before the next attempt, in seconds, at most; later ones wait longer."""


def lost_a_race(error: BaseException) -> bool:
    """Tell whether PostgreSQL stopped a transaction for the sake of another one."""
    return isinstance(error, DBAPIError) and getattr(error.orig, "sqlstate", "") in RACES


async def repeat_lost_races(work: Callable[[], Awaitable[T]]) -> T:
    """Do the work of a whole transaction, and do it again while it loses a race, not for ever."""
    for attempt in range(1, ATTEMPTS):
        try:
            return await work()
        except DBAPIError as error:
            if not lost_a_race(error):
                raise
        await asyncio.sleep(random.random() * WAIT * attempt)
    return await work()
