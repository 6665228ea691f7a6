"""What the demo prints at start is true, and its settings, tables and data are kept."""

from __future__ import annotations

import asyncio
import json
import logging
import os
import re
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from html import unescape
from pathlib import Path

import httpx
import pytest
import yaml  # type: ignore[import-untyped]  # comes with schemathesis
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from sqlalchemy import Connection, make_url, text
from sqlalchemy.ext.asyncio import AsyncEngine
from starlette.applications import Starlette

from demo import postgres, settings
from demo.__main__ import check_address
from demo.log import JsonFormatter
from demo.migrate import migrate
from demo.models import Base
from demo.prepare import prepare, show_progress
from demo.seed import ADMIN, seed
from demo.shop import sessions
from demo.welcome import examples, start_text
from tests.databases import Database
from tests.demo.conftest import ORDERS, Contents, Count, serve


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
    assert "http://127.0.0.1:8000/docs " in text
    assert f"log in as {ADMIN.email}, password {ADMIN.password}" in text
    assert text.count("curl ") == 3
    for example in examples("http://127.0.0.1:8000"):
        assert example.line in text
        assert example.prints in text


async def test_first_page_shows_the_same_lines(client: httpx.AsyncClient) -> None:
    """With the address at which it was opened, who can log in, and what is in stock."""
    page = await client.get("/")

    assert page.status_code == 200
    assert "Desk lamp" in page.text
    assert ADMIN.email in page.text
    for example in examples("http://shop.test"):
        assert example.line in unescape(page.text)


async def test_api_page_needs_no_internet(client: httpx.AsyncClient) -> None:
    """Its scripts and its style come from the shop."""
    page = await client.get("/docs")
    parts = re.findall(r'(?:src|href)="([^"]+)"', page.text)

    assert len(parts) >= 2
    for part in parts:
        assert part.startswith("/"), part
        assert (await client.get(part)).status_code == 200


async def test_health_needs_no_database(client: httpx.AsyncClient) -> None:
    """It is excluded from the units of work."""
    answer = await client.get("/health")

    assert answer.json() == {"status": "ok"}


async def test_request_id_is_kept_if_it_is_one(
    client: httpx.AsyncClient, caplog: pytest.LogCaptureFixture
) -> None:
    """Anything else is replaced: no client writes into the log."""
    caplog.set_level("INFO", "demo.requests")

    good = await client.get("/health", headers={"x-request-id": "from-the-proxy-1"})
    bad = await client.get("/health", headers={"x-request-id": "x\tPOST /api/orders 201"})

    assert good.headers["x-request-id"] == "from-the-proxy-1"
    assert "route=/health request=from-the-proxy-1" in caplog.text
    assert re.fullmatch(r"[0-9a-f]{16}", bad.headers["x-request-id"])


async def test_log_lines_are_json_for_a_program(
    client: httpx.AsyncClient, caplog: pytest.LogCaptureFixture
) -> None:
    """With the request's id, its route, what became of it, and the time."""
    caplog.set_level("INFO", "demo")
    answer = await client.get("/api/products/NOPE%0A", headers={"x-request-id": "proxy-17"})
    write = JsonFormatter().format

    line = json.loads(write(caplog.records[-1]))

    assert line.pop("time").endswith("+00:00")
    assert line.pop("milliseconds") < 10_000
    assert line == {
        "level": "info",
        "logger": "demo.requests",
        "message": caplog.messages[-1],
        "method": "GET",
        "path": "/api/products/NOPE%0A",
        "status": str(answer.status_code),
        "transaction": "no transaction",
        "route": "/api/products/{sku}",
        "request": "proxy-17",
    }


def test_traceback_stands_in_one_line_of_json(caplog: pytest.LogCaptureFixture) -> None:
    """Whoever has logged it."""
    try:
        raise ValueError("on\npurpose")
    except ValueError:
        logging.getLogger("somebody").exception("It failed.")

    line = JsonFormatter().format(caplog.records[-1])

    assert "\n" not in line
    assert "ValueError: on" in json.loads(line)["traceback"]
    caplog.clear()


async def test_filling_the_shop_again_changes_nothing(app: Starlette, contents: Contents) -> None:
    """A restart keeps what was there."""
    before = await contents()

    await seed()

    assert await contents() == before


EVERYTHING = """
    with lines as (
        select o.reference || ' ' || o.status || ' ' || o.total || ' ' || c.name || ' ' || c.street
            || ' ' || c.city || ' ' || p.sku || ' ' || l.quantity || ' ' || y.state as line
        from orders o join customers c on c.id = o.customer_id join payments y on y.order_id = o.id
        join order_lines l on l.order_id = o.id join products p on p.id = l.product_id
        order by l.id
    )
    select string_agg(line, ';') from lines
"""


