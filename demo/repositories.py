"""Queries. A repository takes the session of a unit, and never ends its transaction."""

from __future__ import annotations

import uuid
from collections.abc import Collection, Sequence
from datetime import datetime
from decimal import Decimal
from typing import Any

from sqlalchemy import Select, case, delete, func, select, update
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.ext.asyncio import AsyncResult, AsyncSession
from sqlalchemy.orm import selectinload

from demo.models import (
    Coupon,
    Customer,
    LoginAttempts,
    Order,
    OrderLine,
    Payment,
    Product,
    Refund,
    Token,
    User,
)


class Repository:
    """Works in the session it is given."""

    def __init__(self, session: AsyncSession) -> None:
        self._session = session


class UserRepository(Repository):
    """The accounts."""

    def add(self, user: User) -> None:
        """Add an account."""
        self._session.add(user)

    async def by_email(self, email: str) -> User | None:
        """Find the account that logs in with this address."""
        return await self._session.scalar(select(User).where(User.email == email))


class TokenRepository(Repository):
    """The logins."""

    def add(self, token: Token) -> None:
        """Add a login."""
        self._session.add(token)

    async def valid(self, key: uuid.UUID, at: datetime) -> Token | None:
        """Find a login with its account, unless it is revoked or too old."""
        token = await self._session.get(Token, key)
        return token if token and token.revoked_at is None and token.expires_at > at else None

    async def revoke_all(self, user: User, at: datetime) -> None:
        """Revoke all logins of an account."""
        mine = Token.user_id == user.id, Token.revoked_at.is_(None)
        await self._session.execute(update(Token).where(*mine).values(revoked_at=at))


class AttemptRepository(Repository):
    """Attempts to log in."""

    async def count(self, email: str, *, at: datetime, until: datetime) -> LoginAttempts:
        """Count one more attempt, in one statement: whoever comes at once is counted, too."""
        table = LoginAttempts
        dialect = sqlite if self._session.get_bind().dialect.name == "sqlite" else postgresql
        insert = dialect.insert(table).values(email=email, attempts=1, until=until)
        over = table.until <= at
        statement = insert.on_conflict_do_update(
            index_elements=[table.email],
            set_={
                "attempts": case((over, 1), else_=table.attempts + 1),
                "until": case((over, until), else_=table.until),
            },
        ).returning(table)
        fresh = {"populate_existing": True}
        counted: LoginAttempts = (
            await self._session.scalars(statement, execution_options=fresh)
        ).one()
        return counted

    async def forget(self, email: str, *, at: datetime) -> None:
        """Forget the attempts of somebody who got in, and all that are over."""
        over = (
            select(LoginAttempts.email)
            .where((LoginAttempts.email == email) | (LoginAttempts.until <= at))
            .with_for_update(skip_locked=True)
        )
        await self._session.execute(delete(LoginAttempts).where(LoginAttempts.email.in_(over)))


class CustomerRepository(Repository):
    """The customers."""

    def add(self, customer: Customer) -> None:
        """Add a customer."""
        self._session.add(customer)

    async def of_user(self, user: User) -> Customer | None:
        """Find the customer of an account. Who works in the shop has none."""
        return await self._session.scalar(select(Customer).where(Customer.user_id == user.id))


class ProductRepository(Repository):
    """The products."""

    def add(self, product: Product) -> None:
        """Add a product."""
        self._session.add(product)

    async def by_sku(self, sku: str) -> Product | None:
        """Find a product."""
        return await self._session.scalar(select(Product).where(Product.sku == sku))

    async def page(self, *, after: str, limit: int, category: str | None) -> Sequence[Product]:
        """List products by SKU."""
        statement = select(Product).where(Product.sku > after).order_by(Product.sku).limit(limit)
        if category is not None:
            statement = statement.where(Product.category == category)
        return (await self._session.scalars(statement)).all()

    async def take(self, sku: str, quantity: int) -> Product | None:
        """Take from the stock, unless it is less: looked at and taken in one statement."""
        has_it = Product.sku == sku, Product.stock >= quantity
        return await self._move(-quantity, *has_it)

    async def put(self, product_id: int, quantity: int) -> Product | None:
        """Put into the stock what was delivered, or given back."""
        return await self._move(quantity, Product.id == product_id)

    async def reorder(self, skus: Collection[str], at: datetime) -> Sequence[Product]:
        """Mark those that run out and are not reordered yet, and return them: each one once."""
        statement = (
            update(Product)
            .where(
                Product.sku.in_(skus),
                Product.stock <= Product.reorder_at,
                Product.reordered_at.is_(None),
            )
            .values(reordered_at=at)
            .returning(Product)
        )
        return (await self._session.scalars(statement)).all()

    async def running_out(self, limit: int = 100) -> Sequence[Product]:
        """List products with little stock, the least first."""
        statement = (
            select(Product)
            .where(Product.stock <= Product.reorder_at)
            .order_by(Product.stock, Product.sku)
            .limit(limit)
        )
        return (await self._session.scalars(statement)).all()

    async def _move(self, quantity: int, *where: Any) -> Product | None:
        statement = (
            update(Product)
            .where(*where)
            .values(stock=Product.stock + quantity)
            .returning(Product)
            .execution_options(populate_existing=True)
        )
        return (await self._session.scalars(statement)).one_or_none()


