"""The first page, and the health check."""

from __future__ import annotations

from pathlib import Path

from fastapi import APIRouter, Request
from starlette.responses import JSONResponse, Response
from starlette.templating import Jinja2Templates

from demo.seed import ADMIN, CLERK, CUSTOMER
from demo.services.catalog import catalog
from demo.services.reports import reports
from demo.welcome import examples

router = APIRouter(include_in_schema=False)

templates = Jinja2Templates(Path(__file__).with_name("templates"))

PEOPLE = (
    (ADMIN, "all of the admin"),
    (CLERK, "the admin, but no money"),
    (CUSTOMER, "the API"),
)

TRIALS = (
    ("commit", "Order a pen", "The endpoint answers 201. It is committed first."),
    ("dry-run", "Price an order", "The same code, and then doom(): 200, and nothing is kept."),
    ("out-of-stock", "Run out of stock", "Halfway through the order: 409."),
    ("exception", "Hit a bug", "The order is written; then comes an exception: 500."),
    ("refused-commit", "Let the COMMIT fail", "The endpoint says 201, the database says no."),
    ("hide", "Hide an error", "Out of stock becomes a redirect. That would be a lie: 500."),
    ("redirect", "Redirect", "The same in a savepoint, and doom(): the redirect is true."),
    ("leave", "Leave", "The client goes away while the order is being written."),
    ("failing-stream", "Break a stream", "The transaction is open while the body is sent."),
)


@router.get("/")
async def show_first_page(request: Request) -> Response:
    """Answer what this is, how the shop does, and what to try."""
    context = {
        "summary": await reports.summary(),
        "products": await catalog.page(),
        "people": PEOPLE,
        "trials": TRIALS,
        "examples": examples(str(request.base_url).rstrip("/")),
    }
    return templates.TemplateResponse(request, "page.html", context)


@router.get("/health")
async def check_health() -> Response:
    """Answer that the process serves. It gets no unit of work."""
    return JSONResponse({"status": "ok"})
