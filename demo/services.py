"""What the shop does. Services are made once, when this module is imported.

`async with self._shop` joins the unit of the request that is being served, and opens one
elsewhere: at start, say. An exception that leaves the block lets all of it roll back.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from demo.errors import OutOfStockError, UnknownProductError, WrongCredentialsError
from demo.models import Order, OrderLine, Product, User
from demo.passwords import hash_password, verify_password
from demo.shop import Shop, shop


class Accounts:
    """Who the customers are."""

    def __init__(self, shop: Shop) -> None:
        self._shop = shop

    async def create(self, email: str, name: str, password: str, *, is_admin: bool = False) -> User:
        """Create an account."""
        user = User(
            email=email,
            name=name,
            password_hash=await hash_password(password),
            is_admin=is_admin,
        )
        async with self._shop as unit:
            unit.users.add(user)
        return user

    async def log_in(self, email: str, password: str) -> User:
        """Find the user with this address and password, or raise `WrongCredentialsError`."""
        async with self._shop as unit:
            user = await unit.users.by_email(email)
        if not await verify_password(password, user.password_hash if user else None):
            raise WrongCredentialsError
        assert user is not None
        return user


class Ordering:
    """What they buy."""

    def __init__(self, shop: Shop) -> None:
        self._shop = shop

    async def products(self) -> Sequence[Product]:
        """List what there is to buy."""
        async with self._shop as unit:
            return await unit.products.all()

    async def place(
        self, user: User, quantities: Mapping[str, int], *, voucher: str | None = None
    ) -> Order:
        """Place an order: all of it, or nothing.

        The order and its audit entry are written before the stock is looked at, so running out
        of it happens halfway. An unknown voucher is found later still, by the COMMIT.
        """
        async with self._shop as unit:
            order = Order(user_id=user.id, voucher_code=voucher, lines=[])
            await unit.orders.add(order)
            unit.audit.add(user.email, f"ordered {order.reference}")
            products = await unit.products.lock(quantities)
            for sku, quantity in quantities.items():
                if (product := products.get(sku)) is None:
                    raise UnknownProductError(sku)
                if product.stock < quantity:
                    raise OutOfStockError(sku, left=product.stock, wanted=quantity)
                product.stock -= quantity
                order.lines.append(
                    OrderLine(product=product, quantity=quantity, unit_price=product.price)
                )
        return order

    async def orders_of(self, user: User) -> Sequence[Order]:
        """List a user's orders, the latest first."""
        async with self._shop as unit:
            return await unit.orders.of_user(user)


accounts = Accounts(shop)
ordering = Ordering(shop)
