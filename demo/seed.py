"""What an empty shop is filled with."""

from __future__ import annotations

from decimal import Decimal
from typing import NamedTuple

from demo.models import Product, Voucher
from demo.services import accounts, ordering
from demo.shop import shop


class Person(NamedTuple):
    """Somebody with an account. These passwords are printed, so they are no secret."""

    email: str
    name: str
    password: str


ADMIN = Person("admin@example.org", "Alex Admin", "admin")
CUSTOMER = Person("ada@example.org", "Ada Customer", "ada")
OTHER_CUSTOMER = Person("ben@example.org", "Ben Customer", "ben")

PRODUCTS = (
    ("BOOK", "Notebook, 96 pages", "4.50", 200),
    ("CUP", "Coffee cup", "12.00", 40),
    ("KEY", "Keyboard", "89.90", 15),
    ("LAMP", "Desk lamp", "39.00", 1),
    ("MAT", "Desk mat", "19.90", 30),
    ("PEN", "Pen, blue", "1.20", 500),
    ("SCREEN", "Screen, 27 inch", "249.00", 0),
    ("TEA", "Tea, 100 g", "4.90", 1000),
)

VOUCHERS = (("SPRING", "Spring letter"), ("FRIEND", "A friend's recommendation"))


async def seed() -> None:
    """Fill the shop, in one transaction, unless somebody has an account already."""
    async with shop as unit:
        if await unit.users.by_email(ADMIN.email):
            return
        await accounts.create(*ADMIN, is_admin=True)
        ada = await accounts.create(*CUSTOMER)
        ben = await accounts.create(*OTHER_CUSTOMER)
        unit.session.add_all(Voucher(code=code, campaign=name) for code, name in VOUCHERS)
        for sku, name, price, stock in PRODUCTS:
            unit.products.add(Product(sku=sku, name=name, price=Decimal(price), stock=stock))
        await unit.session.flush()
        await ordering.place(ada, {"TEA": 2, "CUP": 1}, voucher="SPRING")
        await ordering.place(ada, {"BOOK": 3})
        await ordering.place(ben, {"KEY": 1, "MAT": 1, "PEN": 10})
