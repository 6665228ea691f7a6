"""Makes everything ready before the workers start: tables, goods, a payment provider, a key."""

from __future__ import annotations

import asyncio
import os
import socket
import sys
import threading

import uvicorn
from asyncpg import PostgresError
from sqlalchemy.exc import SQLAlchemyError
from sqlalchemy.ext.asyncio import AsyncEngine

from demo import settings
from demo.migrate import migrate
from demo.payments import create_provider
from demo.seed import seed
from demo.shop import connect


def prepare(*, fresh: bool = False) -> str:
    """Make everything ready, and set the environment of the workers; returns the dialect.

    Raises:
        SystemExit: a setting cannot be used, with the reason for a person.
    """
    settings.pool_size()
    if not os.environ.get("DATABASE_URL"):
        show(f"Starting PostgreSQL. The data is in {settings.data_folder()}")
    os.environ["DATABASE_URL"] = url = settings.database_url(fresh=fresh)
    os.environ["SECRET_KEY"] = settings.secret_key(fresh=fresh)
    if "PAYMENT_URL" not in os.environ:
        os.environ["PAYMENT_URL"] = start_provider()
    return asyncio.run(prepare_database(url, fresh=fresh))


async def prepare_database(url: str, *, fresh: bool) -> str:
    """Run the migrations, and fill an empty shop."""
    engine = connect(url)
    await check_database(engine)
    await migrate(engine, fresh=fresh)
    await seed(progress=show_progress)
    await engine.dispose()
    return engine.dialect.name


async def check_database(engine: AsyncEngine) -> None:
    """Connect, or give up with the reason."""
    try:
        async with engine.connect():
            pass
    except (OSError, SQLAlchemyError, PostgresError) as error:
        reason = getattr(error, "orig", None) or error
        raise SystemExit(f"Cannot connect to {engine.url!r}: {reason}") from None


def start_provider() -> str:
    """Serve the payment provider on a free port, from a thread; returns its address."""
    listening = socket.create_server(("127.0.0.1", 0))
    config = uvicorn.Config(create_provider(), log_config=None, access_log=False, lifespan="off")
    serve = uvicorn.Server(config).run
    threading.Thread(target=serve, args=([listening],), daemon=True).start()
    return f"http://127.0.0.1:{listening.getsockname()[1]}"


def show_progress(done: int, total: int) -> None:
    """Draw a bar over itself on a terminal, or else lines."""
    bar = ("#" * (20 * done // total)).ljust(20, ".")
    on_terminal = sys.stdout.isatty()
    end = "\r" if on_terminal and done < total else "\n"
    show(f"Filling the shop [{bar}] {done} of {total} orders", end=end)


def show(text: str, end: str = "\n") -> None:
    """Print to a person."""
    print(text, end=end, flush=True)  # noqa: T201 - to a person
