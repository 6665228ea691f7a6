"""What a person can open and type. Printed at start, shown on the first page, run by a test."""

from __future__ import annotations

import json
from typing import NamedTuple

from demo.seed import ADMIN, CUSTOMER


class Example(NamedTuple):
    """A line to type, and what it prints; `...` stands for what differs each time."""

    does: str
    line: str
    prints: str


def examples(url: str) -> list[Example]:
    """List three lines to try, for a shop that is served at `url`."""
    login = json.dumps({"email": CUSTOMER.email, "password": CUSTOMER.password})
    return [
        Example(
            "Log in, and keep the token:",
            f"TOKEN=$(curl -s {url}/api/login --json '{login}' | cut -d '\"' -f 4)"
            "; echo token: $TOKEN",
            "token: ...",
        ),
        Example(
            "Place an order. By the time you read 201, it is committed:",
            _order(url, "TEA", 2),
            '{"reference":...,"total":"9.80",...} 201',
        ),
        Example(
            "Order more than there is. The order was half written, and is gone:",
            _order(url, "LAMP", 5),
            '{...,"status":409,"detail":"5 of \'LAMP\' ordered, 1 in stock. '
            'Nothing was written.",...} 409',
        ),
    ]


def start_text(url: str, database: str) -> str:
    """Say in plain words what has been started."""
    tries = "".join(
        f"\n  {does}\n    {line}\n  prints\n    {prints}\n" for does, line, prints in examples(url)
    )
    return f"""
The demo shop of starlette-uow, on {database}.

Open
  {url}/       what this is, with buttons that provoke the rule
  {url}/admin  log in as {ADMIN.email}, password {ADMIN.password}
  {url}/docs   the API

Type
{tries}
Below, each request gets a line that says what became of its transaction.
Ctrl+C stops the shop. Its data stays; start it with --fresh to begin anew.
"""


def _order(url: str, sku: str, quantity: int) -> str:
    body = json.dumps({"lines": [{"sku": sku, "quantity": quantity}]})
    token = '-H "Authorization: Bearer $TOKEN"'
    return f"curl -s -w ' %{{http_code}}\\n' {url}/api/orders {token} --json '{body}'"
