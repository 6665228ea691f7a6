"""Tasks, exclusive blocks and threads that share a unit's session, and units that share a pool."""

from __future__ import annotations

import asyncio
import contextvars
import threading
from collections.abc import AsyncIterator
from typing import Any

import anyio
import anyio.to_thread
import pytest
from fastapi import BackgroundTasks, Depends, FastAPI, HTTPException
from sqlalchemy import select
from sqlalchemy.exc import IntegrityError
from sqlalchemy.exc import TimeoutError as PoolTimeoutError
from sqlalchemy.ext.asyncio import AsyncSession, async_sessionmaker
from sqlalchemy.orm import Session
from starlette.applications import Starlette
from starlette.background import BackgroundTask
from starlette.concurrency import run_in_threadpool
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response
from starlette.routing import Route

from starlette_uow import (
    ConfigurationError,
    NoUnitError,
    SessionDeadlockError,
    UnitDoomedError,
    UnitEndedError,
    UnitOfWork,
    UnitOfWorkMiddleware,
    WrongThreadError,
    create_engine,
    current_session,
)
from tests.asgi import Exchange, layers
from tests.databases import Database
from tests.models import Item
from tests.scenarios import TASKS, fill, seed, step


class Boom(Exception):
    """What the tasks of these tests raise."""


async def write(uow: UnitOfWork, name: str) -> None:
    uow.session.add(Item(name=name))
    await uow.session.flush()


def make_app(uow: UnitOfWork, endpoint: Any, count: int = 0) -> Starlette:
    return Starlette(
        routes=[Route("/", endpoint, methods=["GET", "POST"])],
        middleware=[Middleware(UnitOfWorkMiddleware, uow=uow), *layers(count)],
    )


# --- task groups ---------------------------------------------------------------------------


async def test_tasks_are_finished_before_the_unit_ends(uow: UnitOfWork, database: Database) -> None:
    """What they wrote is committed with it, and not before."""

    async def late(name: str) -> None:
        await step(20)
        await write(uow, name)

    async with uow:
        async with uow.tasks() as tg:
            tg.start_soon(late, "a")
            tg.start_soon(late, "b", name="named")
        assert await database.observer.names() == []

    assert await database.observer.names() == ["a", "b"]


@pytest.mark.parametrize("count", [0, 1, 2])
async def test_tasks_of_a_request(uow: UnitOfWork, database: Database, count: int) -> None:
    """They share its unit, also below BaseHTTPMiddlewares."""

    async def endpoint(request: Request) -> Response:
        async with uow.tasks(limit=3) as tg:
            for number in range(TASKS):
                tg.start_soon(write, uow, f"{number:02}")
        return PlainTextResponse("answer", 201)

    exchange = await Exchange(make_app(uow, endpoint, count), database.observer).run()

    assert exchange.status == 201
    assert exchange.events[0][2] == [f"{number:02}" for number in range(TASKS)]


@pytest.mark.parametrize("limit", [None, 2])
async def test_failing_task_cancels_its_siblings(
    uow: UnitOfWork, database: Database, limit: int | None
) -> None:
    """The unit rolls back, and the error goes up in a group, as anyio has it."""
    cancelled: list[str] = []

    async def fail() -> None:
        await write(uow, "failed")
        raise Boom

    async def wait() -> None:
        try:
            await anyio.sleep_forever()
        except asyncio.CancelledError:
            cancelled.append("sibling")
            raise

    async def work() -> None:
        async with uow:
            await write(uow, "before")
            async with uow.tasks(limit=limit) as tg:
                tg.start_soon(wait)
                tg.start_soon(fail)

    with pytest.raises(ExceptionGroup) as raised:
        await work()

    assert [type(error) for error in raised.value.exceptions] == [Boom]
    assert cancelled == ["sibling"]
    assert await database.observer.names() == []


