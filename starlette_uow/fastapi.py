"""FastAPI: the request's session and unit of work as parameters.

The only file that imports fastapi. All of it needs `UnitOfWorkMiddleware` on the app: the
dependencies look up what is open, and begin and end nothing.
"""

from __future__ import annotations

from typing import Annotated

from fastapi import Depends
from sqlalchemy.ext.asyncio import AsyncSession

from starlette_uow.uow import UnitOfWork, current_session, current_uow


async def get_session() -> AsyncSession:
    """The session of the request, for `app.dependency_overrides`. Raises as `current_session`.

    A coroutine function, because FastAPI runs others in a thread.
    """
    return current_session()


async def get_uow() -> UnitOfWork:
    """The `UnitOfWork` whose unit serves the request. Raises as `current_uow`.

    Example:
        ```python
        ShopDep = Annotated[Shop, Depends(get_uow)]   # typed as a definition of your own
        ```
    """
    return current_uow()


SessionDep = Annotated[AsyncSession, Depends(get_session)]
"""A parameter with the session of the request: `async def create(session: SessionDep)`."""

UnitOfWorkDep = Annotated[UnitOfWork, Depends(get_uow)]
"""A parameter with the unit of work, for its blocks and callbacks, and for sync endpoints."""
