"""`python -m demo` starts everything: the database, the shop, the admin."""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import logging
import signal

import uvicorn

from demo import settings
from demo.app import create_app
from demo.models import create_tables
from demo.seed import seed
from demo.shop import connect
from demo.welcome import start_text


def main() -> None:
    """Read the arguments, and serve until Ctrl+C."""
    parser = argparse.ArgumentParser(prog="python -m demo", description="A shop on starlette-uow.")
    parser.add_argument("--host", default="127.0.0.1", help="address to serve at")
    parser.add_argument("--port", type=int, default=8000, help="port to serve at")
    parser.add_argument("--fresh", action="store_true", help="delete the data of earlier runs")
    arguments = parser.parse_args()
    logging.basicConfig(format="%(message)s", level=logging.WARNING)
    logging.getLogger("demo").setLevel(logging.INFO)
    logging.getLogger("starlette_admin").setLevel(logging.ERROR)  # our line has the status
    # Like Ctrl+C, so that PostgreSQL out of the wheel is stopped as well.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    with contextlib.suppress(KeyboardInterrupt):
        asyncio.run(serve(arguments.host, arguments.port, fresh=arguments.fresh))


async def serve(host: str, port: int, *, fresh: bool = False) -> None:
    """Prepare the database, say what there is to see, and serve it."""
    engine = connect(settings.database_url(fresh=fresh))
    await create_tables(engine, fresh=fresh)
    await seed()
    app = create_app(settings.secret_key(fresh=fresh))
    shown_host = "127.0.0.1" if host in ("0.0.0.0", "::") else host
    print(start_text(f"http://{shown_host}:{port}", engine.dialect.name), flush=True)  # noqa: T201 - to a person
    config = uvicorn.Config(app, host=host, port=port, log_config=None, access_log=False)
    await uvicorn.Server(config).serve()


if __name__ == "__main__":
    main()