async def test_swallowed_failure_of_a_task_dooms_the_unit(
    uow: UnitOfWork, database: Database
) -> None:
    """Half of the work is never committed behind a 201."""

    async def fail() -> None:
        await write(uow, "half")
        raise Boom

    async def endpoint(request: Request) -> Response:
        try:
            async with uow.tasks() as tg:
                tg.start_soon(fail)
        except* Boom:
            pass
        return PlainTextResponse("answer", 201)

    exchange = await Exchange(make_app(uow, endpoint), database.observer).run()

    assert exchange.status == 500
    assert isinstance(exchange.error, UnitDoomedError)
    assert await database.observer.names() == []


async def test_failing_body_cancels_the_tasks(uow: UnitOfWork, database: Database) -> None:
    """An error of the block itself counts as one of a task."""

    async def work() -> None:
        async with uow, uow.tasks() as tg:
            tg.start_soon(anyio.sleep_forever)
            await write(uow, "a")
            raise Boom

    with pytest.raises(ExceptionGroup) as raised:
        await work()

    assert raised.group_contains(Boom)
    assert await database.observer.names() == []


async def test_cancelled_parent_cancels_its_tasks(uow: UnitOfWork, database: Database) -> None:
    """And waits for them, so that none meets a unit that has ended."""
    started = anyio.Event()
    ended: list[type[BaseException]] = []

    async def child() -> None:
        await write(uow, "child")
        started.set()
        try:
            await anyio.sleep_forever()
        except BaseException as error:
            ended.append(type(error))
            raise

    async def parent() -> None:
        async with uow, uow.tasks() as tg:
            tg.start_soon(child)

    task = asyncio.create_task(parent())
    await started.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task

    assert ended == [asyncio.CancelledError]
    assert await database.observer.names() == []


async def test_tasks_stopped_by_their_scope_do_no_harm(uow: UnitOfWork, database: Database) -> None:
    """`cancel_scope.cancel()` is a normal end of the block, as in anyio."""
    async with uow:
        await write(uow, "before")
        async with uow.tasks() as tg:
            tg.start_soon(anyio.sleep_forever)
            tg.cancel_scope.cancel()
        await write(uow, "after")

    assert await database.observer.names() == ["after", "before"]


async def test_nested_groups(uow: UnitOfWork, database: Database) -> None:
    """A task may open a group of its own, whose limit is its own."""

    async def outer(number: int) -> None:
        async with uow.tasks(limit=1) as tg:
            for letter in "ab":
                tg.start_soon(write, uow, f"{number}{letter}")

    async with uow, uow.tasks(limit=2) as tg:
        for number in range(4):
            tg.start_soon(outer, number)

    assert await database.observer.names() == [f"{n}{letter}" for n in range(4) for letter in "ab"]


async def test_failure_in_a_nested_group_goes_all_the_way_up(
    uow: UnitOfWork, database: Database
) -> None:
    """In one group for each level."""

    async def fail() -> None:
        raise Boom

    async def outer() -> None:
        async with uow.tasks() as tg:
            tg.start_soon(fail)

    async def work() -> None:
        async with uow, uow.tasks() as tg:
            tg.start_soon(write, uow, "a")
            tg.start_soon(outer)

    with pytest.raises(ExceptionGroup) as raised:
        await work()

    assert raised.group_contains(Boom, depth=2)
    assert await database.observer.names() == []


@pytest.mark.parametrize("limit", [1, 3, None])
async def test_limit_is_respected(uow: UnitOfWork, limit: int | None) -> None:
    """And used up: so many run at once, and never more."""
    running = 0
    most = 0

    async def work() -> None:
        nonlocal running, most
        running += 1
        most = max(most, running)
        await uow.session.execute(select(Item))
        await step(3)
        running -= 1

    async with uow, uow.tasks(limit=limit) as tg:
        for _ in range(TASKS):
            tg.start_soon(work)

    assert most == (limit or TASKS)


