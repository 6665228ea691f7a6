"""The admin at /admin: it works in the transactions of the shop, and logs in the shop's people."""

from __future__ import annotations

from pathlib import Path

from starlette.middleware import Middleware
from starlette.middleware.sessions import SessionMiddleware
from starlette_admin import DropDown
from starlette_admin.events import AdminEvent, AfterLoginContext, EventContext
from starlette_admin.views import CustomView, Link

from demo.admin.dashboard import show_dashboard
from demo.admin.login import StaffLogin, StaffMember
from demo.admin.orders import OrderView, PaymentView, RefundView
from demo.admin.views import (
    AuditView,
    CampaignView,
    CouponView,
    CustomerView,
    ProductView,
    UserView,
)
from demo.models import (
    AuditEntry,
    Campaign,
    Coupon,
    Customer,
    Order,
    Payment,
    Product,
    Refund,
    User,
)
from demo.shop import shop
from demo.tokens import MAX_AGE
from starlette_uow.admin import Admin


def create_admin(secret_key: str) -> Admin:
    """Build the admin; `mount_to` adds it to an app."""
    cookie = Middleware(
        SessionMiddleware, secret_key=secret_key, session_cookie="shop_admin", max_age=MAX_AGE
    )
    admin = Admin(
        shop,
        title="Shop",
        templates_dir=str(Path(__file__).parent / "templates"),
        secret_key=secret_key,
        auth_provider=StaffLogin(),
        middlewares=[cookie],
        index_view=CustomView(
            "Dashboard", "fa fa-chart-line", route_name="index", widget=show_dashboard
        ),
    )
    admin.add_view(OrderView(Order, icon="fa fa-cart-shopping"))
    admin.add_view(CustomerView(Customer, icon="fa fa-address-book"))
    admin.add_view(ProductView(Product, icon="fa fa-box"))
    admin.add_view(
        DropDown(
            "Marketing",
            [CampaignView(Campaign, icon="fa fa-bullhorn"), CouponView(Coupon)],
            icon="fa fa-ticket",
        )
    )
    admin.add_view(
        DropDown("Money", [PaymentView(Payment), RefundView(Refund)], icon="fa fa-coins")
    )
    admin.add_view(UserView(User, icon="fa fa-user", menu_label="Accounts", display_name="Account"))
    admin.add_view(AuditView(AuditEntry, icon="fa fa-clock-rotate-left", menu_label="Audit trail"))
    admin.add_link(Link("The first page", "fa fa-house", "/"))
    admin.events.on(AdminEvent.AFTER_LOGIN, note_login)
    return admin


async def note_login(context: EventContext) -> None:
    """Note who came in, in the transaction of the login: without one, there is no entry."""
    assert isinstance(context, AfterLoginContext)
    member = context.user
    assert isinstance(member, StaffMember)
    shop.session.add(AuditEntry(who=member.email, action="logged in", what="the admin"))
