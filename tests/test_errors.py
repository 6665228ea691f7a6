"""Each misuse gets its own error at once, whose message states the fact and the remedy."""

from __future__ import annotations

import asyncio
import inspect
from collections.abc import Callable
from typing import Any

import anyio
import pytest
from sqlalchemy import Engine, select
from sqlalchemy import create_engine as create_sync_engine
from sqlalchemy.ext.asyncio import AsyncEngine, AsyncSession, async_sessionmaker
from sqlalchemy.orm import Session, sessionmaker
from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response
from starlette.routing import Route

import starlette_uow
from starlette_uow import (
    BlockContextError,
    ConfigurationError,
    NotAsyncError,
    NoUnitError,
    SessionClassError,
    UnitOfWork,
    UnitOfWorkError,
    UnitOfWorkMiddleware,
    WrongLoopError,
    WrongThreadError,
    context,
    create_engine,
    current_session,
    current_uow,
    errors,
    repository,
)
from tests.asgi import Exchange
from tests.databases import Database
from tests.models import Item


async def app(scope: Any, receive: Any, send: Any) -> None:
    await PlainTextResponse("answer")(scope, receive, send)


def test_every_error_is_in_the_one_tree_and_exported() -> None:
    """One root to catch, and nothing private to import."""
    classes = [
        c for _, c in inspect.getmembers(errors, inspect.isclass) if c.__module__ == errors.__name__
    ]

    assert all(issubclass(c, UnitOfWorkError) for c in classes)
    assert {c.__name__ for c in classes} <= set(starlette_uow.__all__)
    assert all(c.__name__ in (errors.__doc__ or "") for c in classes)


def test_no_unit_and_no_middleware(monkeypatch: pytest.MonkeyPatch) -> None:
    """The message says that the middleware is missing."""
    monkeypatch.setattr(context, "_served", set())

    with pytest.raises(NoUnitError, match="No UnitOfWorkMiddleware is installed"):
        current_session()
    with pytest.raises(NoUnitError, match="async with uow"):
        current_uow()


@pytest.mark.parametrize(
    "use",
    [
        lambda uow: uow.session,
        lambda uow: uow.doom(),
        lambda uow: uow.on_commit(print),
        lambda uow: uow.on_rollback(print),
        lambda uow: current_session(uow),
    ],
)
async def test_no_unit_open(uow: UnitOfWork, use: Any) -> None:
    """Whatever needs one says so."""
    with pytest.raises(NoUnitError, match="No UnitOfWorkMiddleware is installed"):
        use(uow)


@pytest.mark.parametrize("use", ["commit", "rollback", "checkpoint"])
async def test_no_unit_open_to_end(uow: UnitOfWork, use: str) -> None:
    """Also what is awaited."""
    with pytest.raises(NoUnitError):
        await getattr(uow, use)()
    with pytest.raises(NoUnitError):
        async with uow.savepoint():
            pass


async def test_asked_from_outside_the_middleware(uow: UnitOfWork, database: Database) -> None:
    """A middleware around it is told to stand inside."""

    class Outside:
        def __init__(self, app: Any) -> None:
            self.app = app

        async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
            current_session(uow)

    outside = Starlette(middleware=[Middleware(Outside), Middleware(UnitOfWorkMiddleware, uow=uow)])
    exchange = await Exchange(outside, database.observer).run()

    assert isinstance(exchange.error, NoUnitError)
    assert "runs outside of it" in str(exchange.error)
    assert "last" in str(exchange.error)


@pytest.mark.parametrize(
    "make",
    [
        lambda engine: engine,
        sessionmaker,
        async_sessionmaker,
        lambda engine: async_sessionmaker(binds={Item: engine}),
    ],
    ids=["engine", "sessionmaker", "async_sessionmaker", "binds"],
)
def test_synchronous_engine_or_sessionmaker(make: Callable[[Engine], Any]) -> None:
    """Named in the message, with what to build instead."""
    with pytest.raises(NotAsyncError, match=r"sqlite://.*async_sessionmaker"):
        UnitOfWork(make(create_sync_engine("sqlite://")))


def test_unit_of_work_is_named_by_its_database_without_the_password() -> None:
    """In messages a person reads it, and a log keeps it."""
    engine = create_engine("postgresql+asyncpg://app:secret@localhost/shop")

    assert repr(UnitOfWork(engine)) == (
        "<UnitOfWork on postgresql+asyncpg://app:***@localhost/shop>"
    )


@pytest.mark.parametrize("given", [None, "postgresql+asyncpg://", object()])
def test_no_sessionmaker_at_all(given: Any) -> None:
    """A URL, say."""
    with pytest.raises(ConfigurationError, match="needs an async_sessionmaker"):
        UnitOfWork(given)


@pytest.mark.parametrize("name", ["end_timeout", "callback_timeout", "wait_timeout"])
@pytest.mark.parametrize("value", [0, -1, None, "5"])
def test_timeouts_are_more_than_nothing(name: str, value: float) -> None:
    """None of them may be zero."""
    timeout: dict[str, Any] = {name: value}

    with pytest.raises(ConfigurationError, match=f"`{name}`"):
        UnitOfWork(async_sessionmaker(), **timeout)


def test_sync_session_class_with_a_name_that_units_use() -> None:
    """Either would break the other, without a word."""

    class Streaming(Session):
        streams = ("orders", "payments")

        def flush(self, objects: Any = None) -> None:
            super().flush(objects)

    with pytest.raises(SessionClassError, match=r"'streams', as units do.*another name"):
        UnitOfWork(async_sessionmaker(sync_session_class=Streaming))


