"""One line of log for each request, which says what became of its transaction.

Two middlewares: `RequestLog` goes outside `UnitOfWorkMiddleware`, where the answer is the one
that the client gets, and `TransactionNote` inside, where the unit is.
"""

from __future__ import annotations

import logging
from time import perf_counter
from urllib.parse import quote

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from starlette_uow import NoUnitError, UnitOfWork

NOTE = "transaction"
"""Where in `scope["state"]` the note is."""

log = logging.getLogger("demo.requests")


class RequestLog:
    """Logs `POST /api/orders 201 committed 12 ms` once the app is done with a request."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request, and log it."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        state = scope.setdefault("state", {})
        state[NOTE] = "no transaction"
        status = 500  # what a server answers for an app that raises
        started = perf_counter()

        async def send_and_remember(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
            await send(message)

        try:
            await self.app(scope, receive, send_and_remember)
        finally:
            milliseconds = (perf_counter() - started) * 1000
            # Quoted, so that no path can write a second line.
            line = f"{scope['method']} {quote(scope['path'])} {status} {state[NOTE]}"
            log.info("%s %.0f ms", line, milliseconds)


class TransactionNote:
    """Notes whether the transaction of the answer was committed or rolled back."""

    def __init__(self, app: ASGIApp, *, uow: UnitOfWork) -> None:
        self.app = app
        self.uow = uow

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request, and note what becomes of its transaction."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return

        def note(outcome: str) -> None:
            scope["state"][NOTE] = outcome

        def watch() -> None:
            try:
                if not self.uow.session.in_transaction():
                    return
            except NoUnitError:  # an excluded path
                return
            note("outcome unknown")  # until one of these is called
            self.uow.on_commit(lambda: note("committed"))
            self.uow.on_rollback(lambda: note("rolled back"))

        async def watch_and_send(message: Message) -> None:
            if message["type"] == "http.response.start":
                watch()
            await send(message)

        try:
            await self.app(scope, receive, watch_and_send)
        except Exception:
            watch()
            raise
