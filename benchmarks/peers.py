"""Other answers to the same question, each set up as its own documentation says.

Each knows how to serve a Starlette app on an engine, and how an endpoint of that app gets its
session. `peers.txt` pins the versions; they are installed for the comparison only.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from contextvars import ContextVar
from typing import Any, Protocol, TypeVar

from sqlalchemy.ext.asyncio import AsyncEngine, AsyncSession, async_sessionmaker
from starlette.applications import Starlette
from starlette.middleware.base import BaseHTTPMiddleware
from starlette.requests import Request

from starlette_uow import UnitOfWork, UnitOfWorkMiddleware, current_session

T = TypeVar("T")
Work = Callable[[AsyncSession], Awaitable[T]]


class Peer(Protocol):
    """One answer."""

    def install(self, app: Starlette) -> None:
        """Add to the app what the answer consists of."""

    async def run(self, request: Request, work: Work[T]) -> T:
        """Do an endpoint's work on the session of its request."""


class Ours:
    """starlette-uow."""

    def __init__(self, engine: AsyncEngine) -> None:
        self.uow = UnitOfWork(engine)

    def install(self, app: Starlette) -> None:
        app.add_middleware(UnitOfWorkMiddleware, uow=self.uow)

    async def run(self, request: Request, work: Work[T]) -> T:
        return await work(current_session())


class HandWritten:
    """`async with sessions() as session, session.begin()` in each endpoint."""

    def __init__(self, engine: AsyncEngine) -> None:
        self.sessions = async_sessionmaker(engine, expire_on_commit=False)

    def install(self, app: Starlette) -> None:
        pass

    async def run(self, request: Request, work: Work[T]) -> T:
        async with self.sessions() as session, session.begin():
            return await work(session)


class HandWrittenDependency:
    """A `yield` dependency with `async with sessions() as session, session.begin()`."""

    def __init__(self, engine: AsyncEngine) -> None:
        self.sessions = async_sessionmaker(engine, expire_on_commit=False)

    def install(self, app: Starlette) -> None:
        app.add_middleware(DependencyScope)

    @asynccontextmanager
    async def dependency(self) -> AsyncIterator[AsyncSession]:
        async with self.sessions() as session, session.begin():
            yield session

    async def run(self, request: Request, work: Work[T]) -> T:
        stack: AsyncExitStack = request.scope["dependencies"]
        return await work(await stack.enter_async_context(self.dependency()))


class HandWrittenMiddleware:
    """A `BaseHTTPMiddleware` with a session on `request.state`, as most tutorials have it."""

    def __init__(self, engine: AsyncEngine) -> None:
        self.sessions = async_sessionmaker(engine, expire_on_commit=False)

    def install(self, app: Starlette) -> None:
        async def dispatch(request: Request, call_next: Any) -> Any:
            async with self.sessions() as session:
                request.state.session = session
                response = await call_next(request)
                if response.status_code < 400:
                    await session.commit()
                return response

        app.add_middleware(BaseHTTPMiddleware, dispatch=dispatch)

    async def run(self, request: Request, work: Work[T]) -> T:
        return await work(request.state.session)


class TheLeast:
    """What any middleware has to do that commits before the answer, and nothing that protects it.

    The difference to `Ours` is the price of what is promised beyond that.
    """

    def __init__(self, engine: AsyncEngine) -> None:
        self.sessions = async_sessionmaker(engine, expire_on_commit=False)
        self.session: ContextVar[list[AsyncSession]] = ContextVar("session")

    def install(self, app: Starlette) -> None:
        app.add_middleware(CommitBeforeAnswer, variable=self.session)

    async def run(self, request: Request, work: Work[T]) -> T:
        sessions = self.session.get()
        if not sessions:
            sessions.append(self.sessions())
        return await work(sessions[0])


class CommitBeforeAnswer:
    """The middleware of `TheLeast`. Its commits and rollbacks can be cancelled, for example."""

    def __init__(self, app: Any, variable: ContextVar[list[AsyncSession]]) -> None:
        self.app = app
        self.variable = variable

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        """Commit an answer below 400, and roll everything else back."""
        sessions: list[AsyncSession] = []

        async def send_after_commit(message: Any) -> None:
            if sessions and message["type"] == "http.response.start" and message["status"] < 400:
                await sessions[0].commit()
            await send(message)

        before = self.variable.set(sessions)
        try:
            await self.app(scope, receive, send_after_commit)
        finally:
            self.variable.reset(before)
            if sessions and sessions[0].in_transaction():
                await sessions[0].close()


