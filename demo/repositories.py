"""Queries. A repository takes the session of a unit, and never ends its transaction."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from sqlalchemy import select
from sqlalchemy.ext.asyncio import AsyncSession
from sqlalchemy.orm import selectinload

from demo.models import AuditEntry, Order, Product, User


class Repository:
    """Works in the session it is given."""

    def __init__(self, session: AsyncSession) -> None:
        self._session = session


class UserRepository(Repository):
    """The users."""

    def add(self, user: User) -> None:
        """Add a user."""
        self._session.add(user)

    async def by_email(self, email: str) -> User | None:
        """Find the user who logs in with this address."""
        return await self._session.scalar(select(User).where(User.email == email))


class ProductRepository(Repository):
    """The products."""

    def add(self, product: Product) -> None:
        """Add a product."""
        self._session.add(product)

    async def all(self) -> Sequence[Product]:
        """List all products by name."""
        return (await self._session.scalars(select(Product).order_by(Product.name))).all()

    async def lock(self, skus: Iterable[str]) -> dict[str, Product]:
        """Find products, and let nobody else change their stock until the transaction ends.

        They are locked in one order by everybody, so that two orders never wait for each other.
        """
        statement = (
            select(Product).where(Product.sku.in_(skus)).order_by(Product.sku).with_for_update()
        )
        return {product.sku: product for product in await self._session.scalars(statement)}


class OrderRepository(Repository):
    """The orders."""

    async def add(self, order: Order) -> None:
        """Write an order now, which gives it its key and its reference."""
        self._session.add(order)
        await self._session.flush()

    async def of_user(self, user: User, *, limit: int = 100) -> Sequence[Order]:
        """List a user's latest orders with their lines, the latest first."""
        statement = (
            select(Order)
            .where(Order.user_id == user.id)
            .options(selectinload(Order.lines))
            .order_by(Order.id.desc())
            .limit(limit)
        )
        return (await self._session.scalars(statement)).all()


class AuditRepository(Repository):
    """The audit trail. It only grows."""

    def add(self, who: str, what: str) -> None:
        """Note who did what, in the transaction it is done in."""
        self._session.add(AuditEntry(who=who, what=what))
