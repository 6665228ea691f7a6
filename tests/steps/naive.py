"""Sessions of requests as one would write them by hand, and with deliberate faults."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from contextvars import ContextVar
from typing import Any

from sqlalchemy import event
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine, AsyncSession
from starlette.types import ASGIApp, Receive, Scope, Send

_session: ContextVar[AsyncSession | None] = ContextVar("naive_session", default=None)

Serve = Callable[[], Awaitable[None]]


def naive_session() -> AsyncSession:
    session = _session.get()
    assert session is not None
    return session


class Naive:
    """Middleware that serves each request with one of the functions below.

    Attributes:
        kept: what lives longer than the request.
    """

    def __init__(self, app: ASGIApp, engine: AsyncEngine, around: Around, kept: list[Any]) -> None:
        self.app = app
        self.engine = engine
        self.around = around
        self.kept = kept

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return

        async def serve() -> None:
            await self.app(scope, receive, send)

        await self.around(serve, self.engine, self.kept)


async def end(thing: Any) -> None:
    """Clean up what was kept."""
    if isinstance(thing, AsyncSession | AsyncConnection):
        await thing.close()


Around = Callable[[Serve, AsyncEngine, list[Any]], Awaitable[None]]


def new_session(engine: AsyncEngine) -> AsyncSession:
    return AsyncSession(engine, expire_on_commit=False)


async def commit_after_the_answer(serve: Serve, engine: AsyncEngine, kept: list[Any]) -> None:
    """What everybody writes first; a dependency with `yield` is the same."""
    async with new_session(engine) as session:
        _session.set(session)
        try:
            async with session.begin():
                await serve()
        finally:
            _session.set(None)


async def commit_in_between(serve: Serve, engine: AsyncEngine, kept: list[Any]) -> None:
    """In a repository, say."""
    async with new_session(engine) as session:
        event.listen(session.sync_session, "do_orm_execute", lambda s: s.session.commit())
        _session.set(session)
        try:
            await serve()
            await session.commit()
        finally:
            _session.set(None)


async def close_on_exceptions_only(serve: Serve, engine: AsyncEngine, kept: list[Any]) -> None:
    """A cancellation is no `Exception`."""
    _session.set(new_session(engine))
    try:
        await serve()
    except Exception:
        await naive_session().close()
        raise
    await naive_session().commit()
    await naive_session().close()
    _session.set(None)


async def keep_sessions(serve: Serve, engine: AsyncEngine, kept: list[Any]) -> None:
    """Forgotten, but not by everybody, so that nobody rolls back."""
    session = new_session(engine)
    kept.append(session)
    _session.set(session)
    await serve()
    await session.commit()
    await session.close()
    _session.set(None)


async def keep_connections(serve: Serve, engine: AsyncEngine, kept: list[Any]) -> None:
    """Taken out of the pool for good."""
    try:
        await commit_after_the_answer(serve, engine, kept)
    except asyncio.CancelledError:
        connection = await engine.connect()
        (await connection.get_raw_connection()).detach()
        kept.append(connection)
        raise


async def forget_the_context(serve: Serve, engine: AsyncEngine, kept: list[Any]) -> None:
    async with new_session(engine) as session:
        _session.set(session)
        await serve()


async def await_nothing(serve: Serve, engine: AsyncEngine, kept: list[Any]) -> None:
    try:
        await commit_after_the_answer(serve, engine, kept)
    except asyncio.CancelledError:
        asyncio.sleep(0)  # type: ignore[unused-coroutine]  # the fault
        raise


async def leave_a_task(serve: Serve, engine: AsyncEngine, kept: list[Any]) -> None:
    try:
        await commit_after_the_answer(serve, engine, kept)
    except asyncio.CancelledError:
        kept.append(asyncio.create_task(asyncio.Event().wait()))
        raise


async def swallow_the_cancellation(serve: Serve, engine: AsyncEngine, kept: list[Any]) -> None:
    try:
        await commit_after_the_answer(serve, engine, kept)
    except asyncio.CancelledError:
        await asyncio.Event().wait()


async def keep_a_lock(serve: Serve, engine: AsyncEngine, kept: list[Any]) -> None:
    """One request at a time, until one is cancelled."""
    if not kept:
        kept.append(asyncio.Lock())
    await kept[0].acquire()
    await commit_after_the_answer(serve, engine, kept)
    kept[0].release()


FAULTS: dict[str, tuple[Around, str]] = {
    "success told, not committed": (commit_after_the_answer, "write"),
    "error told, rows written": (commit_after_the_answer, "write_and_refuse"),
    "half a unit": (commit_in_between, "write"),
    "connection kept": (close_on_exceptions_only, "write"),
    "transaction open": (keep_sessions, "write"),
    "connection lost": (keep_connections, "write"),
    "warning": (await_nothing, "read"),
    "task left": (leave_a_task, "read"),
    "context changed": (forget_the_context, "read"),
    "hang": (swallow_the_cancellation, "read"),
    "undisturbed request": (keep_a_lock, "read"),
}
"""Each kind of violation: a fault that causes it, and an endpoint that shows it."""
