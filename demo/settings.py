"""Settings, read from environment variables.

| variable       | default                     | what it is                                  |
|----------------|-----------------------------|---------------------------------------------|
| `DATABASE_URL` | PostgreSQL out of the wheel | `postgresql://...` or `sqlite:///...`       |
| `POOL_SIZE`    | 5                           | connections to it, in each worker           |
| `LOG_FORMAT`   | for a person                | `json`: for a program                       |
| `SECRET_KEY`   | made at the first start     | signs tokens and cookies                    |
| `PAYMENT_URL`  | a provider of our own       | where cards are charged                     |
| `DATA_FOLDER`  | `.data` (as root elsewhere) | where the data and the secret key are kept  |
"""

from __future__ import annotations

import os
import secrets
from dataclasses import dataclass
from pathlib import Path
from typing import Self

from sqlalchemy.engine import make_url
from sqlalchemy.exc import ArgumentError

from demo import postgres

DRIVERS = {
    "postgres": "postgresql+asyncpg",
    "postgresql": "postgresql+asyncpg",
    "sqlite": "sqlite+aiosqlite",
}
"""The async driver, for URLs that name none."""

DATABASES = "It is like postgresql://user:password@host/database or sqlite:///shop.sqlite."


@dataclass(frozen=True)
class Settings:
    """What the app needs to know."""

    database_url: str
    secret_key: str
    payment_url: str
    pool_size: int = 5

    @classmethod
    def from_environment(cls) -> Self:
        """Read them. `python -m demo` has set those that were missing."""
        return cls(
            database_url=database_url(),
            secret_key=secret_key(),
            payment_url=os.environ["PAYMENT_URL"],
            pool_size=pool_size(),
        )


def data_folder() -> Path:
    """Where the demo keeps what it has to keep."""
    if given := os.environ.get("DATA_FOLDER"):
        return Path(given).resolve()
    return postgres.default_folder()


def database_url(*, fresh: bool = False) -> str:
    """Read DATABASE_URL, or start PostgreSQL out of the wheel; `fresh` deletes its data."""
    given = os.environ.get("DATABASE_URL")
    if not given:
        return postgres.start(data_folder() / "postgres", fresh=fresh)
    try:
        url = make_url(given)
    except ArgumentError:
        raise SystemExit(f"DATABASE_URL is no URL. {DATABASES}") from None
    url = url.set(drivername=DRIVERS.get(url.drivername, url.drivername))
    if url.drivername not in DRIVERS.values():
        raise SystemExit(f"DATABASE_URL is for {url.drivername!r}. {DATABASES}")
    if url.drivername == DRIVERS["sqlite"] and url.database in (None, "", ":memory:"):
        raise SystemExit(f"DATABASE_URL names no file, which all workers could share. {DATABASES}")
    if url.drivername == DRIVERS["sqlite"] and not Path(str(url.database)).parent.is_dir():
        raise SystemExit(f"DATABASE_URL names a file in a folder that is not there: {url.database}")
    return url.render_as_string(hide_password=False)


def pool_size() -> int:
    """Read POOL_SIZE."""
    given = os.environ.get("POOL_SIZE", "5")
    if not given.isdecimal() or int(given) < 1:
        raise SystemExit(f"POOL_SIZE is a number of connections, at least 1, and not {given!r}.")
    return int(given)


def secret_key(*, fresh: bool = False) -> str:
    """Read SECRET_KEY, or a key made at the first start, in a file that nobody else can read.

    `fresh` makes a new one, so that every login from before has ended.
    """
    if given := os.environ.get("SECRET_KEY"):
        return given
    file = data_folder() / "secret-key"
    if fresh:
        file.unlink(missing_ok=True)
    if file.exists() and (kept := file.read_text()):
        return kept
    file.parent.mkdir(parents=True, exist_ok=True)
    key = secrets.token_urlsafe(32)
    descriptor = os.open(file, os.O_WRONLY | os.O_CREAT, mode=0o600)
    with open(descriptor, "w") as opened:
        opened.write(key)
    return key
