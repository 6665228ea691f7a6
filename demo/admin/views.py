"""What the admin shows of each table, orders excepted."""

from __future__ import annotations

from typing import Any, ClassVar

from markupsafe import escape
from starlette.requests import Request
from starlette_admin.actions import row_action
from starlette_admin.contrib.sqla import ModelView
from starlette_admin.exceptions import ActionFailed, FormValidationError
from starlette_admin.fields import (
    DateTimeField,
    DecimalField,
    EnumField,
    HasOne,
    IntegerField,
    PasswordField,
    StringField,
)
from starlette_admin.flash import flash
from starlette_admin.types import RequestAction
from starlette_admin.validators import any_of
from starlette_admin.widgets import FieldRef

from demo.admin.login import is_manager
from demo.models import ROLES, now
from demo.passwords import hash_password
from demo.services.catalog import catalog
from demo.shop import shop

MAX_STOCK = 1_000_000
MAX_PRICE = 99_999_999
CATEGORIES = ("bags", "food", "furniture", "home", "kitchen", "office", "paper")


class ShopView(ModelView):
    """Shows objects by their `str()`, and to each what their role may see.

    What the database refuses, such as a value that is taken, is told in the form by the admin.
    """

    for_managers: ClassVar[bool] = False
    read_only: ClassVar[bool] = False
    importable: ClassVar[bool] = False
    page_size = 25

    def is_accessible(self, request: Request) -> bool:
        """Managers see everything."""
        return is_manager(request) or not self.for_managers

    def can_create(self, request: Request) -> bool:
        """Not where things come from what is done."""
        return not self.read_only

    def can_edit(self, request: Request) -> bool:
        """Not where what was noted stays."""
        return not self.read_only

    def can_delete(self, request: Request) -> bool:
        """Not where what was noted stays; and a clerk deletes nothing."""
        return not self.read_only and is_manager(request)

    def can_import(self, request: Request) -> bool:
        """Only where it makes sense, and for managers."""
        return self.importable and is_manager(request)

    async def repr(self, obj: Any, request: Request) -> str:
        """Show an object as plain text."""
        return str(obj)

    async def select2_result(self, obj: Any, request: Request) -> str:
        """Show an object in a picker."""
        return f"<span>{escape(str(obj))}</span>"


class CustomerView(ShopView):
    """Customers, with an account or as guests."""

    fields = (
        IntegerField("id", exclude_from_list=True),
        StringField("name", maxlength=200, required=True),
        StringField("email", input_type="email", maxlength=200, required=True),
        StringField("street", maxlength=200, required=True, exclude_from_list=True),
        StringField("city", maxlength=200, required=True),
        HasOne("user", key="user", label="Account"),
        DateTimeField("created_at", exclude_from_create=True, exclude_from_edit=True),
    )
    searchable_fields = ("name", "email", "city")
    fields_default_sort = (("created_at", True),)


class ProductView(ShopView):
    """Products. The stock moves by amounts: sales take from it, deliveries put into it.

    The version in the form lets nobody overwrite what they have not seen.
    """

    importable = True
    fields = (
        IntegerField("id", exclude_from_list=True),
        StringField("sku", label="SKU", maxlength=40, required=True),
        StringField("name", maxlength=200, required=True),
        EnumField("category", choices=CATEGORIES, required=True, validators=[any_of(CATEGORIES)]),
        DecimalField("price", min=0, max=MAX_PRICE, required=True),
        IntegerField(
            "stock",
            exclude_from_create=True,
            exclude_from_edit=True,
            exclude_from_import=True,
        ),
        IntegerField("reorder_at", label="Reorder at", min=0, max=MAX_STOCK, required=True),
        IntegerField(
            "version",
            input_type="hidden",
            exclude_from_list=True,
            exclude_from_create=True,
            exclude_from_import=True,
        ),
    )
    form_layout = (
        ("sku", "name"),
        ("category", "price"),
        "reorder_at",
        FieldRef("version", show_label=False),
    )
    searchable_fields = ("sku", "name", "category")
    fields_default_sort = (("sku", False),)
    inline_editable_fields = ("price",)

    @row_action(
        name="deliver",
        text="Book a delivery",
        confirmation="How many have arrived?",
        icon_class="fa fa-truck-ramp-box",
        submit_btn_text="Book",
        form='<form><input class="form-control" type="number" name="quantity" min="1"></form>',
    )
    async def deliver(self, request: Request, pk: Any) -> None:
        """Put what has arrived into the stock."""
        given = str((await request.form()).get("quantity", ""))
        if not given.isdecimal() or not 0 < int(given) <= MAX_STOCK:
            raise ActionFailed(f"A delivery is a whole number from 1 to {MAX_STOCK}.")
        product = await catalog.deliver(int(pk), int(given))
        flash(request, f"{given} of {product} delivered: {product.stock} in stock.", "success")


class CampaignView(ShopView):
    """Campaigns."""

    show_pk_in_forms = True
    importable = True
    fields = (
        StringField("code", maxlength=40, required=True),
        StringField("name", maxlength=200, required=True),
    )


class CouponView(ShopView):
    """Coupons."""

    show_pk_in_forms = True
    fields = (
        StringField("code", maxlength=40, required=True),
        IntegerField("percent", min=1, max=100, required=True),
        IntegerField("uses_left", min=0, max=MAX_STOCK, required=True),
        DateTimeField("valid_until", required=True),
    )


class UserView(ShopView):
    """Accounts. A password can be set here, and its hash is never shown."""

    for_managers = True
    fields = (
        IntegerField("id", exclude_from_list=True),
        StringField("email", input_type="email", maxlength=200, required=True),
        StringField("name", maxlength=200, required=True),
        EnumField("role", choices=ROLES, required=True, validators=[any_of(ROLES)]),
        PasswordField("password", help_text="Leave it empty to keep the one that is set."),
        DateTimeField("created_at", exclude_from_create=True, exclude_from_edit=True),
    )
    exclude_fields_from_list = ("password",)
    exclude_fields_from_detail = ("password",)
    exclude_fields_from_export = ("password",)
    searchable_fields = ("email", "name")
    sortable_fields = ("id", "email", "name", "role", "created_at")

    async def validate(self, request: Request, data: dict[str, Any]) -> None:
        """Ask for a password where there is none yet."""
        await super().validate(request, data)
        if request.state.action is RequestAction.CREATE and not data["password"]:
            raise FormValidationError({"password": "A new user needs a password."})

    async def before_create(self, request: Request, data: dict[str, Any], obj: Any) -> None:
        """Store the hash of the password."""
        obj.password_hash = await hash_password(data["password"])

    async def before_edit(self, request: Request, data: dict[str, Any], obj: Any) -> None:
        """Store the hash of a new password, and end the logins that the old one has opened."""
        if data.get("password"):
            obj.password_hash = await hash_password(data["password"])
            await shop.tokens.revoke_all(obj, now())


class AuditView(ShopView):
    """The audit trail, to read."""

    for_managers = True
    read_only = True
    fields = (
        IntegerField("id", exclude_from_list=True),
        DateTimeField("at"),
        StringField("who"),
        EnumField("action", choices=("created", "changed", "deleted", "logged in")),
        StringField("what"),
        StringField("changes"),
    )
    searchable_fields = ("who", "what", "changes")
    fields_default_sort = (("at", True),)
