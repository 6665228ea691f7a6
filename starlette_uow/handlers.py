"""A ready-made answer for the time the database is away: 503, and when to come again."""

from __future__ import annotations

import socket
from collections.abc import Callable, Coroutine
from importlib.util import find_spec
from typing import Any

from sqlalchemy.exc import DBAPIError
from sqlalchemy.exc import TimeoutError as PoolTimeoutError
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response

RETRY_AFTER = 1
"""Seconds: a pool recovers within one request's time, a server restarts within a few."""

AWAY = ("08", "53300", "57P03")
"""SQLSTATEs, or their class: connection lost, too many connections, the server stops or starts.
https://www.postgresql.org/docs/current/errcodes-appendix.html"""


async def answer_unavailable(request: Request, error: Exception) -> Response:
    """Answer 503 with `Retry-After` if the database was away. Nothing of the request is written.

    Away means: the pool gave no connection in time, the server refused it, does not take more,
    starts or stops, cannot be reached, or the connection was lost before COMMIT.

    Raises:
        Exception: the error itself, if it is of another kind, or a websocket's.
    """
    if request.scope["type"] != "http" or not _was_away(error):
        raise error
    headers = {"Retry-After": str(RETRY_AFTER)}
    return PlainTextResponse("The database is not available. Try again.", 503, headers)


def _was_away(error: Exception) -> bool:
    if isinstance(error, PoolTimeoutError):
        return True
    if isinstance(error, OSError):
        return _came_from_the_pool(error)
    if isinstance(error, DBAPIError) and error.connection_invalidated:
        return True
    state: object = getattr(getattr(error, "orig", error), "sqlstate", None)
    return isinstance(state, str) and state.startswith(AWAY)


def _came_from_the_pool(error: OSError) -> bool:
    """Whether it was raised while a connection was made, which SQLAlchemy lets pass as it is."""
    traceback = error.__traceback__
    while traceback is not None:
        if traceback.tb_frame.f_globals.get("__name__", "").startswith("sqlalchemy.pool"):
            return True
        traceback = traceback.tb_next
    return False


_classes: list[type[Exception]] = [
    PoolTimeoutError,
    DBAPIError,
    ConnectionError,
    TimeoutError,
    socket.gaierror,
]
if find_spec("asyncpg") is not None:
    from asyncpg import PostgresError

    _classes.append(PostgresError)  # by SQLAlchemy 2.0, where a connection cannot be made

# The types are those of FastAPI's argument: a dict of narrower ones does not fit it.
unavailable_handlers: dict[
    int | type[Exception], Callable[[Request, Any], Coroutine[Any, Any, Response]]
] = dict.fromkeys(_classes, answer_unavailable)
"""For `Starlette(exception_handlers=...)` and `FastAPI(exception_handlers=...)`: every class of
error that can mean that the database was away. A handler of yours for a class below one of these,
such as `IntegrityError`, is asked first; one for a class above, such as `SQLAlchemyError`, is asked
no more, as Starlette calls the one for the closest class alone."""
