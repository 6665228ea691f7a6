"""What clients send and get. What does not fit is answered 422, before anything is done."""

from __future__ import annotations

from datetime import datetime
from decimal import Decimal
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator

MAX_LINES = 50
MAX_QUANTITY = 10_000

# No control characters: PostgreSQL refuses NUL, and nobody types the others.
PRINTABLE = r"^[^\x00-\x1f\x7f]*$"
Text = Annotated[str, Field(min_length=1, max_length=200, pattern=PRINTABLE)]
Code = Annotated[str, Field(min_length=1, max_length=40, pattern=PRINTABLE)]
Amount = Annotated[Decimal, Field(ge=0, le=99_999_999, max_digits=10, decimal_places=2)]
Key = Annotated[int, Field(ge=1, le=2**31 - 1)]


class In(BaseModel):
    """What clients send: nothing that is not named here, and no numbers in quotes."""

    model_config = ConfigDict(extra="forbid", strict=True)


class Out(BaseModel):
    """What clients get, read from our own objects."""

    model_config = ConfigDict(from_attributes=True)


class LoginIn(In):
    """An address and its password."""

    email: Text
    password: Text


class LoginOut(Out):
    """The token for the header `Authorization: Bearer ...`."""

    token: str
    expires_at: datetime


class AccountOut(Out):
    """An account."""

    email: str
    name: str
    role: Literal["customer", "clerk", "manager"]


class ProductOut(Out):
    """A product, and its version: send that back to change what you have seen."""

    sku: str
    name: str
    category: str
    price: Decimal
    stock: int
    version: int


class ProductsOut(Out):
    """A page of products."""

    items: list[ProductOut]
    next: str | None = Field(description="The path of the next page.")


class ProductIn(In):
    """A change of a product."""

    version: Key = Field(description="The version that you have seen.")
    name: Text | None = None
    price: Amount | None = Field(default=None, strict=False)


class LineIn(In):
    """How many of what."""

    sku: Code
    quantity: Annotated[int, Field(ge=1, le=MAX_QUANTITY)]


class OrderIn(In):
    """An order."""

    lines: Annotated[list[LineIn], Field(min_length=1, max_length=MAX_LINES)]
    coupon: Code | None = Field(default=None, description="A discount, if it is still good.")
    campaign: Code | None = Field(default=None, description="Where the order came from.")
    note: Annotated[str, Field(max_length=500, pattern=PRINTABLE)] = ""

    @field_validator("lines")
    @classmethod
    def each_product_once(cls, lines: list[LineIn]) -> list[LineIn]:
        """Refuse two lines of one product."""
        if len({line.sku for line in lines}) < len(lines):
            raise ValueError("there are two lines of one product")
        return lines


class LineOut(Out):
    """How many of what, at which price."""

    sku: str
    quantity: int
    unit_price: Decimal


class OrderOut(Out):
    """An order."""

    reference: str
    total: Decimal
    status: Literal["new", "paid", "shipped", "refunded"]
    created_at: datetime
    discount: Decimal
    coupon: str | None = Field(description="The coupon, if it was accepted.")
    campaign: str | None
    note: str
    lines: list[LineOut]

    @classmethod
    def of(cls, order: Any) -> OrderOut:
        """Show an order whose lines are loaded."""
        lines = [
            LineOut(sku=x.product.sku, quantity=x.quantity, unit_price=x.unit_price)
            for x in order.lines
        ]
        names = ("reference", "total", "status", "created_at", "discount", "note")
        return cls(
            **{name: getattr(order, name) for name in names},
            coupon=order.coupon_code,
            campaign=order.campaign_code,
            lines=lines,
        )


class OrdersOut(Out):
    """A page of orders."""

    items: list[OrderOut]
    next: str | None = Field(description="The path of the next page.")


class PaymentIn(In):
    """A card. 4000000000000002 is refused by every provider's tests, and by ours."""

    card: Annotated[str, Field(pattern=r"^[0-9]{12,19}$")]


class RefundIn(In):
    """Money to give back."""

    amount: Annotated[
        Decimal, Field(gt=0, le=99_999_999, max_digits=10, decimal_places=2, strict=False)
    ]
    reason: Text


class RefundOut(Out):
    """Money that was given back."""

    amount: Decimal
    reason: str
    created_at: datetime


class SummaryOut(Out):
    """How the shop does."""

    orders_today: int
    orders_to_ship: int
    revenue_30_days: Decimal
    running_out: list[ProductOut]


class Problem(BaseModel):
    """What went wrong, RFC 9457."""

    type: str
    title: str
    status: int
    detail: str
