"""What somebody of the shop does in the admin, in a real browser."""

from __future__ import annotations

import csv
import re
from pathlib import Path
from typing import Any

import pytest
from playwright.sync_api import BrowserContext, Page, Request, expect

from demo.seed import ADMIN
from tests.browser.conftest import CHROMIUM, PATIENCE, Shop

pytestmark = pytest.mark.timeout(300)

if CHROMIUM is None:
    text = "no browser here: `apt-get install chromium`, or set CHROMIUM to its path"
    pytest.skip(text, allow_module_level=True)


def choose(page: Page, field: str, search: str) -> None:
    """Search in a picker, and take the first that it finds."""
    page.locator(f"span[aria-labelledby='select2-{field}-container']").click()
    page.locator("input.select2-search__field").fill(search)
    page.locator(".select2-results__option--selectable", has_text=search).first.click()


def save(page: Page) -> None:
    page.locator("form button[type=submit]", has_text="Save").last.click()


def act(page: Page, name: str, confirm: str) -> None:
    """Do something with the rows that are checked."""
    page.get_by_role("button", name="With selected").click()
    page.locator("#actions-dropdown").get_by_role("link", name=name, exact=True).click()
    submit(page, confirm)


def submit(page: Page, name: str) -> None:
    """Press a button of the dialog, which does not hear it before it has faded in."""
    page.locator("#modal-action.show").wait_for()
    dialog = page.locator("#modal-action .modal-dialog")
    dialog.evaluate("d => Promise.all(d.getAnimations().map(a => a.finished))")
    page.locator("#modal-action").get_by_role("button", name=name, exact=True).click()


def check(page: Page, text: str) -> None:
    """Select the row with a text."""
    page.locator("tbody tr", has_text=text).locator(".row-checkbox").check()


def test_manager_logs_in_and_sees_the_dashboard(stranger: BrowserContext) -> None:
    """A wrong password is told on the page; the right one leads to where the manager wanted to."""
    page = stranger.new_page()
    page.goto("/admin/product/list")
    page.fill("input[name=username]", ADMIN.email)
    page.fill("input[name=password]", "wrong")
    page.click("button[type=submit]")
    expect(page.get_by_role("alert")).to_be_visible()

    page.fill("input[name=username]", ADMIN.email)
    page.fill("input[name=password]", ADMIN.password)
    page.click("button[type=submit]")

    expect(page).to_have_url(re.compile("/admin/product/list"))
    page.goto("/admin/")
    expect(page.get_by_text("Orders a day")).to_be_visible()


def test_order_is_edited_with_pickers_that_load_at_once(page: Page, demo_shop: Shop) -> None:
    """All of them pass the login at once; what is saved is in the audit trail."""
    key = demo_shop.scalar(
        "select max(order_id) from (select order_id from order_lines group by order_id"
        " having count(*) > 1) as long"
    )
    lookups: list[Request] = []
    page.on("request", lambda r: lookups.append(r) if "relation-lookup" in r.url else None)

    page.goto(f"/admin/order/edit?pk={key}")
    expect(page.locator("#select2-customer-container")).not_to_be_empty()
    choose(page, "customer", "Ada Customer")
    page.fill("textarea[name=note]", "Ring twice")
    save(page)

    expect(page.get_by_text("was changed successfully").last).to_be_visible()
    assert len(lookups) >= 4
    answers = [response for request in lookups if (response := request.response())]
    assert {answer.status for answer in answers} == {200}
    reference = demo_shop.scalar(f"select reference from orders where id = {key}")
    page.goto(f"/admin/audit-entry/list?q={reference}")
    expect(page.locator("tbody tr").first).to_contain_text("note:  -> Ring twice")
    name = "select name from customers join orders on customers.id = customer_id where orders.id ="
    assert demo_shop.scalar(f"{name} {key}") == "Ada Customer"


def test_commit_that_the_database_refuses_is_told_and_writes_nothing(
    page: Page, demo_shop: Shop
) -> None:
    """An account that a customer belongs to; the foreign key is checked at COMMIT."""
    before = demo_shop.scalar("select count(*) from users")
    page.goto("/admin/user/list")
    check(page, "ada@example.org")
    check(page, "clerk@example.org")

    act(page, "Delete", "Yes, delete all")

    alert = page.locator("#alertContainer .alert")
    expect(alert).to_contain_text("is still referenced from table")
    expect(alert).not_to_contain_text("SQL:")
    assert demo_shop.scalar("select count(*) from users") == before


def test_value_that_the_database_refuses_is_told_at_its_field(page: Page, demo_shop: Shop) -> None:
    """An account that is another customer's; the form keeps what was typed."""
    key = demo_shop.scalar("select max(id) from customers where user_id is null")
    page.goto(f"/admin/customer/edit?pk={key}")
    page.fill("input[name=city]", "Nowhere")
    choose(page, "user", "Ada Customer")

    save(page)

    expect(page.locator(".invalid-feedback", has_text="already exists")).to_be_visible()
    expect(page.locator("input[name=city]")).to_have_value("Nowhere")
    expect(page.locator("#select2-user-container")).to_contain_text("Ada Customer")
    assert demo_shop.scalar("select count(*) from customers where city = 'Nowhere'") == 0


