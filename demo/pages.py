"""The first page, and the health check."""

from __future__ import annotations

from html import escape
from pathlib import Path
from string import Template

from starlette.requests import Request
from starlette.responses import HTMLResponse, JSONResponse, Response
from starlette.routing import Route

from demo.seed import ADMIN
from demo.services import ordering
from demo.welcome import examples

_page = Template(Path(__file__).with_name("page.html").read_text(encoding="utf-8"))


async def show_first_page(request: Request) -> Response:
    """Answer what this is, what to try, and what is in stock."""
    url = str(request.base_url).rstrip("/")
    html = _page.substitute(
        admin_email=escape(ADMIN.email),
        admin_password=escape(ADMIN.password),
        examples="".join(
            f"<h3>{escape(does)}</h3><pre>{escape(line)}\n<samp>{escape(prints)}</samp></pre>"
            for does, line, prints in examples(url)
        ),
        products="".join(
            f"<tr><td><code>{escape(product.sku)}</code><td>{escape(product.name)}"
            f"<td class=number>{product.price}<td class=number>{product.stock}"
            for product in await ordering.products()
        ),
    )
    return HTMLResponse(html)


async def check_health(request: Request) -> Response:
    """Answer that the process serves. It gets no unit of work."""
    return JSONResponse({"status": "ok"})


routes = [
    Route("/", show_first_page),
    Route("/health", check_health),
]
