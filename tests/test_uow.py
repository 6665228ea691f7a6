"""Blocks, joining, doom, savepoints, checkpoints, callbacks and `transactional`."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import suppress

import pytest
from sqlalchemy import select, text
from sqlalchemy.exc import IntegrityError, InvalidRequestError, SQLAlchemyError
from sqlalchemy.ext.asyncio import AsyncEngine, AsyncSession, async_sessionmaker

from starlette_uow import (
    NoUnitError,
    SavepointOpenError,
    TransactionStartedError,
    UnitDoomedError,
    UnitEndedError,
    UnitOfWork,
    UnitOpenError,
    current_session,
    current_uow,
    repository,
)
from tests.conftest import assert_nothing_is_open
from tests.databases import Database
from tests.models import Item, Part


class Boom(Exception):
    """What the blocks of these tests raise."""


class Items:
    """A repository of the kind that everybody writes."""

    def __init__(self, session: AsyncSession) -> None:
        self.session = session

    async def add(self, name: str) -> Item:
        item = Item(name=name)
        self.session.add(item)
        await self.session.flush()
        return item


class Shop(UnitOfWork):
    items = repository(Items)


@pytest.fixture
async def uow(sessions: async_sessionmaker[AsyncSession]) -> AsyncIterator[Shop]:
    shop = Shop(sessions, end_timeout=5, callback_timeout=5)
    yield shop
    assert_nothing_is_open(shop)


# --- blocks --------------------------------------------------------------------------------


async def test_block_commits_when_it_is_left(uow: Shop, database: Database) -> None:
    """Not before, and the connection is back afterwards."""
    async with uow as shop:
        await shop.items.add("a")
        assert await database.observer.names() == []

    assert shop is uow
    assert await database.observer.names() == ["a"]


async def test_block_writes_what_was_only_added(uow: Shop, database: Database) -> None:
    """The commit flushes."""
    async with uow:
        uow.session.add(Item(name="a"))

    assert await database.observer.names() == ["a"]


async def test_block_writes_changes_made_after_a_commit(uow: Shop, database: Database) -> None:
    """A changed attribute alone begins a transaction."""
    async with uow:
        item = await uow.items.add("a")
        await uow.commit()
        item.name = "b"

    assert await database.observer.names() == ["b"]


async def test_block_rolls_back_when_it_raises(uow: Shop, database: Database) -> None:
    """The exception goes on, untouched."""
    with pytest.raises(Boom):
        async with uow:
            await uow.items.add("a")
            raise Boom

    assert await database.observer.names() == []


async def test_refused_commit_of_a_block_is_raised(uow: Shop, database: Database) -> None:
    """Database errors pass through untouched."""
    with pytest.raises(IntegrityError):
        async with uow:
            await uow.items.add("a")
            uow.session.add(Part(item_id=999))

    assert await database.observer.names() == []


async def test_session_and_repository_are_one_for_each_unit(uow: Shop) -> None:
    """The same in all of a unit, another in the next."""
    async with uow:
        session, items = uow.session, uow.items
        async with uow:
            assert uow.session is session
            assert current_session() is session
            assert current_uow() is uow
            assert uow.items is items
    async with uow:
        assert uow.session is not session
        assert uow.items is not items


async def test_one_definition_serves_many_tasks_at_once(uow: Shop, database: Database) -> None:
    """What the well-known class with a `self.session` is not."""

    async def work(number: int) -> None:
        async with uow:
            await uow.items.add(f"{number:03}")
            if number % 3 == 0:
                raise Boom

    await asyncio.gather(*(work(n) for n in range(100)), return_exceptions=True)

    assert await database.observer.names() == [f"{n:03}" for n in range(100) if n % 3]


async def test_commit_and_rollback_in_the_block_that_opened_the_unit(
    uow: Shop, database: Database
) -> None:
    """They are real there, and a new transaction follows."""
    async with uow:
        await uow.items.add("a")
        await uow.commit()
        assert await database.observer.names() == ["a"]
        await uow.items.add("b")
        await uow.rollback()
        await uow.items.add("c")

    assert await database.observer.names() == ["a", "c"]


async def test_new_stands_alone(uow: Shop, database: Database) -> None:
    """Its work survives the rollback of the unit around it."""
    with pytest.raises(Boom):
        async with uow:
            outer = uow.session
            await outer.execute(select(Item))
            async with uow.new() as shop:
                assert uow.session is not outer
                if database.is_postgres:
                    await shop.items.add("kept")
            assert uow.session is outer
            raise Boom

    assert await database.observer.names() == (["kept"] if database.is_postgres else [])


async def test_block_in_a_generator_left_early_is_no_failure(uow: Shop, database: Database) -> None:
    """`break` out of a generator that joined the unit dooms nothing."""

    async def names() -> object:
        async with uow:
            for row in (await uow.session.execute(select(Item.name))).scalars():
                yield row

    async with uow:
        await uow.items.add("a")
        await uow.items.add("b")
        generator = names()
        async for _ in generator:  # type: ignore[attr-defined]
            break
        await generator.aclose()  # type: ignore[attr-defined]

    assert await database.observer.names() == ["a", "b"]


# --- joining and doom ----------------------------------------------------------------------


async def test_joined_block_ends_nothing(uow: Shop, database: Database) -> None:
    """Only who opened the unit ends it; `commit()` flushes."""
    async with uow:
        async with uow:
            uow.session.add(Item(name="a"))
            await uow.commit()
            assert await uow.session.scalar(select(Item.name)) == "a"
        assert await database.observer.names() == []

    assert await database.observer.names() == ["a"]


async def test_exception_that_leaves_a_joined_block_dooms_the_unit(
    uow: Shop, database: Database
) -> None:
    """Half the work is never committed, and who swallowed the exception hears of it."""
    with pytest.raises(UnitDoomedError, match="Boom") as caught:
        async with uow:
            await uow.items.add("a")
            try:
                async with uow:
                    await uow.items.add("b")
                    raise Boom
            except Boom:
                pass

    assert isinstance(caught.value.__cause__, Boom)
    assert caught.value.doom.cause is caught.value.__cause__
    assert await database.observer.names() == []


@pytest.mark.parametrize("used", [False, True])
async def test_cancellation_dooms_only_if_the_joined_block_had_used_the_session(
    uow: Shop, database: Database, used: bool
) -> None:
    """A cancelled wait harms nothing; cancelled work is incomplete."""

    async def child() -> None:
        async with uow:
            if used:
                await uow.items.add("b")
            await asyncio.get_running_loop().create_future()

    async def parent() -> None:
        async with uow:
            await uow.items.add("a")
            with pytest.raises(TimeoutError):
                async with asyncio.timeout(0.2):
                    await child()

    if used:
        with pytest.raises(UnitDoomedError):
            await parent()
    else:
        await parent()
    assert await database.observer.names() == ([] if used else ["a"])


async def test_joined_block_that_fails_in_a_savepoint_dooms_the_savepoint_alone(
    uow: Shop, database: Database
) -> None:
    """A service that joins may fail alone: its caller's savepoint undoes all it did."""
    async with uow:
        await uow.items.add("a")
        with pytest.raises(Boom):
            async with uow.savepoint():
                async with uow:
                    await uow.items.add("b")
                    raise Boom

    assert await database.observer.names() == ["a"]