class ContextAsyncSQLAlchemy:
    """context-async-sqlalchemy, with its ASGI middleware."""

    def __init__(self, engine: AsyncEngine) -> None:
        from context_async_sqlalchemy import DBConnect

        self.connect = DBConnect(
            engine_creator=lambda host: engine,
            session_maker_creator=lambda engine: async_sessionmaker(engine, expire_on_commit=False),
            host="given",
        )

    def install(self, app: Starlette) -> None:
        from context_async_sqlalchemy.asgi_utils import ASGIHTTPDBSessionMiddleware

        app.add_middleware(ASGIHTTPDBSessionMiddleware)

    async def run(self, request: Request, work: Work[T]) -> T:
        from context_async_sqlalchemy import db_session

        return await work(await db_session(self.connect))


class ContextAsyncSQLAlchemyStarlette(ContextAsyncSQLAlchemy):
    """context-async-sqlalchemy, with its Starlette middleware."""

    def install(self, app: Starlette) -> None:
        from context_async_sqlalchemy.starlette_utils import (
            add_starlette_http_db_session_middleware,
        )

        add_starlette_http_db_session_middleware(app)


class FastAPIAsyncSQLAlchemy:
    """fastapi-async-sqlalchemy."""

    def __init__(self, engine: AsyncEngine) -> None:
        self.engine = engine

    def install(self, app: Starlette) -> None:
        from fastapi_async_sqlalchemy import create_middleware_and_session_proxy

        middleware, self.db = create_middleware_and_session_proxy()
        app.add_middleware(middleware, custom_engine=self.engine, commit_on_exit=True)

    async def run(self, request: Request, work: Work[T]) -> T:
        return await work(self.db.session)


class FastAPISQLA:
    """fastapi-sqla. Its set-up reads environment variables, so the engine is put in by hand."""

    def __init__(self, engine: AsyncEngine) -> None:
        from fastapi_sqla import async_sqla

        self.module = async_sqla
        factory: Any = async_sessionmaker(engine, expire_on_commit=False)
        async_sqla._async_session_factories["default"] = factory

    def install(self, app: Starlette) -> None:
        app.add_middleware(self.module.AsyncSessionMiddleware)

    async def run(self, request: Request, work: Work[T]) -> T:
        return await work(self.module.AsyncSessionDependency()(request))


class AdvancedAlchemy:
    """advanced-alchemy's Starlette extension, committing below 400."""

    def __init__(self, engine: AsyncEngine) -> None:
        from advanced_alchemy.config import AsyncSessionConfig
        from advanced_alchemy.extensions.starlette import SQLAlchemyAsyncConfig

        self.config = SQLAlchemyAsyncConfig(
            engine_instance=engine,
            commit_mode="autocommit_include_redirect",
            session_config=AsyncSessionConfig(expire_on_commit=False),
        )

    def install(self, app: Starlette) -> None:
        from advanced_alchemy.extensions.starlette import AdvancedAlchemy

        self.alchemy = AdvancedAlchemy(self.config, app=app)

    async def run(self, request: Request, work: Work[T]) -> T:
        return await work(self.alchemy.get_async_session(request))


class FastAPIToolsets:
    """fastapi-toolsets. Its dependency is entered as FastAPI does, after the endpoint's return."""

    def __init__(self, engine: AsyncEngine) -> None:
        from fastapi_toolsets.db import Database

        self.database = Database(engine=engine)

    def install(self, app: Starlette) -> None:
        app.add_middleware(DependencyScope)
        self.database.install(app)

    async def run(self, request: Request, work: Work[T]) -> T:
        stack: AsyncExitStack = request.scope["dependencies"]
        session = await stack.enter_async_context(asynccontextmanager(self.database)(request))
        return await work(session)


class DependencyScope:
    """Where FastAPI leaves `yield` dependencies: after the response, inside all middlewares."""

    def __init__(self, app: Any) -> None:
        self.app = app

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        async with AsyncExitStack() as scope["dependencies"]:
            await self.app(scope, receive, send)


class StarletteAdmin:
    """starlette-admin's own session middleware."""

    def __init__(self, engine: AsyncEngine) -> None:
        self.engine = engine

    def install(self, app: Starlette) -> None:
        from starlette_admin.contrib.sqla.middleware import DBSessionMiddleware

        app.add_middleware(DBSessionMiddleware, session_provider=self.engine)

    async def run(self, request: Request, work: Work[T]) -> T:
        return await work(request.state.session)


PEERS: dict[str, Callable[[AsyncEngine], Peer]] = {
    "starlette-uow": Ours,
    "hand-written": HandWritten,
    "hand-written dependency": HandWrittenDependency,
    "hand-written middleware": HandWrittenMiddleware,
    "the least, unprotected": TheLeast,
    "context-async-sqlalchemy (ASGI)": ContextAsyncSQLAlchemy,
    "context-async-sqlalchemy (Starlette)": ContextAsyncSQLAlchemyStarlette,
    "fastapi-async-sqlalchemy": FastAPIAsyncSQLAlchemy,
    "fastapi-sqla": FastAPISQLA,
    "advanced-alchemy": AdvancedAlchemy,
    "fastapi-toolsets": FastAPIToolsets,
    "starlette-admin": StarletteAdmin,
}
