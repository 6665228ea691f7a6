"""What the demo prints at start is true, and its settings are kept."""

from __future__ import annotations

import asyncio
import os
import re
import shutil
from html import unescape
from pathlib import Path

import httpx
import pytest
from starlette.applications import Starlette

from demo import postgres, settings
from demo.seed import ADMIN
from demo.welcome import examples, start_text
from tests.demo.conftest import serve


@pytest.mark.skipif(not (shutil.which("bash") and shutil.which("curl")), reason="needs bash, curl")
async def test_lines_to_type_print_what_is_promised(app: Starlette) -> None:
    """All three run in one shell, against a real server."""
    async with serve(app) as url:
        promised = examples(url)
        shell = await asyncio.create_subprocess_exec(
            "bash",
            "-c",
            "\n".join(example.line for example in promised),
            stdout=asyncio.subprocess.PIPE,
            env={"PATH": os.environ["PATH"], "NO_PROXY": "*"},
        )
        printed = (await shell.communicate())[0].decode().splitlines()

    assert len(printed) == 3
    for line, example in zip(printed, promised, strict=True):
        pattern = re.escape(example.prints).replace(re.escape("..."), ".+")
        assert re.fullmatch(pattern, line), (line, example.prints)


def test_start_text_says_what_to_open_and_type() -> None:
    """The addresses, the admin's login, and exactly three lines."""
    text = start_text("http://127.0.0.1:8000", "postgresql")

    assert "http://127.0.0.1:8000/ " in text
    assert "http://127.0.0.1:8000/admin " in text
    assert f"log in as {ADMIN.email}, password {ADMIN.password}" in text
    assert text.count("curl ") == 3
    for example in examples("http://127.0.0.1:8000"):
        assert example.line in text
        assert example.prints in text


async def test_first_page_shows_the_same_lines(client: httpx.AsyncClient) -> None:
    """With the address at which it was opened, and what is in stock."""
    page = await client.get("/")

    assert page.status_code == 200
    assert "Desk lamp" in page.text
    for example in examples("http://shop.test"):
        assert example.line in unescape(page.text)


def test_secret_key_is_kept_in_a_private_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A restart keeps it, `fresh` makes a new one, SECRET_KEY outweighs it."""
    monkeypatch.delenv("SECRET_KEY", raising=False)
    monkeypatch.setattr(postgres, "default_folder", lambda: tmp_path / "data")

    first, again = settings.secret_key(), settings.secret_key()
    fresh = settings.secret_key(fresh=True)
    mode = (tmp_path / "data" / "secret-key").stat().st_mode
    monkeypatch.setenv("SECRET_KEY", "from the environment")

    assert len(first) >= 32
    assert again == first != fresh
    assert mode & 0o777 == 0o600
    assert settings.secret_key() == "from the environment"


@pytest.mark.parametrize(
    ("given", "used"),
    [
        ("postgresql://u:p@db/shop", "postgresql+asyncpg://u:p@db/shop"),
        ("postgresql+asyncpg://u:p@db/shop", "postgresql+asyncpg://u:p@db/shop"),
        ("sqlite:///shop.sqlite", "sqlite+aiosqlite:///shop.sqlite"),
        ("sqlite+aiosqlite:///shop.sqlite", "sqlite+aiosqlite:///shop.sqlite"),
    ],
)
def test_database_url_gets_an_async_driver(
    monkeypatch: pytest.MonkeyPatch, given: str, used: str
) -> None:
    """Where it names none."""
    monkeypatch.setenv("DATABASE_URL", given)

    assert settings.database_url() == used