async def test_task_that_may_fail_alone_has_its_savepoint(
    uow: UnitOfWork, database: Database
) -> None:
    """And handles its own error."""

    async def attempt(name: str) -> None:
        try:
            async with uow.savepoint():
                await write(uow, name)
                if name == "bad":
                    raise Boom
        except Boom:
            pass

    async with uow, uow.tasks() as tg:
        for name in ("a", "bad", "b"):
            tg.start_soon(attempt, name)

    assert await database.observer.names() == ["a", "b"]


async def test_commit_in_a_task_flushes(uow: UnitOfWork, database: Database) -> None:
    """The tasks' block joined the unit: none of them commits what the others have half done."""

    async def commit() -> None:
        uow.session.add(Item(name="a"))
        await uow.commit()
        assert await database.observer.names() == []

    async with uow, uow.tasks() as tg:
        tg.start_soon(commit)

    assert await database.observer.names() == ["a"]


@pytest.mark.parametrize("limit", [0, -1, 1.5, "2"])
async def test_limit_that_cannot_be(uow: UnitOfWork, limit: Any) -> None:
    """It is refused at the call."""
    async with uow:
        with pytest.raises(ConfigurationError, match="at least 1"):
            uow.tasks(limit=limit)


async def test_tasks_without_a_unit(uow: UnitOfWork) -> None:
    """There is nothing to work in, and no unit is opened for it."""
    with pytest.raises(NoUnitError):
        async with uow.tasks():
            pass


# --- exclusive blocks ----------------------------------------------------------------------


async def test_counting_in_exclusive_blocks_loses_nothing(
    uow: UnitOfWork, database: Database
) -> None:
    """Twenty tasks read, wait and write one object."""

    async def count() -> None:
        async with uow.exclusive() as same:
            assert same is uow
            await uow.session.refresh(counter)
            value = int(counter.name)
            await step(3)
            counter.name = str(value + 1)
            await uow.session.flush()

    async with uow:
        counter = Item(name="0")
        uow.session.add(counter)
        await uow.session.flush()
        async with uow.tasks() as tg:
            for _ in range(TASKS):
                tg.start_soon(count)

    assert await database.observer.names() == [str(TASKS)]


@pytest.mark.parametrize("flush", [True, False])
async def test_changes_in_exclusive_blocks_are_not_lost_in_a_flush(
    uow: UnitOfWork, database: Database, flush: bool
) -> None:
    """Each task changes an object that the others' flushes write, too."""
    await fill(database)

    async def change(item: Item) -> None:
        for _ in range(3):
            async with uow.exclusive():
                item.name += "!"
                if flush:
                    await uow.session.flush()
            await uow.session.flush()

    async with uow:
        items = (await uow.session.scalars(select(Item))).all()
        async with uow.tasks() as tg:
            for item in items:
                tg.start_soon(change, item)

    assert await database.observer.names() == [f"{seed(number)}!!!" for number in range(TASKS)]


async def test_those_inside_an_exclusive_block_use_the_session_freely(uow: UnitOfWork) -> None:
    """Its task, a savepoint, a block in the block, the tasks it starts."""
    order: list[str] = []

    async def read(name: str) -> None:
        await uow.session.execute(select(Item))
        order.append(name)

    async with uow:
        async with uow.exclusive():
            async with uow.tasks() as tg:
                tg.start_soon(read, "task")
            await asyncio.create_task(read("asyncio task"))
            async with uow.savepoint():
                await read("savepoint")
            async with uow.exclusive():
                await read("nested")
        await read("after")

    assert order == ["task", "asyncio task", "savepoint", "nested", "after"]


async def test_task_outside_of_an_exclusive_block_waits(uow: UnitOfWork) -> None:
    """Until the block is left, although the session is idle meanwhile."""
    order: list[str] = []
    entered = anyio.Event()

    async def outside() -> None:
        await entered.wait()
        await uow.session.execute(select(Item))
        order.append("outside")

    async with uow, uow.tasks() as tg:
        tg.start_soon(outside)
        async with uow.exclusive():
            entered.set()
            await step(20)
            await uow.session.execute(select(Item))
            order.append("inside")

    assert order == ["inside", "outside"]


