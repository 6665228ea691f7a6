"""No body of the API is longer than this. The admin has a limit of its own, for its imports."""

from __future__ import annotations

from starlette.exceptions import HTTPException
from starlette.types import ASGIApp, Message, Receive, Scope, Send

MAX_BODY = 64 * 1024
"""In bytes."""


class BodyLimit:
    """Answers 413 as soon as a body is too long, whatever its header says."""

    def __init__(self, app: ASGIApp, *, below: str) -> None:
        self.app = app
        self.below = below

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request, and count its body."""
        received = 0

        async def receive_and_count() -> Message:
            nonlocal received
            message = await receive()
            received += len(message.get("body", b""))
            if received > MAX_BODY:
                raise HTTPException(413, f"The body is longer than {MAX_BODY} bytes.")
            return message

        limited = scope["type"] == "http" and scope["path"].startswith(self.below)
        await self.app(scope, receive_and_count if limited else receive, send)
