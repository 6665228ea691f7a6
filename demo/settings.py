"""Where the demo keeps its data and its secret key."""

from __future__ import annotations

import os
import secrets

from sqlalchemy.engine import make_url

from demo import postgres

DRIVERS = {
    "postgres": "postgresql+asyncpg",
    "postgresql": "postgresql+asyncpg",
    "sqlite": "sqlite+aiosqlite",
}
"""The async driver, for URLs that name none."""


def database_url(*, fresh: bool = False) -> str:
    """Read DATABASE_URL, or start PostgreSQL out of the wheel; `fresh` deletes its data."""
    if given := os.environ.get("DATABASE_URL"):
        url = make_url(given)
        url = url.set(drivername=DRIVERS.get(url.drivername, url.drivername))
        return url.render_as_string(hide_password=False)
    return postgres.start(postgres.default_folder() / "postgres", fresh=fresh)


def secret_key(*, fresh: bool = False) -> str:
    """Read SECRET_KEY, or a key made at the first start, in a file that nobody else can read.

    `fresh` makes a new one, so that every login from before has ended.
    """
    if given := os.environ.get("SECRET_KEY"):
        return given
    file = postgres.default_folder() / "secret-key"
    if fresh:
        file.unlink(missing_ok=True)
    if file.exists():
        return file.read_text()
    file.parent.mkdir(parents=True, exist_ok=True)
    key = secrets.token_urlsafe(32)
    descriptor = os.open(file, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode=0o600)
    with open(descriptor, "w") as opened:
        opened.write(key)
    return key
