"""Who calls: the bearer token is read, and its account loaded, in the request's own transaction."""

from __future__ import annotations

from typing import Annotated

from fastapi import Depends, Request
from fastapi.security import HTTPAuthorizationCredentials, HTTPBearer

from demo.audit import actor
from demo.errors import NotAllowedError, NotLoggedInError
from demo.models import Token, User
from demo.services.accounts import accounts

bearer = HTTPBearer(auto_error=False, description="The token of `POST /api/login`.")


async def find_login(
    request: Request, given: Annotated[HTTPAuthorizationCredentials | None, Depends(bearer)]
) -> Token:
    """Find the caller's login, or raise `NotLoggedInError`."""
    if given is None:
        raise NotLoggedInError("Log in first: POST /api/login.")
    token = await accounts.find(request.app.state.tokens.read(given.credentials))
    actor.set(token.user.email)
    return token


Login = Annotated[Token, Depends(find_login)]


async def find_caller(token: Login) -> User:
    """Find the caller's account."""
    return token.user


Caller = Annotated[User, Depends(find_caller)]


async def find_staff(caller: Caller) -> User:
    """Find the caller's account, and refuse a customer."""
    if caller.role == "customer":
        raise NotAllowedError("This is for the people of the shop.")
    return caller


async def find_manager(caller: Caller) -> User:
    """Find the caller's account, and refuse everybody but a manager."""
    if caller.role != "manager":
        raise NotAllowedError("This is for the manager.")
    return caller


Staff = Annotated[User, Depends(find_staff)]
Manager = Annotated[User, Depends(find_manager)]