async def test_joined_block_whose_failure_is_swallowed_in_a_savepoint_dooms_the_unit(
    uow: Shop, database: Database
) -> None:
    """A savepoint that is released has kept half the work."""
    with pytest.raises(UnitDoomedError, match="Boom"):
        async with uow:
            async with uow.savepoint():
                with pytest.raises(Boom):
                    async with uow:
                        await uow.items.add("b")
                        raise Boom

    assert await database.observer.names() == []


async def test_doom_of_a_savepoint_leaves_the_doom_around_it(uow: Shop, database: Database) -> None:
    """Undoing the one does not undo the other."""
    async with uow:
        uow.doom("a dry run")
        await uow.items.add("a")
        with pytest.raises(Boom):
            async with uow.savepoint():
                async with uow:
                    raise Boom

    assert await database.observer.names() == []


async def test_rollback_in_a_joined_block_dooms_the_unit(uow: Shop, database: Database) -> None:
    """It would erase its callers' work, so nobody may believe that all went well."""
    with pytest.raises(UnitDoomedError, match="rollback"):
        async with uow:
            await uow.items.add("a")
            async with uow:
                await uow.rollback()

    assert await database.observer.names() == []


async def test_doom_rolls_back_without_an_error(uow: Shop, database: Database) -> None:
    """The app wanted it: a dry run."""
    async with uow:
        await uow.items.add("a")
        uow.doom()

    assert await database.observer.names() == []


