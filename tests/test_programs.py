"""Random programs of many tasks on one session. `tests/torture` runs thousands of them."""

from __future__ import annotations

import pytest

from starlette_uow import UnitOfWork
from tests.databases import Database
from tests.programs import run_programs


async def test_programs_write_what_they_would_write_in_a_row(
    uow: UnitOfWork, database: Database
) -> None:
    """Whenever their tasks meet: without an error, and without a row too much or too few."""
    assert await run_programs(range(15), uow, database) == 15


@pytest.mark.filterwarnings("ignore:Session's state has been changed on a non-active")
@pytest.mark.filterwarnings("ignore:This collection has been invalidated")
@pytest.mark.parametrize("cancellations", [1, 3])
async def test_programs_whose_tasks_are_cancelled_commit_the_rest_or_nothing(
    uow: UnitOfWork, database: Database, cancellations: int
) -> None:
    """Nothing, if a statement was cancelled while it ran."""
    assert 0 < await run_programs(range(15), uow, database, cancellations=cancellations) < 15
