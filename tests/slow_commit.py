"""A PostgreSQL whose COMMIT waits until the test lets it go on."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from tests.databases import PostgresObserver

LOCK = 4711
HERE = "from pg_stat_activity where datname = current_database() and wait_event"
WAITING = f"select count(*) {HERE} = 'advisory'"


class SlowCommit:
    """The COMMIT of everybody who writes items waits for a lock that the observer holds."""

    def __init__(self, observer: PostgresObserver) -> None:
        self.observer = observer

    async def reached(self) -> None:
        """Wait until a backend is inside its COMMIT."""
        while not await self.observer.scalar(WAITING):
            pass

    async def let_go(self) -> None:
        await self.observer.connection.execute(f"select pg_advisory_unlock({LOCK})")

    async def cut(self) -> None:
        """Lose the connection that is committing."""
        await self.observer.connection.execute(
            f"select pg_terminate_backend(pid) {HERE} = 'advisory'"
        )


@asynccontextmanager
async def slow_commits(observer: PostgresObserver) -> AsyncIterator[SlowCommit]:
    """Make every COMMIT wait, with a deferred trigger."""
    await observer.connection.execute(
        f"""
        create function wait() returns trigger language plpgsql as
            $$ begin perform pg_advisory_xact_lock_shared({LOCK}); return null; end $$;
        create constraint trigger slow_commit after insert on items
            deferrable initially deferred for each row execute function wait();
        select pg_advisory_lock({LOCK});
        """
    )
    yield SlowCommit(observer)
    await observer.connection.execute(
        "select pg_advisory_unlock_all(); drop function wait() cascade;"
    )
