"""The tables: accounts, customers, products with stock, orders with lines and payments."""

from __future__ import annotations

import secrets
import uuid
from collections.abc import Iterable
from datetime import UTC, datetime
from decimal import Decimal
from typing import Annotated, Any

from sqlalchemy import CheckConstraint, ForeignKey, MetaData, String, UniqueConstraint
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column, relationship

from demo.columns import Moment, Money

ROLES = ("customer", "clerk", "manager")
STATUSES = ("new", "paid", "shipped", "refunded")
PAYMENT_STATES = ("due", "sent", "paid", "refused")

Code = Annotated[str, 40]
Line = Annotated[str, 200]
Note = Annotated[str, 500]


def now() -> datetime:
    """This moment, with its zone."""
    return datetime.now(UTC)


def _reference() -> str:
    return f"{now():%Y%m%d}-{secrets.token_hex(4)}"


def _checked_at_commit(column: str) -> ForeignKey:
    """Refer to something that need not exist before the COMMIT, which fails without it."""
    return ForeignKey(column, deferrable=True, initially="DEFERRED")


def _one_of(column: str, values: Iterable[str]) -> CheckConstraint:
    return CheckConstraint(f"{column} IN {tuple(values)}", name=f"{column}_known")


class Base(DeclarativeBase):
    """The tables of the demo."""

    metadata = MetaData(
        naming_convention={
            "ix": "ix_%(column_0_label)s",
            "uq": "uq_%(table_name)s_%(column_0_name)s",
            "ck": "ck_%(table_name)s_%(constraint_name)s",
            "fk": "fk_%(table_name)s_%(column_0_name)s",
            "pk": "pk_%(table_name)s",
        }
    )
    type_annotation_map = {  # noqa: RUF012 - SQLAlchemy reads it from the class
        Code: String(40),
        Line: String(200),
        Note: String(500),
        Decimal: Money,
        datetime: Moment,
    }


class User(Base):
    """An account: of a customer, or of somebody who works in the shop."""

    __tablename__ = "users"
    __table_args__ = (_one_of("role", ROLES),)

    id: Mapped[int] = mapped_column(primary_key=True)
    email: Mapped[Line] = mapped_column(unique=True)
    name: Mapped[Line]
    password_hash: Mapped[Line]
    role: Mapped[Code] = mapped_column(default="customer")
    created_at: Mapped[datetime] = mapped_column(default=now)

    def __str__(self) -> str:
        return f"{self.name} <{self.email}>"


class Token(Base):
    """A login that can be revoked. What the client holds is its signed key."""

    __tablename__ = "tokens"

    id: Mapped[uuid.UUID] = mapped_column(primary_key=True, default=uuid.uuid4)
    user_id: Mapped[int] = mapped_column(ForeignKey("users.id", ondelete="CASCADE"), index=True)
    created_at: Mapped[datetime] = mapped_column(default=now)
    expires_at: Mapped[datetime]
    revoked_at: Mapped[datetime | None]

    user: Mapped[User] = relationship(lazy="joined", innerjoin=True)


class LoginAttempts(Base):
    """How often somebody has tried to log in to an account, which need not exist."""

    __tablename__ = "login_attempts"

    email: Mapped[Line] = mapped_column(primary_key=True)
    attempts: Mapped[int]
    until: Mapped[datetime] = mapped_column(index=True)


class Customer(Base):
    """Somebody who buys, with an account or as a guest."""

    __tablename__ = "customers"

    id: Mapped[int] = mapped_column(primary_key=True)
    user_id: Mapped[int | None] = mapped_column(_checked_at_commit("users.id"), unique=True)
    name: Mapped[Line] = mapped_column(index=True)
    email: Mapped[Line] = mapped_column(index=True)
    street: Mapped[Line]
    city: Mapped[Line]
    created_at: Mapped[datetime] = mapped_column(default=now)

    user: Mapped[User | None] = relationship()
    orders: Mapped[list[Order]] = relationship(back_populates="customer", passive_deletes="all")

    def __str__(self) -> str:
        return f"{self.name}, {self.city}"


class Product(Base):
    """Something to buy, while there is stock.

    Its `version` counts the edits of name, price and limit, so that nobody overwrites what they
    have not seen. The stock moves by amounts, `stock = stock - 2`, which need no version.
    """

    __tablename__ = "products"
    __table_args__ = (
        CheckConstraint("stock >= 0", name="stock_not_negative"),
        CheckConstraint("price >= 0", name="price_not_negative"),
    )

    id: Mapped[int] = mapped_column(primary_key=True)
    sku: Mapped[Code] = mapped_column(unique=True)
    name: Mapped[Line]
    category: Mapped[Code]
    price: Mapped[Decimal]
    stock: Mapped[int] = mapped_column(default=0)
    reorder_at: Mapped[int] = mapped_column(default=5)
    reordered_at: Mapped[datetime | None]
    version: Mapped[int] = mapped_column()

    __mapper_args__ = {"version_id_col": version}  # noqa: RUF012 - SQLAlchemy's own form

    def __str__(self) -> str:
        return f"{self.name} ({self.sku})"


class Campaign(Base):
    """Where an order came from: a letter, a poster, a friend."""

    __tablename__ = "campaigns"

    code: Mapped[Code] = mapped_column(primary_key=True)
    name: Mapped[Line]

    def __str__(self) -> str:
        return f"{self.code}: {self.name}"