async def test_exclusive_block_is_left_although_cancelled(
    uow: UnitOfWork, database: Database
) -> None:
    """By anyio's scopes, which cancel again at every await, as by `task.cancel()`."""
    entered = anyio.Event()

    async def native() -> None:
        async with uow.exclusive():
            entered.set()
            await anyio.sleep_forever()

    async with uow:
        with anyio.CancelScope() as scope:
            async with uow.exclusive():
                scope.cancel()
                await anyio.sleep_forever()
        await asyncio.create_task(write(uow, "a"))
        task = asyncio.create_task(native())
        await entered.wait()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        await write(uow, "b")

    assert await database.observer.names() == ["a", "b"]


async def test_cancelled_entry_of_an_exclusive_block_costs_nobody_anything(
    uow: UnitOfWork, database: Database
) -> None:
    """The turn goes to the next."""

    async def enter() -> None:
        async with uow.exclusive():
            pytest.fail("entered while another task owned the session")

    async def hold() -> None:
        async with uow.exclusive():
            entered.set()
            await release.wait()

    entered, release = anyio.Event(), anyio.Event()
    async with uow:
        holder = asyncio.create_task(hold())
        await entered.wait()
        waiter = asyncio.create_task(enter())
        last = asyncio.create_task(write(uow, "a"))
        await step()
        waiter.cancel()
        release.set()
        await asyncio.gather(holder, last)

    assert waiter.cancelled()
    assert await database.observer.names() == ["a"]


async def test_savepoint_that_outlives_an_exclusive_block_is_still_its_tasks(
    uow: UnitOfWork, database: Database
) -> None:
    """The end of the block does not let others write into it."""
    opened, failing = anyio.Event(), anyio.Event()

    async def fail() -> None:
        async with uow.savepoint():
            await write(uow, "undone")
            opened.set()
            await failing.wait()
            raise Boom

    async with uow:
        async with uow.exclusive():
            task = asyncio.create_task(fail())
            await opened.wait()
        kept = asyncio.create_task(write(uow, "kept"))
        await step(5)
        failing.set()
        with pytest.raises(Boom):
            await task
        await kept

    assert await database.observer.names() == ["kept"]


async def test_exclusive_block_that_waits_for_a_task_outside_of_it_is_told(
    sessions: async_sessionmaker[AsyncSession],
) -> None:
    """Instead of a hang; the message names the block."""
    uow = UnitOfWork(sessions, wait_timeout=0.1)
    entered = anyio.Event()

    async def outside() -> None:
        await entered.wait()
        await uow.session.execute(select(Item))

    async with uow:
        task = asyncio.create_task(outside())
        async with uow.exclusive():
            entered.set()
            with pytest.raises(SessionDeadlockError, match="tasks that an exclusive block waits"):
                await task


async def test_unit_may_end_inside_an_exclusive_block(uow: UnitOfWork, database: Database) -> None:
    """There is nothing left to own."""
    async with uow.new():
        block = uow.exclusive()
        await block.__aenter__()
        await write(uow, "a")
    await block.__aexit__(None, None, None)

    assert await database.observer.names() == ["a"]


async def test_exclusive_block_without_a_unit(uow: UnitOfWork) -> None:
    """There is no session to own."""
    with pytest.raises(NoUnitError):
        async with uow.exclusive():
            pass


# --- worker threads ------------------------------------------------------------------------


def write_sync(session: Session, name: str) -> str:
    session.add(Item(name=name))
    session.flush()
    return name


def names_sync(session: Session) -> list[str]:
    return list(session.scalars(select(Item.name).order_by(Item.name)))


