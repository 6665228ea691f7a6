"""Runs a request, and cancels it at one of the steps that its tasks take.

A step is what a task does between two waits. While a request runs, a task factory wraps the
coroutine of every task that starts, so the steps of child tasks, of SQLAlchemy and of the driver
count, too.
"""

from __future__ import annotations

import asyncio
import contextvars
import weakref
from collections.abc import Callable, Coroutine
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from starlette.types import ASGIApp, Message, Scope

WITHIN = "tests.within"
"""Scope key: what the middleware `Within` puts around the app below."""

Around = Callable[[ASGIApp], ASGIApp]


class _Stepping(Coroutine[Any, Any, Any]):
    """A coroutine that tells of each step. No generator around it: a task that is cancelled
    before its first step must not leave a coroutine that was never awaited.
    """

    def __init__(self, coroutine: Any, stepped: Callable[[Any], None]) -> None:
        self._coroutine = coroutine
        self._stepped = stepped

    def send(self, value: Any, /) -> Any:
        return self._step(self._coroutine.send, value)

    def throw(self, *error: Any) -> Any:
        return self._step(self._coroutine.throw, *error)

    def close(self) -> None:
        self._coroutine.close()

    def __await__(self) -> Any:
        raise NotImplementedError("only a task runs it")

    def __getattr__(self, name: str) -> Any:
        return getattr(self._coroutine, name)  # anyio asks for the state of the coroutine

    def _step(self, resume: Callable[..., Any], *args: Any) -> Any:
        try:
            awaited = resume(*args)
        except BaseException:  # StopIteration, or how else the task ends
            self._stepped(None)
            raise
        self._stepped(awaited)
        return awaited


@dataclass(frozen=True)
class Way:
    """A way to cancel a request.

    Attributes:
        name: for the report.
        strike: cancels; called in the midst of things, so it must not wait.
        expected: log messages that it has to cause.
        at_wake: strike when what the task waits for is there, just before the task runs on.
        every: strike again after so many steps, and again.
        outside: put around the app, as a server or an outer middleware would do.
        inside: put around what is below the middleware under test, by `Within`.
        spec_version: of ASGI; from 2.4 on a server's `send` raises when the client is gone.
    """

    name: str
    strike: Callable[[Attempt], object]
    expected: tuple[str, ...] = ()
    at_wake: bool = False
    every: int | None = None
    outside: Callable[[Attempt], Around] | None = None
    inside: Callable[[Attempt], Around] | None = None
    spec_version: str = "2.3"


class Attempt:
    """One request, cancelled at one step.

    Attributes:
        steps: how many were taken.
        hit: how often it was cancelled.
        told: the messages that the client got, in order.
        tasks: all that were started.
        task: the server's, which runs the app.
        error: what came out of the app.
        hangs: it did not end in time.
    """

    def __init__(self, way: Way, at: int | None, *, again_after: int | None = None) -> None:
        self.way = way
        self.at = at
        self.again_after = again_after
        self.steps = 0
        self.hit = 0
        self.told: list[Message] = []
        self.tasks: weakref.WeakSet[asyncio.Task[Any]] = weakref.WeakSet()
        self.task: asyncio.Task[None] | None = None
        self.error: str | None = None
        self.hangs = False
        self.client_left = asyncio.Event()
        self.cancel_block: Callable[[], object] | None = None
        self.server_tasks: list[asyncio.Task[Any]] = []

    @property
    def status(self) -> int | None:
        """Of the answer that the client got; 101 for a websocket that was accepted."""
        for message in self.told:
            if "status" in message or message["type"] == "websocket.accept":
                return int(message.get("status", 101))
        return None

    @property
    def complete(self) -> bool:
        """Whether the client got all of the answer."""
        return any(
            message["type"] == "websocket.send"
            or (message["type"] == "http.response.body" and not message.get("more_body", False))
            or (b"content-length", b"0") in message.get("headers", ())
            for message in self.told
        )

    async def run(self, app: ASGIApp, scope: Scope, body: bytes, *, patience: float) -> None:
        """Run the app in a task and a context of its own; strike meanwhile."""
        self.app = app
        loop = asyncio.get_running_loop()
        self.context = contextvars.copy_context()
        self.context_before = dict(self.context.items())
        serve = self._serve(app, scope, body)
        factory = loop.get_task_factory()
        loop.set_task_factory(self._make_task)
        try:
            self.task = loop.create_task(serve, context=self.context)
            _, hanging = await asyncio.wait({self.task}, timeout=patience)
            self.hangs = bool(hanging)
        finally:
            loop.set_task_factory(factory)

    async def _serve(self, app: ASGIApp, scope: Scope, body: bytes) -> None:
        scope["asgi"] = {"version": "3.0", "spec_version": self.way.spec_version}
        if self.way.inside is not None:
            scope[WITHIN] = self.way.inside(self)
        if self.way.outside is not None:
            app = self.way.outside(self)(app)
        kind = scope["type"]
        messages: list[Message] = [{"type": "http.request", "body": body, "more_body": False}]
        if kind == "websocket":
            text = {"type": "websocket.receive", "text": "message"}
            messages = [{"type": "websocket.connect"}, text]

        async def receive() -> Message:
            if messages:
                return messages.pop(0)
            await self.client_left.wait()
            return {"type": f"{kind}.disconnect"}

        async def send(message: Message) -> None:
            if not self.client_left.is_set():
                self.told.append(message)
            elif scope["asgi"]["spec_version"] >= "2.4":
                raise OSError("the client is gone")
            if self.complete:
                self.client_left.set()  # as uvicorn has it when the response is complete
            await asyncio.sleep(0)

        try:
            await app(scope, receive, send)
        except BaseException as error:  # as uvicorn: a cancelled request is answered, too
            self.error = repr(error)
            if not self.told:
                with suppress(OSError):
                    await send({"type": "http.response.start", "status": 500, "headers": []})
                    await send({"type": "http.response.body", "body": b""})

    def forget(self) -> None:
        """Let go of what the request left behind, for the garbage collector to see."""
        self.task, self.cancel_block = None, None
        self.context, self.context_before = contextvars.Context(), {}

    def _make_task(
        self, loop: asyncio.AbstractEventLoop, coroutine: Any, **kwargs: Any
    ) -> asyncio.Task[Any]:
        task = asyncio.Task(_Stepping(coroutine, self._stepped), loop=loop, **kwargs)
        self.tasks.add(task)
        return task

    def _stepped(self, awaited: Any) -> None:
        if self.task is None or self.task.done():
            return  # a stray's
        self.steps += 1
        if self.at is None or self.steps < self.at:
            return
        after = self.steps - self.at
        if (
            after == 0
            or after == self.again_after
            or (self.way.every and not after % self.way.every)
        ):
            self._strike_at(awaited)

    def _strike_at(self, awaited: Any) -> None:
        loop = asyncio.get_running_loop()
        if not self.way.at_wake:
            self._strike()
        elif awaited is None:
            loop.call_soon(self._strike)
        else:
            awaited.add_done_callback(self._strike)

    def _strike(self, _: object = None) -> None:
        assert self.task is not None
        if not self.task.done():
            self.hit += 1
            self.way.strike(self)