class CouponRepository(Repository):
    """The coupons."""

    async def redeem(self, code: str, at: datetime) -> Coupon | None:
        """Use a coupon up by one, if it is still good."""
        statement = (
            update(Coupon)
            .where(Coupon.code == code, Coupon.uses_left > 0, Coupon.valid_until > at)
            .values(uses_left=Coupon.uses_left - 1)
            .returning(Coupon)
            .execution_options(populate_existing=True)
        )
        return (await self._session.scalars(statement)).one_or_none()


class OrderRepository(Repository):
    """The orders."""

    async def add(self, order: Order) -> None:
        """Write an order now, which gives it its key and its reference."""
        self._session.add(order)
        await self._session.flush()

    @staticmethod
    def whole() -> Select[Order]:
        """Ask for orders with what belongs to them."""
        return select(Order).options(
            selectinload(Order.lines), selectinload(Order.payments), selectinload(Order.customer)
        )

    async def by_reference(self, reference: str, *, lock: bool = False) -> Order | None:
        """Find an order, and let nobody else change it if it is locked."""
        statement = self.whole().where(Order.reference == reference)
        if lock:
            statement = statement.with_for_update(of=Order).execution_options(
                populate_existing=True
            )
        return await self._session.scalar(statement)

    async def by_id(self, order_id: int) -> Order | None:
        """Find an order."""
        return await self._session.scalar(self.whole().where(Order.id == order_id))

    async def reload(self, order_id: int) -> Order:
        """Read an order anew, with its coupon."""
        await self._session.flush()
        statement = (
            self.whole()
            .where(Order.id == order_id)
            .options(selectinload(Order.coupon))
            .execution_options(populate_existing=True)
        )
        return (await self._session.scalars(statement)).one()

    async def page(self, *, limit: int, before: int | None, of: Customer | None) -> Sequence[Order]:
        """List orders, the latest first: of one customer, or of all."""
        statement = self.whole().order_by(Order.id.desc()).limit(limit)
        if before is not None:
            statement = statement.where(Order.id < before)
        if of is not None:
            statement = statement.where(Order.customer_id == of.id)
        return (await self._session.scalars(statement)).all()

    async def count(self, *where: Any) -> int:
        """Count orders."""
        statement = select(func.count()).select_from(Order).where(*where)
        return await self._session.scalar(statement) or 0

    async def revenue(self, *where: Any) -> Decimal:
        """Add up the orders that are paid."""
        paid = Order.status.in_(("paid", "shipped"))
        statement = select(func.sum(Order.total)).where(paid, *where)
        return await self._session.scalar(statement) or Decimal("0.00")

    async def per_day(self, *, since: datetime) -> dict[str, tuple[int, Decimal]]:
        """Count orders and add up their totals for each day in UTC, such as 2026-01-31."""
        at: Any = Order.created_at
        if self._session.get_bind().dialect.name == "postgresql":
            at = func.timezone("UTC", at)
        day = func.date(at)
        statement = (
            select(day, func.count(), func.sum(Order.total))
            .where(Order.created_at >= since, Order.status != "refunded")
            .group_by(day)
        )
        return {str(d): (n, total) for d, n, total in await self._session.execute(statement)}

    async def stream_lines(self) -> AsyncResult[Any]:
        """Read all lines of all orders, a thousand at a time, from a cursor on the server."""
        statement = (
            select(
                Order.reference,
                Order.created_at,
                Order.status,
                Customer.name,
                Customer.city,
                Product.sku,
                Product.name,
                OrderLine.quantity,
                OrderLine.unit_price,
            )
            .select_from(OrderLine)
            .join(OrderLine.order)
            .join(Order.customer)
            .join(OrderLine.product)
            .order_by(OrderLine.id)
            .execution_options(yield_per=1000)
        )
        return await self._session.stream(statement)


class PaymentRepository(Repository):
    """The payments."""

    def add(self, payment: Payment) -> None:
        """Add a payment."""
        self._session.add(payment)


class RefundRepository(Repository):
    """The refunds."""

    def add(self, refund: Refund) -> None:
        """Add a refund."""
        self._session.add(refund)

    async def total(self, order: Order) -> Decimal:
        """Add up what went back for an order."""
        statement = select(func.sum(Refund.amount)).where(Refund.order_id == order.id)
        return await self._session.scalar(statement) or Decimal("0.00")