@pytest.mark.parametrize("count", [0, 1])
@pytest.mark.parametrize(
    ("status", "stored"), [(201, ["a", "b"]), (303, ["a", "b"]), (409, []), (500, [])]
)
async def test_synchronous_endpoint_of_starlette(
    uow: UnitOfWork, database: Database, status: int, stored: list[str], count: int
) -> None:
    """It reads and writes in the request's unit, and the rule applies to it."""
    threads: list[int] = []

    def endpoint(request: Request) -> Response:
        threads.append(threading.get_ident())
        uow.run_sync(write_sync, "a")
        uow.run_sync(write_sync, name="b")
        return PlainTextResponse(",".join(uow.run_sync(names_sync)), status)

    exchange = await Exchange(make_app(uow, endpoint, count), database.observer).run()

    assert threads != [threading.get_ident()]
    assert (exchange.status, exchange.text) == (status, "a,b")
    assert exchange.events[0][2] == stored


async def test_synchronous_endpoint_that_raises_is_rolled_back(
    uow: UnitOfWork, database: Database
) -> None:
    """What the function raised arrives in the thread, untouched."""
    caught: list[type[Exception]] = []

    def endpoint(request: Request) -> Response:
        uow.run_sync(write_sync, "a")
        try:
            uow.run_sync(write_sync, "a")
        except IntegrityError as error:
            caught.append(type(error))
            raise
        raise AssertionError

    exchange = await Exchange(make_app(uow, endpoint), database.observer).run()

    assert caught == [IntegrityError]
    assert isinstance(exchange.error, IntegrityError)
    assert await database.observer.names() == []


async def test_synchronous_background_task(uow: UnitOfWork, database: Database) -> None:
    """It has the transaction of the background tasks."""

    def background() -> None:
        uow.run_sync(write_sync, "background")

    def endpoint(request: Request) -> Response:
        return PlainTextResponse("answer", 201, background=BackgroundTask(background))

    exchange = await Exchange(make_app(uow, endpoint), database.observer).run()

    assert exchange.events[-1][-1] == []
    assert await database.observer.names() == ["background"]


@pytest.mark.parametrize(("status", "stored"), [(201, True), (422, False)])
async def test_synchronous_endpoint_of_fastapi(
    uow: UnitOfWork, database: Database, status: int, stored: bool
) -> None:
    """With dependencies of both kinds, and a background task, in one unit."""
    app = FastAPI()
    app.add_middleware(UnitOfWorkMiddleware, uow=uow)

    async def in_the_loop() -> None:
        await write(uow, "async dependency")

    def in_a_thread() -> Any:
        yield uow.run_sync(write_sync, "dependency")

    def background() -> None:
        uow.run_sync(write_sync, "background")

    @app.post("/", status_code=201, dependencies=[Depends(in_the_loop)])
    def endpoint(tasks: BackgroundTasks, name: str = Depends(in_a_thread)) -> list[str]:
        assert name == "dependency"
        uow.run_sync(write_sync, "endpoint")
        tasks.add_task(background)
        if status >= 400:
            raise HTTPException(status)
        return uow.run_sync(names_sync)

    exchange = await Exchange(app, database.observer).run(method="POST")

    names = ["async dependency", "dependency", "endpoint"]
    assert exchange.status == status
    assert exchange.events[0][2] == (names if stored else [])
    assert await database.observer.names() == (sorted([*names, "background"]) if stored else [])


async def test_threads_take_turns_on_the_session(uow: UnitOfWork, database: Database) -> None:
    """Many threads and tasks of one unit at once."""

    async def in_a_thread(name: str) -> None:
        assert await run_in_threadpool(uow.run_sync, write_sync, name) == name

    async with uow, uow.tasks() as tg:
        for number in range(10):
            tg.start_soon(in_a_thread, f"thread {number}")
            tg.start_soon(write, uow, f"task {number}")

    names = [f"{kind} {number}" for kind in ("task", "thread") for number in range(10)]
    assert await database.observer.names() == names


