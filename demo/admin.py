"""The admin at /admin: it works in the transactions of the shop, and logs in the shop's users."""

from __future__ import annotations

from typing import Any

from starlette.middleware import Middleware
from starlette.middleware.sessions import SessionMiddleware
from starlette.requests import Request
from starlette_admin.auth import AdminUser, AuthProvider
from starlette_admin.events import AdminEvent
from starlette_admin.exceptions import LoginFailed

from demo.admin_views import (
    AuditView,
    OrderLineView,
    OrderView,
    ProductView,
    UserView,
    VoucherView,
)
from demo.errors import WrongCredentialsError
from demo.models import AuditEntry, Order, OrderLine, Product, User, Voucher
from demo.services import accounts
from demo.shop import shop
from starlette_uow import current_session
from starlette_uow.admin import Admin

MAX_AGE = 12 * 60 * 60
"""How long somebody stays logged in: 12 hours, in seconds."""


def create_admin(secret_key: str) -> Admin:
    """Build the admin; `mount_to` adds it to an app."""
    session = Middleware(
        SessionMiddleware, secret_key=secret_key, session_cookie="shop_admin", max_age=MAX_AGE
    )
    admin = Admin(
        shop,
        title="Shop",
        secret_key=secret_key,
        auth_provider=AdminLogin(),
        middlewares=[session],
    )
    admin.add_view(OrderView(Order, icon="fa fa-cart-shopping"))
    admin.add_view(OrderLineView(OrderLine, icon="fa fa-list"))
    admin.add_view(ProductView(Product, icon="fa fa-box"))
    admin.add_view(VoucherView(Voucher, icon="fa fa-ticket"))
    admin.add_view(UserView(User, icon="fa fa-user"))
    admin.add_view(AuditView(AuditEntry, icon="fa fa-clock-rotate-left", menu_label="Audit trail"))
    for event in (AdminEvent.AFTER_CREATE, AdminEvent.AFTER_EDIT, AdminEvent.AFTER_DELETE):
        admin.events.on(event, note_in_audit_trail)
    return admin


async def note_in_audit_trail(context: Any) -> None:
    """Note what was done, in the transaction it was done in."""
    verb = context.event.removeprefix("after_")
    user: AdminUser = context.request.state.admin_user
    shop.audit.add(user.username, f"admin: {verb} {context.view_key} {context.obj}"[:500])


class AdminLogin(AuthProvider):
    """Lets administrators in, with their password for the shop."""

    async def login(
        self, username: str, password: str, remember_me: bool, request: Request
    ) -> None:
        """Remember an administrator in the signed session cookie."""
        try:
            user = await accounts.log_in(username, password)
        except WrongCredentialsError as error:
            raise LoginFailed(str(error)) from error
        if not user.is_admin:
            raise LoginFailed("This account may not use the admin.")
        request.session["user_id"] = user.id

    async def authenticate(self, request: Request) -> AdminUser | None:
        """Load the user of the cookie, for each request anew and in its own transaction."""
        if (user_id := request.session.get("user_id")) is None:
            return None
        user = await current_session().get(User, user_id)
        return AdminUser(username=user.name) if user is not None and user.is_admin else None

    async def logout(self, request: Request) -> None:
        """Forget the administrator."""
        request.session.clear()
