"""Password hashes. They take a while on purpose, so they are computed in a thread."""

from __future__ import annotations

from functools import cache

from anyio import CapacityLimiter, to_thread
from pwdlib import PasswordHash

_hasher = PasswordHash.recommended()
_two_at_a_time = CapacityLimiter(2)
"""Each takes a whole core and 64 MB: a flood of logins must not take all there is."""


@cache
def _nobodys_hash() -> str:
    return _hasher.hash("")


async def hash_password(password: str) -> str:
    """Hash a password, with a salt of its own."""
    return await to_thread.run_sync(_hasher.hash, password, limiter=_two_at_a_time)


async def verify_password(password: str, password_hash: str | None) -> bool:
    """Tell whether it is the right password.

    Without a hash it is not, and that takes just as long: so nobody learns who has an account.
    """

    def verify() -> bool:
        return _hasher.verify(password, password_hash or _nobodys_hash())

    right = await to_thread.run_sync(verify, limiter=_two_at_a_time)
    return right and password_hash is not None
