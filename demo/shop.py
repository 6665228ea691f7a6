"""The unit of work of the shop, made once and shared by everybody."""

from __future__ import annotations

from sqlalchemy.ext.asyncio import AsyncEngine, AsyncSession, async_sessionmaker

from demo.repositories import (
    AuditRepository,
    OrderRepository,
    ProductRepository,
    UserRepository,
)
from starlette_uow import UnitOfWork, create_engine, repository

sessions: async_sessionmaker[AsyncSession] = async_sessionmaker(expire_on_commit=False)


class Shop(UnitOfWork):
    """Units of work on the shop's database: `async with shop:` is one transaction."""

    users = repository(UserRepository)
    products = repository(ProductRepository)
    orders = repository(OrderRepository)
    audit = repository(AuditRepository)


shop = Shop(sessions)


def connect(url: str) -> AsyncEngine:
    """Choose the database of the shop, which is known at start only."""
    engine = create_engine(url, hide_parameters=True)  # no password hash in a log
    sessions.configure(bind=engine)
    return engine
