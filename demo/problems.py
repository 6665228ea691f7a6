"""What the app answers when something went wrong: problem details, RFC 9457.

By then the transaction is rolled back, except what was committed on purpose.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from http import HTTPStatus
from typing import Any

from fastapi.exceptions import RequestValidationError
from sqlalchemy.exc import IntegrityError
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.types import HTTPExceptionHandler

from demo.api.schemas import ProductOut
from demo.errors import ChangedMeanwhileError, ShopError
from demo.pages import templates
from demo.races import lost_a_race
from demo.request_log import REQUEST_ID, id_of
from starlette_uow.handlers import answer_unavailable, unavailable_handlers

REFUSED = (
    "The database refused this: it needs something that does not exist, such as a campaign, or "
    "removes something that is still in use. Nothing was written."
)
LOST_A_RACE = "Somebody changed the same at the same moment. Nothing was written. Try again."
BUSY = "The shop is busy, or cannot reach its database. Nothing was written. Try again."
BUG = "Something went wrong on our side. The log tells more about this request."


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
    """Answer a problem, as a page where a person asks."""
    title = HTTPStatus(status).phrase
    body = {"type": "about:blank", "title": title, "status": status, "detail": detail}
    body |= facts or {}
    if "text/html" in request.headers.get("accept", ""):
        return templates.TemplateResponse(request, "problem.html", body, status, headers)
    return ProblemResponse(body, status, headers)


def answer_shop_error(request: Request, error: Exception) -> Response:
    """Answer what the error says, and how it is now if somebody else was faster."""
    assert isinstance(error, ShopError)
    facts = dict(error.facts)
    if isinstance(error, ChangedMeanwhileError):
        facts["current"] = ProductOut.model_validate(error.current).model_dump(mode="json")
    return problem(request, error.status, str(error), headers=error.headers, facts=facts)


def answer_http_error(request: Request, error: Exception) -> Response:
    """Answer Starlette's own errors in the same form, and in words."""
    assert isinstance(error, HTTPException)
    words = {
        404: f"There is nothing at {request.url.path}.",
        405: f"{request.method} does nothing here.",
    }
    said = error.detail != HTTPStatus(error.status_code).phrase
    detail = error.detail if said else words.get(error.status_code, error.detail)
    return problem(request, error.status_code, detail, headers=error.headers)


def answer_bad_input(request: Request, error: Exception) -> Response:
    """Say what is wrong where, without repeating what was sent."""
    assert isinstance(error, RequestValidationError)
    errors: Sequence[Any] = error.errors()
    places = [{"where": [str(x) for x in e["loc"]], "what": e["msg"]} for e in errors]
    detail = "; ".join(f"{'.'.join(p['where'])}: {p['what']}" for p in places[:5])
    return problem(request, 422, detail, facts={"errors": places[:20]})


async def answer_database_error(request: Request, error: Exception) -> Response:
    """Answer 409 or 503, whether a statement was refused or the COMMIT."""
    if isinstance(error, IntegrityError):
        return problem(request, 409, REFUSED)
    if lost_a_race(error):
        return problem(request, 409, LOST_A_RACE, headers={"Retry-After": "1"})
    if "database is locked" not in str(error):
        await answer_unavailable(request, error)  # raises what does not come from its being away
    return problem(request, 503, BUSY, headers={"Retry-After": "1"})


def answer_bug(request: Request, error: Exception) -> Response:
    """Answer nothing of the error, but the id that its line in the log has."""
    request_id = id_of(request.scope)
    return problem(
        request, 500, BUG, headers={REQUEST_ID: request_id}, facts={"request_id": request_id}
    )


handlers: dict[int | type[Exception], HTTPExceptionHandler] = {
    ShopError: answer_shop_error,
    HTTPException: answer_http_error,
    RequestValidationError: answer_bad_input,
    **dict.fromkeys(unavailable_handlers, answer_database_error),
    Exception: answer_bug,
}
