"""The documentation's code runs, page by page, after that of the first page."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

from tests.test_readme import run

DOCS = Path(__file__).parent.parent / "docs"
PAGES = sorted(path.relative_to(DOCS).as_posix() for path in DOCS.rglob("*.md"))
BLOCK = re.compile(r"^```python\n(.*?)^```$", re.MULTILINE | re.DOTALL)


def blocks(page: str) -> list[str]:
    """The snippets of a page; those with a title show what was there before."""
    return BLOCK.findall((DOCS / page).read_text())


@pytest.mark.parametrize("page", [page for page in PAGES if page != "index.md" and blocks(page)])
async def test_code(page: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In an empty folder."""
    monkeypatch.chdir(tmp_path)
    namespace: dict[str, Any] = {"__name__": "app"}

    for block in (*blocks("index.md"), *blocks(page)):
        await run(block, namespace)

    await namespace["uow"].dispose()
    if "shop" in namespace:
        await namespace["shop"].dispose()


def test_every_page_is_in_the_navigation() -> None:
    """One that is not cannot be found."""
    navigation = (DOCS.parent / "mkdocs.yml").read_text()

    assert [page for page in PAGES if page not in navigation] == []
