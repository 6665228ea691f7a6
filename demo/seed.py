"""What an empty shop is filled with: the same on every fresh start, counted back from today."""

from __future__ import annotations

from collections.abc import Callable
from datetime import datetime, timedelta
from decimal import Decimal
from typing import NamedTuple

from faker import Faker

from demo.audit import SILENT
from demo.models import (
    Campaign,
    Coupon,
    Customer,
    Order,
    OrderLine,
    Payment,
    Product,
    Refund,
    now,
)
from demo.services.accounts import accounts
from demo.services.ordering import ordering
from demo.shop import shop

Progress = Callable[[int, int], None]


class Person(NamedTuple):
    """Somebody with an account. These passwords are printed, so they are no secret."""

    email: str
    name: str
    password: str
    role: str = "customer"


ADMIN = Person("admin@example.org", "Alex Admin", "admin", "manager")
CLERK = Person("clerk@example.org", "Chris Clerk", "clerk", "clerk")
CUSTOMER = Person("ada@example.org", "Ada Customer", "ada")
OTHER_CUSTOMER = Person("ben@example.org", "Ben Customer", "ben")
PEOPLE = (ADMIN, CLERK, CUSTOMER, OTHER_CUSTOMER)

PRODUCTS = (
    ("BAG", "Shoulder bag, canvas", "bags", "34.00", 60),
    ("BOOK", "Notebook, 96 pages", "paper", "4.50", 200),
    ("CANDLE", "Candle, beeswax", "home", "8.90", 4),
    ("CARD", "Card with envelope", "paper", "2.80", 400),
    ("CHAIR", "Office chair", "furniture", "289.00", 6),
    ("CLOCK", "Wall clock", "home", "45.00", 12),
    ("COFFEE", "Coffee, 250 g", "food", "7.40", 300),
    ("CUP", "Coffee cup", "kitchen", "12.00", 40),
    ("DESK", "Desk, oak", "furniture", "690.00", 3),
    ("HONEY", "Honey, 500 g", "food", "9.60", 80),
    ("KETTLE", "Kettle, steel", "kitchen", "54.90", 18),
    ("KEY", "Keyboard", "office", "89.90", 15),
    ("LAMP", "Desk lamp", "office", "39.00", 1),
    ("MAT", "Desk mat", "office", "19.90", 30),
    ("MOUSE", "Mouse, wireless", "office", "29.90", 25),
    ("PEN", "Pen, blue", "paper", "1.20", 500),
    ("PLANT", "Fern in a pot", "home", "16.50", 22),
    ("POT", "Teapot", "kitchen", "32.00", 14),
    ("SACK", "Rucksack, 20 l", "bags", "79.00", 9),
    ("SCREEN", "Screen, 27 inch", "office", "249.00", 0),
    ("SHELF", "Shelf, ash", "furniture", "120.00", 7),
    ("SOAP", "Soap, lavender", "home", "4.20", 150),
    ("TEA", "Tea, 100 g", "food", "4.90", 1000),
    ("TOWEL", "Tea towel, linen", "kitchen", "11.50", 75),
)
"""SKU, name, category, price, and the stock that is left today."""

CAMPAIGNS = (("SPRING", "Spring letter"), ("FRIEND", "A friend's recommendation"), ("FAIR", "Fair"))
COUPONS = (("WELCOME", 10, 1000), ("LUCKY", 50, 1))

DAYS = 120
"""How far the orders reach back."""


async def seed(*, orders: int = 400, progress: Progress | None = None) -> bool:
    """Fill the shop, in one transaction, unless somebody has an account already."""
    async with shop as unit:
        if await unit.users.by_email(ADMIN.email):
            return False
        people = [await accounts.create(**person._asdict()) for person in PEOPLE]
        later = now() + timedelta(days=365)
        unit.session.add_all(Campaign(code=code, name=name) for code, name in CAMPAIGNS)
        unit.session.add_all(
            Coupon(code=code, percent=percent, uses_left=uses, valid_until=later)
            for code, percent, uses in COUPONS
        )
        products = [
            Product(sku=sku, name=name, category=category, price=Decimal(price), stock=stock)
            for sku, name, category, price, stock in PRODUCTS
        ]
        unit.session.add_all(products)
        await unit.session.flush()
        known = [await ordering.customer_of(user) for user in people if user.role == "customer"]
        past = Past(products, known)
        unit.session.info[SILENT] = True
        for done in range(orders):
            unit.session.add(past.order(orders - done, orders))
            if done % 50 == 49:
                await unit.session.flush()
                if progress is not None:
                    progress(done + 1, orders)
    return True


class Past:
    """Makes up customers and what they ordered. The stock of today has it behind it."""

    def __init__(self, products: list[Product], customers: list[Customer]) -> None:
        self._fake = Faker("en_GB")
        self._fake.seed_instance(7)
        self._products = products
        self._today = now().replace(hour=0, minute=0, second=0, microsecond=0)
        self._customers = customers

    def order(self, back: int, orders: int) -> Order:
        """Make the order that is so many orders ago; later days have more of them."""
        random = self._fake.random
        days = int(DAYS * max(0, back / orders + random.uniform(-0.02, 0.02)) ** 1.2)
        day = self._today - timedelta(days=days)
        opens, closes = day + timedelta(hours=7), day + timedelta(hours=22)
        if days == 0:
            opens, closes = day, now()
        at = opens + random.random() * (closes - opens)
        reference = f"{at:%Y%m%d}-{random.getrandbits(32):08x}"
        order = Order(reference=reference, customer=self._customer(at), created_at=at)
        for product in random.sample(self._products, random.choice((1, 1, 2, 2, 3, 4))):
            cheap = product.price < 20
            quantity = random.choice((1, 1, 2, 3, 5)) if cheap else 1
            order.lines.append(
                OrderLine(product=product, quantity=quantity, unit_price=product.price)
            )
        order.total = sum((x.unit_price * x.quantity for x in order.lines), Decimal("0.00"))
        order.campaign_code = random.choice((None, None, *(code for code, _ in CAMPAIGNS)))
        self._pay(order)
        return order

    def _pay(self, order: Order) -> None:
        """Most are paid and shipped, the latest wait for it, and a few want their money back."""
        random = self._fake.random
        old = order.created_at < self._today - timedelta(days=3)
        paid = random.random() < (0.98 if old else 0.8)
        refunded = old and paid and random.random() < 0.03
        order.status = "new" if not paid else "shipped" if old else "paid"
        state = "paid" if paid else "due"
        order.payments.append(Payment(amount=order.total, state=state, created_at=order.created_at))
        if refunded:
            order.status = "refunded"
            at = order.created_at + timedelta(days=2)
            shop.refunds.add(
                Refund(order=order, amount=order.total, reason="Sent back", created_at=at)
            )

    def _customer(self, at: datetime) -> Customer:
        random = self._fake.random
        if self._customers and random.random() < 0.7:
            known: Customer = random.choice(self._customers)
            return known
        first, last = self._fake.first_name(), self._fake.last_name()
        customer = Customer(
            name=f"{first} {last}",
            email=f"{first}.{last}{len(self._customers)}@example.com".lower(),
            street=self._fake.street_address().replace("\n", ", "),
            city=self._fake.city(),
            created_at=at,
        )
        self._customers.append(customer)
        return customer