async def test_fresh_shop_is_the_same_each_time(
    app: Starlette, engine: AsyncEngine, database: Database, count: Count
) -> None:
    """The same customers ordered the same, on the same days: all but the keys is as it was."""
    everything = (
        EVERYTHING if database.is_postgres else EVERYTHING.replace("string_agg", "group_concat")
    )
    before = await database.observer.scalar(everything)

    await migrate(engine, fresh=True)
    await seed(orders=ORDERS)

    assert await database.observer.scalar(everything) == before
    assert await count("orders") == ORDERS
    assert await count("orders where total <= 0") == 0


async def test_migrations_make_the_tables_of_the_models(
    app: Starlette, engine: AsyncEngine
) -> None:
    """There is nothing left that Alembic would change."""

    def compare(connection: Connection) -> object:
        context = MigrationContext.configure(connection, opts={"compare_type": True})
        mine = set(Base.metadata.tables)
        return [d for d in compare_metadata(context, Base.metadata) if _name(d) in {None, *mine}]

    async with engine.connect() as connection:
        assert await connection.run_sync(compare) == []


def _name(difference: object) -> str | None:
    """Tell which table a difference would remove: those of other tests do not count."""
    if isinstance(difference, tuple) and difference[0] in ("remove_table", "remove_index"):
        removed = difference[1]
        return str(removed.name if hasattr(removed, "columns") else removed.table.name)
    return None


async def test_migrations_run_again_and_at_once(
    app: Starlette, engine: AsyncEngine, contents: Contents
) -> None:
    """A second start finds nothing to do; two at once wait for each other."""
    before = await contents()

    await asyncio.gather(migrate(engine), migrate(engine))

    assert await contents() == before


async def test_tables_of_an_older_demo_are_not_touched(app: Starlette, engine: AsyncEngine) -> None:
    """They have no version, so nobody knows what they are."""
    async with engine.begin() as connection:
        await connection.execute(text("ALTER TABLE alembic_version RENAME TO kept"))

    with pytest.raises(SystemExit, match="--fresh"):
        await migrate(engine)

    async with engine.begin() as connection:
        await connection.execute(text("ALTER TABLE kept RENAME TO alembic_version"))


def test_progress_is_shown(capsys: pytest.CaptureFixture[str]) -> None:
    """As lines, where there is no terminal to draw on."""
    show_progress(100, 400)
    show_progress(400, 400)

    assert capsys.readouterr().out == (
        "Filling the shop [#####...............] 100 of 400 orders\n"
        "Filling the shop [####################] 400 of 400 orders\n"
    )