@pytest.mark.parametrize("wanted_first", [False, True])
async def test_doom_against_the_apps_will_outweighs_one_that_it_wanted(
    uow: Shop, database: Database, wanted_first: bool
) -> None:
    """Whichever came first: who swallowed the exception hears of it."""
    with pytest.raises(UnitDoomedError, match="Boom"):
        async with uow:
            await uow.items.add("a")
            if wanted_first:
                uow.doom()
            with pytest.raises(Boom):
                async with uow:
                    raise Boom
            if not wanted_first:
                uow.doom()

    assert await database.observer.names() == []


@pytest.mark.parametrize("by", ["session", "connection"])
async def test_doomed_unit_is_not_committed_by_hand(uow: Shop, database: Database, by: str) -> None:
    """However often the app tries."""
    with pytest.raises(UnitDoomedError):
        async with uow:
            await uow.items.add("a")
            with suppress(Boom):
                async with uow:
                    raise Boom
            for _ in range(2):
                with pytest.raises((UnitDoomedError, InvalidRequestError)):
                    if by == "session":
                        await uow.session.commit()
                    else:
                        await (await uow.session.connection()).commit()

    assert await database.observer.names() == []


async def test_doom_that_the_app_wanted_outlives_the_savepoint_it_was_called_in(
    uow: Shop, database: Database
) -> None:
    """What `doom()` promises is about the whole transaction."""
    async with uow:
        await uow.items.add("a")
        with pytest.raises(Boom):
            async with uow.savepoint():
                uow.doom()
                raise Boom

    assert await database.observer.names() == []


async def test_doom_belongs_to_one_transaction(uow: Shop, database: Database) -> None:
    """The next one of the same unit commits."""
    async with uow:
        await uow.items.add("a")
        uow.doom()
        await uow.rollback()
        await uow.items.add("b")

    assert await database.observer.names() == ["b"]


async def test_doom_ends_with_a_rollback_by_the_apps_own_hand(
    uow: Shop, database: Database
) -> None:
    """`session.rollback()` ends the transaction that was doomed."""
    async with uow:
        await uow.items.add("a")
        uow.doom()
        await uow.session.rollback()
        await uow.items.add("b")

    assert await database.observer.names() == ["b"]


@pytest.mark.parametrize("first", [False, True])
async def test_doomed_transaction_refuses_a_commit_by_hand(
    uow: Shop, database: Database, first: bool
) -> None:
    """`session.commit()` is no way around, even if the doom came before the session was made."""
    with pytest.raises(UnitDoomedError):
        async with uow:
            if first:
                uow.doom("a dry run")
            await uow.items.add("a")
            if not first:
                uow.doom("a dry run")
            await uow.session.commit()

    assert await database.observer.names() == []


async def test_explicit_session_rollback_starts_afresh(uow: Shop, database: Database) -> None:
    """get_or_create as everybody writes it: the failed try is undone, the rest is committed."""
    async with uow:
        await uow.items.add("a")
        await uow.session.commit()
        with pytest.raises(IntegrityError):
            await uow.items.add("a")
        await uow.session.rollback()
        await uow.items.add("b")

    assert await database.observer.names() == ["a", "b"]


