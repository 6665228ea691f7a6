"""The well-known unit of work that everybody writes, run concurrently; and its port."""

from __future__ import annotations

import asyncio
from typing import Any

from sqlalchemy import select
from sqlalchemy.ext.asyncio import AsyncSession, async_sessionmaker

from starlette_uow import UnitOfWork, create_engine, repository
from tests.databases import Database
from tests.models import Item


class ItemRepository:
    def __init__(self, session: AsyncSession) -> None:
        self.session = session

    async def get_or_create(self, name: str) -> Item:
        found = await self.session.scalar(select(Item).where(Item.name == name))
        if found is None:
            found = Item(name=name)
            self.session.add(found)
            await self.session.flush()
        return found


class WellKnown:
    """One object shared by all requests, whose session the next request overwrites."""

    def __init__(self, sessions: async_sessionmaker[AsyncSession]) -> None:
        self.factory = sessions

    async def __aenter__(self) -> WellKnown:
        self.session = self.factory()
        self.items = ItemRepository(self.session)
        return self

    async def __aexit__(self, exc_type: Any, exc: Any, traceback: Any) -> None:
        if exc is None:
            await self.session.commit()
        else:
            await self.session.rollback()
        await self.session.close()


class Ported(UnitOfWork):
    """Moved over by changing the base class."""

    items = repository(ItemRepository)


class ItemService:
    """Built once, at import time, as services are."""

    def __init__(self, uow: Any) -> None:
        self._uow = uow

    async def register(self, name: str) -> str:
        async with self._uow as uow:
            item = await uow.items.get_or_create(name)
            return str(item.name)


async def register_many(uow: Any) -> list[object]:
    service = ItemService(uow)
    names = [f"{n:02}" for n in range(20)]
    return await asyncio.gather(*(service.register(n) for n in names), return_exceptions=True)


async def test_the_well_known_class_fails_under_concurrency(
    sessions: async_sessionmaker[AsyncSession], database: Database
) -> None:
    """So the next test is known to be able to fail."""
    opened: list[AsyncSession] = []
    engine = sessions.kw["bind"]
    # It leaks connections, and should not have to wait for more.
    roomy = create_engine(engine.url, pool_size=20, busy_timeout=0.1)

    class Recorded(WellKnown):
        async def __aenter__(self) -> WellKnown:
            await super().__aenter__()
            opened.append(self.session)
            return self

    results = await register_many(Recorded(async_sessionmaker(roomy)))
    for session in opened:  # it forgets to close most of them
        await session.close()
    await roomy.dispose()

    errors = [r for r in results if isinstance(r, BaseException)]
    assert errors or len(await database.observer.names()) < 20


async def test_its_port_is_right(uow: UnitOfWork, database: Database) -> None:
    """The same service, the same calls: every row is there, nothing is left open."""
    ported = Ported(uow.sessions)

    results = await register_many(ported)

    assert results == [f"{n:02}" for n in range(20)]
    assert await database.observer.names() == results
