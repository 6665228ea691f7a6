"""The fixtures of the pytest plugin, in a pytest of their own."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tomllib
from importlib.util import find_spec
from pathlib import Path

import pytest

from tests.databases import create_tables

pytestmark = pytest.mark.timeout(300)  # each starts a Python, and some start three

ROOT = Path(__file__).parent.parent

CONFTEST = """
import os

import pytest
from sqlalchemy import select

from starlette_uow import UnitOfWork, create_engine
from tests.models import Item

shop = UnitOfWork(create_engine(os.environ["URL"]))


@pytest.fixture
def uow():
    return shop


@pytest.fixture
def anyio_backend():
    return "asyncio"


@pytest.fixture
def add():
    async def add(name):
        async with shop:
            shop.session.add(Item(name=name))
        async with shop:
            return list(await shop.session.scalars(select(Item.name)))

    return add
"""

TESTS = """
import pytest

{mark}

@pytest.mark.parametrize("number", range(2))
async def test_shared(uow_sandbox, add, number):
    assert await add(str(number)) == [str(number)]
    assert len(uow_sandbox.units) == 2


@pytest.mark.parametrize("number", range(2))
async def test_clone(uow_clone, add, number):
    assert await add(str(number)) == [str(number)]
"""

LEAK = """

async def test_leak(uow, uow_sandbox):
    await uow.new().__aenter__()
"""

SYNC = """
def test_sync(uow_sandbox):
    pass
"""

ANYIO = "pytestmark = pytest.mark.anyio"
ASYNCIO = "pytestmark = pytest.mark.asyncio"
PYTEST_ASYNCIO = (
    "-p",
    "pytest_asyncio.plugin",
    "-o",
    "asyncio_default_fixture_loop_scope=function",
)

needs_pytest_asyncio = pytest.mark.skipif(
    find_spec("pytest_asyncio") is None, reason="pytest-asyncio is not installed"
)


class Project:
    """A folder with tests, and this package installed as pyproject.toml has it."""

    def __init__(self, folder: Path, url: str) -> None:
        self.folder = folder
        self.url = url
        (folder / "conftest.py").write_text(CONFTEST)
        project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
        info = folder / "installed" / "starlette_uow-0.dist-info"
        info.mkdir(parents=True)
        (info / "METADATA").write_text("Metadata-Version: 2.1\nName: starlette-uow\nVersion: 0\n")
        plugins = project["entry-points"]["pytest11"]
        lines = [f"{name} = {module}" for name, module in plugins.items()]
        (info / "entry_points.txt").write_text("\n".join(["[pytest11]", *lines]))

    def run(self, tests: str, *arguments: str) -> tuple[str, dict[str, int]]:
        """Run tests, and return what pytest prints, and what it counts.

        Without the plugins that happen to be installed: to import them takes most of the time.
        """
        first, last = ("--disable-plugin-autoload", "-p", "anyio"), ("-p", "starlette_uow")
        return self.run_with_all_plugins(tests, *first, *arguments, *last)

    def run_with_all_plugins(self, tests: str, *arguments: str) -> tuple[str, dict[str, int]]:
        """The same as a user has it."""
        (self.folder / "test_it.py").write_text(tests)
        path = [str(self.folder / "installed"), str(ROOT), os.environ.get("PYTHONPATH", "")]
        done = subprocess.run(
            [sys.executable, "-m", "pytest", "-q", "-W", "error", *arguments],
            cwd=self.folder,
            env={**os.environ, "PYTHONPATH": os.pathsep.join(path), "URL": self.url},
            capture_output=True,
            text=True,
        )
        counts = re.findall(r"(\d+) (passed|failed|error)", done.stdout.splitlines()[-1])
        return done.stdout, {outcome: int(number) for number, outcome in counts}


@pytest.fixture(params=["postgresql", "sqlite"])
async def project(
    request: pytest.FixtureRequest, source_url: str, tmp_path: Path, anyio_backend: str
) -> Project:
    if request.param == "postgresql":
        return Project(tmp_path, source_url)
    url = f"sqlite+aiosqlite:///{tmp_path / 'source.sqlite'}"
    await create_tables(url)
    return Project(tmp_path, url)


@pytest.mark.parametrize("alone", [True, pytest.param(False, marks=needs_pytest_asyncio)])
def test_with_the_plugin_of_anyio(project: Project, alone: bool) -> None:
    """Each test has its sandbox or its copy, with pytest-asyncio beside it or not."""
    _, counts = project.run(TESTS.format(mark=ANYIO), *(() if alone else PYTEST_ASYNCIO))

    assert counts == {"passed": 4}


@needs_pytest_asyncio
@pytest.mark.parametrize("mode", ["strict", "auto"])
def test_with_pytest_asyncio(project: Project, mode: str) -> None:
    """In both of its modes; each test has a loop of its own, the engine is global."""
    _, counts = project.run(
        TESTS.format(mark=ASYNCIO if mode == "strict" else ""),
        *(*PYTEST_ASYNCIO, "-o", f"asyncio_mode={mode}"),
    )

    assert counts == {"passed": 4}


@pytest.mark.parametrize("fixture", ["shared", "clone"])
def test_in_parallel(project: Project, fixture: str) -> None:
    """By pytest-xdist, on one database."""
    if "sqlite" in project.url and fixture == "shared":
        pytest.skip("SQLite has one writer: each process needs a file of its own")
    _, counts = project.run(
        TESTS.format(mark=ANYIO), "-p", "xdist", "-n", "2", "-k", f"test_{fixture}"
    )

    assert counts == {"passed": 2}


def test_what_is_left_open_fails_the_test(project: Project) -> None:
    """With the name of it."""
    printed, counts = project.run(TESTS.format(mark=ANYIO) + LEAK, "-k", "leak")

    assert counts == {"passed": 1, "error": 1}
    assert "LeftOpenError: The test left open: the unit of an `async with` block" in printed


def test_test_without_event_loop_is_told(tmp_path: Path) -> None:
    """As are those that use Starlette's TestClient. The fixtures come with the installation."""
    project = Project(tmp_path, "sqlite+aiosqlite://")
    printed, counts = project.run_with_all_plugins(SYNC, "-p", "no:asyncio")

    assert counts == {"error": 1}
    assert "'test_sync' has no event loop" in printed
