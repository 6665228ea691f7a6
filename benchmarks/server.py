"""The PostgreSQL server that is measured on, and what is said of the machine."""

from __future__ import annotations

import os
import platform
from importlib.metadata import version
from pathlib import Path

from demo import postgres


def server_url() -> str:
    """That of BENCHMARK_DATABASE_URL, or of the server that the tests use."""
    return os.environ.get("BENCHMARK_DATABASE_URL") or postgres.start(
        Path("/var/tmp/starlette-uow-tests")
    )


def describe(server_version: str, *packages: str) -> str:
    """The machine, and the versions of what ran on it."""
    versions = ", ".join(f"{name} {version(name)}" for name in packages)
    return (
        f"{os.cpu_count()} cores ({platform.machine()}), Python {platform.python_version()}, "
        f"PostgreSQL {server_version}, {versions}"
    )
