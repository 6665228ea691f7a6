"""Password hashes. They take a while on purpose, so they are computed in a thread."""

from __future__ import annotations

from anyio import to_thread
from pwdlib import PasswordHash

_hasher = PasswordHash.recommended()
_NOBODYS_HASH = _hasher.hash("")


async def hash_password(password: str) -> str:
    """Hash a password, with a salt of its own."""
    return await to_thread.run_sync(_hasher.hash, password)


async def verify_password(password: str, password_hash: str | None) -> bool:
    """Tell whether it is the right password.

    Without a hash it is not, and that takes just as long: so nobody learns who has an account.
    """
    right = await to_thread.run_sync(_hasher.verify, password, password_hash or _NOBODYS_HASH)
    return right and password_hash is not None