def test_secret_key_is_kept_in_a_private_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A restart keeps it, `fresh` makes a new one, SECRET_KEY outweighs it."""
    monkeypatch.delenv("SECRET_KEY", raising=False)
    monkeypatch.setenv("DATA_FOLDER", str(tmp_path / "data"))

    first, again = settings.secret_key(), settings.secret_key()
    fresh = settings.secret_key(fresh=True)
    mode = (tmp_path / "data" / "secret-key").stat().st_mode
    monkeypatch.setenv("SECRET_KEY", "from the environment")

    assert len(first) >= 32
    assert again == first != fresh
    assert mode & 0o777 == 0o600
    assert settings.secret_key() == "from the environment"


def test_data_folder_is_chosen(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """By the environment, or by who starts it."""
    monkeypatch.setenv("DATA_FOLDER", str(tmp_path))
    chosen = settings.data_folder()
    monkeypatch.delenv("DATA_FOLDER")

    assert chosen == tmp_path
    assert settings.data_folder() == postgres.default_folder()


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


BAD_SETTINGS = {
    "no URL": ({"DATABASE_URL": "nonsense"}, "DATABASE_URL is no URL. It is like postgresql://"),
    "another database": ({"DATABASE_URL": "mysql://db/shop"}, "DATABASE_URL is for 'mysql'."),
    "another driver": ({"DATABASE_URL": "postgresql+psycopg2://db/shop"}, "'postgresql+psycopg2'"),
    "no file": ({"DATABASE_URL": "sqlite://"}, "DATABASE_URL names no file"),
    "no folder": (
        {"DATABASE_URL": "sqlite:////nowhere/shop.sqlite"},
        "a folder that is not there: /nowhere",
    ),
    "nobody there": ({"DATABASE_URL": "postgresql://u:secret@127.0.0.1:9/x"}, "u:***@127.0.0.1:9"),
    "no number": ({"POOL_SIZE": "many"}, "POOL_SIZE is a number of connections"),
    "no connection": ({"POOL_SIZE": "0"}, "at least 1, and not '0'"),
}


@pytest.mark.parametrize("bad", BAD_SETTINGS)
def test_bad_setting_is_told(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, bad: str) -> None:
    """In a line, without a traceback and without the password."""
    variables, told = BAD_SETTINGS[bad]
    kept = {"DATA_FOLDER": str(tmp_path), "DATABASE_URL": f"sqlite:///{tmp_path / 'x.sqlite'}"}
    kept |= {"SECRET_KEY": "x", "PAYMENT_URL": "http://127.0.0.1:9"}
    for name, value in (kept | variables).items():
        monkeypatch.setenv(name, value)

    with pytest.raises(SystemExit) as left:
        prepare()

    assert told in str(left.value)
    assert "secret" not in str(left.value)
    sessions.configure(bind=None)


def test_port_in_use_is_told() -> None:
    """Before anything is started, with the way out."""
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(SystemExit) as left:
            check_address("127.0.0.1", port)

    assert f"Cannot serve at 127.0.0.1:{port}: Address already in use" in str(left.value)
    assert "--port" in str(left.value)
    check_address("127.0.0.1", port)


def test_compose_file_asks_for_what_the_code_has() -> None:
    """Its commands, its variables, and the port at which the payment provider listens."""
    services = yaml.safe_load(Path("docker-compose.yml").read_text())["services"]
    demo, payments = services["demo"], services["payments"]

    for name in demo["environment"]:
        assert f"| `{name}`" in (settings.__doc__ or "")
    for service in (demo, payments):
        program, *command = service["command"]
        shown = subprocess.run(
            [sys.executable, *command, "--help"], capture_output=True, text=True, check=True
        )
        assert program == "python"
        assert {word for word in command if word.startswith("--")} <= set(shown.stdout.split())
    assert demo["environment"]["PAYMENT_URL"] == "http://payments:9000"
    assert make_url(demo["environment"]["DATABASE_URL"]).port == int(
        services["pgbouncer"]["environment"]["LISTEN_PORT"]
    )


def test_settings_are_all_documented() -> None:
    """Every variable that is read stands in the table."""
    source = "".join(path.read_text() for path in Path("demo").glob("*.py"))
    read = set(re.findall(r'environ(?:\.get\()?\[?"([A-Z_]+)"', source))

    assert read
    assert {name for name in read if f"| `{name}`" not in (settings.__doc__ or "")} == set()


@pytest.mark.timeout(120)
def test_fresh_start_beside_a_running_demo_is_refused() -> None:
    """It would delete the data of the other one, which could not go on."""
    folder = Path(tempfile.mkdtemp(dir="/var/tmp"))  # as root the server's own user has to reach it
    code = "import pathlib, sys; from demo import postgres; postgres.start(pathlib.Path({!r}));"
    command = [sys.executable, "-c", code.format(str(folder)) + "print('up', flush=True); input()"]
    pipe = subprocess.PIPE
    with subprocess.Popen(command, stdin=pipe, stdout=pipe, text=True) as running:
        assert running.stdout is not None
        assert running.stdout.readline() == "up\n"

        with pytest.raises(SystemExit, match=f"in use by process {running.pid}"):
            postgres.start(folder, fresh=True)

        assert (folder / "PG_VERSION").exists()
        running.communicate("\n")
    shutil.rmtree(folder)


def test_two_workers_serve_one_shop(tmp_path: Path) -> None:
    """`python -m demo --workers 2` fills a shop, serves it with one key, and ends when told."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    environment = {
        **os.environ,
        "DATABASE_URL": f"sqlite:///{tmp_path / 'shop.sqlite'}",
        "DATA_FOLDER": str(tmp_path),
    }
    command = [sys.executable, "-m", "demo", "--port", str(port), "--workers", "2"]
    server = subprocess.Popen(
        command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )
    try:
        token = log_in(f"http://127.0.0.1:{port}")
        header = {"authorization": f"Bearer {token}"}
        names = set()
        for _ in range(6):  # a connection each, so that both workers get some
            answer = httpx.get(
                f"http://127.0.0.1:{port}/api/me", headers=header, trust_env=False, timeout=30
            )
            names.add(answer.json()["name"])
    finally:
        server.terminate()
        printed = server.communicate(timeout=30)[0]

    assert names == {ADMIN.name}, printed
    assert "400 of 400 orders" in printed
    assert "Traceback" not in printed


def log_in(url: str) -> str:
    """Log in, as soon as somebody serves."""
    body = {"email": ADMIN.email, "password": ADMIN.password}
    until = time.monotonic() + 80
    while True:
        try:
            answer = httpx.post(f"{url}/api/login", json=body, trust_env=False, timeout=30)
        except httpx.ConnectError:
            assert time.monotonic() < until, "the demo does not start"
            time.sleep(0.1)
        else:
            return str(answer.json()["token"])
