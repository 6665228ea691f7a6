"""The unit of work of the shop, made once and shared by everybody."""

from __future__ import annotations

from sqlalchemy.ext.asyncio import AsyncEngine, AsyncSession, async_sessionmaker

from demo.audit import ShopSession
from demo.repositories import (
    AttemptRepository,
    CouponRepository,
    CustomerRepository,
    OrderRepository,
    PaymentRepository,
    ProductRepository,
    RefundRepository,
    TokenRepository,
    UserRepository,
)
from starlette_uow import UnitOfWork, create_engine, repository

sessions: async_sessionmaker[AsyncSession] = async_sessionmaker(
    expire_on_commit=False, sync_session_class=ShopSession
)


class Shop(UnitOfWork):
    """Units of work on the shop's database: `async with shop:` is one transaction."""

    users = repository(UserRepository)
    tokens = repository(TokenRepository)
    attempts = repository(AttemptRepository)
    customers = repository(CustomerRepository)
    products = repository(ProductRepository)
    coupons = repository(CouponRepository)
    orders = repository(OrderRepository)
    payments = repository(PaymentRepository)
    refunds = repository(RefundRepository)


shop = Shop(sessions)


def connect(url: str, *, pool_size: int = 5) -> AsyncEngine:
    """Choose the database of the shop, which is known at start only."""
    # No password hash in a log. Ten waiting requests are a queue, not an error.
    engine = create_engine(
        url, hide_parameters=True, pool_size=pool_size, max_overflow=0, pool_timeout=20
    )
    sessions.configure(bind=engine)
    return engine