async def test_failed_statement_that_was_swallowed(uow: Shop, database: Database) -> None:
    """PostgreSQL would answer COMMIT with ROLLBACK, silently; SQLite undid the statement alone."""

    async def work() -> None:
        async with uow:
            await uow.items.add("a")
            with pytest.raises(SQLAlchemyError):
                await uow.session.execute(text("select * from nowhere"))

    if database.is_postgres:
        with pytest.raises(UnitDoomedError, match="nowhere"):
            await work()
        assert await database.observer.names() == []
    else:
        await work()
        assert await database.observer.names() == ["a"]


async def test_failed_statement_in_a_savepoint_is_no_false_alarm(
    uow: Shop, database: Database
) -> None:
    """Nor is one undone by a hand-written ROLLBACK TO."""
    async with uow:
        await uow.items.add("a")
        with pytest.raises(SQLAlchemyError):
            async with uow.savepoint():
                await uow.session.execute(text("select * from nowhere"))
        await uow.session.execute(text("savepoint by_hand"))
        with pytest.raises(SQLAlchemyError):
            await uow.session.execute(text("select * from nowhere"))
        await uow.session.execute(text("rollback to by_hand"))

    assert await database.observer.names() == ["a"]


async def test_failed_row_of_a_stream_that_was_swallowed(uow: Shop, database: Database) -> None:
    """Errors while fetching arrive past the session, and are noted all the same."""
    if not database.is_postgres:
        pytest.skip("SQLite goes on after a failed statement")

    with pytest.raises(UnitDoomedError):
        async with uow:
            await uow.items.add("a")
            numbers = text("select 1 / (100 - n) from generate_series(1, 200) n")
            with pytest.raises(Exception, match="division by zero"):
                async for _ in await uow.session.stream(
                    numbers, execution_options={"yield_per": 10}
                ):
                    pass

    assert await database.observer.names() == []


async def test_sqlite_that_rolled_back_by_itself_is_noticed(
    uow: Shop, database: Database, engine: AsyncEngine
) -> None:
    """After RAISE(ROLLBACK) each further statement would be committed alone."""
    if database.is_postgres:
        pytest.skip("PostgreSQL never ends a transaction by itself")
    async with engine.begin() as connection:
        await connection.execute(
            text(
                "create trigger no_b before insert on items when new.name = 'b'"
                " begin select raise(rollback, 'no b'); end"
            )
        )

    with pytest.raises(UnitDoomedError, match="no b"):
        async with uow:
            await uow.items.add("a")
            with pytest.raises(SQLAlchemyError, match="no b"):
                await uow.session.execute(text("insert into items (name) values ('b')"))
            with pytest.raises(SQLAlchemyError):
                await uow.session.execute(text("insert into items (name) values ('c')"))

    assert await database.observer.names() == []


# --- savepoints and checkpoints ------------------------------------------------------------


async def test_savepoint_is_undone_alone(uow: Shop, database: Database) -> None:
    """What may fail alone."""
    async with uow:
        await uow.items.add("a")
        with pytest.raises(Boom):
            async with uow.savepoint() as shop:
                await shop.items.add("b")
                raise Boom
        async with uow.savepoint():
            await uow.items.add("c")

    assert await database.observer.names() == ["a", "c"]


async def test_checkpoint_commits_and_gives_the_connection_back(
    uow: Shop, database: Database, engine: AsyncEngine
) -> None:
    """The unit goes on in a new transaction."""
    with pytest.raises(Boom):
        async with uow:
            await uow.items.add("a")
            await uow.checkpoint()
            assert await database.observer.names() == ["a"]
            assert engine.pool.checkedout() == 0  # type: ignore[attr-defined]
            await uow.items.add("b")
            raise Boom

    assert await database.observer.names() == ["a"]


async def test_failed_checkpoint_dooms_the_rest(uow: Shop, database: Database) -> None:
    """The second half is never committed alone."""
    with pytest.raises(UnitDoomedError, match="checkpoint"):
        async with uow:
            uow.session.add(Part(item_id=999))
            with pytest.raises(IntegrityError):
                await uow.checkpoint()
            await uow.items.add("second half")

    assert await database.observer.names() == []


