"""The admin of the demo: the pages on which a shared session used to break, and who sees them."""

from __future__ import annotations

import asyncio
import logging

import httpx
import pytest
from starlette.applications import Starlette

from demo.models import Order
from demo.seed import ADMIN, CLERK, CUSTOMER
from demo.shop import shop
from tests.databases import Database
from tests.demo.conftest import ORDERS, Contents, Count, csrf_token, log_in_to_admin, order, serve

PICKERS = (
    "/admin/_api/customer/relation-lookup?pks=1",
    "/admin/_api/campaign/relation-lookup?pks=SPRING",
    "/admin/_api/product/relation-lookup?pks=1&pks=2",
    "/admin/_api/customer/relation-lookup?skip=0&limit=20",
)


async def place(customer: httpx.AsyncClient, database: Database, sku: str = "TEA") -> int:
    """Order two of something, and tell the order's key."""
    await customer.post("/api/orders", json=order((sku, 2)))
    return int(str(await database.observer.scalar("select max(id) from orders")))


async def act(
    client: httpx.AsyncClient, token: str, view: str, name: str, *pks: object, **form: str
) -> httpx.Response:
    """Run a batch action, as its button does."""
    return await client.post(
        f"/admin/_api/{view}/action",
        params={"name": name, "pks": [str(pk) for pk in pks]},
        headers={"X-CSRFToken": token},
        data=form,
    )


async def test_edit_page_of_an_order_with_its_pickers(
    app: Starlette, customer: httpx.AsyncClient, database: Database, count: Count
) -> None:
    """A browser loads the pickers at once, each through the login; then the order is saved."""
    pk = await place(customer, database)
    line = await database.observer.scalar(f"select id from order_lines where order_id = {pk}")
    async with serve(app) as url, httpx.AsyncClient(base_url=url, trust_env=False) as browser:
        await log_in_to_admin(browser)
        page = await browser.get(f"/admin/order/edit?pk={pk}")
        pickers = await asyncio.gather(*(browser.get(picker) for picker in PICKERS * 5))
        form = {
            "csrftoken": csrf_token(page),
            "customer": "2",
            "campaign": "FRIEND",
            "note": "Ring twice",
            "inlines.lines.0.pk": str(line),
            "inlines.lines.0.product": "23",
            "inlines.lines.0.quantity": "3",
            "inlines.lines.1.product": "8",
            "inlines.lines.1.quantity": "1",
        }
        saved = await browser.post(f"/admin/order/edit?pk={pk}", data=form)

    assert page.status_code == 200
    assert {picker.status_code for picker in pickers} == {200}
    assert [picker.json()["total"] for picker in pickers[:3]] == [1, 1, 2]
    assert saved.status_code == 303, saved.text
    assert await count(f"orders where id = {pk} and customer_id = 2 and note = 'Ring twice'") == 1
    assert await count(f"orders where id = {pk} and total in (26.7, 2670)") == 1
    assert await count(f"payments where order_id = {pk} and amount in (26.7, 2670)") == 1
    assert await count("products where (sku, stock) in (('TEA', 997), ('CUP', 39))") == 2
    noted = "who = 'admin@example.org' and action = 'changed' and what like 'order %'"
    assert await count(f"audit_entries where {noted}") >= 1


async def test_lines_of_a_new_order_are_taken_from_the_stock(
    client: httpx.AsyncClient, count: Count
) -> None:
    """The order, its lines, its payment and the stock are one transaction."""
    form = {
        "csrftoken": await log_in_to_admin(client),
        "customer": "1",
        "inlines.lines.0.product": "23",
        "inlines.lines.0.quantity": "10",
    }

    created = await client.post("/admin/order/create", data=form)

    assert created.status_code == 303, created.text
    assert await count("orders where total in (49, 4900) and status = 'new'") == 1
    assert await count("payments where amount in (49, 4900) and state = 'due'") == 1
    assert await count("products where sku = 'TEA' and stock = 990") == 1


async def test_second_line_that_fails_takes_the_whole_order_with_it(
    client: httpx.AsyncClient, contents: Contents
) -> None:
    """The form comes back with the reason."""
    token = await log_in_to_admin(client)
    before = await contents()
    form = {
        "csrftoken": token,
        "customer": "1",
        "inlines.lines.0.product": "23",
        "inlines.lines.0.quantity": "10",
        "inlines.lines.1.product": "13",
        "inlines.lines.1.quantity": "5",
    }

    answer = await client.post("/admin/order/create", data=form)

    assert answer.status_code == 422
    assert "1 in stock" in answer.text
    assert await contents() == before


async def test_deleted_line_goes_back_into_the_stock(
    client: httpx.AsyncClient, customer: httpx.AsyncClient, database: Database, count: Count
) -> None:
    """And the order costs less."""
    pk = await place(customer, database)
    line = await database.observer.scalar(f"select id from order_lines where order_id = {pk}")
    form = {
        "csrftoken": await log_in_to_admin(client),
        "customer": "1",
        "inlines.lines.0.pk": str(line),
        "inlines.lines.0.product": "23",
        "inlines.lines.0.quantity": "2",
        "inlines.lines.0.DELETE": "1",
    }

    saved = await client.post(f"/admin/order/edit?pk={pk}", data=form)

    assert saved.status_code == 303, saved.text
    assert await count(f"order_lines where order_id = {pk}") == 0
    assert await count(f"orders where id = {pk} and total = 0") == 1
    assert await count("products where sku = 'TEA' and stock = 1000") == 1


