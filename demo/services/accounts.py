"""Who somebody is: accounts, and logins that expire and can be revoked."""

from __future__ import annotations

import uuid
from datetime import timedelta

from demo.errors import NotLoggedInError, TooManyAttemptsError, WrongCredentialsError
from demo.models import Customer, Token, User, now
from demo.passwords import hash_password, verify_password
from demo.shop import Shop, shop

MAX_ATTEMPTS = 5
"""How many passwords may be tried for one account in a row."""

WINDOW = timedelta(minutes=5)
"""After that, nobody gets in for so long, not even with the right one."""

LOGIN_LASTS = timedelta(hours=12)


class Accounts:
    """Who somebody is."""

    def __init__(self, shop: Shop) -> None:
        self._shop = shop

    async def create(self, email: str, name: str, password: str, *, role: str = "customer") -> User:
        """Create an account. One for a customer comes with the customer."""
        password_hash = await hash_password(password)
        user = User(email=email, name=name, password_hash=password_hash, role=role)
        async with self._shop as unit:
            unit.users.add(user)
            if role == "customer":
                unit.customers.add(
                    Customer(user=user, name=name, email=email, street="1 High Street", city="Bath")
                )
        return user

    async def log_in(self, email: str, password: str) -> Token:
        """Open a login, or raise `WrongCredentialsError` or `TooManyAttemptsError`.

        The attempt is counted before the password is looked at, in a unit of its own: it stays
        counted when the request is rolled back, and fifty guesses at once count as fifty. While
        the password is checked, which takes a while, no connection is held.
        """
        at = now()
        async with self._shop.new() as unit:
            attempts = await unit.attempts.count(email, at=at, until=at + WINDOW)
            user = await unit.users.by_email(email)
        if attempts.attempts > MAX_ATTEMPTS:
            raise TooManyAttemptsError(round((attempts.until - at).total_seconds()))
        right = await verify_password(password, user.password_hash if user else None)
        if user is None or not right:
            raise WrongCredentialsError
        async with self._shop as unit:
            token = Token(user_id=user.id, expires_at=at + LOGIN_LASTS)
            unit.tokens.add(token)
            await unit.attempts.forget(email, at=at)
            await unit.session.refresh(token, ["user"])
        return token

    async def find(self, key: uuid.UUID) -> Token:
        """Find the login of a key, or raise `NotLoggedInError`."""
        async with self._shop as unit:
            token = await unit.tokens.valid(key, now())
        if token is None:
            raise NotLoggedInError("This login has ended. Log in again.")
        return token

    async def log_out(self, token: Token, *, everywhere: bool = False) -> None:
        """End a login, or all of its account."""
        async with self._shop as unit:
            if everywhere:
                await unit.tokens.revoke_all(token.user, now())
            else:
                token.revoked_at = now()


accounts = Accounts(shop)
