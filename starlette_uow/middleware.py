"""`UnitOfWorkMiddleware`: the only file that reads ASGI messages."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Collection
from contextlib import suppress
from typing import Any

from sqlalchemy.ext.asyncio import AsyncEngine, async_sessionmaker
from starlette._utils import get_route_path, is_async_callable
from starlette.concurrency import run_in_threadpool
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from starlette_uow.context import Frame, RequestFrame, current_frame, mark_served
from starlette_uow.errors import (
    ConfigurationError,
    MiddlewareTwiceError,
    NoUnitError,
    WebSocketUnitError,
    paths_error,
)
from starlette_uow.policy import CommitRule, Outcome, wants_commit
from starlette_uow.unit import Unit
from starlette_uow.uow import UnitOfWork

FRAME = "starlette_uow.frame"
"""Scope key: the innermost entry of *this* request; its owner is the app that it was made in, and
the path of that, to tell a middleware that is there twice from one in a mounted app.

Not the context variable: uvicorn can start a request in a copy of the context of the one before
it on the same connection (its flow control resumes reading inside the earlier request's task).
"""

INTERNAL_ERROR = 1011
"""Close code of a websocket, https://www.rfc-editor.org/rfc/rfc6455#section-7.4.1"""

_NEVER_COMPLETE: Message = {
    "type": "http.response.start",
    "status": 200,
    "headers": [(b"content-length", b"1")],
}
"""Begins an answer of which the client can only say that it was broken off. The app's own may be
complete without a body, and a browser follows a redirect without waiting for one.
"""

_CLOSE: Message = {"type": "websocket.close", "code": INTERNAL_ERROR, "reason": ""}


class UnitOfWorkMiddleware:
    """Opens a unit of work for each request, and commits it before the client is answered.

    The rule, in the order it is looked up:

    1. The app sends `http.response.start` with a status below 400: flush, commit, give the
       connection back, run the `on_commit` callbacks, then let the message pass.
    2. A status of 400 or more, or `commit_when` says no, or the app called `doom()`: roll back,
       give the connection back, then let the message pass.
    3. A status below 400, but the transaction is doomed against the app's will (an exception
       left a joined block, the database aborted it, a statement was cancelled): roll back; the
       answer is replaced by `UnitDoomedError`.
    4. The app raises or is cancelled before that: roll back, and let the exception go on.
    5. The commit fails: roll back; the client gets what the app's exception handlers make of
       the error, else a 500. The app's own answer is dropped, with its background tasks.
    6. A streaming result is still open at response start: the body is being read from this
       transaction, so it ends before the last body message instead. The start message waits for
       the first body message; if that is the last, a failing commit still becomes a proper
       answer, otherwise it breaks the body off.
    7. The body uses the session after the commit: a second transaction, ended before the last
       body message passes, and rolled back if the body failed. (Below a `BaseHTTPMiddleware` a
       body runs ahead: what it does before its first chunk may belong to the first transaction.)
    8. Background tasks use the session: a transaction for all of them, committed when the app
       returns, rolled back if it raises.
    9. A websocket: a unit for the handshake, committed before `websocket.accept` passes, rolled
       back before `websocket.close` or a denial response of 400 or more. A failing commit
       closes the socket with 1011 and is raised. Afterwards each message wants its own
       `async with uow:`.
    10. The lifespan ends: wait for open units, dispose the engines, then let
        `lifespan.shutdown.complete` pass.

    A cancellation never interrupts the end of a transaction, and never undoes a commit that was
    decided: the answer begins all the same, so that no server or time limit makes an error of it.

    In a mounted app, the middleware of the same unit of work joins the request's unit.

    Args:
        app: the ASGI app below.
        uow: whose units to open.
        session_factory: instead of `uow`, for the plain case without a definition of one's own.
        commit_when: decides by status and scope instead of "below 400". A raised exception never
            commits.
        exclude: paths that get no unit, with everything below them; as routes are written, so
            without the root path of a server or of the mount.

    Raises:
        ConfigurationError: neither or both of `uow` and `session_factory` are given, or another
            argument cannot be used.
        MiddlewareTwiceError: at the first request, if one app has it twice for one unit of work.
    """

    def __init__(
        self,
        app: ASGIApp,
        *,
        uow: UnitOfWork | None = None,
        session_factory: async_sessionmaker[Any] | AsyncEngine | None = None,
        commit_when: CommitRule | None = None,
        exclude: Collection[str] = (),
    ) -> None:
        if uow is None and session_factory is None:
            raise ConfigurationError(
                "UnitOfWorkMiddleware needs `uow` or `session_factory`, and got neither. Pass "
                "`uow=UnitOfWork(sessions)`."
            )
        if uow is not None and session_factory is not None:
            raise ConfigurationError(
                f"UnitOfWorkMiddleware got both `uow` and `session_factory`: {uow!r} and "
                f"{session_factory!r}. Leave out `session_factory`; `uow` has one."
            )
        if uow is not None and not isinstance(uow, UnitOfWork):
            raise ConfigurationError(
                f"`uow` has to be a UnitOfWork, and is {uow!r}. Pass `uow=UnitOfWork(sessions)`, "
                f"or a sessionmaker as `session_factory`."
            )
        if commit_when is not None and (
            not callable(commit_when) or is_async_callable(commit_when)
        ):
            raise ConfigurationError(
                f"`commit_when` has to be a plain function of status and scope, and is "
                f"{commit_when!r}. Write `lambda status, scope: status < 400`."
            )
        if (
            isinstance(exclude, str)
            or not isinstance(exclude, Collection)
            or not all(isinstance(path, str) and path.startswith("/") for path in exclude)
        ):
            raise paths_error(exclude)
        self.app = app
        if uow is None:
            assert session_factory is not None
            uow = UnitOfWork(session_factory)
        self.uow = uow
        self._commit_when = commit_when
        self._exclude = tuple(path.rstrip("/") for path in exclude)
        mark_served(uow)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        kind = scope["type"]
        if kind == "lifespan":
            await self._serve_lifespan(scope, receive, send)
            return
        if kind != "http" and kind != "websocket":
            await self.app(scope, receive, send)
            return
        here = (scope.get("app"), scope.get("root_path"))
        outer = scope.get(FRAME)
        if outer is not None and (served := _served_by(outer, self.uow)) is not None:
            if served.owner == here:
                raise MiddlewareTwiceError(self.uow)
            await self.app(scope, receive, send)
            return
        if "state" not in scope:
            scope["state"] = {}  # one dict for everybody's `request.state`
        if self._exclude and self._is_excluded(scope):
            absence = _excluded(scope["path"])
            frame = Frame(self.uow, None, outer, owner=here, absence=absence)
            responder: _Http | _WebSocket | None = None
        else:
            frame = request = RequestFrame(self.uow, outer, here, scope)
            respond = _Http if kind == "http" else _WebSocket
            responder = respond(self.app, request, scope, receive, send, self._commit_when)
        before = current_frame.get()
        scope[FRAME] = frame
        current_frame.set(frame)
        try:
            if responder is None:
                await self.app(scope, receive, send)
            else:
                await responder.serve()
        finally:
            # Set, never reset by token: the app may have been left in a copied context.
            current_frame.set(before)
            scope[FRAME] = outer

    def _is_excluded(self, scope: Scope) -> bool:
        path = get_route_path(scope)
        return any(path == p or path.startswith(f"{p}/") for p in self._exclude)

    async def _serve_lifespan(self, scope: Scope, receive: Receive, send: Send) -> None:
        async def send_after_dispose(message: Message) -> None:
            if message["type"] in ("lifespan.shutdown.complete", "lifespan.shutdown.failed"):
                await self.uow.dispose()
            await send(message)

        await self.app(scope, receive, send_after_dispose)


class _RefusedError(Exception):
    """Unwinds the app whose answer was refused. What refused it is the `__cause__`.

    An exception of its own, because Starlette answers the error itself with "Caught handled
    exception, but response already started" where the app has a handler for it.
    """


class _Responder:
    """What serves one request or handshake."""

    def __init__(
        self,
        app: ASGIApp,
        frame: RequestFrame,
        scope: Scope,
        receive: Receive,
        send: Send,
        commit_when: CommitRule | None,
    ) -> None:
        self.app = app
        self.frame = frame
        self.scope = scope
        self.receive = receive
        self.send = send
        self.commit_when = commit_when

    @property
    def unit(self) -> Unit:
        return self.frame.unit


class _Http(_Responder):
    """Serves one HTTP request: sees each message, and ends the unit's transactions."""

    commit = False
    """What the answer's status asks for."""

    held: tuple[Message, ...] = ()
    """Messages that wait until the transaction has ended."""

    passed = False
    """The server has the start message."""

    complete = False
    """The server has the last body message."""

    body_is_read = False
    """The app has the last part of the request's body."""

    client_left = False
    """And the app knows, so that its body may be cut off."""

    refused: Exception | None = None
    """What kept the answer from being committed."""

    async def serve(self) -> None:
        outer_app = self.scope.get("app")  # the app below will put itself there
        try:
            try:
                await self.app(self.scope, self.receive_and_note, self.send_after_commit)
                if self.held and _is_last(self.held[-1]):
                    await self.end_body()
            except Exception:
                # Whatever the app made of _RefusedError, what refused the answer matters.
                if self.refused is None:
                    raise
            if self.refused is not None:
                await self.answer_refusal(self.refused, outer_app)
            elif not self.complete and self.frame.opened is not None:
                # The app forgot to answer, or its client left halfway.
                await self.unit.settle(commit=False)
        except BaseException:
            # BaseException: the unit of a cancelled request has to end as well.
            await self.frame.finish(commit=False)
            raise
        if self.frame.opened is None:
            self.frame.forgo()
        else:
            await self.frame.opened.finish(commit=True)  # what the background tasks did

    def send_after_commit(self, message: Message) -> Awaitable[None]:
        # Not a coroutine function: the answer of a page without database costs none.
        starts = message["type"] == "http.response.start"
        if starts:
            self.commit = wants_commit(message["status"], self.scope, self.commit_when)
        unit = self.frame.opened
        # Nothing is held or refused where nobody has asked for the unit.
        if unit is not None and (self.held or self.refused is not None or not unit.is_idle):
            return self.settle_and_send(message)
        if starts:
            self.passed = True
        elif _is_last(message):
            self.complete = True
        return self.send(message)

    async def settle_and_send(self, message: Message) -> None:
        if self.refused is not None:
            return  # the app's own answer is dropped whole
        self.held = (*self.held, message)
        if message["type"] == "http.response.start":
            if not self.unit.is_streaming:
                await self.settle_or_refuse()
                await self.pass_held()
        elif _is_last(message) and self.unit.has_work:
            # BaseHTTPMiddleware closes the body normally when the generator below it failed, and
            # raises only afterwards. If the task that used the session last is done, only the
            # app's return will tell which of the two this is.
            if not self.unit.last_task_is_done:
                await self.end_body()
        else:
            await self.pass_held()

    async def receive_and_note(self) -> Message:
        message = await self.receive()
        if message["type"] == "http.disconnect":
            self.client_left = True
        elif not message.get("more_body", False):
            self.body_is_read = True
        return message

    async def end_body(self) -> None:
        # A StreamingResponse whose client left cuts its body off, and returns as if nothing had
        # happened; BaseHTTPMiddleware then closes the body normally.
        self.commit = self.commit and not self.client_left
        await self.settle_or_refuse()
        await self.pass_held()

    async def settle_or_refuse(self) -> None:
        try:
            await self.unit.settle(commit=self.commit)
        except Exception as error:
            self.refused = error
            raise _RefusedError from error
        except asyncio.CancelledError:
            # A server or time limit that would make an error of this has to see that the answer
            # to what was committed has begun: it can only break it off.
            if self.commit and self.unit.outcome in (Outcome.COMMITTED, Outcome.UNKNOWN):
                if self.unit.outcome is Outcome.UNKNOWN:
                    self.held = () if self.passed else ({**_NEVER_COMPLETE},)
                with suppress(Exception):  # the cancellation goes on, whatever the server says
                    await self.pass_held()
            self.held = ()  # a time limit may answer in its place
            raise

    async def pass_held(self) -> None:
        held, self.held = self.held, ()
        for message in held:
            self.passed = self.passed or message["type"] == "http.response.start"
            self.complete = self.complete or _is_last(message)
            await self.send(message)

    async def answer_refusal(self, error: Exception, outer_app: Any) -> None:
        """Answer with what the app's handlers make of `error`, outside the failed transaction."""
        handler = None if self.passed else _find_handler(self.scope, outer_app, error)
        if handler is None:
            raise error  # to the handler of all exceptions, or for the server to break off
        request = Request(self.scope, _nothing_to_read if self.body_is_read else self.receive)
        if is_async_callable(handler):
            response = await handler(request, error)
        else:
            response = await run_in_threadpool(handler, request, error)
        if response is None:
            raise error
        rule = self.commit_when
        await _Refusal(response, self.frame, self.scope, self.receive, self.send, rule).serve()


class _Refusal(_Http):
    """The answer to what refused the app's own."""

    async def answer_refusal(self, error: Exception, outer_app: Any) -> None:
        """It is refused itself."""
        raise error


class _WebSocket(_Responder):
    """Serves the handshake of one websocket: its unit ends when the app has answered it."""

    refused: Exception | None = None
    """What kept the handshake from being committed. The socket is closed."""

    async def serve(self) -> None:
        try:
            await self.app(self.scope, self.receive, self.send_after_commit)
        finally:
            await self.frame.finish(commit=False)  # the app never answered the handshake
        if self.refused is not None:
            raise self.refused

    async def send_after_commit(self, message: Message) -> None:
        if self.refused is not None:
            return
        kind = message["type"]
        if self.unit.ended is None:
            if kind == "websocket.accept":
                await self.accept(message)
                return
            if kind == "websocket.close":
                await self.end_handshake(commit=False)
            elif kind == "websocket.http.response.start":
                status = message["status"]
                await self.end_handshake(wants_commit(status, self.scope, self.commit_when))
        await self.send(message)

    async def accept(self, message: Message) -> None:
        try:
            await self.end_handshake(commit=True)
        except asyncio.CancelledError:
            # As for an answer.
            if self.unit.outcome in (Outcome.COMMITTED, Outcome.UNKNOWN):
                with suppress(Exception):
                    await self.send({**_CLOSE} if self.unit.outcome is Outcome.UNKNOWN else message)
            raise
        await self.send(message)

    async def end_handshake(self, commit: bool) -> None:
        try:
            await self.unit.settle(commit=commit)
        except Exception as error:
            self.refused = error
            self.unit.close()
            await self.send({**_CLOSE})
            raise
        name = self.unit.name
        self.unit.close(lambda: WebSocketUnitError(name))


async def _nothing_to_read() -> Message:
    """Instead of a wait for the client to leave."""
    raise RuntimeError(
        "The body of the request has been read by the app, whose commit was refused. Keep in "
        "`request.state` what the exception handler needs of it."
    )


def _is_last(message: Message) -> bool:
    kind = message["type"]
    return kind == "http.response.pathsend" or (
        kind == "http.response.body" and not message.get("more_body", False)
    )


def _excluded(path: str) -> Callable[[], NoUnitError]:
    return lambda: NoUnitError.excluded(path)


def _served_by(frame: Frame | None, uow: UnitOfWork) -> Frame | None:
    """The entry that a middleware around this one made for the request, if it serves `uow`."""
    while frame is not None and (frame.uow is not uow or frame.absence is not None):
        frame = frame.outer
    return frame


def _find_handler(scope: Scope, outer_app: Any, error: Exception) -> Any:
    """The app's handler for `error`: the innermost mounted app's, else the outermost app's.

    Those for all exceptions (`Exception` and 500) are left to ServerErrorMiddleware.
    """
    classes, statuses = scope.get("starlette.exception_handlers", ({}, {}))
    outer = getattr(outer_app, "exception_handlers", {})
    for handlers in ({**classes, **statuses}, outer):
        keys: list[object] = list(type(error).__mro__[: type(error).__mro__.index(Exception)])
        if isinstance(error, HTTPException) and error.status_code != 500:
            keys.insert(0, error.status_code)
        for key in keys:
            if key in handlers:
                return handlers[key]
    return None
