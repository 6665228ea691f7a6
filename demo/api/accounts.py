"""Logging in and out."""

from __future__ import annotations

from fastapi import APIRouter, Request, Response

from demo.api.caller import Caller, Login
from demo.api.schemas import AccountOut, LoginIn, LoginOut
from demo.models import User
from demo.services.accounts import accounts

router = APIRouter(prefix="/api", tags=["account"])


@router.post("/login")
async def log_in(request: Request, body: LoginIn) -> LoginOut:
    """Answer a token to the right address and password; five guesses are free."""
    token = await accounts.log_in(body.email, body.password)
    return LoginOut(token=request.app.state.tokens.sign(token), expires_at=token.expires_at)


@router.post("/logout", status_code=204)
async def log_out(login: Login, everywhere: bool = False) -> Response:
    """Revoke the token, or all tokens of the account."""
    await accounts.log_out(login, everywhere=everywhere)
    return Response(status_code=204)


@router.get("/me", response_model=AccountOut)
async def show_account(caller: Caller) -> User:
    """Answer whose token this is."""
    return caller