async def test_callbacks_of_a_failed_checkpoint_run_before_it_raises(uow: Shop) -> None:
    """They belong to the transaction that it ended, not to the end of the unit."""
    heard: list[str] = []

    with pytest.raises(UnitDoomedError):
        async with uow:
            uow.on_rollback(lambda: heard.append("rolled back"))
            uow.session.add(Part(item_id=999))
            with pytest.raises(IntegrityError):
                await uow.checkpoint()
            assert heard == ["rolled back"]

    assert heard == ["rolled back"]


async def test_checkpoint_in_a_savepoint_is_refused(uow: Shop, database: Database) -> None:
    """It would commit what may still be undone."""
    async with uow:
        async with uow.savepoint():
            await uow.items.add("a")
            with pytest.raises(SavepointOpenError):
                await uow.checkpoint()
        assert await database.observer.names() == []


# --- callbacks -----------------------------------------------------------------------------


async def test_callbacks_run_after_the_outcome_they_wait_for(
    uow: Shop, database: Database, engine: AsyncEngine
) -> None:
    """After a real commit, with the connection back, in order; sync and async alike."""
    heard: list[object] = []

    async def note() -> None:
        heard.append(await database.observer.names())
        heard.append(engine.pool.checkedout())  # type: ignore[attr-defined]

    async with uow:
        uow.on_rollback(lambda: heard.append("rolled back"))
        uow.on_commit(note)
        uow.on_commit(lambda: heard.append("committed"))
        await uow.items.add("a")
        async with uow:
            pass
        assert heard == []

    assert heard == [["a"], 0, "committed"]


@pytest.mark.parametrize("end", ["raises", "doomed", "refused", "aborted"])
async def test_callbacks_after_a_rollback(uow: Shop, database: Database, end: str) -> None:
    """`on_commit` never fires, `on_rollback` does."""
    heard: list[str] = []

    async def work() -> None:
        async with uow:
            uow.on_commit(lambda: heard.append("committed"))
            uow.on_rollback(lambda: heard.append("rolled back"))
            await uow.items.add("a")
            if end == "raises":
                raise Boom
            if end == "doomed":
                uow.doom()
            if end == "refused":
                uow.session.add(Part(item_id=999))
            if end == "aborted":
                try:
                    async with uow:
                        raise Boom
                except Boom:
                    pass

    try:
        await work()
    except (Boom, IntegrityError, UnitDoomedError):
        pass

    assert heard == ["rolled back"]


async def test_callbacks_of_a_savepoint_that_is_undone_are_dropped(uow: Shop) -> None:
    """Also those of a savepoint released inside it, and with plain `begin_nested()`."""
    heard: list[str] = []

    async with uow:
        uow.on_commit(lambda: heard.append("before"))
        with pytest.raises(Boom):
            async with uow.session.begin_nested():
                uow.on_commit(lambda: heard.append("outer"))
                uow.on_rollback(lambda: heard.append("outer undone"))
                async with uow.savepoint():
                    uow.on_commit(lambda: heard.append("inner"))
                raise Boom
        async with uow.savepoint():
            uow.on_commit(lambda: heard.append("released"))

    assert heard == ["before", "released"]


async def test_callback_of_another_task_survives_a_savepoint_that_is_undone(uow: Shop) -> None:
    """Only what was registered inside the savepoint goes with it."""
    heard: list[str] = []
    opened, registered = asyncio.Event(), asyncio.Event()

    async def fail_in_a_savepoint() -> None:
        with pytest.raises(Boom):
            async with uow.savepoint():
                uow.on_commit(lambda: heard.append("inside"))
                opened.set()
                await registered.wait()
                raise Boom

    async def register() -> None:
        await opened.wait()
        uow.on_commit(lambda: heard.append("outside"))
        registered.set()

    async with uow:
        await asyncio.gather(fail_in_a_savepoint(), register())

    assert heard == ["outside"]


async def test_callback_without_any_statement(uow: Shop) -> None:
    """A unit that never touched the database has outcomes, too."""
    heard: list[str] = []

    async with uow:
        uow.on_commit(lambda: heard.append("committed"))
    with pytest.raises(Boom):
        async with uow:
            uow.on_rollback(lambda: heard.append("rolled back"))
            raise Boom

    assert heard == ["committed", "rolled back"]


