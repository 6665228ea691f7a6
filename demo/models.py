"""The tables: customers, products with stock, orders with lines, vouchers, an audit trail."""

from __future__ import annotations

import secrets
from datetime import UTC, datetime
from decimal import Decimal

from sqlalchemy import CheckConstraint, ForeignKey, String
from sqlalchemy.ext.asyncio import AsyncEngine
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column, relationship

from demo.columns import Moment, Money

STATUSES = ("new", "paid", "shipped")


def _now() -> datetime:
    return datetime.now(UTC)


def _reference() -> str:
    return f"{_now():%Y%m%d}-{secrets.token_hex(4)}"


def _checked_at_commit(column: str) -> ForeignKey:
    """Refer to something that need not exist before the COMMIT, which fails without it."""
    return ForeignKey(column, deferrable=True, initially="DEFERRED")


class Base(DeclarativeBase):
    """The tables of the demo."""


class User(Base):
    """A customer, or somebody who may use the admin."""

    __tablename__ = "users"

    id: Mapped[int] = mapped_column(primary_key=True)
    email: Mapped[str] = mapped_column(String(200), unique=True)
    name: Mapped[str] = mapped_column(String(200))
    password_hash: Mapped[str] = mapped_column(String(200))
    is_admin: Mapped[bool] = mapped_column(default=False)

    def __str__(self) -> str:
        return f"{self.name} <{self.email}>"


class Product(Base):
    """Something to buy, while there is stock."""

    __tablename__ = "products"
    __table_args__ = (CheckConstraint("stock >= 0", name="products_stock_not_negative"),)

    id: Mapped[int] = mapped_column(primary_key=True)
    sku: Mapped[str] = mapped_column(String(40), unique=True)
    name: Mapped[str] = mapped_column(String(200))
    price: Mapped[Decimal] = mapped_column(Money)
    stock: Mapped[int]

    def __str__(self) -> str:
        return f"{self.name} ({self.sku})"


class Voucher(Base):
    """A code that tells which campaign an order came from."""

    __tablename__ = "vouchers"

    code: Mapped[str] = mapped_column(String(40), primary_key=True)
    campaign: Mapped[str] = mapped_column(String(200))

    def __str__(self) -> str:
        return f"{self.code}: {self.campaign}"


class Order(Base):
    """What a customer ordered.

    Whether its voucher exists is found out by the COMMIT alone: that is how a transaction can
    fail after every statement in it went well.
    """

    __tablename__ = "orders"
    __table_args__ = (CheckConstraint(f"status IN {STATUSES}", name="orders_status_known"),)

    id: Mapped[int] = mapped_column(primary_key=True)
    reference: Mapped[str] = mapped_column(String(40), unique=True, default=_reference)
    user_id: Mapped[int] = mapped_column(_checked_at_commit("users.id"), index=True)
    created_at: Mapped[datetime] = mapped_column(Moment, default=_now)
    status: Mapped[str] = mapped_column(String(20), default=STATUSES[0])
    voucher_code: Mapped[str | None] = mapped_column(
        _checked_at_commit("vouchers.code"), index=True
    )

    user: Mapped[User] = relationship()
    voucher: Mapped[Voucher | None] = relationship()
    lines: Mapped[list[OrderLine]] = relationship(
        back_populates="order", cascade="all, delete-orphan", order_by="OrderLine.id"
    )

    @property
    def total(self) -> Decimal:
        """What the customer pays."""
        return sum((line.unit_price * line.quantity for line in self.lines), Decimal("0.00"))

    def __str__(self) -> str:
        return self.reference


class OrderLine(Base):
    """A quantity of one product in an order, at the price of that day."""

    __tablename__ = "order_lines"
    __table_args__ = (CheckConstraint("quantity > 0", name="order_lines_quantity_positive"),)

    id: Mapped[int] = mapped_column(primary_key=True)
    order_id: Mapped[int] = mapped_column(ForeignKey("orders.id"), index=True)
    product_id: Mapped[int] = mapped_column(_checked_at_commit("products.id"), index=True)
    quantity: Mapped[int]
    unit_price: Mapped[Decimal] = mapped_column(Money)

    order: Mapped[Order] = relationship(back_populates="lines")
    product: Mapped[Product] = relationship(lazy="joined", innerjoin=True)

    def __str__(self) -> str:
        return f"{self.quantity} of {self.product.name}"


class AuditEntry(Base):
    """Who did what, and when."""

    __tablename__ = "audit_entries"

    id: Mapped[int] = mapped_column(primary_key=True)
    at: Mapped[datetime] = mapped_column(Moment, default=_now)
    who: Mapped[str] = mapped_column(String(200))
    what: Mapped[str] = mapped_column(String(500))

    def __str__(self) -> str:
        return f"{self.who} {self.what}"


async def create_tables(engine: AsyncEngine, *, fresh: bool = False) -> None:
    """Create the tables that are missing; `fresh` drops those of an earlier run first."""
    async with engine.begin() as connection:
        if fresh:
            await connection.run_sync(Base.metadata.drop_all)
        await connection.run_sync(Base.metadata.create_all)
