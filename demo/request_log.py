"""One line of log for each request, which says what became of its transaction.

Two middlewares: `RequestLog` goes outside `UnitOfWorkMiddleware`, where the answer is the one
that the client gets, and `TransactionNote` inside, where the unit is.
"""

from __future__ import annotations

import logging
import re
import secrets
from time import perf_counter
from urllib.parse import quote

from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from demo.log import FIELDS
from starlette_uow import NoUnitError, UnitOfWork

NOTE = "transaction"
ID = "request_id"
"""Where in `scope["state"]` the note and the request's id are."""

REQUEST_ID = "x-request-id"
LINE = (
    "%(method)s %(path)s %(status)s %(transaction)s %(milliseconds)d ms"
    " route=%(route)s request=%(request)s"
)
GOOD_ID = re.compile(r"[\w.-]{8,64}", re.ASCII)

log = logging.getLogger("demo.requests")


def id_of(scope: Scope) -> str:
    """Tell the id of a request, which its line in the log and its answer have."""
    return str(scope["state"][ID])


class RequestLog:
    """Logs `POST /api/orders 201 committed 12 ms route=... request=...` for each request.

    For programs, the log record has the same as fields. The client gets the request's id in a
    header; an id that it has sent is kept.
    """

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request, and log it once the app is done with it."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        given = Headers(scope=scope).get(REQUEST_ID, "")
        request_id = given if GOOD_ID.fullmatch(given) else secrets.token_hex(8)
        state = scope.setdefault("state", {})
        state[NOTE], state[ID] = "no transaction", request_id
        answered: int | None = None
        started = perf_counter()

        async def send_and_remember(message: Message) -> None:
            nonlocal answered
            if message["type"] == "http.response.start":
                answered = message["status"]
                MutableHeaders(scope=message)[REQUEST_ID] = request_id
            await send(message)

        status = "left"  # the client, before there was an answer
        try:
            await self.app(scope, receive, send_and_remember)
        except Exception:
            status = "500"  # what a server answers for an app that raises
            raise
        finally:
            fields = {
                "method": scope["method"],
                "path": quote(scope["path"]),  # so that no path can write a second line
                "status": status if answered is None else str(answered),
                "transaction": state[NOTE],
                "milliseconds": round((perf_counter() - started) * 1000),
                "route": getattr(scope.get("route"), "path", "-"),
                "request": request_id,
            }
            log.info(LINE, fields, extra={FIELDS: fields})


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
        except BaseException:  # a client that leaves cancels
            watch()
            raise
