"""Orders in the admin: whoever changes a line moves the stock and the amount to be paid."""

from __future__ import annotations

from decimal import Decimal
from typing import Any

from sqlalchemy import inspect
from starlette.requests import Request
from starlette_admin.actions import ActionSelection, action
from starlette_admin.contrib.sqla import InlineModelView
from starlette_admin.exceptions import ActionFailed, FormValidationError
from starlette_admin.fields import (
    DateTimeField,
    DecimalField,
    EnumField,
    HasMany,
    HasOne,
    IntegerField,
    StringField,
    TextAreaField,
)
from starlette_admin.flash import flash

from demo.admin.login import is_manager
from demo.admin.views import MAX_STOCK, ShopView
from demo.errors import ShopError
from demo.models import PAYMENT_STATES, STATUSES, OrderLine, Payment
from demo.services.ordering import ordering
from demo.services.paying import paying


class OrderLineInline(InlineModelView):
    """The lines of an order, inside its form."""

    model = OrderLine  # type: ignore[misc]
    key = "lines"
    menu_label = "Lines"
    display_name = "Line"
    extra = 0
    fields = (
        IntegerField("id", exclude_from_create=True, exclude_from_edit=True),
        HasOne("product", key="product", required=True),
        IntegerField("quantity", min=1, max=MAX_STOCK, required=True),
        DecimalField("unit_price", read_only=True),
    )

    async def repr(self, obj: Any, request: Request) -> str:
        """Show a line as plain text."""
        return str(obj)

    async def before_create(self, request: Request, data: dict[str, Any], obj: Any) -> None:
        """Take from the stock."""
        obj.unit_price = data["product"].price
        await self._move(data["order_id"], None, data["product"], data["quantity"])

    async def after_create(self, request: Request, obj: Any) -> None:
        """Set what has to be paid."""
        await ordering.reprice(obj.order_id)

    async def before_edit(self, request: Request, data: dict[str, Any], obj: Any) -> None:
        """Give back what was taken, and take what is wanted now."""
        attributes = inspect(obj).attrs
        products, quantities = attributes.product.history, attributes.quantity.history
        if not products.has_changes() and not quantities.has_changes():
            return
        before = (*products.deleted, *products.unchanged)[0]
        taken = (*quantities.deleted, *quantities.unchanged)[0]
        obj.unit_price = obj.unit_price if before is obj.product else obj.product.price
        await self._move(obj.order_id, (before, taken), obj.product, obj.quantity)

    async def after_edit(self, request: Request, obj: Any) -> None:
        """Set what has to be paid."""
        await ordering.reprice(obj.order_id)

    async def before_delete(self, request: Request, obj: Any) -> None:
        """Give back what was taken."""
        await self._move(obj.order_id, (obj.product, obj.quantity), None, 0)

    async def after_delete(self, request: Request, obj: Any) -> None:
        """Set what has to be paid."""
        await ordering.reprice(obj.order_id)

    async def _move(self, order_id: int, before: Any, product: Any, quantity: int) -> None:
        try:
            await ordering.change_line(order_id, before, (product, quantity) if product else None)
        except ShopError as error:
            raise FormValidationError({"quantity": str(error)}) from error


class OrderView(ShopView):
    """Orders. On the edit page the pickers for customer, campaign and products load at once."""

    fields = (
        IntegerField("id", exclude_from_list=True),
        StringField("reference", read_only=True, exclude_from_create=True),
        DateTimeField("created_at", exclude_from_create=True, exclude_from_edit=True),
        HasOne("customer", key="customer", required=True),
        EnumField(
            "status", choices=STATUSES, read_only=True, exclude_from_create=True, disabled=True
        ),
        HasOne("campaign", key="campaign", exclude_from_list=True),
        StringField(
            "coupon_code",
            label="Coupon",
            read_only=True,
            exclude_from_list=True,
            exclude_from_create=True,
        ),
        DecimalField("discount", read_only=True, exclude_from_create=True, exclude_from_list=True),
        DecimalField("total", read_only=True, exclude_from_create=True),
        HasMany(
            "payments",
            key="payment",
            read_only=True,
            exclude_from_list=True,
            exclude_from_create=True,
            exclude_from_edit=True,
        ),
        TextAreaField("note", maxlength=500, exclude_from_list=True),
    )
    inlines = (OrderLineInline,)
    searchable_fields = ("reference", "status", "coupon_code", "note")
    sortable_fields = ("reference", "status", "total", "created_at")
    fields_default_sort = (("created_at", True),)
    actions = ("ship", "refund")

    def can_delete(self, request: Request) -> bool:
        """Never: an order is refunded."""
        return False

    async def before_create(self, request: Request, data: dict[str, Any], obj: Any) -> None:
        """Give the order a payment; its lines will say how much."""
        obj.note = obj.note or ""
        obj.payments.append(Payment(amount=Decimal("0.00")))

    async def before_edit(self, request: Request, data: dict[str, Any], obj: Any) -> None:
        """Keep an empty note."""
        obj.note = obj.note or ""

    async def is_action_allowed(self, request: Request, name: str) -> bool:
        """Money is the manager's."""
        if name == "refund" and not is_manager(request):
            return False
        return await super().is_action_allowed(request, name)

    @action(
        name="ship",
        text="Ship",
        confirmation="Are these orders on their way?",
        icon_class="fa fa-truck",
        submit_btn_text="Ship",
    )
    async def ship(self, request: Request, selection: ActionSelection) -> None:
        """Mark orders as shipped: all of them, or none."""
        await _run(ordering.ship([order.reference for order in await selection.rows()]))
        flash(request, f"{await selection.count()} shipped.", "success")

    @action(
        name="refund",
        text="Refund",
        confirmation="Give the customers their money back?",
        icon_class="fa fa-rotate-left",
        submit_btn_text="Refund",
        submit_btn_class="btn btn-danger",
    )
    async def refund(self, request: Request, selection: ActionSelection) -> None:
        """Refund orders: all of them, or none."""
        references = [order.reference for order in await selection.rows()]
        await _run(paying.refund_whole(references, "By the manager"))
        flash(request, f"{await selection.count()} refunded.", "success")


class PaymentView(ShopView):
    """Payments, to read."""

    for_managers = True
    read_only = True
    fields = (
        StringField("id", exclude_from_list=True),
        HasOne("order", key="order"),
        DecimalField("amount"),
        EnumField("state", choices=PAYMENT_STATES),
        DateTimeField("created_at"),
    )
    searchable_fields = ("state",)
    fields_default_sort = (("created_at", True),)

    async def repr(self, obj: Any, request: Request) -> str:
        """Show a payment where its order is shown already."""
        return f"{obj.amount}, {obj.state}"


class RefundView(ShopView):
    """Refunds, to read."""

    for_managers = True
    read_only = True
    fields = (
        IntegerField("id", exclude_from_list=True),
        HasOne("order", key="order"),
        DecimalField("amount"),
        StringField("reason"),
        DateTimeField("created_at"),
    )
    searchable_fields = ("reason",)
    fields_default_sort = (("created_at", True),)


async def _run(work: Any) -> None:
    try:
        await work
    except ShopError as error:
        raise ActionFailed(str(error)) from error
