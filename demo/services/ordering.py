"""What customers order."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from decimal import ROUND_HALF_UP, Decimal
from functools import partial

from sqlalchemy.exc import IntegrityError

from demo import mail
from demo.errors import (
    NotAllowedError,
    NotFoundError,
    OutOfStockError,
    UnknownProductError,
    WrongStateError,
)
from demo.feed import Feed, feed
from demo.models import Customer, Order, OrderLine, Payment, Product, User, now
from demo.shop import Shop, shop

CENT = Decimal("0.01")

Amount = tuple[Product, int] | None
"""So many of a product, or nothing."""


class CouponRefusedError(Exception):
    """The coupon is unknown, used up, too old, or was used by this customer before."""


class Ordering:
    """What customers order."""

    def __init__(self, shop: Shop, feed: Feed) -> None:
        self._shop = shop
        self._feed = feed

    async def place(
        self,
        user: User,
        quantities: Mapping[str, int],
        *,
        coupon: str | None = None,
        campaign: str | None = None,
        note: str = "",
        dry_run: bool = False,
    ) -> Order:
        """Place an order: all of it, or nothing.

        The order is written before the stock is looked at, so running out of it happens halfway.
        An unknown campaign is found later still, by the COMMIT. A coupon that is not accepted is
        the one thing that may fail alone. A dry run does all of it and lets it roll back.
        """
        async with self._shop as unit:
            customer = await self.customer_of(user)
            order = Order(
                customer=customer, campaign_code=campaign, note=note, lines=[], payments=[]
            )
            await unit.orders.add(order)
            for sku in sorted(quantities):  # one order for all, so that nobody waits in a circle
                order.lines.append(await self._take(sku, quantities[sku]))
            self._price(order, percent=0)
            if coupon is not None:
                await self._redeem(order, coupon)
            order.payments.append(Payment(amount=order.total))
            await unit.session.flush()
            await self._feed.announce(order)
            unit.on_commit(lambda: mail.send(customer.email, f"We have your order {order}."))
            if dry_run:
                unit.doom("a dry run")
        return order

    async def customer_of(self, user: User) -> Customer:
        """Find the customer of an account, or raise `NotAllowedError`."""
        async with self._shop as unit:
            customer = await unit.customers.of_user(user)
        if customer is None:
            raise NotAllowedError("Who works in the shop cannot order in it.")
        return customer

    async def find(self, user: User, reference: str) -> Order:
        """Find an order that the user may see, or raise `NotFoundError`."""
        async with self._shop as unit:
            order = await unit.orders.by_reference(reference)
        if order is None or (user.role == "customer" and order.customer.user_id != user.id):
            raise NotFoundError(f"order {reference!r}")
        return order

    async def page(self, user: User, *, limit: int, before: int | None) -> Sequence[Order]:
        """List the orders that the user may see, the latest first."""
        async with self._shop as unit:
            of = await self.customer_of(user) if user.role == "customer" else None
            return await unit.orders.page(limit=limit, before=before, of=of)

    async def ship(self, references: Sequence[str]) -> None:
        """Mark orders as shipped: all of them or, if one is not paid, none."""
        async with self._shop as unit:
            for reference in sorted(references):
                order = await unit.orders.by_reference(reference, lock=True)
                if order is None or order.status != "paid":
                    raise WrongStateError(f"The order {reference} is not waiting to be shipped.")
                order.status = "shipped"

    async def change_line(self, order_id: int, before: Amount, after: Amount) -> None:
        """Give back what a line had taken from the stock, and take what it has now.

        Raises:
            WrongStateError: the order is paid.
            OutOfStockError: there is not enough.
        """
        async with self._shop as unit:
            order = await unit.orders.by_id(order_id)
            if order is None or order.status != "new":
                raise WrongStateError("The lines of an order that is paid stay as they are.")
            if before is not None:
                product, quantity = before
                await unit.products.put(product.id, quantity)
            if after is not None:
                product, quantity = after
                await self._take(product.sku, quantity)

    async def reprice(self, order_id: int) -> None:
        """Set the total of an order, and what is due, to what its lines say."""
        async with self._shop as unit:
            order = await unit.orders.reload(order_id)
            percent = order.coupon.percent if order.coupon else 0
            self._price(order, percent)
            for payment in order.payments:
                if payment.state == "due":
                    payment.amount = order.total
            await unit.session.flush()

    async def watch_stock(self, skus: Collection[str]) -> None:
        """Ask for more of what runs out. A background task, in a unit of its own."""
        async with self._shop.new() as unit:
            for product in await unit.products.reorder(skus, now()):
                text = f"Please send more {product}: {product.stock} left."
                unit.on_commit(partial(mail.send, "supplier@example.org", text))

    async def _take(self, sku: str, quantity: int) -> OrderLine:
        product = await self._shop.products.take(sku, quantity)
        if product is None:
            if (product := await self._shop.products.by_sku(sku)) is None:
                raise UnknownProductError(sku)
            raise OutOfStockError(sku, left=product.stock, wanted=quantity)
        return OrderLine(product=product, quantity=quantity, unit_price=product.price)

    async def _redeem(self, order: Order, code: str) -> None:
        """Give the discount, if the coupon is good. In a savepoint: the order stands without it."""
        try:
            async with self._shop.savepoint() as unit:
                coupon = await unit.coupons.redeem(code, now())
                if coupon is None:
                    raise CouponRefusedError
                order.coupon_code = coupon.code
                self._price(order, coupon.percent)
                await unit.session.flush()  # refuses a second use by this customer
        except (CouponRefusedError, IntegrityError):
            # The savepoint took the order's state with it.
            await self._shop.session.refresh(order)
            await self._shop.session.refresh(order, ["customer", "lines", "payments"])

    @staticmethod
    def _price(order: Order, percent: int) -> None:
        full = sum((x.unit_price * x.quantity for x in order.lines), Decimal("0.00"))
        order.discount = (full * percent / 100).quantize(CENT, ROUND_HALF_UP)
        order.total = full - order.discount


ordering = Ordering(shop, feed)