async def test_thread_started_in_a_savepoint_is_inside_of_it(
    uow: UnitOfWork, database: Database
) -> None:
    """Its context is a copy, as a task's is."""
    async with uow:
        with pytest.raises(Boom):
            async with uow.savepoint():
                await run_in_threadpool(uow.run_sync, write_sync, "undone")
                raise Boom
        async with uow.exclusive():
            await run_in_threadpool(uow.run_sync, write_sync, "kept")

    assert await database.observer.names() == ["kept"]


async def test_function_on_the_loop_sees_the_context_of_the_thread(uow: UnitOfWork) -> None:
    """Which is the request's, with what the endpoint added to it."""
    variable = contextvars.ContextVar("variable", default="")

    def in_the_loop(session: Session) -> tuple[str, bool, int]:
        same = session is current_session().sync_session
        return variable.get(), same, threading.get_ident()

    def in_a_thread() -> tuple[str, bool, int]:
        variable.set(variable.get() + " thread")
        return uow.run_sync(in_the_loop)

    async with uow:
        variable.set("request")
        seen = await anyio.to_thread.run_sync(in_a_thread)

    assert seen == ("request thread", True, threading.get_ident())


async def test_runtime_error_of_the_function_is_its_own(uow: UnitOfWork) -> None:
    """It is not taken for a thread that cannot reach the loop."""

    def fail(session: Session) -> None:
        raise RuntimeError("mine")

    async with uow:
        with pytest.raises(RuntimeError, match="mine"):
            await run_in_threadpool(uow.run_sync, fail)


async def test_run_sync_on_the_event_loop(uow: UnitOfWork) -> None:
    """It would block the loop for ever; the message says what to write instead."""
    async with uow:
        with pytest.raises(WrongThreadError, match=r"await uow\.session\.run_sync"):
            uow.run_sync(names_sync)
        with pytest.raises(WrongThreadError, match=r"await uow\.session\.run_sync"):
            await run_in_threadpool(uow.run_sync, lambda session: uow.run_sync(names_sync))


async def test_run_sync_in_a_thread_of_somebody_else(uow: UnitOfWork) -> None:
    """It cannot find the event loop, and says who would start it properly."""
    async with uow:
        with pytest.raises(WrongThreadError, match="run_in_threadpool"):
            await asyncio.to_thread(uow.run_sync, names_sync)


async def test_run_sync_in_a_loop_in_a_thread(uow: UnitOfWork) -> None:
    """`asyncio.run()` in a synchronous endpoint is a loop of its own."""

    async def inner() -> list[str]:
        return uow.run_sync(names_sync)

    async with uow:
        with pytest.raises(WrongThreadError):
            await run_in_threadpool(lambda: asyncio.run(inner()))


async def test_session_in_a_thread_names_the_remedy(uow: UnitOfWork) -> None:
    """Whoever reaches for the session itself is sent to `run_sync()`."""
    async with uow:
        with pytest.raises(WrongThreadError, match=r"uow\.run_sync\(function\)"):
            await run_in_threadpool(lambda: uow.session)


async def test_run_sync_without_a_unit(uow: UnitOfWork) -> None:
    """As anywhere else."""
    with pytest.raises(NoUnitError):
        await run_in_threadpool(uow.run_sync, names_sync)


async def test_run_sync_of_a_coroutine_function(uow: UnitOfWork) -> None:
    """Nobody would await it."""

    async def function(session: Session) -> None: ...

    run_sync: Any = uow.run_sync
    async with uow:
        with pytest.raises(ConfigurationError, match="synchronous function"):
            await run_in_threadpool(run_sync, function)


