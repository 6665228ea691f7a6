"""A demo of its own under uvicorn, and a headless Chromium that is logged in.

`CHROMIUM` names the browser if it is not in the PATH; with `SCREENSHOTS=folder` each test leaves
a picture of where it ended.
"""

from __future__ import annotations

import asyncio
import os
import re
import shutil
import socket
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from time import monotonic
from typing import Any

import httpx
import pytest
from playwright.sync_api import Browser, BrowserContext, Page, expect, sync_playwright

from demo.seed import ADMIN
from tests.databases import connect, create_database, drop_database
from tests.demo.conftest import csrf_token

ROOT = Path(__file__).parents[2]
CHROMIUM = os.environ.get("CHROMIUM") or shutil.which("chromium") or shutil.which("google-chrome")
"""Where the browser is, if there is one."""

PATIENCE = 45.0
"""Seconds, for the demo to start and for a page to show what it should."""

TROUBLE = re.compile(r"traceback|error|warning|exception|concurrent operations|never awaited", re.I)


@dataclass(frozen=True)
class Shop:
    """A running demo, and a look into its database."""

    url: str
    database_url: str

    def scalar(self, sql: str) -> object:
        """Ask through a connection of its own, in a thread: Playwright's loop runs in this one."""

        async def ask() -> object:
            connection = await connect(self.database_url)
            try:
                return await connection.fetchval(sql)
            finally:
                await connection.close()

        with ThreadPoolExecutor(1) as pool:
            return pool.submit(asyncio.run, ask()).result()


@pytest.fixture(scope="session")
def demo_shop(server_url: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Shop]:
    """Start the demo as a user does. At its end, its log must not tell of any trouble."""
    folder = tmp_path_factory.mktemp("demo")
    name = f"starlette_uow_browser_{os.getpid()}"
    database_url = asyncio.run(create_database(server_url, name))
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    environment = {**os.environ, "DATABASE_URL": database_url, "DATA_FOLDER": str(folder)}
    log = folder / "log"
    with log.open("w") as output:
        command = [sys.executable, "-m", "demo", "--port", str(port)]
        process = subprocess.Popen(
            command, cwd=ROOT, env=environment, stdout=output, stderr=subprocess.STDOUT
        )
    try:
        url = f"http://127.0.0.1:{port}"
        wait_for(url, process, log)
        yield Shop(url, database_url)
    finally:
        process.terminate()
        process.wait(PATIENCE)
        asyncio.run(drop_database(server_url, name))
    lines = log.read_text().splitlines()
    assert [line for line in lines if TROUBLE.search(line)] == []


def wait_for(url: str, process: subprocess.Popen[bytes], log: Path) -> None:
    until = monotonic() + PATIENCE
    while process.poll() is None and monotonic() < until:
        try:
            httpx.get(f"{url}/health", trust_env=False)
        except httpx.TransportError:
            continue
        return
    pytest.fail(f"The demo did not start:\n{log.read_text()}")


@pytest.fixture(scope="session")
def cookies(demo_shop: Shop) -> list[dict[str, str]]:
    """Those of a manager who has logged in."""
    with httpx.Client(base_url=demo_shop.url, trust_env=False) as client:
        token = csrf_token(client.get("/admin/login"))
        form = {"username": ADMIN.email, "password": ADMIN.password, "csrftoken": token}
        assert client.post("/admin/login", data=form).is_redirect
        return [{"name": n, "value": v, "url": demo_shop.url} for n, v in client.cookies.items()]


@pytest.fixture
def browser() -> Iterator[Browser]:
    """A browser for each test: Playwright's event loop runs in this thread as long as it lives."""
    expect.set_options(timeout=PATIENCE * 1000)
    with sync_playwright() as playwright:
        flags = ["--no-sandbox", "--disable-gpu"]
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=flags)
        yield browser
        browser.close()


@pytest.fixture
def stranger(browser: Browser, demo_shop: Shop) -> Iterator[BrowserContext]:
    """A browser window of somebody."""
    size: Any = {"width": 1280, "height": 1000}
    context = browser.new_context(base_url=demo_shop.url, viewport=size)
    context.set_default_timeout(PATIENCE * 1000)
    yield context
    context.close()


@pytest.fixture
def window(stranger: BrowserContext, cookies: Any) -> BrowserContext:
    """A browser window of the manager."""
    stranger.add_cookies(cookies)
    return stranger


@pytest.fixture
def page(window: BrowserContext, request: pytest.FixtureRequest) -> Iterator[Page]:
    """A tab of it, in which no script may fail."""
    page = window.new_page()
    errors: list[str] = []
    page.on("pageerror", lambda error: errors.append(str(error)))
    yield page
    if folder := os.environ.get("SCREENSHOTS"):
        page.screenshot(path=f"{folder}/{request.node.name}.png", full_page=True)
    assert errors == []