async def test_callback_that_uses_the_session_gets_its_own_transaction(
    uow: Shop, database: Database
) -> None:
    """Committed if it returns, rolled back if it raises; the next callback runs all the same."""
    heard: list[str] = []

    async def log() -> None:
        await uow.items.add("log")
        uow.on_commit(lambda: heard.append("log committed"))

    async def fail() -> None:
        await uow.items.add("lost")
        uow.on_commit(lambda: heard.append("never"))
        raise Boom

    async with uow:
        await uow.items.add("a")
        uow.on_commit(fail)
        uow.on_commit(log)

    assert await database.observer.names() == ["a", "log"]
    assert heard == ["log committed"]


async def test_callback_that_fails_is_logged(
    uow: Shop, database: Database, caplog: pytest.LogCaptureFixture
) -> None:
    """It changes nothing: the unit is committed."""

    def fail() -> None:
        raise Boom

    async with uow:
        await uow.items.add("a")
        uow.on_commit(fail)

    assert await database.observer.names() == ["a"]
    assert "fail" in caplog.text
    assert "Boom" in caplog.text


async def test_callback_that_takes_too_long_is_given_up(
    sessions: async_sessionmaker[AsyncSession], caplog: pytest.LogCaptureFixture
) -> None:
    """A mail server that hangs must not keep the client waiting."""
    uow = UnitOfWork(sessions, callback_timeout=0.05)

    async with uow:
        uow.on_commit(asyncio.get_running_loop().create_future().__await__)
        uow.on_commit(lambda: asyncio.get_running_loop().create_future())

    assert "TimeoutError" in caplog.text


async def test_callbacks_of_a_commit_by_the_apps_own_hand(uow: Shop, database: Database) -> None:
    """`session.commit()` is a commit: what waited for it fires, whatever happens afterwards."""
    heard: list[str] = []

    with pytest.raises(Boom):
        async with uow:
            await uow.items.add("a")
            uow.on_commit(lambda: heard.append("committed"))
            await uow.session.commit()
            uow.on_commit(lambda: heard.append("never"))
            raise Boom

    assert heard == ["committed"]
    assert await database.observer.names() == ["a"]


async def test_callbacks_of_a_rollback_by_the_apps_own_hand(uow: Shop) -> None:
    """`session.rollback()` is a rollback: a later commit does not fire them."""
    heard: list[str] = []

    async with uow:
        await uow.items.add("a")
        uow.on_commit(lambda: heard.append("never"))
        await uow.session.rollback()
        await uow.items.add("b")

    assert heard == []


# --- transactional -------------------------------------------------------------------------


async def test_propagation_required(uow: Shop, database: Database) -> None:
    """Joins, or opens."""

    @uow.transactional()
    async def work(name: str) -> AsyncSession:
        """Adds an item."""
        await uow.items.add(name)
        return uow.session

    await work("a")
    assert await database.observer.names() == ["a"]
    async with uow:
        assert await work("b") is uow.session
        assert await database.observer.names() == ["a"]
    assert await database.observer.names() == ["a", "b"]
    assert work.__name__ == "work"
    assert work.__doc__ == "Adds an item."


async def test_propagation_new(uow: Shop) -> None:
    """Always a unit of its own."""

    @uow.transactional(propagation="new")
    async def work() -> AsyncSession:
        return uow.session

    async with uow:
        assert await work() is not uow.session


async def test_propagation_savepoint(uow: Shop, database: Database) -> None:
    """Undone alone in an open unit; a unit of its own elsewhere."""

    @uow.transactional(propagation="savepoint")
    async def work(name: str) -> None:
        await uow.items.add(name)
        if name == "b":
            raise Boom

    async with uow:
        await uow.items.add("a")
        with pytest.raises(Boom):
            await work("b")
    await work("c")

    assert await database.observer.names() == ["a", "c"]


