from starlette_uow import UnitOfWork
from tests.models import Item
from tests.databases import Database

async def test_block_commits(uow: UnitOfWork, database: Database) -> None:
    async with uow:
        uow.session.add(Item(name="a"))
        await uow.session.flush()
        assert await database.observer.names() == []
    assert await database.observer.names() == ["a"]
