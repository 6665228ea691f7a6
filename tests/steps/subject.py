"""Holds an app and its engine to the promise. Any app will do: other libraries' as well."""

from __future__ import annotations

import asyncio
import gc
import sqlite3
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Any

from sqlalchemy.ext.asyncio import AsyncEngine
from sqlalchemy.pool import QueuePool
from starlette.types import ASGIApp

from tests.steps.attempt import Attempt, Way
from tests.steps.outside import Outside, Seen, heard
from tests.steps.promise import Endpoint, Tally, Violation, broken
from tests.steps.ways import TWICE, UNDISTURBED


@dataclass(frozen=True)
class Subject:
    """What is held to the promise.

    Attributes:
        app: has the endpoints.
        engine: the app's.
        outside: looks at the engine's database.
        next: a request that always works, and writes.
        layers: how many BaseHTTPMiddlewares the app has. Below one, a body that the app itself cuts
            off, by a time limit, ends as if it were complete.
        cold: begin each case with an empty pool.
        patience: seconds for a request to end, for the next to be served (it may have to connect
            anew, and the machine may be busy), and for the server and drivers to clean up.
    """

    app: ASGIApp
    engine: AsyncEngine
    outside: Outside
    next: Endpoint
    layers: int = 0
    cold: bool = False
    patience: float = 5.0

    async def try_every_step(
        self,
        endpoint: Endpoint,
        way: Way,
        *,
        first: int = 1,
        stride: int = 1,
        until: str | None = None,
    ) -> Tally:
        """Cancel the request at step 1, 2, 3, ... until it runs through.

        Args:
            endpoint: what is requested.
            way: how it is cancelled.
            first: the step to begin with.
            stride: 2 to leave out every other step, and so on.
            until: the kind of violation that is enough.
        """
        tally, at, reached = await self._warm_up(endpoint), first, True
        while reached and until not in tally.kinds:
            attempt = Attempt(way, at)
            await self.judge(endpoint, attempt, tally)
            reached = attempt.steps >= at and not attempt.hangs
            at += stride
        return tally

    async def try_every_distance(self, endpoint: Endpoint, *, stride: int = 1) -> Tally:
        """Cancel at each step, and again at each later one."""
        tally, at, reached = await self._warm_up(endpoint), 1, True
        while reached:
            distance, again = 1, True
            while again:
                attempt = Attempt(TWICE, at, again_after=distance)
                await self.judge(endpoint, attempt, tally)
                again = attempt.steps >= at + distance and not attempt.hangs
                distance += stride
            reached = attempt.steps >= at and not attempt.hangs
            at += stride
        return tally

    async def _warm_up(self, endpoint: Endpoint) -> Tally:
        """The undisturbed request, which has to do what it should. What lives after it is left
        out of the collections of garbage that follow: they look at one case each.
        """
        tally = Tally()
        with heard() as complaints:
            async for kind, detail in self._violations_undisturbed(endpoint):
                tally.violations.append(Violation(kind, endpoint.name, detail))
            gc.collect()
        gc.freeze()
        tally.violations += [Violation("warning", endpoint.name, text) for text in complaints]
        return tally

    async def judge(self, endpoint: Endpoint, attempt: Attempt, tally: Tally) -> None:
        """Run one case, and note what it violates."""
        tally.cases += 1
        where = f"{endpoint.name}, {attempt.way.name} at step {attempt.at}"
        if attempt.again_after:
            where += f" and {attempt.again_after} later"
        if self.cold:
            await self.engine.dispose()
        with heard() as complaints:
            async for kind, detail in self._violations(endpoint, attempt):
                tally.violations.append(Violation(kind, where, detail))
        tally.steps += attempt.steps
        for complaint in complaints:
            expected = (*attempt.way.expected, *endpoint.expected)
            if not any(part in complaint for part in expected):
                tally.violations.append(Violation("warning", where, complaint))

    async def _violations(
        self, endpoint: Endpoint, attempt: Attempt
    ) -> AsyncIterator[tuple[str, str]]:
        if locked := await self._prepare(endpoint):
            yield "transaction open", locked
            return
        others = asyncio.all_tasks()
        await attempt.run(self.app, endpoint.scope(), endpoint.body, patience=self.patience)
        await asyncio.gather(*attempt.server_tasks)
        if attempt.hangs:
            yield "hang", repr(attempt.task)
        elif kept := _checked_out(self.engine):
            yield "connection kept", f"{kept}"
        if changed := _changed_context(attempt):
            yield "context changed", f"{changed}"
        if left := await _tasks_left(others, self.patience):
            yield "task left", f"{left}"
        attempt.forget()
        gc.collect()
        seen = await self._settled()
        if seen.transactions:
            yield "transaction open", f"{seen.transactions}"
        if seen.connections > (pooled := _pool(self.engine).checkedin()):
            yield "connection lost", f"{seen.connections} open, {pooled} in the pool"
        cut_short = self.layers > 0 and attempt.way.inside is not None
        for violation in broken(endpoint, attempt, seen.names, cut_short=cut_short):
            yield violation
        async for violation in self._violations_undisturbed(self.next):
            yield violation

    async def _prepare(self, endpoint: Endpoint) -> str | None:
        try:
            await asyncio.wait_for(self.outside.clear(endpoint.before), self.patience)
        except (TimeoutError, sqlite3.OperationalError) as error:
            return f"the tables are locked: {error!r}"
        return None

    async def _settled(self) -> Seen:
        deadline = time.monotonic() + self.patience
        while True:
            seen = await self.outside.look()
            pooled = _pool(self.engine).checkedin()
            if (
                not seen.transactions and seen.connections <= pooled
            ) or time.monotonic() > deadline:
                return seen
            await asyncio.sleep(0.002)

    async def _violations_undisturbed(self, endpoint: Endpoint) -> AsyncIterator[tuple[str, str]]:
        if locked := await self._prepare(endpoint):
            yield "transaction open", locked
            return
        attempt = Attempt(UNDISTURBED, None)
        await attempt.run(self.app, endpoint.scope(), endpoint.body, patience=self.patience)
        seen = await self.outside.look()
        wanted = frozenset(endpoint.before).union(*(unit.names for unit in endpoint.units))
        kept = _checked_out(self.engine)
        if attempt.status != endpoint.status or seen.names != wanted or kept:
            told = f"told {attempt.status}, {attempt.error}"
            yield "undisturbed request", f"{told}; rows {sorted(seen.names)}, kept {kept}"


def _pool(engine: AsyncEngine) -> QueuePool:
    pool = engine.pool
    assert isinstance(pool, QueuePool)
    return pool


def _checked_out(engine: AsyncEngine) -> int:
    return _pool(engine).checkedout()


def _changed_context(attempt: Attempt) -> dict[str, str]:
    before = attempt.context_before
    return {
        variable.name: repr(value)
        for variable, value in attempt.context.items()
        if before.get(variable) is not value and value not in (None, ())
    }


async def _tasks_left(others: set[asyncio.Task[Any]], patience: float) -> list[str]:
    """Tasks that are not done within the time for clean-ups; they are ended."""
    if left := asyncio.all_tasks() - others:
        _, left = await asyncio.wait(left, timeout=patience)
    names = [repr(task) for task in left]
    while left:
        for task in left:
            task.cancel()
        _, left = await asyncio.wait(left, timeout=0.1)
    return names
