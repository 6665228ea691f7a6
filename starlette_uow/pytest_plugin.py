"""Fixtures for pytest, registered by an entry point: `uow_sandbox` and `uow_clone`.

Both need a fixture `uow` with your `UnitOfWork`, and work with the pytest plugin of anyio and with
pytest-asyncio.
"""

from __future__ import annotations

import importlib
from collections.abc import AsyncIterator, Callable
from importlib.util import find_spec
from typing import Any, Literal

import pytest

from starlette_uow.testing import Sandbox, sandbox
from starlette_uow.uow import UnitOfWork

# One of the two plugins that run coroutine functions; anyio's takes pytest's own fixtures.
_asyncio: Any = importlib.import_module("pytest_asyncio") if find_spec("pytest_asyncio") else pytest


@pytest.fixture
def uow_sandbox(request: pytest.FixtureRequest) -> Any:
    """`starlette_uow.testing.sandbox(uow)`: all that the test commits is rolled back."""
    return _enter(request, "_uow_sandbox")


@pytest.fixture
def uow_clone(request: pytest.FixtureRequest) -> Any:
    """`sandbox(uow, database="clone")`: the test has a copy of the database."""
    return _enter(request, "_uow_clone")


def _enter(request: pytest.FixtureRequest, name: str) -> Any:
    if request.node.get_closest_marker("asyncio"):
        return request.getfixturevalue(f"{name}_asyncio")
    if "anyio_backend" in request.fixturenames:
        return request.getfixturevalue(f"{name}_anyio")
    raise pytest.UsageError(
        f"{request.node.name!r} has no event loop, which a sandbox needs. Make it a coroutine "
        f"function that the pytest plugin of anyio (`@pytest.mark.anyio`) or pytest-asyncio runs."
    )


def _fixture(database: Literal["shared", "clone"]) -> Callable[[UnitOfWork], Any]:
    # A function for each: pytest-asyncio marks those that are its own.
    async def enter(uow: UnitOfWork) -> AsyncIterator[Sandbox]:
        async with sandbox(uow, database=database) as box:
            yield box

    return enter


_uow_sandbox_anyio = pytest.fixture(_fixture("shared"))
_uow_clone_anyio = pytest.fixture(_fixture("clone"))
_uow_sandbox_asyncio = _asyncio.fixture(_fixture("shared"))
_uow_clone_asyncio = _asyncio.fixture(_fixture("clone"))
