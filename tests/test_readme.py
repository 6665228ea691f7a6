"""The README does what it says: its code runs, its curl lines print what it prints."""

from __future__ import annotations

import ast
import builtins
import inspect
import itertools
import re
import types
from pathlib import Path
from typing import Any

import httpx
import pytest

import starlette_uow
from demo.welcome import examples, start_text
from starlette_uow import UnitOfWork, UnitOfWorkMiddleware, create_engine, errors
from starlette_uow.testing import sandbox
from tests.test_server import serve

README = (Path(__file__).parent.parent / "README.md").read_text()
BLOCKS = re.findall(r"^```python\n(.*?)^```$", README, re.MULTILINE | re.DOTALL)
CURL = re.compile(r"^\$ curl -w ' %\{http_code\}\\n' (?:-X (\w+) )?localhost:8000(\S+)$")


async def run(code: str, namespace: dict[str, Any]) -> None:
    """Execute a snippet, which may await."""
    compiled = compile(code, "README.md", "exec", ast.PyCF_ALLOW_TOP_LEVEL_AWAIT, dont_inherit=True)
    namespace.setdefault("__builtins__", builtins)  # Python 3.13 wants it
    result = types.FunctionType(compiled, namespace)()
    if inspect.isawaitable(result):
        await result


async def test_code_and_curl_lines(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """In the order of the page, through a real server."""
    monkeypatch.chdir(tmp_path)
    namespace: dict[str, Any] = {"__name__": "app"}
    lines = README.splitlines()

    await run(BLOCKS[0], namespace)
    asked = 0
    async with serve(namespace["app"]) as server, httpx.AsyncClient() as client:
        for line, printed in itertools.pairwise(lines):
            if match := CURL.match(line):
                method, path = match.groups()
                url = f"http://127.0.0.1:{server.port}{path}"
                response = await client.request(method or "GET", url)
                assert f"{response.text} {response.status_code}" == printed
                asked += 1
    for block in BLOCKS[1:]:
        await run(block, namespace)
    await namespace["test_created_items_are_found"]()
    transport = httpx.ASGITransport(app=namespace["app"])
    async with httpx.AsyncClient(transport=transport, base_url="http://test") as client:
        form = await client.get("/admin/item/create")
    await namespace["uow"].dispose()

    assert asked == 3
    assert re.search(r'<input[^>]*name="name"', form.text)
    assert "coffee is stored\n3\n" in capsys.readouterr().out


def test_first_lines() -> None:
    """Install by line 12, code by line 18."""
    lines = README.splitlines()

    assert next(n for n, line in enumerate(lines, 1) if "pip install" in line) <= 12
    assert lines.index("```python") + 1 <= 18
    assert len([line for line in BLOCKS[0].splitlines() if line.strip()]) <= 32


def test_lines_of_the_demo() -> None:
    """The README shows what `make demo` prints."""
    for example in examples("http://127.0.0.1:8000"):
        assert f"$ {example.line}\n{example.prints}\n" in README
        assert example.line in start_text("http://127.0.0.1:8000", "postgresql")


def test_every_option_and_error_is_listed() -> None:
    """A new one has to be documented."""
    functions: list[Any] = [
        UnitOfWorkMiddleware.__init__,
        UnitOfWork.__init__,
        UnitOfWork.new,
        UnitOfWork.tasks,
        UnitOfWork.transactional,
        create_engine,
        sandbox,
    ]
    options = {
        name
        for function in functions
        for name, parameter in inspect.signature(function).parameters.items()
        if parameter.kind is parameter.KEYWORD_ONLY
    }
    names = {n for n in starlette_uow.__all__ if n.endswith("Error")} - {"UnitOfWorkError"}

    assert {name for name in options if f"| `{name}` |" not in README} == set()
    assert {name for name in names if f"`{name}`" not in README} == set()
    assert errors.UnitOfWorkError.__name__ in README


def test_rule_has_a_row_for_each_point_of_the_docstring() -> None:
    """The rule is written once for readers of the code, and once for users."""
    table = README.partition("## The rule")[2].partition("So: **")[0]
    points = re.findall(r"^\d+\.", inspect.getdoc(UnitOfWorkMiddleware) or "", re.MULTILINE)

    assert table.count("\n| ") - 1 == len(points)