def test_orders_are_shipped_by_a_batch_action(page: Page, demo_shop: Shop) -> None:
    """Each of them has its audit row."""
    references = [
        str(demo_shop.scalar(f"select {which}(reference) from orders where status = 'paid'"))
        for which in ("min", "max")
    ]
    page.goto("/admin/order/list?q=paid")
    page.get_by_label("Page size").select_option("100")
    for reference in references:
        check(page, reference)

    act(page, "Ship", "Ship")

    expect(page.get_by_text("2 shipped.")).to_be_visible()
    shipped = "status = 'shipped' and reference in"
    assert demo_shop.scalar(f"select count(*) from orders where {shipped} {(*references,)}") == 2
    audited = "changes like '%-> shipped%' and who = 'admin@example.org'"
    assert demo_shop.scalar(f"select count(*) from audit_entries where {audited}") == 2


def test_bad_rows_of_an_import_are_told_and_the_others_are_there(
    page: Page, demo_shop: Shop, tmp_path: Path
) -> None:
    """One is refused by the form's rules, one by a view, and one by the database."""
    file = tmp_path / "products.csv"
    rows = ["sku,name,category,price,reorder_at", "JAR,Jar,kitchen,3.50,5"]
    rows += ["TEA,Again,food,3.50,5", "MUG,Mug,nowhere,3.50,5", "JUG,Jug,kitchen,8.00,5"]
    file.write_text("\n".join(rows))
    page.goto("/admin/product/list")
    page.locator('button[data-bs-target="#modal-import"]').click()
    page.locator("#import-format").select_option("csv")
    page.locator("#import-file").set_input_files(str(file))
    page.locator("#import-submit").click()
    expect(page.locator("#import-preview-summary")).to_contain_text("4 row(s)")
    assert demo_shop.scalar("select count(*) from products where sku in ('JAR', 'JUG')") == 0

    page.locator("#import-submit").click()

    expect(page.locator("#import-result-summary")).to_contain_text("2 created")
    expect(page.locator("#import-result-errors")).to_contain_text("already exists")
    assert demo_shop.scalar("select count(*) from products where sku in ('JAR', 'JUG')") == 2
    assert demo_shop.scalar("select count(*) from products where name in ('Again', 'Mug')") == 0


def test_list_is_exported_as_a_file(page: Page, demo_shop: Shop) -> None:
    """All rows that match, not those of the page alone."""
    page.goto("/admin/campaign/list")
    page.get_by_role("link", name="Export", exact=True).click()
    page.locator("#modal-action.show").wait_for()
    page.locator("#export-action-format").select_option("csv")

    with page.expect_download(timeout=PATIENCE * 1000) as download:
        submit(page, "Export")

    with open(download.value.path()) as file:
        codes = [row["Code"] for row in csv.DictReader(file)]
    assert len(codes) == demo_shop.scalar("select count(*) from campaigns")


def test_second_window_does_not_overwrite_what_it_has_not_seen(
    window: BrowserContext, page: Page, demo_shop: Shop
) -> None:
    """Both show the same product; whoever saves second is told, and nothing is lost."""
    key = demo_shop.scalar("select id from products where sku = 'CLOCK'")
    other = window.new_page()
    for each in (page, other):
        each.goto(f"/admin/product/edit?pk={key}")
    other.fill("input[name=name]", "Wall clock, red")
    save(other)
    expect(other.get_by_text("was changed successfully")).to_be_visible()

    page.fill("input[name=name]", "Wall clock, blue")
    save(page)

    expect(page.get_by_text("Open it a").first).to_be_visible()
    expect(page.locator("input[name=name]")).to_have_value("Wall clock, blue")
    assert demo_shop.scalar(f"select name from products where id = {key}") == "Wall clock, red"


@pytest.mark.parametrize(("width", "scheme"), [(390, "light"), (1280, "dark")])
def test_pages_fit_their_window_and_its_colours(
    page: Page, demo_shop: Shop, width: int, scheme: Any
) -> None:
    """Also on a telephone: what is wider scrolls inside its card. No other site is asked."""
    page.set_viewport_size({"width": width, "height": 900})
    page.emulate_media(color_scheme=scheme)
    asked: list[str] = []
    page.on("request", lambda request: asked.append(request.url))
    wide = []

    for path in ("", "order/list", "product/list", "order/edit?pk=1"):
        page.goto(f"/admin/{path}")
        expect(page.locator(".page-body")).to_be_visible()
        expect(page.locator("html")).to_have_attribute("data-bs-theme", scheme)
        if path.startswith("order/edit"):
            page.locator("span[aria-labelledby='select2-customer-container']").click()
            expect(page.locator(".select2-results__option--selectable").first).to_be_visible()
        if page.evaluate("document.documentElement.scrollWidth") > width:
            wide.append(path)

    assert wide == []
    assert [url for url in asked if not url.startswith(demo_shop.url)] == []
