"""What the app answers when something went wrong: problem details, RFC 9457.

By then the transaction is rolled back, except what was committed on purpose.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from http import HTTPStatus
from typing import Any

from fastapi.exceptions import RequestValidationError
from sqlalchemy.exc import DBAPIError, IntegrityError
from sqlalchemy.exc import TimeoutError as PoolTimeoutError
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import JSONResponse, PlainTextResponse, Response
from starlette.types import HTTPExceptionHandler

from demo.api.schemas import ProductOut
from demo.errors import ChangedMeanwhileError, ShopError

REFUSED = (
    "The database refused this: it needs something that does not exist, such as a campaign, or "
    "removes something that is still in use. Nothing was written."
)
LOST_A_RACE = "Somebody changed the same at the same moment. Nothing was written. Try again."
BUSY = "The shop is busy. Nothing was written. Try again."

RACES = {"40001", "40P01"}
"""SQLSTATE: serialization failure, deadlock."""


class ProblemResponse(JSONResponse):
    """JSON in ASCII: whatever a client has sent, such as half a character, can be quoted."""

    media_type = "application/problem+json"

    def render(self, content: Any) -> bytes:
        """Turn it into bytes."""
        return json.dumps(content, separators=(",", ":")).encode("ascii")


def problem(
    request: Request,
    status: int,
    detail: str,
    *,
    headers: Mapping[str, str] | None = None,
    facts: Mapping[str, object] | None = None,
) -> Response:
    """Answer a problem, as text where a person asks."""
    if "text/html" in request.headers.get("accept", ""):
        return PlainTextResponse(detail, status, headers)
    title = HTTPStatus(status).phrase
    body = {"type": "about:blank", "title": title, "status": status, "detail": detail}
    return ProblemResponse({**body, **(facts or {})}, status, headers)


def answer_shop_error(request: Request, error: Exception) -> Response:
    """Answer what the error says, and how it is now if somebody else was faster."""
    assert isinstance(error, ShopError)
    facts = dict(error.facts)
    if isinstance(error, ChangedMeanwhileError):
        facts["current"] = ProductOut.model_validate(error.current).model_dump(mode="json")
    return problem(request, error.status, str(error), headers=error.headers, facts=facts)


def answer_http_error(request: Request, error: Exception) -> Response:
    """Answer Starlette's own errors in the same form."""
    assert isinstance(error, HTTPException)
    return problem(request, error.status_code, error.detail, headers=error.headers)


def answer_bad_input(request: Request, error: Exception) -> Response:
    """Say what is wrong where, without repeating what was sent."""
    assert isinstance(error, RequestValidationError)
    errors: Sequence[Any] = error.errors()
    places = [{"where": [str(x) for x in e["loc"]], "what": e["msg"]} for e in errors]
    detail = "; ".join(f"{'.'.join(p['where'])}: {p['what']}" for p in places[:5])
    return problem(request, 422, detail, facts={"errors": places[:20]})


def answer_database_error(request: Request, error: Exception) -> Response:
    """Answer 409 or 503, whether a statement was refused or the COMMIT."""
    if isinstance(error, IntegrityError):
        return problem(request, 409, REFUSED)
    if isinstance(error, DBAPIError) and getattr(error.orig, "sqlstate", "") in RACES:
        return problem(request, 409, LOST_A_RACE, headers={"Retry-After": "1"})
    if isinstance(error, PoolTimeoutError) or "database is locked" in str(error):
        return problem(request, 503, BUSY, headers={"Retry-After": "1"})
    raise error


handlers: dict[type[Exception], HTTPExceptionHandler] = {
    ShopError: answer_shop_error,
    HTTPException: answer_http_error,
    RequestValidationError: answer_bad_input,
    DBAPIError: answer_database_error,
    PoolTimeoutError: answer_database_error,
}
