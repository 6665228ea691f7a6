"""Many customers at once, and then the books: `make load`.

A server of its own with a pool of five connections serves fifty clients for thirty seconds, on a
database of its own. Afterwards stock, payments and the provider's ledger have to agree to the
cent, and nobody may have seen a 5xx.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import random
import socket
import sys
from collections import Counter
from dataclasses import dataclass, field
from decimal import Decimal
from time import perf_counter

import httpx
from sqlalchemy import Select, func, select

from demo import postgres, settings
from demo.log import set_up_logging
from demo.models import Coupon, Order, OrderLine, Payment, Product, Refund
from demo.payments import REFUSED_CARD
from demo.prepare import prepare_database, show, start_provider
from demo.seed import CAMPAIGNS, Person
from demo.services.accounts import accounts
from demo.shop import connect, shop

GOOD_CARD = "4242424242424242"
SKUS = ("BOOK", "CARD", "COFFEE", "CUP", "HONEY", "KEY", "LAMP", "MAT", "PEN", "SOAP", "TEA")
CENTS = Decimal("0.00")


@dataclass
class Tally:
    """What the clients were told."""

    statuses: Counter[str] = field(default_factory=Counter)
    seconds: list[float] = field(default_factory=list)
    placed: int = 0
    paid: Decimal = CENTS

    @property
    def failures(self) -> list[str]:
        """List what should not have happened."""
        return [what for what in self.statuses if int(what.split()[-1]) >= 500]


@dataclass
class Books:
    """What the database says, to be compared with what was there before."""

    orders: int
    lines: dict[str, int]
    stock: dict[str, int]
    paid: Decimal
    coupons: int


async def read_books() -> Books:
    """Read what matters."""
    async with shop.new(read_only=True) as unit:
        session = unit.session

        async def pairs(statement: Select[str, int]) -> dict[str, int]:
            return {row[0]: row[1] for row in await session.execute(statement)}

        quantities = select(Product.sku, func.sum(OrderLine.quantity)).join(OrderLine.product)
        used = select(func.sum(Coupon.uses_left))
        paid = select(func.sum(Payment.amount)).where(Payment.state == "paid")
        return Books(
            orders=await session.scalar(select(func.count()).select_from(Order)) or 0,
            lines=await pairs(quantities.group_by(Product.sku)),
            stock=await pairs(select(Product.sku, Product.stock)),
            paid=await session.scalar(paid) or CENTS,
            coupons=await session.scalar(used) or 0,
        )


async def check_books(before: Books, tally: Tally, ledger: dict[str, str]) -> list[str]:
    """List what does not agree: nothing, if all is well."""
    after = await read_books()
    wrong = []
    if after.orders - before.orders != tally.placed:
        wrong.append(
            f"{tally.placed} orders answered 201, {after.orders - before.orders} are there"
        )
    for sku, stock in after.stock.items():
        sold = after.lines.get(sku, 0) - before.lines.get(sku, 0)
        if before.stock[sku] - sold != stock:
            wrong.append(f"{sku}: {before.stock[sku]} in stock, {sold} sold, {stock} left")
    if after.paid - before.paid != Decimal(ledger["total"]):
        wrong.append(f"{after.paid - before.paid} paid, the provider has {ledger['total']}")
    if tally.paid > after.paid - before.paid:
        wrong.append(f"clients were told {tally.paid} paid, {after.paid - before.paid} are")
    async with shop.new(read_only=True) as unit:
        orders = await unit.session.scalars(unit.orders.whole())
        with_coupon = 0
        for order in orders:
            full = sum((x.unit_price * x.quantity for x in order.lines), CENTS)
            due = [p.amount for p in order.payments if p.state != "refused"]
            with_coupon += order.coupon_code is not None
            if order.total != full - order.discount or due != [order.total]:
                wrong.append(f"{order}: {full} - {order.discount}, {order.total}, due {due}")
        too_much = (
            select(Order.reference)
            .join(Refund)
            .group_by(Order.id, Order.reference, Order.total)
            .having(func.sum(Refund.amount) > Order.total)
        )
        wrong += [f"{r}: refunded too much" for r in await unit.session.scalars(too_much)]
        if before.coupons - after.coupons != with_coupon:
            wrong.append(f"{with_coupon} coupons used, {before.coupons - after.coupons} counted")
    return wrong


class Client:
    """Somebody who orders, pays and looks, as fast as the answers come."""

    def __init__(self, http: httpx.AsyncClient, tally: Tally, seed: int) -> None:
        self._http = http
        self._tally = tally
        self._random = random.Random(seed)
        self._unpaid: list[str] = []

    async def log_in(self, person: Person) -> None:
        """Get a token."""
        body = {"email": person.email, "password": person.password}
        answer = await self._ask("login", "POST", "/api/login", body)
        assert answer.status_code == 200, answer.text
        self._http.headers["authorization"] = f"Bearer {answer.json()['token']}"

    async def work(self, until: float) -> None:
        """Go on until it is time to go home."""
        while perf_counter() < until:
            await self._random.choices((self._order, self._pay, self._look), (6, 3, 1))[0]()

    async def _order(self) -> None:
        skus = self._random.sample(SKUS, self._random.choice((1, 2, 3)))
        body: dict[str, object] = {
            "lines": [{"sku": sku, "quantity": self._random.choice((1, 2))} for sku in skus]
        }
        if self._random.random() < 0.2:
            body["coupon"] = self._random.choice(("WELCOME", "LUCKY", "NOPE"))
        if self._random.random() < 0.2:
            body["campaign"] = self._random.choice((CAMPAIGNS[0][0], "NOPE"))
        if self._random.random() < 0.1:
            await self._ask("dry run", "POST", "/api/orders?dry_run=1", body)
            return
        answer = await self._ask("order", "POST", "/api/orders", body)
        if answer.status_code == 201:
            self._tally.placed += 1
            self._unpaid.append(answer.json()["reference"])

    async def _pay(self) -> None:
        if not self._unpaid:
            return
        reference = self._unpaid[0]
        card = REFUSED_CARD if self._random.random() < 0.1 else GOOD_CARD
        answer = await self._ask("pay", "POST", f"/api/orders/{reference}/payment", {"card": card})
        if answer.status_code == 200:
            self._tally.paid += Decimal(answer.json()["total"])
            self._unpaid.pop(0)

    async def _look(self) -> None:
        await self._ask("list", "GET", "/api/orders?limit=5")

    async def _ask(self, what: str, method: str, path: str, body: object = None) -> httpx.Response:
        started = perf_counter()
        answer = await self._http.request(method, path, json=body)
        if what != "login":  # which takes a while on purpose
            self._tally.seconds.append(perf_counter() - started)
        self._tally.statuses[f"{what} {answer.status_code}"] += 1
        return answer


async def create_customers(clients: int) -> list[Person]:
    """Give each client an account."""
    people = [
        Person(f"load{n}@example.org", f"Load {n}", "load", "customer") for n in range(clients)
    ]
    for person in people:
        await accounts.create(**person._asdict())
    return people


async def run_load(url: str, people: list[Person], *, seconds: float) -> Tally:
    """Let everybody work at once."""
    tally = Tally()

    async def one(number: int, person: Person) -> None:
        limits = httpx.Limits(max_connections=1)
        async with httpx.AsyncClient(
            base_url=url, timeout=60, limits=limits, trust_env=False, verify=False
        ) as http:
            client = Client(http, tally, number)
            await client.log_in(person)
            await client.work(perf_counter() + seconds)

    async with asyncio.TaskGroup() as tasks:
        for number, person in enumerate(people):
            tasks.create_task(one(number, person))
    return tally


async def wait_until_served(url: str) -> None:
    """Ask for the health until there is an answer."""
    async with asyncio.timeout(60), httpx.AsyncClient(trust_env=False) as client:
        while True:
            try:
                await client.get(f"{url}/health")
            except httpx.TransportError:
                await asyncio.sleep(0.1)
            else:
                return


async def main() -> int:
    """Run the load against a server of our own, and tell what became of it."""
    parser = argparse.ArgumentParser(prog="python -m demo.load", description=__doc__)
    parser.add_argument("--clients", type=int, default=50)
    parser.add_argument("--seconds", type=float, default=30)
    parser.add_argument("--workers", default="1")
    parser.add_argument("--fresh", action="store_true", help="delete what is in DATABASE_URL")
    arguments = parser.parse_args()
    set_up_logging()
    if os.environ.get("DATABASE_URL") and not arguments.fresh:
        parser.error("this deletes what is in DATABASE_URL: say so with --fresh")
    if not os.environ.get("DATABASE_URL"):
        os.environ["DATABASE_URL"] = postgres.start(settings.data_folder() / "load", fresh=True)
    os.environ["PAYMENT_URL"] = provider_url = start_provider()
    os.environ["POOL_SIZE"] = "5"
    await prepare_database(settings.database_url(), fresh=True)
    engine = connect(settings.database_url())
    people = await create_customers(arguments.clients)
    before = await read_books()
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    url = f"http://127.0.0.1:{port}"
    command = [sys.executable, "-m", "demo", "--port", str(port)]
    log = settings.data_folder() / "load.log"
    with log.open("w") as opened:
        server = await asyncio.create_subprocess_exec(
            *command, "--workers", arguments.workers, stdout=opened, stderr=opened
        )
    try:
        await wait_until_served(url)
        show(f"{arguments.clients} clients for {arguments.seconds:.0f} seconds; log: {log}")
        tally = await run_load(url, people, seconds=arguments.seconds)
    finally:
        server.terminate()
        await server.wait()
    async with httpx.AsyncClient(trust_env=False) as client:
        ledger = (await client.get(f"{provider_url}/ledger")).json()
    wrong = [*tally.failures, *await check_books(before, tally, ledger)]
    await engine.dispose()
    report(tally, ledger, arguments.seconds)
    for line in wrong:
        show(f"WRONG: {line}")
    show("The books do not agree." if wrong else "The books agree, to the cent.")
    return len(wrong)


def report(tally: Tally, ledger: dict[str, str], seconds: float) -> None:
    """Print the figures."""
    times = sorted(tally.seconds)
    for what, count in sorted(tally.statuses.items()):
        show(f"{what:>14} {count:6}")
    show(f"{len(times) / seconds:.0f} requests a second")
    for percent in (50, 95, 99):
        show(f"{percent} % within {times[len(times) * percent // 100] * 1000:.0f} ms")
    show(f"{tally.placed} orders placed, {ledger['charges']} paid: {ledger['total']}")


if __name__ == "__main__":
    sys.exit(asyncio.run(main()))
