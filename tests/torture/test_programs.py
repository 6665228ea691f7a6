"""Random programs, with `TORTURE=full` thousands. `FIRST=17 COUNT=1` runs number 17 alone."""

from __future__ import annotations

import os
from collections.abc import Callable

import pytest

from starlette_uow import UnitOfWork
from tests.databases import Database
from tests.programs import run_programs

FULL = os.environ.get("TORTURE") == "full"
FIRST = int(os.environ.get("FIRST", "1000"))
COUNT = int(os.environ.get("COUNT", "1000" if FULL else "50"))


@pytest.mark.timeout(3 * COUNT + 60)
@pytest.mark.filterwarnings("ignore:Session's state has been changed on a non-active")
@pytest.mark.filterwarnings("ignore:This collection has been invalidated")
@pytest.mark.parametrize("cancellations", [0, 1, 3])
async def test_programs(
    uow: UnitOfWork,
    database: Database,
    cancellations: int,
    record_property: Callable[[str, object], None],
) -> None:
    """As in tests/test_programs.py."""
    numbers = range(FIRST, FIRST + COUNT)
    await run_programs(numbers, uow, database, cancellations=cancellations)

    record_property("figures", ["random programs", COUNT, 0])
