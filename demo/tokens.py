"""Bearer tokens of the API, and the authentication backend that reads them."""

from __future__ import annotations

from itsdangerous import BadSignature, URLSafeTimedSerializer
from starlette.authentication import (
    AuthCredentials,
    AuthenticationBackend,
    AuthenticationError,
    BaseUser,
)
from starlette.requests import HTTPConnection
from starlette.responses import JSONResponse, Response

from demo.models import User
from starlette_uow import current_session

MAX_AGE = 12 * 60 * 60
"""How long a token is good for: 12 hours, in seconds."""


class Tokens:
    """Signs and reads tokens. They say who somebody is, and nothing else."""

    def __init__(self, secret_key: str) -> None:
        self._serializer = URLSafeTimedSerializer(secret_key, salt="api-token")

    def sign(self, user: User) -> str:
        """Make a token for a user who has logged in."""
        return self._serializer.dumps(user.id)

    def read(self, token: str) -> int:
        """Tell whose token it is; raises `BadSignature` if it is forged or too old."""
        user_id = self._serializer.loads(token, max_age=MAX_AGE)
        assert isinstance(user_id, int)  # nobody else can sign
        return user_id


class Caller(BaseUser):
    """Who calls the API, as `request.user`."""

    def __init__(self, account: User) -> None:
        self.account = account

    @property
    def is_authenticated(self) -> bool:
        """Only who has a token becomes a caller."""
        return True

    @property
    def display_name(self) -> str:
        """The name of the account."""
        return self.account.name


class TokenBackend(AuthenticationBackend):
    """Reads the bearer token, and loads its user in the transaction of the request."""

    def __init__(self, tokens: Tokens) -> None:
        self._tokens = tokens

    async def authenticate(self, conn: HTTPConnection) -> tuple[AuthCredentials, BaseUser] | None:
        """Find the caller; without a token there is none, with a bad one it is an error."""
        scheme, _, token = conn.headers.get("authorization", "").partition(" ")
        if scheme.lower() != "bearer":
            return None
        try:
            user_id = self._tokens.read(token)
        except BadSignature as error:
            raise AuthenticationError("This token is forged or too old. Log in again.") from error
        user = await current_session().get(User, user_id)
        if user is None:
            raise AuthenticationError("The account of this token is gone.")
        return AuthCredentials(["authenticated"]), Caller(user)


def answer_bad_token(conn: HTTPConnection, error: Exception) -> Response:
    """Answer 401 with the reason."""
    return JSONResponse({"error": str(error)}, 401, {"WWW-Authenticate": "Bearer"})
