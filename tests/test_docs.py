"""The documentation's code runs, page by page, after that of the first page."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest
import websockets

import starlette_uow
from starlette_uow.errors import SandboxError
from starlette_uow.testing import sandbox
from tests.test_readme import run
from tests.test_server import serve

DOCS = Path(__file__).parent.parent / "docs"
PAGES = sorted(path.relative_to(DOCS).as_posix() for path in DOCS.rglob("*.md"))
BLOCK = re.compile(r"^```python\n(.*?)^```$", re.MULTILINE | re.DOTALL)
FILE = re.compile(r'^```python title="(\w+\.py)"\n(.*?)^```$', re.MULTILINE | re.DOTALL)
TEXT = re.compile(r"^```text\n(.*?)^```$", re.MULTILINE | re.DOTALL)


def blocks(page: str) -> list[str]:
    """The snippets of a page; those with a title show what was there before."""
    return BLOCK.findall((DOCS / page).read_text())


@asynccontextmanager
async def page_run(page: str) -> AsyncIterator[dict[str, Any]]:
    """The names that a page defines."""
    namespace: dict[str, Any] = {"__name__": "app"}
    for block in (*blocks("index.md"), *blocks(page)):
        await run(block, namespace)
    yield namespace
    await namespace["uow"].dispose()
    if "shop" in namespace:
        await namespace["shop"].dispose()


@pytest.mark.filterwarnings("ignore:websockets")  # an older uvicorn imports its legacy half
@pytest.mark.parametrize("page", [page for page in PAGES if page != "index.md" and blocks(page)])
async def test_code(page: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In an empty folder; and the tests that a page shows."""
    monkeypatch.chdir(tmp_path)

    async with page_run(page) as namespace:
        for name in [name for name in namespace if name.startswith("test_")]:
            await namespace[name]()


async def test_messages_on_the_page_on_tests(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """What its snippets print, and what a TestClient is told."""
    monkeypatch.chdir(tmp_path)
    left_open, other_loop = TEXT.findall((DOCS / "testing.md").read_text())

    async with page_run("testing.md"):
        pass

    assert " ".join(left_open.split()) in capsys.readouterr().out
    assert other_loop.split() == str(SandboxError.other_loop()).split()


@pytest.mark.parametrize("plugin", ["anyio", "pytest-asyncio"])
def test_files_of_the_page_on_tests(tmp_path: Path, plugin: str) -> None:
    """With either plugin, as the page tells the difference."""
    (tmp_path / "app.py").write_text(blocks("index.md")[0])
    for name, code in FILE.findall((DOCS / "testing.md").read_text()):
        (tmp_path / name).write_text(code)
    arguments = ["-p", "anyio"]
    if plugin == "pytest-asyncio":
        pytest.importorskip("pytest_asyncio")
        without(tmp_path / "conftest.py", '\n\n@pytest.fixture\ndef anyio_backend.*?asyncio"\n')
        without(tmp_path / "test_items.py", "pytestmark = .*?\n")
        arguments = ["-p", "pytest_asyncio.plugin", "-o", "asyncio_mode=auto"]
    plugins = ["--disable-plugin-autoload", *arguments, "-p", "starlette_uow.pytest_plugin"]
    path = os.pathsep.join([str(DOCS.parent), os.environ.get("PYTHONPATH", "")])

    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", *plugins],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": path},
        capture_output=True,
        text=True,
    )

    assert "2 passed" in done.stdout, done.stdout


def without(file: Path, pattern: str) -> None:
    code, count = re.subn(pattern, "", file.read_text(), flags=re.DOTALL)
    assert count == 1
    file.write_text(code)


async def test_app_of_the_page_on_fastapi(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """It does what the page says."""
    monkeypatch.chdir(tmp_path)

    async with page_run("fastapi.md") as namespace, sandbox(namespace["uow"]):
        app = namespace["app"]
        async with serve(app) as server:
            url = f"127.0.0.1:{server.port}"
            async with httpx.AsyncClient(base_url=f"http://{url}") as client:
                answers = [
                    await client.request(*line.split()) for line in FASTAPI_REQUESTS.splitlines()
                ]
                async with websockets.connect(f"ws://{url}/stock?item=tea") as socket:
                    await socket.send("tea")
                    assert await socket.recv() == '{"stock":9}'

    told = "\n".join(f"{answer.status_code} {answer.text}".rstrip() for answer in answers)
    assert told == FASTAPI_ANSWERS
    assert "milk is stored\n" in capsys.readouterr().out


FASTAPI_REQUESTS = """\
PUT /items/milk
PUT /items/bad
POST /items/tea/sell
POST /items/nothing/sell
GET /visited
POST /items/tea
POST /items/milk/take
POST /orders/lamp
GET /count"""

FASTAPI_ANSWERS = """\
201 "milk"
422 {"detail":"no bad items"}
200 9
404 {"detail":"Not Found"}
200 "committed, with the visit"
409 {"detail":"That is taken."}
303
202 "lamp"
200 5"""


def test_every_error_is_in_the_page_on_troubleshooting() -> None:
    """A new one has to be explained there."""
    page = (DOCS / "troubleshooting.md").read_text()
    names = {name for name in starlette_uow.__all__ if name.endswith("Error")}

    assert {name for name in names - {"UnitOfWorkError"} if f"`{name}`" not in page} == set()


def test_every_page_is_in_the_navigation() -> None:
    """One that is not cannot be found."""
    navigation = (DOCS.parent / "mkdocs.yml").read_text()

    assert [page for page in PAGES if page not in navigation] == []