async def test_session_that_gives_itself_a_name_that_units_use(engine: AsyncEngine) -> None:
    """Found when the first session is made."""

    class Streaming(Session):
        def __init__(self, *args: Any, **kwargs: Any) -> None:
            super().__init__(*args, **kwargs)
            self.streams = ["orders"]

    uow = UnitOfWork(async_sessionmaker(engine, sync_session_class=Streaming))
    async with uow:
        with pytest.raises(SessionClassError, match=r"'streams', as units do.*another name"):
            current_session()


def test_sync_session_class_that_is_none() -> None:
    """A factory cannot be subclassed."""
    with pytest.raises(SessionClassError, match="sync_session_class"):
        UnitOfWork(async_sessionmaker(sync_session_class=lambda **kw: Session(**kw)))


async def test_session_class_that_does_not_take_the_keyword(engine: AsyncEngine) -> None:
    """Found when the first session is made, before anything is written."""

    class Narrow(AsyncSession):
        def __init__(self, bind: Any) -> None:
            super().__init__(bind)

    class Deaf(AsyncSession):
        def __init__(self, bind: Any, **kwargs: Any) -> None:
            super().__init__(bind)

    for session_class in (Narrow, Deaf):
        uow = UnitOfWork(async_sessionmaker(engine, class_=session_class, expire_on_commit=False))
        maker = uow.sessions
        for option in ("autoflush", "expire_on_commit", "info"):
            maker.kw.pop(option, None)
        async with uow:
            with pytest.raises(SessionClassError, match=session_class.__name__):
                _ = uow.session


async def test_used_from_a_worker_thread(uow: UnitOfWork, database: Database) -> None:
    """Synchronous endpoints run in one."""
    seen: list[str] = []

    def endpoint(request: Request) -> Response:
        for use in (current_session, lambda: uow.session, uow.doom):
            with pytest.raises(WrongThreadError, match="async def"):
                use()
            seen.append("refused")
        return PlainTextResponse("answer")

    served = UnitOfWorkMiddleware(Starlette(routes=[Route("/", endpoint)]), uow=uow)
    exchange = await Exchange(served, database.observer).run()

    assert exchange.error is None
    assert len(seen) == 3


async def test_session_taken_into_a_worker_thread(uow: UnitOfWork) -> None:
    """add() would race with the event loop, and a statement cannot wait there."""
    async with uow:
        session = uow.session
        for use in (lambda: session.add(Item(name="a")), lambda: session.sync_session.flush()):
            with pytest.raises(WrongThreadError):
                await run_in_threadpool(use)


async def test_used_from_another_event_loop(uow: UnitOfWork) -> None:
    """Connections cannot change loops; nothing is taken from the pool."""
    async with uow:
        session = uow.session

        async def elsewhere() -> None:
            with pytest.raises(WrongLoopError, match="another event loop"):
                current_session()
            with pytest.raises(WrongLoopError):
                await session.execute(select(Item))
            with pytest.raises(WrongLoopError):
                async with uow:
                    pass

        await anyio.to_thread.run_sync(asyncio.run, elsewhere())


async def test_block_left_in_another_context(uow: UnitOfWork) -> None:
    """The message names what keeps its own state."""
    with pytest.raises(BlockContextError, match=r"uow\.new"):
        await uow.__aexit__(None, None, None)


async def test_new_block_entered_twice(uow: UnitOfWork) -> None:
    """Each block wants a new() of its own."""
    new = uow.new()
    async with new:
        with pytest.raises(ConfigurationError, match="entered already"):
            await new.__aenter__()


def test_repository_of_nothing() -> None:
    """An instance instead of a class, say."""
    with pytest.raises(ConfigurationError, match="repository"):
        repository(object())  # type: ignore[arg-type]


def test_transactional_needs_a_coroutine_function(uow_without_loop: UnitOfWork) -> None:
    """And a propagation that exists."""
    with pytest.raises(ConfigurationError, match="async def"):
        uow_without_loop.transactional()(lambda: None)  # type: ignore[arg-type, return-value]
    with pytest.raises(ConfigurationError, match="nested"):
        uow_without_loop.transactional(propagation="nested")  # type: ignore[arg-type]


@pytest.fixture
def uow_without_loop() -> UnitOfWork:
    return UnitOfWork(async_sessionmaker())


@pytest.mark.parametrize(
    ("arguments", "match"),
    [
        ({}, "needs `uow` or `session_factory`"),
        ({"uow": 1, "session_factory": 1}, "both `uow` and `session_factory`"),
        ({"uow": async_sessionmaker()}, "has to be a UnitOfWork.*`session_factory`"),
        ({"uow": UnitOfWork}, r"has to be a UnitOfWork.*UnitOfWork\(sessions\)"),
        ({"session_factory": 1}, "async_sessionmaker"),
        ({"session_factory": async_sessionmaker(), "commit_when": 404}, "commit_when"),
        ({"session_factory": async_sessionmaker(), "commit_when": app}, "plain function"),
        ({"session_factory": async_sessionmaker(), "exclude": "/health"}, "is '/health'"),
        ({"session_factory": async_sessionmaker(), "exclude": None}, "exclude.*None"),
        ({"session_factory": async_sessionmaker(), "exclude": lambda path: False}, "exclude"),
        ({"session_factory": async_sessionmaker(), "exclude": ["health"]}, "exclude"),
        ({"session_factory": async_sessionmaker(), "exclude": [1]}, "exclude"),
    ],
)
def test_arguments_of_the_middleware(arguments: Any, match: str) -> None:
    """Found where they are given."""
    with pytest.raises(ConfigurationError, match=match):
        UnitOfWorkMiddleware(app, **arguments)


def test_negative_busy_timeout() -> None:
    """Seconds, from 0."""
    with pytest.raises(ConfigurationError, match="busy_timeout"):
        create_engine("sqlite+aiosqlite://", busy_timeout=-1)