class Coupon(Base):
    """A discount, for so many orders and until then."""

    __tablename__ = "coupons"
    __table_args__ = (
        CheckConstraint("uses_left >= 0", name="uses_left_not_negative"),
        CheckConstraint("percent BETWEEN 1 AND 100", name="percent_known"),
    )

    code: Mapped[Code] = mapped_column(primary_key=True)
    percent: Mapped[int]
    uses_left: Mapped[int]
    valid_until: Mapped[datetime]

    def __str__(self) -> str:
        return f"{self.code}: {self.percent} %"


class Order(Base):
    """What a customer ordered.

    Whether its campaign exists is found out by the COMMIT alone: that is how a transaction can
    fail after every statement in it went well.
    """

    __tablename__ = "orders"
    __table_args__ = (
        _one_of("status", STATUSES),
        CheckConstraint("total >= 0", name="total_not_negative"),
        # A customer uses a coupon once.
        UniqueConstraint("customer_id", "coupon_code", name="uq_orders_customer_id_coupon_code"),
    )

    id: Mapped[int] = mapped_column(primary_key=True)
    reference: Mapped[Code] = mapped_column(unique=True)
    customer_id: Mapped[int] = mapped_column(_checked_at_commit("customers.id"), index=True)
    created_at: Mapped[datetime] = mapped_column(default=now, index=True)
    status: Mapped[Code] = mapped_column(default="new")
    campaign_code: Mapped[Code | None] = mapped_column(
        _checked_at_commit("campaigns.code"), index=True
    )
    coupon_code: Mapped[Code | None] = mapped_column(_checked_at_commit("coupons.code"))
    discount: Mapped[Decimal] = mapped_column(default=Decimal("0.00"))
    total: Mapped[Decimal] = mapped_column(default=Decimal("0.00"))
    note: Mapped[Note] = mapped_column(default="")

    customer: Mapped[Customer] = relationship(back_populates="orders")
    campaign: Mapped[Campaign | None] = relationship()
    coupon: Mapped[Coupon | None] = relationship()
    lines: Mapped[list[OrderLine]] = relationship(
        back_populates="order", cascade="all, delete-orphan", order_by="OrderLine.id"
    )
    payments: Mapped[list[Payment]] = relationship(
        back_populates="order", cascade="all, delete-orphan", order_by="Payment.created_at"
    )

    def __init__(self, **values: Any) -> None:
        super().__init__(**{"reference": _reference(), **values})

    def __str__(self) -> str:
        return self.reference


class OrderLine(Base):
    """A quantity of one product in an order, at the price of that day."""

    __tablename__ = "order_lines"
    __table_args__ = (
        CheckConstraint("quantity > 0", name="quantity_positive"),
        UniqueConstraint("order_id", "product_id", name="uq_order_lines_order_id_product_id"),
    )

    id: Mapped[int] = mapped_column(primary_key=True)
    order_id: Mapped[int] = mapped_column(ForeignKey("orders.id"))
    product_id: Mapped[int] = mapped_column(_checked_at_commit("products.id"), index=True)
    quantity: Mapped[int]
    unit_price: Mapped[Decimal]

    order: Mapped[Order] = relationship(back_populates="lines")
    product: Mapped[Product] = relationship(lazy="joined", innerjoin=True)

    def __str__(self) -> str:
        return f"{self.quantity} of {self.product.name}"


class Payment(Base):
    """An attempt to be paid. Its key goes to the provider, which charges each key once."""

    __tablename__ = "payments"
    __table_args__ = (_one_of("state", PAYMENT_STATES),)

    id: Mapped[uuid.UUID] = mapped_column(primary_key=True, default=uuid.uuid4)
    order_id: Mapped[int] = mapped_column(ForeignKey("orders.id"), index=True)
    amount: Mapped[Decimal]
    state: Mapped[Code] = mapped_column(default="due")
    created_at: Mapped[datetime] = mapped_column(default=now)

    order: Mapped[Order] = relationship(back_populates="payments")

    def __str__(self) -> str:
        return f"of {self.amount}"


class Refund(Base):
    """Money that goes back. All refunds of an order are at most what was paid for it."""

    __tablename__ = "refunds"
    __table_args__ = (CheckConstraint("amount > 0", name="amount_positive"),)

    id: Mapped[int] = mapped_column(primary_key=True)
    order_id: Mapped[int] = mapped_column(ForeignKey("orders.id"), index=True)
    amount: Mapped[Decimal]
    reason: Mapped[Line]
    created_at: Mapped[datetime] = mapped_column(default=now)

    order: Mapped[Order] = relationship()

    def __str__(self) -> str:
        return f"{self.amount}: {self.reason}"


class AuditEntry(Base):
    """Who did what, and when. Written by `demo.audit`, for whoever does it."""

    __tablename__ = "audit_entries"

    id: Mapped[int] = mapped_column(primary_key=True)
    at: Mapped[datetime] = mapped_column(default=now, index=True)
    who: Mapped[Line]
    action: Mapped[Code]
    what: Mapped[Line]
    changes: Mapped[Note] = mapped_column(default="")

    def __str__(self) -> str:
        return f"{self.who} {self.action} {self.what}"


class Trial(Base):
    """What became of a button on the first page, noted in a transaction of its own."""

    __tablename__ = "trials"

    id: Mapped[uuid.UUID] = mapped_column(primary_key=True)
    outcome: Mapped[Code]