async def test_propagation_mandatory(uow: Shop) -> None:
    """Never opens."""

    @uow.transactional(propagation="mandatory")
    async def work() -> AsyncSession:
        return uow.session

    with pytest.raises(NoUnitError):
        await work()
    async with uow:
        assert await work() is uow.session


async def test_propagation_never(uow: Shop) -> None:
    """Refuses to run inside a unit."""

    @uow.transactional(propagation="never")
    async def work() -> str:
        return "done"

    assert await work() == "done"
    async with uow:
        with pytest.raises(UnitOpenError, match="work"):
            await work()


async def test_isolation_level(uow: Shop, database: Database) -> None:
    """Of the transaction that is opened, or joined before its first statement."""
    if not database.is_postgres:
        pytest.skip("SQLite is always serializable")

    @uow.transactional(isolation_level="SERIALIZABLE")
    async def level() -> object:
        return await uow.session.scalar(text("show transaction_isolation"))

    assert await level() == "serializable"
    async with uow:
        assert await level() == "serializable"
        assert await level() == "serializable"
    async with uow:
        assert await uow.session.scalar(text("show transaction_isolation")) == "read committed"
        with pytest.raises(TransactionStartedError, match="SERIALIZABLE"):
            await level()
        await uow.checkpoint()
        assert await level() == "serializable"
    async with uow.new(isolation_level="REPEATABLE READ"):
        assert await uow.session.scalar(text("show transaction_isolation")) == "repeatable read"
    async with uow:
        assert await uow.session.scalar(text("show transaction_isolation")) == "read committed"


async def test_read_only(uow: Shop, database: Database) -> None:
    """PostgreSQL refuses the write; SQLite lets another connection write meanwhile."""
    if database.is_postgres:
        with pytest.raises(SQLAlchemyError, match="read-only"):
            async with uow.new(read_only=True):
                await uow.items.add("a")
        return
    async with uow.new(read_only=True):
        await uow.session.execute(select(Item))
        async with uow.new():
            await uow.items.add("a")

    assert await database.observer.names() == ["a"]


# --- the end -------------------------------------------------------------------------------


async def test_session_refuses_use_after_the_end(uow: Shop, database: Database) -> None:
    """It says when the unit ended and how; a plain closed session would begin a transaction."""
    async with uow:
        session = uow.session
        await uow.items.add("a")

    with pytest.raises(UnitEndedError, match="committed"):
        await session.execute(select(Item))
    with pytest.raises(UnitEndedError):
        session.add(Item(name="b"))
    assert await database.observer.names() == ["a"]


async def test_object_of_an_ended_unit_may_be_added_to_the_next(
    uow: Shop, database: Database
) -> None:
    """It is detached, as after the end of a plain session."""
    async with uow:
        item = await uow.items.add("a")
    async with uow:
        uow.session.add(item)
        item.name = "b"

    assert await database.observer.names() == ["b"]


async def test_task_that_outlives_its_unit(uow: Shop, database: Database) -> None:
    """It gets the error; a block of its own opens a new unit."""
    ended = asyncio.Event()

    async def stray() -> None:
        await ended.wait()
        with pytest.raises(UnitEndedError):
            current_session()
        with pytest.raises(UnitEndedError):
            _ = uow.session
        async with uow:
            await uow.items.add("of its own")

    async with uow:
        await uow.items.add("a")
        task = asyncio.create_task(stray())
    ended.set()
    await task

    assert await database.observer.names() == ["a", "of its own"]


async def test_block_left_in_a_copied_context(uow: Shop, database: Database) -> None:
    """The session's own context managers do that; no token is ever reset."""
    async with uow, uow.new() as shop:
        await shop.items.add("a") if database.is_postgres else None
        leave = asyncio.create_task(_nothing())
        await leave
    new = uow.new()
    await new.__aenter__()
    await uow.items.add("b")
    await asyncio.create_task(new.__aexit__(None, None, None))
    from starlette_uow.context import current_frame

    current_frame.set(None)  # the frame of this context, which the other task could not reach
    assert "b" in await database.observer.names()


async def _nothing() -> None:
    return None
