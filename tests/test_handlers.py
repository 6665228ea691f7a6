"""503 while the database is away, and only then."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from typing import Any

import httpx
import pytest
from fastapi import FastAPI
from sqlalchemy.ext.asyncio import AsyncEngine
from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response
from starlette.routing import WebSocketRoute
from starlette.websockets import WebSocket

from starlette_uow import UnitOfWork, UnitOfWorkMiddleware, create_engine, current_session
from starlette_uow.handlers import unavailable_handlers
from tests.databases import connect, create_tables
from tests.models import Item
from tests.proxy import Fault, Proxy, answers, connects, sends
from tests.servers import Server


def starlette_app() -> Starlette:
    return Starlette(exception_handlers=unavailable_handlers)


def fastapi_app() -> FastAPI:
    app = FastAPI()
    for error, handler in unavailable_handlers.items():
        app.add_exception_handler(error, handler)
    return app


class Shop:
    """An app with one endpoint, and a client for it.

    Attributes:
        held: set while a request keeps its connection.
        let_go: what that request waits for.
    """

    def __init__(self, app: Starlette, engine: AsyncEngine) -> None:
        self.held = asyncio.Event()
        self.let_go = asyncio.Event()
        self.engine = engine
        app.add_route("/{name}", self.create, methods=["POST"])
        app.add_middleware(UnitOfWorkMiddleware, uow=UnitOfWork(engine))
        transport = httpx.ASGITransport(app, raise_app_exceptions=False)
        self.client = httpx.AsyncClient(transport=transport, base_url="http://test")

    async def create(self, request: Request) -> Response:
        name = request.path_params["name"]
        current_session().add(Item(name=name))
        await current_session().flush()
        if name == "elsewhere":
            raise ConnectionRefusedError
        if name == "hold":
            self.held.set()
            await self.let_go.wait()
        return PlainTextResponse("created", 201)

    async def post(self, name: str) -> httpx.Response:
        return await self.client.post(f"/{name}")


@asynccontextmanager
async def shop(
    url: str, make: Callable[[], Starlette] = starlette_app, **options: Any
) -> AsyncIterator[Shop]:
    engine = create_engine(url, pool_size=1, max_overflow=0, pool_timeout=0.2, **options)
    shop = Shop(make(), engine)
    async with shop.client:
        yield shop
    assert engine.pool.checkedout() == 0  # type: ignore[attr-defined]
    await engine.dispose()


def is_unavailable(response: httpx.Response) -> bool:
    return response.status_code == 503 and int(response.headers["Retry-After"]) > 0


@pytest.fixture
async def url(postgres_url: str) -> str:
    connection = await connect(postgres_url)
    await connection.execute("truncate items, parts")
    await connection.close()
    return postgres_url


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    with Server(max_connections=5, superuser_reserved_connections=0) as server:
        asyncio.run(create_tables(server.url))
        yield server


@pytest.mark.parametrize("make", [starlette_app, fastapi_app])
async def test_pool_without_a_free_connection(url: str, make: Callable[[], Starlette]) -> None:
    """503 for who waited in vain, 201 for the others, before and after."""
    async with shop(url, make) as it:
        holder = asyncio.create_task(it.post("hold"))
        await it.held.wait()

        in_vain = await it.post("in-vain")
        it.let_go.set()

        assert is_unavailable(in_vain)
        assert (await holder).status_code == 201
        assert (await it.post("after")).status_code == 201


async def test_refused_connection(url: str) -> None:
    """Nobody listens on the port."""
    async with Proxy(url) as proxy, shop(proxy.url) as it:
        proxy.refuse()
        assert is_unavailable(await it.post("refused"))

        await proxy.accept()
        assert (await it.post("accepted")).status_code == 201


@pytest.mark.parametrize("fault", [Fault.CUT, Fault.PASS_AND_CUT, Fault.HALF])
async def test_connection_that_is_lost_while_it_is_made(url: str, fault: Fault) -> None:
    """By a server that dies, or a proxy without one behind it."""
    async with Proxy(url) as proxy, shop(proxy.url) as it:
        proxy.at(connects, fault)

        assert is_unavailable(await it.post("lost"))
        assert (await it.post("lost")).status_code == 201


async def test_host_without_an_address(url: str) -> None:
    """A name that cannot be resolved, as in the minute of a failover."""
    async with shop("postgresql+asyncpg://host.invalid/postgres") as it:
        assert is_unavailable(await it.post("anything"))


async def test_server_that_does_not_answer(url: str) -> None:
    """The driver gives up to connect."""
    async with Proxy(url) as proxy:
        proxy.stall()
        async with shop(proxy.url, connect_args={"timeout": 0.2}) as it:
            assert is_unavailable(await it.post("stalled"))


async def test_too_many_connections(server: Server) -> None:
    """The server takes no more."""
    others = [await connect(server.url) for _ in range(5)]
    async with shop(server.url) as it:
        refused = await it.post("refused")
        for other in others:
            await other.close()

        assert is_unavailable(refused)
        assert await first_other_answer(it, "accepted") == 201


async def first_other_answer(it: Shop, name: str) -> int:
    """Ask until the answer is not 503."""
    while is_unavailable(response := await it.post(name)):  # noqa: ASYNC110 - nobody tells
        await asyncio.sleep(0.01)
    return response.status_code


@pytest.mark.parametrize("mode", ["fast", "immediate"])
async def test_server_that_restarts(server: Server, mode: Any) -> None:
    """503 while it is away, be it stopping, starting or recovering; then all is as before."""
    async with shop(server.url) as it:
        assert (await it.post(f"before-{mode}")).status_code == 201
        await asyncio.to_thread(server.stop, mode)
        assert is_unavailable(await it.post("while"))

        started = asyncio.create_task(asyncio.to_thread(server.start))

        assert await first_other_answer(it, f"after-{mode}") == 201
        await started


async def test_connection_that_is_lost_before_commit(url: str) -> None:
    """Nothing is written, so the client may try again."""
    async with Proxy(url) as proxy, shop(proxy.url) as it:
        proxy.at(answers("INSERT"), Fault.CUT)

        assert is_unavailable(await it.post("lost"))
        assert (await it.post("lost")).status_code == 201


async def test_unknown_outcome_is_no_invitation_to_try_again(url: str) -> None:
    """The row may be there."""
    async with Proxy(url) as proxy, shop(proxy.url) as it:
        proxy.at(sends("COMMIT"), Fault.PASS_AND_CUT)

        assert (await it.post("unknown")).status_code == 500


async def test_errors_of_another_kind(url: str) -> None:
    """A constraint, and a service that is not the database, stay what they were."""
    async with shop(url) as it:
        assert (await it.post("once")).status_code == 201
        assert (await it.post("once")).status_code == 500
        assert (await it.post("elsewhere")).status_code == 500


async def test_websocket_is_left_alone(url: str) -> None:
    """It has no status once it is accepted."""

    async def endpoint(socket: WebSocket) -> None:
        await current_session().connection()

    async with Proxy(url) as proxy:
        engine = create_engine(proxy.url)
        app = Starlette(
            routes=[WebSocketRoute("/", endpoint)],
            middleware=[Middleware(UnitOfWorkMiddleware, uow=UnitOfWork(engine))],
            exception_handlers=unavailable_handlers,
        )
        proxy.refuse()
        messages: asyncio.Queue[Any] = asyncio.Queue()

        with pytest.raises(ConnectionRefusedError):
            await app({"type": "websocket", "path": "/"}, messages.get, messages.put)


def test_classes_of_the_driver_are_covered_where_it_is_installed() -> None:
    """SQLAlchemy 2.0 lets its errors pass while it connects."""
    import asyncpg

    assert asyncpg.PostgresError in unavailable_handlers
