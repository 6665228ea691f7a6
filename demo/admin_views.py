"""What the admin shows of each table."""

from __future__ import annotations

from typing import Any, ClassVar

from markupsafe import escape
from sqlalchemy import select
from starlette.requests import Request
from starlette_admin.contrib.sqla import ModelView
from starlette_admin.exceptions import FormValidationError
from starlette_admin.fields import (
    BooleanField,
    DateTimeField,
    DecimalField,
    EnumField,
    HasMany,
    HasOne,
    IntegerField,
    PasswordField,
    StringField,
)
from starlette_admin.types import RequestAction
from starlette_admin.validators import any_of

from demo.models import STATUSES
from demo.passwords import hash_password
from starlette_uow import current_session

MAX_STOCK = 1_000_000
MAX_PRICE = 99_999_999


class ShopView(ModelView):
    """Shows objects by their `str()`, and explains a value that is taken before SQL fails."""

    unique_field: ClassVar[str | None] = None

    def can_import(self, request: Request) -> bool:
        """Never: the shop is edited by hand."""
        return False

    async def repr(self, obj: Any, request: Request) -> str:
        """Show an object as plain text."""
        return str(obj)

    async def select2_result(self, obj: Any, request: Request) -> str:
        """Show an object in a picker."""
        return f"<span>{escape(str(obj))}</span>"

    async def validate(self, request: Request, data: dict[str, Any]) -> None:
        """Refuse a unique value that another object has."""
        if self.unique_field is None or self.pk_attr is None:
            return
        has_it = getattr(self.model, self.unique_field) == data[self.unique_field]
        key = getattr(self.model, self.pk_attr)
        taken_by = await current_session().scalar(select(key).where(has_it))
        if taken_by is not None and str(taken_by) != request.query_params.get("pk"):
            raise FormValidationError({self.unique_field: "This is taken already."})


class OrderView(ShopView):
    """Orders. On the edit page the pickers for user, voucher and lines load at once."""

    fields = (
        IntegerField("id"),
        StringField("reference", read_only=True, exclude_from_create=True),
        HasOne("user", key="user", required=True),
        EnumField("status", choices=STATUSES, required=True, validators=[any_of(STATUSES)]),
        HasOne("voucher", key="voucher"),
        HasMany("lines", key="order-line"),
        DateTimeField("created_at", exclude_from_create=True, exclude_from_edit=True),
    )
    searchable_fields = ("reference", "status")
    fields_default_sort = (("created_at", True),)


class OrderLineView(ShopView):
    """Lines of orders."""

    fields = (
        IntegerField("id"),
        HasOne("order", key="order", required=True),
        HasOne("product", key="product", required=True),
        IntegerField("quantity", min=1, max=MAX_STOCK, required=True),
        DecimalField("unit_price", min=0, max=MAX_PRICE, required=True),
    )


class ProductView(ShopView):
    """Products and their stock."""

    unique_field = "sku"
    fields = (
        IntegerField("id"),
        StringField("sku", maxlength=40, required=True),
        StringField("name", maxlength=200, required=True),
        DecimalField("price", min=0, max=MAX_PRICE, required=True),
        IntegerField("stock", min=0, max=MAX_STOCK, required=True),
    )


class VoucherView(ShopView):
    """Vouchers."""

    unique_field = "code"
    show_pk_in_forms = True
    fields = (
        StringField("code", maxlength=40, required=True),
        StringField("campaign", maxlength=200, required=True),
    )


class UserView(ShopView):
    """Users. A password can be set here, and its hash is never shown."""

    unique_field = "email"
    fields = (
        IntegerField("id"),
        StringField("email", input_type="email", maxlength=200, required=True),
        StringField("name", maxlength=200, required=True),
        BooleanField("is_admin"),
        PasswordField("password", help_text="Leave it empty to keep the one that is set."),
    )
    exclude_fields_from_list = ("password",)
    exclude_fields_from_detail = ("password",)
    exclude_fields_from_export = ("password",)
    searchable_fields = ("email", "name")
    sortable_fields = ("id", "email", "name", "is_admin")

    async def validate(self, request: Request, data: dict[str, Any]) -> None:
        """Ask for a password where there is none yet."""
        await super().validate(request, data)
        if request.state.action is RequestAction.CREATE and not data["password"]:
            raise FormValidationError({"password": "A new user needs a password."})

    async def before_create(self, request: Request, data: dict[str, Any], obj: Any) -> None:
        """Store the hash of the password."""
        obj.password_hash = await hash_password(data["password"])

    async def before_edit(self, request: Request, data: dict[str, Any], obj: Any) -> None:
        """Store the hash of a new password."""
        if data.get("password"):
            obj.password_hash = await hash_password(data["password"])


class AuditView(ShopView):
    """The audit trail, to read."""

    fields = (IntegerField("id"), DateTimeField("at"), StringField("who"), StringField("what"))
    fields_default_sort = (("at", True),)

    def can_create(self, request: Request) -> bool:
        """Never: entries come from what is done."""
        return False

    def can_edit(self, request: Request) -> bool:
        """Never: what was noted stays."""
        return False

    def can_delete(self, request: Request) -> bool:
        """Never: what was noted stays."""
        return False
