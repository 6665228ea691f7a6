"""The payment provider: a small server of its own, slow as they are, and the client of it.

`python -m demo.payments` serves it. It keeps its ledger in memory.
"""

from __future__ import annotations

import argparse
import asyncio
import uuid
from decimal import Decimal

import httpx
import uvicorn
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from demo.errors import ProviderError

REFUSED_CARD = "4000000000000002"
"""The test card that is always refused, as real providers have one."""

THINKS_FOR = 0.2
"""How long a charge takes, in seconds."""

TIMEOUT = 10.0
"""How long we wait for it, in seconds."""


class Provider:
    """The client: charges cards. Its address is known at start only."""

    url = ""

    async def charge(self, key: uuid.UUID, amount: Decimal, card: str) -> bool:
        """Charge a card, once for each key, and tell whether it was accepted.

        Raises:
            ProviderError: nobody knows; ask again with the same key.
        """
        charge = {"key": str(key), "amount": str(amount), "card": card}
        try:
            # verify=False: without TLS there is nothing to verify, and no certificates to load.
            async with httpx.AsyncClient(timeout=TIMEOUT, trust_env=False, verify=False) as client:
                answer = await client.post(f"{self.url}/charges", json=charge)
                answer.raise_for_status()
        except httpx.HTTPError as error:
            raise ProviderError("The payment provider does not answer. Try again.") from error
        return bool(answer.json()["accepted"])


provider = Provider()


def create_provider(*, thinks_for: float = THINKS_FOR) -> Starlette:
    """Build the server."""
    ledger: dict[str, dict[str, str]] = {}

    async def charge(request: Request) -> Response:
        body = await request.json()
        first = ledger.setdefault(body["key"], body)
        await asyncio.sleep(thinks_for)
        return JSONResponse({"accepted": first["card"] != REFUSED_CARD})

    async def show_ledger(request: Request) -> Response:
        accepted = [c for c in ledger.values() if c["card"] != REFUSED_CARD]
        total = sum((Decimal(c["amount"]) for c in accepted), Decimal("0.00"))
        return JSONResponse({"charges": len(accepted), "total": str(total)})

    return Starlette(
        routes=[
            Route("/charges", charge, methods=["POST"]),
            Route("/ledger", show_ledger),
        ]
    )


def main() -> None:
    """Serve the provider by itself."""
    parser = argparse.ArgumentParser(prog="python -m demo.payments", description=__doc__)
    parser.add_argument("--host", default="127.0.0.1", help="address to serve at")
    parser.add_argument("--port", type=int, default=9000, help="port to serve at")
    arguments = parser.parse_args()
    uvicorn.run(create_provider(), host=arguments.host, port=arguments.port, log_level="warning")


if __name__ == "__main__":
    main()
