"""The admin of the demo: the pages on which a shared session used to break."""

from __future__ import annotations

import asyncio
import logging

import httpx
import pytest
from starlette.applications import Starlette

from demo.answers import REFUSED
from demo.seed import CUSTOMER
from tests.databases import Database
from tests.demo.conftest import Contents, csrf_token, log_in_to_admin, serve

PICKERS = (
    "/admin/_api/user/relation-lookup?pks=2",
    "/admin/_api/voucher/relation-lookup?pks=SPRING",
    "/admin/_api/order-line/relation-lookup?pks=1&pks=2",
    "/admin/_api/user/relation-lookup?skip=0&limit=20",
)


async def test_edit_page_of_an_order_with_its_pickers(app: Starlette, database: Database) -> None:
    """A browser loads the pickers at once, each through the login; then the order is saved."""
    async with serve(app) as url, httpx.AsyncClient(base_url=url, trust_env=False) as browser:
        await log_in_to_admin(browser)
        page = await browser.get("/admin/order/edit?pk=1")
        pickers = await asyncio.gather(*(browser.get(picker) for picker in PICKERS * 5))
        form = {
            "csrftoken": csrf_token(page),
            "user": "3",
            "status": "paid",
            "voucher": "FRIEND",
            "lines": ["1"],
        }
        saved = await browser.post("/admin/order/edit?pk=1", data=form)

    assert page.status_code == 200
    assert {picker.status_code for picker in pickers} == {200}
    assert [picker.json()["total"] for picker in pickers[:4]] == [1, 1, 2, 3]
    assert saved.status_code == 303, saved.text
    look = database.observer.scalar
    assert await look("select status from orders where id = 1") == "paid"
    assert await look("select user_id from orders where id = 1") == 3
    assert await look("select count(*) from order_lines where order_id = 1") == 1
    assert await look("select count(*) from audit_entries where what like 'admin: edit%'") == 1


@pytest.mark.parametrize(
    ("password", "email"), [("wrong", "admin@example.org"), (CUSTOMER.password, CUSTOMER.email)]
)
async def test_only_administrators_get_in(
    client: httpx.AsyncClient, password: str, email: str
) -> None:
    """A customer with the right password does not."""
    token = csrf_token(await client.get("/admin/login"))
    form = {"username": email, "password": password, "csrftoken": token}

    answer = await client.post("/admin/login", data=form)
    page = await client.get("/admin/order/list")

    assert answer.status_code == 400
    assert page.status_code == 303
    assert "/admin/login" in page.headers["location"]


async def test_password_set_in_the_admin_is_hashed(
    client: httpx.AsyncClient, database: Database
) -> None:
    """The new user can log in, and no page shows the hash."""
    token = await log_in_to_admin(client)
    form = {"csrftoken": token, "email": "eve@example.org", "name": "Eve", "password": "secret"}

    created = await client.post("/admin/user/create", data=form)
    login = await client.post("/api/login", json={"email": form["email"], "password": "secret"})
    pages = [await client.get(f"/admin/user/{page}?pk=4") for page in ("list", "detail", "edit")]

    assert created.status_code == 303, created.text
    assert login.status_code == 200
    stored = await database.observer.scalar("select password_hash from users where id = 4")
    assert str(stored).startswith("$argon2")
    assert not any("$argon2" in page.text for page in pages)


@pytest.mark.parametrize(
    ("page", "form", "reason"),
    [
        ("user/create", {"email": CUSTOMER.email, "name": "x", "password": "x"}, "taken already"),
        ("user/create", {"email": "x@example.org", "name": "x"}, "needs a password"),
        ("product/edit?pk=1", {"sku": "TEA", "name": "x", "price": "1", "stock": "1"}, "taken"),
        ("product/edit?pk=1", {"sku": "CUP", "name": "x", "price": "1", "stock": "-1"}, "between"),
        ("order/edit?pk=1", {"user": "2", "status": "lost"}, "status-error"),
    ],
)
async def test_refused_form_says_why_and_writes_nothing(
    client: httpx.AsyncClient, contents: Contents, page: str, form: dict[str, str], reason: str
) -> None:
    """The form comes back with status 422, and the audit trail does not know of it."""
    token = await log_in_to_admin(client)
    before = await contents()

    answer = await client.post(f"/admin/{page}", data={"csrftoken": token, **form})

    assert answer.status_code == 422
    assert reason in answer.text
    assert await contents() == before


@pytest.mark.parametrize(("key", "pk"), [("voucher", "SPRING"), ("product", "8"), ("user", "2")])
async def test_what_is_in_use_cannot_be_deleted(
    client: httpx.AsyncClient,
    contents: Contents,
    caplog: pytest.LogCaptureFixture,
    key: str,
    pk: str,
) -> None:
    """The COMMIT refuses it, after the view has answered that it worked."""
    token = await log_in_to_admin(client)
    before = await contents()
    caplog.set_level(logging.INFO, "demo.requests")

    answer = await client.post(
        f"/admin/_api/{key}/row-action",
        params={"name": "delete", "pk": pk},
        headers={"X-CSRFToken": token},
    )

    assert answer.status_code == 400
    assert answer.json() == {"msg": REFUSED}
    assert await contents() == before
    assert "row-action 400 rolled back" in caplog.text


async def test_audit_trail_is_read_only(client: httpx.AsyncClient, contents: Contents) -> None:
    """It can be listed, and nothing else."""
    token = await log_in_to_admin(client)
    before = await contents()

    pages = [
        await client.get(f"/admin/audit-entry/{page}") for page in ("list", "create", "edit?pk=1")
    ]
    deleted = await client.post(
        "/admin/_api/audit-entry/row-action",
        params={"name": "delete", "pk": 1},
        headers={"X-CSRFToken": token},
    )

    assert [page.status_code for page in pages] == [200, 403, 403]
    assert deleted.status_code == 400
    assert await contents() == before
