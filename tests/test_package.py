"""The shape of the package: imports run one way, names are exported, extras stay optional."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import starlette_uow

PACKAGE = Path(starlette_uow.__file__).parent

ORDER = [
    "errors",
    "policy",
    "gate",
    "inline",
    "shield",
    "resolving",
    "drivers",
    "state",
    "guard",
    "postgres",
    "engine",
    "stream",
    "transaction",
    "session",
    "ending",
    "unit",
    "context",
    "blocks",
    "transactional",
    "threads",
    "tasks",
    "repositories",
    "uow",
    "middleware",
    "handlers",
    "admin_files",
    "admin_views",
    "admin",
    "fastapi",
    "recorder",
    "outer",
    "clone",
    "testing",
    "pytest_plugin",
]


def imported_modules(tree: ast.AST) -> set[str]:
    """What a module of the package imports of the package, but for type checkers."""
    for node in ast.walk(tree):
        if isinstance(node, ast.If) and getattr(node.test, "id", "") == "TYPE_CHECKING":
            node.body = []
    return {
        (node.module or "").partition(".")[2]
        for node in ast.walk(tree)
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("starlette_uow")
    }


def test_every_module_has_its_place() -> None:
    """A new one has to be put into the order."""
    modules = {path.stem for path in PACKAGE.glob("*.py")} - {"__init__"}

    assert modules == set(ORDER)


@pytest.mark.parametrize("module", ORDER)
def test_imports_run_downwards_only(module: str) -> None:
    """A reader can start at the top."""
    tree = ast.parse((PACKAGE / f"{module}.py").read_text())

    assert imported_modules(tree) <= set(ORDER[: ORDER.index(module)])


def test_all_is_sorted_and_complete() -> None:
    """What `__init__` imports is what it exports."""
    # pytest itself adds names with an "@" to the modules of its plugins.
    names = {n for n in vars(starlette_uow) if n[0] not in "_@" and n not in ORDER}

    assert list(starlette_uow.__all__) == sorted(starlette_uow.__all__)
    assert set(starlette_uow.__all__) == names


@pytest.mark.parametrize(
    "extra", ["starlette_admin", "itsdangerous", "asyncpg", "aiosqlite", "fastapi", "pytest"]
)
def test_core_imports_no_extra(extra: str) -> None:
    """starlette, sqlalchemy and anyio are enough."""
    code = f"import sys; sys.modules[{extra!r}] = None; import starlette_uow"

    subprocess.run([sys.executable, "-W", "error", "-c", code], check=True, cwd=PACKAGE.parent)
