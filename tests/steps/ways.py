"""The ways in which a request is cancelled, by whomever."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any

import anyio
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from tests.steps.attempt import WITHIN, Around, Attempt, Way

Limit = Callable[[Attempt, Coroutine[Any, Any, None]], Coroutine[Any, Any, bool]]
"""Runs something within a time limit; says whether it was cut off."""


class Within:
    """Middleware for the innermost place of an app under test: there a way may put a time limit,
    as a middleware or endpoint of the app would.
    """

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        around: Around | None = scope.get(WITHIN)
        await (self.app if around is None else around(self.app))(scope, receive, send)


def cancel_task(attempt: Attempt) -> None:
    assert attempt.task is not None
    attempt.task.cancel()


def cancel_all_tasks(attempt: Attempt) -> None:
    """As `asyncio.run()` does at its end."""
    for task in list(attempt.tasks):
        task.cancel()


def cancel_block(attempt: Attempt) -> None:
    if attempt.cancel_block is not None:
        attempt.cancel_block()


def leave(attempt: Attempt) -> None:
    attempt.client_left.set()


def shut_down(attempt: Attempt) -> None:
    """As uvicorn does after its graceful period."""
    cancel_task(attempt)
    end_lifespan(attempt)


def end_lifespan(attempt: Attempt) -> None:
    if not attempt.server_tasks:
        attempt.server_tasks.append(asyncio.ensure_future(_serve_lifespan(attempt.app)))


async def _serve_lifespan(app: ASGIApp) -> None:
    """A lifespan that is over at once."""
    messages: list[Message] = [{"type": "lifespan.startup"}, {"type": "lifespan.shutdown"}]
    sent: list[str] = []

    async def receive() -> Message:
        return messages.pop(0)

    async def send(message: Message) -> None:
        sent.append(message["type"])

    await app({"type": "lifespan", "asgi": {"version": "3.0"}, "state": {}}, receive, send)
    assert sent == ["lifespan.startup.complete", "lifespan.shutdown.complete"], sent


def in_cancel_scope(attempt: Attempt) -> Around:
    """An anyio scope: it cancels again at each await, until it is left."""
    return _limited(attempt, _cancel_scope)


def in_timeout(attempt: Attempt) -> Around:
    """`asyncio.timeout()`: it cancels once, and turns the cancellation into a TimeoutError."""
    return _limited(attempt, _timeout)


async def _cancel_scope(attempt: Attempt, work: Coroutine[Any, Any, None]) -> bool:
    with anyio.CancelScope() as scope:
        attempt.cancel_block = scope.cancel
        await work
    attempt.cancel_block = None
    return scope.cancelled_caught


async def _timeout(attempt: Attempt, work: Coroutine[Any, Any, None]) -> bool:
    try:
        async with asyncio.timeout(None) as timeout:
            attempt.cancel_block = lambda: timeout.reschedule(0)
            try:
                await work
            finally:
                attempt.cancel_block = None
    except TimeoutError:
        if timeout.expired():
            return True
        raise
    return False


def _limited(
    attempt: Attempt,
    limit: Callable[[Attempt, Coroutine[Any, Any, None]], Coroutine[Any, Any, bool]],
) -> Around:
    """A limit that answers 504, unless an answer has begun: then it raises, as it should."""

    def around(app: ASGIApp) -> ASGIApp:
        async def limited(scope: Scope, receive: Receive, send: Send) -> None:
            started = False

            async def note_start(message: Message) -> None:
                nonlocal started
                started = True
                await send(message)

            if await limit(attempt, _call(app, scope, receive, note_start)):
                if started or scope["type"] == "websocket":
                    raise TimeoutError
                await send({"type": "http.response.start", "status": 504, "headers": []})
                await send({"type": "http.response.body", "body": b""})

        return limited

    return around


async def _call(app: ASGIApp, scope: Scope, receive: Receive, send: Send) -> None:
    await app(scope, receive, send)


AT_THE_END = (
    # The pool closes a connection whose check-in was cancelled, and says so.
    "Exception during reset or similar",
    # anyio's task groups, of a task that is cancelled before its first step.
    "wrap' was never awaited",
    "coro' was never awaited",
    "call_within_limit' was never awaited",
    # aiosqlite, of a connection whose opening was cancelled (Python 3.13 and later).
    "unclosed database in <sqlite3.Connection",
)
"""What is logged when the loop ends in the midst of things, and cannot be helped here."""

WAYS = [
    Way("cancel()", cancel_task),
    Way("cancel() of a wait that is over", cancel_task, at_wake=True),
    Way("cancel() at every step", cancel_task, every=1),
    Way("cancel() at every 2nd step", cancel_task, every=2),
    Way("cancel() at every 5th step", cancel_task, every=5),
    Way("anyio scope around the app", cancel_block, outside=in_cancel_scope),
    Way("anyio scope within the app", cancel_block, inside=in_cancel_scope),
    Way("asyncio.timeout around the app", cancel_block, outside=in_timeout),
    Way("asyncio.timeout within the app", cancel_block, inside=in_timeout),
    Way("client leaves", leave),
    Way("client leaves, send raises", leave, spec_version="2.4"),
    Way("shutdown", shut_down),
    Way("lifespan ends", end_lifespan),
    Way("end of the loop", cancel_all_tasks, expected=AT_THE_END),
]

TWICE = Way("cancel() twice", cancel_task)
"""With `again_after`: at every distance."""

UNDISTURBED = Way("undisturbed", lambda attempt: None)
