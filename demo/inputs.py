"""Reading what clients send: either it is understood, or it is a `BadInputError`."""

from __future__ import annotations

import json
from typing import Any

from starlette.exceptions import HTTPException
from starlette.requests import Request

from demo.errors import BadInputError

MAX_BODY = 64 * 1024
"""The longest body that is read, in bytes."""

MAX_TEXT = 200
MAX_CODE = 40
MAX_LINES = 50
MAX_QUANTITY = 10_000


async def read_object(request: Request) -> dict[str, Any]:
    """Read a JSON object. Its content type does not matter, so that curl -d is enough."""
    body = b""
    async for chunk in request.stream():
        body += chunk
        if len(body) > MAX_BODY:
            raise HTTPException(413, f"The body is longer than {MAX_BODY} bytes.")
    try:
        value = json.loads(body)
    except (ValueError, RecursionError) as error:
        raise BadInputError("The body is not JSON.") from error
    if not isinstance(value, dict):
        raise BadInputError("The body is not a JSON object.")
    return value


def read_text(body: dict[str, Any], key: str, *, longest: int = MAX_TEXT) -> str:
    """Read a text that a person could have typed: no NUL, which PostgreSQL refuses."""
    value = body.get(key)
    if not isinstance(value, str) or not 0 < len(value) <= longest or not value.isprintable():
        raise BadInputError(f"{key!r} has to be a text of 1 to {longest} characters.")
    return value


def read_quantities(body: dict[str, Any]) -> dict[str, int]:
    """Read the lines of an order: how many of what."""
    lines = body.get("lines")
    if not isinstance(lines, list) or not 0 < len(lines) <= MAX_LINES:
        raise BadInputError(f"'lines' has to be a list of 1 to {MAX_LINES} lines.")
    quantities: dict[str, int] = {}
    for line in lines:
        if not isinstance(line, dict):
            raise BadInputError("A line has to be an object with 'sku' and 'quantity'.")
        sku, quantity = read_text(line, "sku", longest=MAX_CODE), line.get("quantity")
        # `type` rather than isinstance, because True is an int, too.
        if type(quantity) is not int or not 0 < quantity <= MAX_QUANTITY:
            raise BadInputError(f"'quantity' has to be a whole number from 1 to {MAX_QUANTITY}.")
        if sku in quantities:
            raise BadInputError(f"There are two lines with {sku!r}.")
        quantities[sku] = quantity
    return quantities


def read_voucher(body: dict[str, Any]) -> str | None:
    """Read the voucher of an order, which may be missing."""
    return None if body.get("voucher") is None else read_text(body, "voucher", longest=MAX_CODE)