async def test_ship_is_all_or_nothing(
    client: httpx.AsyncClient, customer: httpx.AsyncClient, database: Database, count: Count
) -> None:
    """One order that is not paid stops the others, too."""
    unpaid = await place(customer, database)
    paid = await place(customer, database)
    token = await log_in_to_admin(client)
    async with shop as unit:
        (await unit.session.get_one(Order, paid)).status = "paid"

    both = await act(client, token, "order", "ship", unpaid, paid)
    shipped_then = await count(f"orders where id = {paid} and status = 'shipped'")
    one = await act(client, token, "order", "ship", paid)

    assert (both.status_code, one.status_code) == (400, 200)
    assert "not waiting to be shipped" in both.json()["msg"]
    assert shipped_then == 0
    assert await count(f"orders where id = {paid} and status = 'shipped'") == 1


async def test_clerk_sees_less(client: httpx.AsyncClient) -> None:
    """No money, no accounts, no audit trail, no refund; but orders and products."""
    token = await log_in_to_admin(client, CLERK)
    dashboard = await client.get("/admin/")
    statuses = {
        view: (await client.get(f"/admin/{view}/list")).status_code
        for view in ("order", "product", "payment", "refund", "user", "audit-entry")
    }
    refund = await act(client, token, "order", "refund", 1)

    assert "Orders today" in dashboard.text
    assert "Revenue" not in dashboard.text
    assert statuses == {
        "order": 200,
        "product": 200,
        "payment": 403,
        "refund": 403,
        "user": 403,
        "audit-entry": 403,
    }
    assert refund.status_code == 400


async def test_refund_gives_back_what_is_left(
    client: httpx.AsyncClient, database: Database, count: Count
) -> None:
    """Of all the orders, in one SERIALIZABLE transaction."""
    token = await log_in_to_admin(client)
    pks = [
        await database.observer.scalar(f"select {which}(id) from orders where status = 'shipped'")
        for which in ("min", "max")
    ]
    before = await count("refunds")

    answer = await act(client, token, "order", "refund", *pks)

    assert answer.status_code == 200, answer.text
    assert await count("refunds") == before + 2
    assert await count(f"orders where status = 'refunded' and id in ({pks[0]}, {pks[1]})") == 2


async def test_delivery_is_put_into_the_stock(client: httpx.AsyncClient, count: Count) -> None:
    """An amount is added; nothing else about the product changes."""
    token = await log_in_to_admin(client, CLERK)

    answers = [
        await client.post(
            "/admin/_api/product/row-action",
            params={"name": "deliver", "pk": 20},
            headers={"X-CSRFToken": token},
            data={"quantity": quantity},
        )
        for quantity in ("7", "-1", "much")
    ]

    assert [answer.status_code for answer in answers] == [200, 400, 400]
    assert await count("products where sku = 'SCREEN' and stock = 7 and version = 1") == 1


async def test_form_of_an_old_version_overwrites_nothing(
    client: httpx.AsyncClient, clerk: httpx.AsyncClient, count: Count
) -> None:
    """The version is in the form."""
    token = await log_in_to_admin(client)
    page = await client.get("/admin/product/edit?pk=23")
    await clerk.patch("/api/products/TEA", json={"version": 1, "price": "5.20"})
    form = {"csrftoken": token, "sku": "TEA", "name": "Tea", "category": "food", "price": "1"}

    answer = await client.post(
        "/admin/product/edit?pk=23", data={**form, "reorder_at": "5", "version": "1"}
    )

    assert 'name="version"' in page.text
    assert answer.status_code == 422
    assert "Somebody else has changed this" in answer.text
    assert await count("products where sku = 'TEA' and version = 2 and price in (5.2, 520)") == 1


