"""`python -m demo` starts everything: the database, the payment provider, the shop, the admin."""

from __future__ import annotations

import argparse
import contextlib
import signal
import socket

import uvicorn


def main() -> None:
    """Read the arguments, and serve until Ctrl+C."""
    parser = argparse.ArgumentParser(prog="python -m demo", description="A shop on starlette-uow.")
    parser.add_argument("--host", default="127.0.0.1", help="address to serve at")
    parser.add_argument("--port", type=number, default=8000, help="port to serve at")
    parser.add_argument("--workers", type=number, default=1, help="processes to serve with")
    parser.add_argument("--fresh", action="store_true", help="delete the data of earlier runs")
    arguments = parser.parse_args()
    # Like Ctrl+C, so that PostgreSQL out of the wheel is stopped as well.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    with contextlib.suppress(KeyboardInterrupt):
        check_address(arguments.host, arguments.port)
        serve(arguments)


def number(text: str) -> int:
    """Read a number that is at least 1."""
    if not 1 <= int(text) <= 65535:
        raise ValueError
    return int(text)


def check_address(host: str, port: int) -> None:
    """Find out that somebody else serves there, before anything is started."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        socket.create_server((host, port), family=family).close()
    except OSError as error:
        raise SystemExit(
            f"Cannot serve at {host}:{port}: {error.strerror}. "
            "Choose another with --port, as in: make demo ARGS='--port 8001'"
        ) from None


def serve(arguments: argparse.Namespace) -> None:
    """Prepare, say what there is to see, and serve."""
    # Not above: each worker imports this file before it answers uvicorn, which does not wait long.
    from demo.log import set_up_logging
    from demo.prepare import prepare, show
    from demo.welcome import start_text

    set_up_logging()
    dialect = prepare(fresh=arguments.fresh)
    host = "127.0.0.1" if arguments.host in ("0.0.0.0", "::") else arguments.host
    show(start_text(f"http://{host}:{arguments.port}", dialect))
    uvicorn.run(
        "demo.app:start",  # by name: with workers, this process needs none of it
        factory=True,
        host=arguments.host,
        port=arguments.port,
        workers=arguments.workers,
        ws="websockets-sansio",
        timeout_worker_healthcheck=30,  # a busy machine starts them slowly
        timeout_keep_alive=75,  # longer than proxies keep idle connections: they close first
        log_config=None,
        access_log=False,
    )


if __name__ == "__main__":
    main()