async def test_thread_that_outlives_its_request_is_refused(
    uow: UnitOfWork, database: Database
) -> None:
    """A cancelled request does not wait for its thread, and what the thread did is undone."""
    written, go_on, done = anyio.Event(), threading.Event(), anyio.Event()
    loop = asyncio.get_running_loop()
    errors: list[type[BaseException]] = []

    def in_a_thread() -> None:
        uow.run_sync(write_sync, "a")
        loop.call_soon_threadsafe(written.set)
        go_on.wait()
        try:
            uow.run_sync(write_sync, "b")
        except UnitEndedError as error:
            errors.append(type(error))
        loop.call_soon_threadsafe(done.set)

    async def request() -> None:
        async with uow:
            await run_in_threadpool(in_a_thread)

    task = asyncio.create_task(request())
    await written.wait()
    task.cancel()
    await asyncio.wait({task})
    go_on.set()
    await done.wait()

    assert task.cancelled()
    assert errors == [UnitEndedError]
    assert await database.observer.names() == []


# --- a pool that is used up ----------------------------------------------------------------


@pytest.fixture
async def tight(database: Database) -> AsyncIterator[UnitOfWork]:
    """A pool of one connection that nobody waits for long."""
    engine = create_engine(database.url, pool_size=1, max_overflow=0, pool_timeout=0.1)
    yield UnitOfWork(async_sessionmaker(engine, expire_on_commit=False))
    assert engine.pool.checkedout() == 0  # type: ignore[attr-defined]
    await engine.dispose()


@pytest.mark.parametrize("operation", ["execute", "flush", "savepoint", "run_sync"])
async def test_pool_that_the_request_itself_used_up_is_explained(
    tight: UnitOfWork, operation: str, database: Database
) -> None:
    """The error is SQLAlchemy's own, with a note that names the units and the remedy."""

    async def use() -> None:
        if operation == "execute":
            await tight.session.execute(select(Item))
        elif operation == "flush":
            await write(tight, "b")
        elif operation == "run_sync":
            await run_in_threadpool(tight.run_sync, names_sync)
        else:
            async with tight.savepoint():
                await tight.session.execute(select(Item))

    async def endpoint(request: Request) -> Response:
        await write(tight, "a")
        async with tight.new():
            await use()
        raise AssertionError

    exchange = await Exchange(make_app(tight, endpoint), database.observer).run()

    assert isinstance(exchange.error, PoolTimeoutError)
    (note,) = exchange.error.__notes__
    assert "held around it by GET /, which" in note
    assert "await uow.checkpoint()" in note
    assert await database.observer.names() == []


async def test_pool_that_others_used_up_is_not_the_requests_doing(tight: UnitOfWork) -> None:
    """No note: a larger pool is the only remedy, and SQLAlchemy says so."""
    connected, leave = anyio.Event(), anyio.Event()

    async def other() -> None:
        async with tight:
            await tight.session.execute(select(Item))
            connected.set()
            await leave.wait()

    task = asyncio.create_task(other())
    await connected.wait()
    with pytest.raises(PoolTimeoutError) as raised:
        async with tight, tight.new():
            await tight.session.execute(select(Item))
    leave.set()
    await task

    assert not hasattr(raised.value, "__notes__")


async def test_pool_used_up_on_an_excluded_path(tight: UnitOfWork, database: Database) -> None:
    """Blocks are named as blocks, where no request has a unit."""

    async def endpoint(request: Request) -> Response:
        async with tight:
            await write(tight, "a")
            async with tight.new():
                await write(tight, "b")
        raise AssertionError

    app = UnitOfWorkMiddleware(Starlette(routes=[Route("/", endpoint)]), uow=tight, exclude=["/"])
    exchange = await Exchange(app, database.observer).run()

    assert isinstance(exchange.error, PoolTimeoutError)
    assert "around it by an `async with` block, which" in exchange.error.__notes__[0]


async def test_checkpoint_gives_the_connection_to_a_nested_unit(
    tight: UnitOfWork, database: Database
) -> None:
    """The remedy that the note names."""
    async with tight:
        await write(tight, "a")
        await tight.checkpoint()
        async with tight.new():
            await write(tight, "b")

    assert await database.observer.names() == ["a", "b"]