@pytest.mark.parametrize(
    ("password", "email"), [("wrong", "admin@example.org"), (CUSTOMER.password, CUSTOMER.email)]
)
async def test_only_the_people_of_the_shop_get_in(
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


async def test_login_is_noted_by_an_event_subscriber(
    client: httpx.AsyncClient, count: Count
) -> None:
    """In the transaction of the login."""
    await log_in_to_admin(client)

    noted = "action = 'logged in' and who = 'admin@example.org'"
    assert await count(f"audit_entries where {noted}") == 1


async def test_logout_ends_the_login(client: httpx.AsyncClient, count: Count) -> None:
    """A copy of the cookie is worth nothing afterwards."""
    token = await log_in_to_admin(client)
    kept = httpx.Cookies(client.cookies)

    out = await client.post("/admin/logout", data={"csrftoken": token})
    client.cookies = kept
    page = await client.get("/admin/order/list")

    assert out.status_code == 303, out.text
    assert page.status_code == 303
    assert await count("tokens where revoked_at is not null") == 1


async def test_password_set_in_the_admin_is_hashed(
    client: httpx.AsyncClient, database: Database
) -> None:
    """The new user can log in, and no page shows the hash."""
    token = await log_in_to_admin(client)
    form = {
        "csrftoken": token,
        "email": "eve@example.org",
        "name": "Eve",
        "role": "clerk",
        "password": "secret",
    }

    created = await client.post("/admin/user/create", data=form)
    login = await client.post("/api/login", json={"email": form["email"], "password": "secret"})
    pages = [await client.get(f"/admin/user/{page}?pk=5") for page in ("list", "detail", "edit")]
    trail = await client.get("/admin/audit-entry/list")

    assert created.status_code == 303, created.text
    assert login.status_code == 200
    stored = await database.observer.scalar("select password_hash from users where id = 5")
    assert str(stored).startswith("$argon2")
    assert not any("$argon2" in page.text for page in (*pages, trail))


@pytest.mark.parametrize(
    ("page", "form", "reason"),
    [
        (
            "user/create",
            {"email": CUSTOMER.email, "name": "x", "role": "clerk", "password": "x"},
            "The database refused this",
        ),
        ("user/create", {"email": "x@example.org", "name": "x", "role": "clerk"}, "a password"),
        ("product/edit?pk=1", {"sku": "TEA", "name": "x", "price": "1"}, "refused"),
        ("product/edit?pk=1", {"sku": "CUP", "name": "x", "price": "-1"}, "between"),
        ("user/create", {"email": "x@example.org", "name": "x", "role": "king"}, "role"),
    ],
)
async def test_refused_form_says_why_and_writes_nothing(
    client: httpx.AsyncClient, contents: Contents, page: str, form: dict[str, str], reason: str
) -> None:
    """The form comes back with status 422, and the audit trail does not know of it."""
    token = await log_in_to_admin(client)
    before = await contents()
    rest = {"category": "food", "reorder_at": "5", "version": "1"}

    answer = await client.post(f"/admin/{page}", data={"csrftoken": token, **rest, **form})

    assert answer.status_code == 422
    assert reason in answer.text
    assert await contents() == before


@pytest.mark.parametrize(("key", "pk"), [("campaign", "SPRING"), ("product", "23"), ("user", "3")])
async def test_what_is_in_use_cannot_be_deleted(
    client: httpx.AsyncClient,
    customer: httpx.AsyncClient,
    contents: Contents,
    caplog: pytest.LogCaptureFixture,
    key: str,
    pk: str,
) -> None:
    """The COMMIT refuses it, after the view has answered that it worked."""
    await customer.post("/api/orders", json=order(("TEA", 1), campaign="SPRING"))
    token = await log_in_to_admin(client)
    before = await contents()
    caplog.set_level(logging.INFO, "demo.requests")

    answer = await client.post(
        f"/admin/_api/{key}/row-action",
        params={"name": "delete", "pk": pk},
        headers={"X-CSRFToken": token},
    )

    assert answer.status_code == 400
    assert answer.json()["msg"].startswith("Nothing was saved. The database refused this: ")
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


CSV = """SKU,Name,Category,Price,Reorder at
TRAY,"Tray, wood",kitchen,24.00,5
BAD,Nothing,kitchen,-1,5
"""


async def test_import_creates_good_rows_and_names_the_bad_ones(
    client: httpx.AsyncClient, count: Count
) -> None:
    """A row that fails is undone alone."""
    token = await log_in_to_admin(client)

    answer = await client.post(
        "/admin/_api/product/import",
        data={"csrftoken": token, "format": "csv"},
        files={"file": ("products.csv", CSV, "text/csv")},
        headers={"X-CSRFToken": token},
    )

    assert answer.status_code == 200, answer.text
    assert await count("products where sku = 'TRAY' and stock = 0") == 1, answer.text
    assert await count("products where sku = 'BAD'") == 0


async def test_export_has_all_rows(client: httpx.AsyncClient) -> None:
    """As CSV."""
    token = await log_in_to_admin(client)

    answer = await client.post(
        "/admin/_api/order/action",
        params={"name": "export", "all": "1"},
        data={"csrftoken": token, "scope": "all", "format": "csv"},
        headers={"X-CSRFToken": token},
    )

    assert answer.status_code == 200, answer.text
    assert len(answer.text.strip().splitlines()) == ORDERS + 1


async def test_every_page_opens(client: httpx.AsyncClient) -> None:
    """Lists, details and forms of all views, for the manager."""
    await log_in_to_admin(client, ADMIN)
    keys = ("order", "customer", "product", "campaign", "coupon", "payment", "refund", "user")
    pages = ["/admin/", *(f"/admin/{key}/list" for key in (*keys, "audit-entry"))]
    pages += [f"/admin/{key}/create" for key in ("order", "customer", "product", "coupon")]
    pages += [f"/admin/{key}/detail?pk=1" for key in ("order", "customer", "product", "user")]
    pages += ["/admin/coupon/edit?pk=WELCOME", "/admin/order/list?q=paid"]

    statuses = {page: (await client.get(page)).status_code for page in pages}

    assert set(statuses.values()) == {200}, statuses
