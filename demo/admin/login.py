"""Who may use the admin: the people of the shop, with the same logins as in the API."""

from __future__ import annotations

import uuid
from dataclasses import dataclass

from starlette.requests import Request
from starlette_admin.auth import AdminUser, AuthProvider
from starlette_admin.exceptions import LoginFailed

from demo.audit import actor
from demo.errors import NotLoggedInError, ShopError
from demo.services.accounts import accounts


@dataclass
class StaffMember(AdminUser):
    """Somebody at work."""

    email: str = ""
    is_manager: bool = False


def is_manager(request: Request) -> bool:
    """Tell whether a manager asks; a clerk sees less."""
    member = getattr(request.state, "admin_user", None)
    return isinstance(member, StaffMember) and member.is_manager


class StaffLogin(AuthProvider):
    """Lets in who works in the shop."""

    async def login(
        self, username: str, password: str, remember_me: bool, request: Request
    ) -> None:
        """Open a login, and keep its key in the signed session cookie."""
        try:
            token = await accounts.log_in(username[:200], password[:200])
        except ShopError as error:
            raise LoginFailed(str(error)) from error
        if token.user.role == "customer":
            raise LoginFailed("This account may not use the admin.")
        request.session["login"] = token.id.hex

    async def authenticate(self, request: Request) -> AdminUser | None:
        """Load the login of the cookie, for each request anew and in its own transaction."""
        key = request.session.get("login")
        if key is None or request.scope["path"].startswith("/admin/static/"):
            return None
        try:
            user = (await accounts.find(uuid.UUID(key))).user
        except NotLoggedInError:
            return None
        if user.role == "customer":
            return None
        actor.set(user.email)
        return StaffMember(user.name, None, user.email, user.role == "manager")

    async def logout(self, request: Request) -> None:
        """End the login, and forget its key."""
        if (key := request.session.get("login")) is not None:
            await accounts.log_out(await accounts.find(uuid.UUID(key)))
        request.session.clear()
