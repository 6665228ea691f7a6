"""Code as users write it, and the types they get. Nobody runs it: mypy and pyright read it.

An ignore that is not needed is an error for both: it stands where a mistake has to be found.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Annotated, assert_type

from fastapi import Depends, FastAPI
from sqlalchemy import select
from sqlalchemy.ext.asyncio import AsyncEngine, AsyncSession, async_sessionmaker
from sqlalchemy.orm import Session
from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.types import ASGIApp
from starlette_admin.contrib import sqla

from starlette_uow import (
    Doom,
    Outcome,
    SessionDeadlockError,
    UnitDoomedError,
    UnitOfWork,
    UnitOfWorkMiddleware,
    create_engine,
    current_session,
    current_uow,
    repository,
)
from starlette_uow.admin import Admin, UnitOfWorkPlugin
from starlette_uow.fastapi import SessionDep, UnitOfWorkDep, get_uow
from starlette_uow.handlers import unavailable_handlers
from starlette_uow.testing import RecordedUnit, Sandbox, sandbox
from tests.models import Item


class Items:
    def __init__(self, session: AsyncSession) -> None:
        self.session = session

    async def find(self, name: str) -> Item | None:
        return await self.session.get(Item, name)


def count_items(session: AsyncSession) -> Callable[[], int]:
    return lambda: len(session.identity_map)


class Shop(UnitOfWork):
    items = repository(Items)
    counter = repository(count_items)
    wrong = repository(int.bit_count)  # type: ignore[arg-type]

    async def first(self) -> str:
        return (await self.session.scalars(select(Item.name))).one()


engine = create_engine("postgresql+asyncpg://", pool_size=3)
assert_type(engine, AsyncEngine)
create_engine("postgresql+asyncpg://", statement_timeout="1s")  # type: ignore[arg-type]

sessions = async_sessionmaker(engine, expire_on_commit=False)
shop = Shop(sessions, end_timeout=5, resolve_unknown=True)
assert_type(shop, Shop)
UnitOfWork(engine)
UnitOfWork(create_engine)  # type: ignore[arg-type]
UnitOfWork(sessions, 5)  # type: ignore[call-arg]


async def in_a_unit() -> None:
    assert_type(current_session(), AsyncSession)
    assert_type(current_session(shop), AsyncSession)
    assert_type(current_uow(), UnitOfWork)
    assert_type(shop.session, AsyncSession)
    assert_type(shop.items, Items)
    assert_type(shop.counter(), int)
    assert_type(await shop.items.find("tea"), Item | None)
    shop.on_commit(lambda: None)
    shop.on_rollback(in_a_unit)
    shop.on_commit(shop.items.find)  # type: ignore[arg-type]
    shop.doom("a dry run")


async def blocks() -> None:
    async with shop as uow:
        assert_type(uow, Shop)
    async with shop.new(isolation_level="SERIALIZABLE", read_only=True) as new:
        assert_type(new, Shop)
    async with shop.savepoint() as savepoint, shop.exclusive() as exclusive:
        assert_type(savepoint, Shop)
        assert_type(exclusive, Shop)
    async with shop.tasks(limit=5) as tg:
        tg.start_soon(shop.items.find, "tea")
        tg.start_soon(shop.items.find, 1)  # type: ignore[arg-type]


@shop.transactional(propagation="new")
async def rename(name: str, *, to: str) -> int:
    return len(name + to)


shop.transactional(propagation="sometimes")  # type: ignore[arg-type]


async def transactional() -> None:
    assert_type(await rename("tea", to="milk"), int)
    assert_type(asyncio.create_task(rename("tea", to="milk")), asyncio.Task[int])
    await rename("tea", to=1)  # type: ignore[arg-type]


def names(session: Session, prefix: str) -> list[str]:
    return list(session.scalars(select(Item.name).where(Item.name.startswith(prefix))))


def in_a_thread() -> None:
    assert_type(shop.run_sync(names, "t"), list[str])
    shop.run_sync(names, 1)  # type: ignore[arg-type]


def never_on_get(status: int, scope: object) -> bool:
    return status < 400


app = Starlette(middleware=[Middleware(UnitOfWorkMiddleware, uow=shop, exclude=["/health"])])
app.add_middleware(UnitOfWorkMiddleware, session_factory=sessions, commit_when=never_on_get)
app.add_middleware(UnitOfWorkMiddleware, uow=sessions)  # type: ignore[arg-type]
Middleware(UnitOfWorkMiddleware, units=shop)  # type: ignore[call-arg]
served: ASGIApp = UnitOfWorkMiddleware(app, uow=shop)

fastapi = FastAPI(exception_handlers=unavailable_handlers)
ShopDep = Annotated[Shop, Depends(get_uow)]


@fastapi.get("/")
async def endpoint(session: SessionDep, uow: UnitOfWorkDep, shop: ShopDep) -> None:
    assert_type(session, AsyncSession)
    assert_type(uow, UnitOfWork)
    assert_type(shop, Shop)


admin = Admin(shop, title="Shop", secret_key="secret")
admin.mount_to(app)
sqla.Admin(engine, secret_key="secret", plugins=[UnitOfWorkPlugin(shop)])


async def tested() -> None:
    async with sandbox(shop, database="clone") as box:
        assert_type(box, Sandbox)
    assert_type(box.units, list[RecordedUnit])
    assert_type(box.units[0].outcomes, list[Outcome])
    assert_type(box.units[0].statements, list[str])
    sandbox(shop, database="copy")  # type: ignore[arg-type]


async def failed() -> None:
    try:
        await shop.checkpoint()
    except UnitDoomedError as error:
        assert_type(error.doom, Doom)
    except SessionDeadlockError as error:
        assert_type(error.waiter, str)
