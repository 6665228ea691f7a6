"""What the app answers when something went wrong. By then the transaction is rolled back."""

from __future__ import annotations

from collections.abc import Mapping

from sqlalchemy.exc import IntegrityError
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import JSONResponse, PlainTextResponse, Response
from starlette.types import HTTPExceptionHandler

from demo.errors import ShopError

REFUSED = (
    "The database refused this: it needs something that does not exist, such as a voucher, or "
    "removes something that is still in use. Nothing was written."
)


def answer_shop_error(request: Request, error: Exception) -> Response:
    """Answer the status of the error, and what it says."""
    assert isinstance(error, ShopError)
    return _answer(request, str(error), error.status)


def answer_http_error(request: Request, error: Exception) -> Response:
    """Answer Starlette's own errors in the same form."""
    assert isinstance(error, HTTPException)
    return _answer(request, error.detail, error.status_code, error.headers)


def answer_integrity_error(request: Request, error: Exception) -> Response:
    """Answer 409, whether a statement was refused or the COMMIT."""
    if request.url.path.startswith("/admin/_api/"):
        return JSONResponse({"msg": REFUSED}, 400)  # what the admin's own pages show
    return _answer(request, REFUSED, 409)


def _answer(
    request: Request, text: str, status: int, headers: Mapping[str, str] | None = None
) -> Response:
    if "text/html" in request.headers.get("accept", ""):
        return PlainTextResponse(text, status, headers)
    return JSONResponse({"error": text}, status, headers)


handlers: dict[type[Exception], HTTPExceptionHandler] = {
    ShopError: answer_shop_error,
    HTTPException: answer_http_error,
    IntegrityError: answer_integrity_error,
}
