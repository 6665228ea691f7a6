"""Looks at the database past the app, and listens to who complains."""

from __future__ import annotations

import asyncio
import logging
import sys
import threading
import warnings
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any, NamedTuple

from tests.databases import Database, PostgresObserver, SQLiteObserver


class Seen(NamedTuple):
    """What a second connection sees."""

    names: frozenset[str]
    transactions: list[str]
    connections: int


class Outside:
    """Looks at a database past the app."""

    def __init__(self, database: Database) -> None:
        self._observer = database.observer
        if isinstance(self._observer, SQLiteObserver):
            self._observer.connection.execute("PRAGMA busy_timeout = 0")

    async def look(self) -> Seen:
        if isinstance(self._observer, SQLiteObserver):
            rows = self._observer.connection.execute(f"{NAMES}").fetchall()
            transactions = await self._observer.open_transactions()
            return Seen(frozenset(r[0] for r in rows), transactions, _sqlite_connections())
        assert isinstance(self._observer, PostgresObserver)
        row = await self._observer.connection.fetchrow(LOOK)
        assert row is not None
        return Seen(frozenset(row[0]), row[1], row[2])

    async def clear(self, before: Iterable[str]) -> None:
        """Leave these items in the tables, with the keys -1, -2 ..., and nothing else."""
        statements = ["delete from parts", "delete from items"]
        for key, name in enumerate(before, start=1):
            statements.append(f"insert into items (id, name) values (-{key}, '{name}')")
        for statement in statements:
            if isinstance(self._observer, SQLiteObserver):
                self._observer.connection.execute(statement)
            else:
                assert isinstance(self._observer, PostgresObserver)
                await self._observer.connection.execute(statement)


def _sqlite_connections() -> int:
    """Each has a thread. Its files may be open although it is closed: SQLite keeps them."""
    return sum("_connection_worker_thread" in thread.name for thread in threading.enumerate())


NAMES = (
    "select name from items union all select 'part of ' || name || ' ' ||"
    " row_number() over (partition by item_id order by parts.id)"
    " from parts join items on items.id = item_id"
)
BACKENDS = (
    "from pg_stat_activity where datname = current_database() and pid <> pg_backend_pid()"
    " and backend_type = 'client backend'"
)
LOOK = (
    f"select array({NAMES}),"
    f" array(select state || ': ' || query {BACKENDS} and state <> 'idle'),"
    f" (select count(*) {BACKENDS})"
)


@contextmanager
def heard() -> Iterator[list[str]]:
    """What is complained about meanwhile, by whomever: nobody must."""
    complaints: list[str] = []
    loop = asyncio.get_running_loop()
    handler = _Listener(complaints)
    with ExitStack() as stack:
        caught = stack.enter_context(warnings.catch_warnings(record=True))
        warnings.simplefilter("always")
        for name in ("sqlalchemy", "asyncio", "aiosqlite"):
            logger = logging.getLogger(name)
            logger.addHandler(handler)
            stack.callback(logger.removeHandler, handler)
        stack.callback(setattr, sys, "unraisablehook", sys.unraisablehook)
        sys.unraisablehook = lambda hook: complaints.append(f"unraisable: {hook.exc_value!r}")
        stack.callback(setattr, threading, "excepthook", threading.excepthook)
        threading.excepthook = lambda hook: complaints.append(f"in a thread: {hook.exc_value!r}")
        stack.callback(loop.set_exception_handler, loop.get_exception_handler())
        loop.set_exception_handler(lambda _, context: complaints.append(_described(context)))
        try:
            yield complaints
        finally:
            complaints += [f"{w.category.__name__}: {w.message}" for w in caught or ()]


def _described(context: dict[str, Any]) -> str:
    return f"asyncio: {context['message']}: {context.get('exception')!r}"


class _Listener(logging.Handler):
    def __init__(self, complaints: list[str]) -> None:
        super().__init__(logging.WARNING)
        self._complaints = complaints

    def emit(self, record: logging.LogRecord) -> None:
        self._complaints.append(f"{record.name}: {record.getMessage()}")
