"""What the client of a login holds: its key, signed."""

from __future__ import annotations

import uuid

from itsdangerous import BadSignature, URLSafeTimedSerializer

from demo.errors import NotLoggedInError
from demo.models import Token
from demo.services.accounts import LOGIN_LASTS

MAX_AGE = int(LOGIN_LASTS.total_seconds())


class Tokens:
    """Signs and reads tokens. They name a login, and nothing else."""

    def __init__(self, secret_key: str) -> None:
        self._serializer = URLSafeTimedSerializer(secret_key, salt="api-token")

    def sign(self, token: Token) -> str:
        """Make the text for a login."""
        return self._serializer.dumps(token.id.hex)

    def read(self, text: str) -> uuid.UUID:
        """Tell the login's key, or raise `NotLoggedInError`: without asking the database."""
        try:
            return uuid.UUID(self._serializer.loads(text, max_age=MAX_AGE))
        except BadSignature as error:
            raise NotLoggedInError("This token is forged or too old. Log in again.") from error
