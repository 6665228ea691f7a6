"""Through a real uvicorn: what no test client shows."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import httpx
import pytest
import uvicorn
from sqlalchemy import select
from sqlalchemy.ext.asyncio import AsyncEngine
from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import Route, WebSocketRoute
from starlette.websockets import WebSocket
from starlette_admin import CustomView
from starlette_admin.routing import route

from starlette_uow import UnitOfWork, UnitOfWorkMiddleware, current_session
from starlette_uow.admin import Admin
from tests.asgi import layers
from tests.databases import Database
from tests.models import Item

SIZES = [10, 500_000, 10, 70_000, 200_000, 10]


class StartedServer(uvicorn.Server):
    """Tells when it listens, and on which port."""

    def __init__(self, config: uvicorn.Config) -> None:
        super().__init__(config)
        self.listens = asyncio.Event()

    async def startup(self, sockets: Any = None) -> None:
        await super().startup(sockets)
        self.listens.set()

    @property
    def port(self) -> int:
        return int(self.servers[0].sockets[0].getsockname()[1])


@asynccontextmanager
async def serve(app: Any, **options: Any) -> AsyncIterator[StartedServer]:
    """The app under uvicorn in this loop, on a port of its own."""
    config = uvicorn.Config(
        app,
        port=0,
        ws="websockets-sansio",
        log_level="warning",
        timeout_graceful_shutdown=5,
        **options,
    )
    config.load()
    server = StartedServer(config)
    task = asyncio.create_task(server._serve(None))
    await server.listens.wait()
    try:
        yield server
    finally:
        server.should_exit = True
        await task


async def create(request: Request) -> Response:
    body = await request.json()
    current_session().add(Item(name=body["name"]))
    await current_session().flush()
    return JSONResponse({"name": body["name"]}, 201)


async def find(request: Request) -> Response:
    name = request.path_params["name"]
    found = await current_session().scalar(select(Item.name).where(Item.name == name))
    return JSONResponse({"found": found}, 200 if found else 404)


def make_app(uow: UnitOfWork, count: int = 0) -> Starlette:
    return Starlette(
        routes=[Route("/", create, methods=["POST"]), Route("/{name}", find)],
        middleware=[Middleware(UnitOfWorkMiddleware, uow=uow), *layers(count)],
    )


@pytest.mark.parametrize("http", ["h11", "httptools"])
@pytest.mark.parametrize("count", [0, 1])
async def test_keep_alive_with_small_and_large_bodies(
    uow: UnitOfWork, database: Database, engine: AsyncEngine, http: str, count: int
) -> None:
    """Every 201 is stored, and can be read back at once on another connection."""
    told: list[str] = []

    async def client(number: int, base_url: str) -> None:
        limits = httpx.Limits(max_connections=1)
        async with (
            httpx.AsyncClient(base_url=base_url, limits=limits) as writer,
            httpx.AsyncClient(base_url=base_url, limits=limits) as reader,
        ):
            for turn, size in enumerate(SIZES):
                name = f"{number}-{turn}"
                content = json.dumps({"name": name, "padding": "x" * size})
                response = await writer.post("/", content=content)
                assert response.status_code == 201
                told.append(name)
                assert (await reader.get(f"/{name}")).status_code == 200

    async with serve(make_app(uow, count), http=http) as server:
        base_url = f"http://127.0.0.1:{server.port}"
        await asyncio.gather(*(client(n, base_url) for n in range(4)))

    assert await database.observer.names() == sorted(told)
    assert len(told) == 4 * len(SIZES)
    assert engine.pool.checkedout() == 0  # type: ignore[attr-defined]


@pytest.mark.parametrize("count", [0, 1, 2])
async def test_client_that_leaves_in_the_middle_of_a_body(
    uow: UnitOfWork, database: Database, engine: AsyncEngine, count: int
) -> None:
    """What the body wrote is rolled back, and its connection comes back."""
    ended = asyncio.Event()

    async def endpoint(request: Request) -> Response:
        async def body() -> AsyncIterator[bytes]:
            yield b"first"
            current_session().add(Item(name="body"))
            await current_session().flush()
            while True:
                yield b"x" * 65536
                await asyncio.sleep(0)  # uvicorn's send() does not wait once the client left

        return StreamingResponse(body())

    async def tell_when_ended(scope: Any, receive: Any, send: Any) -> None:
        try:
            await app(scope, receive, send)
        finally:
            if scope["type"] == "http":
                ended.set()

    app = Starlette(
        routes=[Route("/", endpoint)],
        middleware=[Middleware(UnitOfWorkMiddleware, uow=uow), *layers(count)],
    )
    async with serve(tell_when_ended) as server:
        async with httpx.AsyncClient() as client:
            async with client.stream("GET", f"http://127.0.0.1:{server.port}/") as response:
                async for _ in response.aiter_bytes():
                    break
        await ended.wait()

    assert await database.observer.names() == []
    assert engine.pool.checkedout() == 0  # type: ignore[attr-defined]


async def test_failing_body_is_broken_off(uow: UnitOfWork, database: Database) -> None:
    """The client cannot take it for a complete answer."""

    async def endpoint(request: Request) -> Response:
        async def body() -> AsyncIterator[bytes]:
            yield b"1"
            current_session().add(Item(name="body"))
            await current_session().flush()
            raise LookupError

        return StreamingResponse(body())

    app = Starlette(
        routes=[Route("/", endpoint)],
        middleware=[Middleware(UnitOfWorkMiddleware, uow=uow), *layers(1)],
    )
    async with serve(app, log_config=None) as server, httpx.AsyncClient() as client:
        with pytest.raises(httpx.RemoteProtocolError):
            await client.get(f"http://127.0.0.1:{server.port}/")

    assert await database.observer.names() == []


async def test_gather_in_an_endpoint_and_an_admin_view_beside_other_clients(
    uow: UnitOfWork, database: Database
) -> None:
    """Tasks of a request take turns on its session, and requests do not know each other's."""

    async def work(name: str) -> str:
        async with uow.savepoint():
            current_session().add(Item(name=name))
            await current_session().flush()
            if name.endswith("3"):
                raise LookupError
        return str(await current_session().scalar(select(Item.name).where(Item.name == name)))

    async def gather(request: Request) -> Response:
        prefix = request.query_params["prefix"]
        names = [f"{prefix}-{n}" for n in range(5)]
        done = await asyncio.gather(*map(work, names), return_exceptions=True)
        return JSONResponse([name for name in done if isinstance(name, str)], 201)

    class GatherView(CustomView):
        menu_label = "Gather"
        path = "/gather"

        @route("")
        async def index(self, request: Request) -> Response:
            return await gather(request)

    app = make_app(uow)
    app.router.routes.insert(0, Route("/gather", gather))
    admin = Admin(uow, secret_key="secret")
    admin.add_view(GatherView)
    admin.mount_to(app)
    app.router.routes.insert(0, app.router.routes.pop())

    async def other(number: int, client: httpx.AsyncClient) -> None:
        for turn in range(3):
            response = await client.post("/", json={"name": f"other-{number}-{turn}"})
            assert response.status_code == 201

    async def gathering(path: str, prefix: str, client: httpx.AsyncClient) -> None:
        response = await client.get(path, params={"prefix": prefix})
        assert response.status_code == 201
        assert response.json() == [f"{prefix}-{n}" for n in (0, 1, 2, 4)]

    async with serve(app) as server:
        base_url = f"http://127.0.0.1:{server.port}"
        async with httpx.AsyncClient(base_url=base_url, timeout=30) as client:
            await asyncio.gather(
                *(other(n, client) for n in range(20)),
                *(gathering("/gather", f"endpoint-{n}", client) for n in range(5)),
                *(gathering("/admin/gather", f"admin-{n}", client) for n in range(5)),
            )

    assert len(await database.observer.names()) == 20 * 3 + 10 * 4


async def test_websocket_messages_in_units_of_their_own(
    uow: UnitOfWork, database: Database
) -> None:
    """Over a real socket, while other requests use the pool."""
    from websockets.asyncio.client import connect

    async def endpoint(socket: WebSocket) -> None:
        current_session().add(Item(name="handshake"))
        await socket.accept()
        async for name in socket.iter_text():
            async with uow:
                uow.session.add(Item(name=name))
            await socket.send_text(f"stored {name}")

    app = Starlette(
        routes=[WebSocketRoute("/", endpoint)],
        middleware=[Middleware(UnitOfWorkMiddleware, uow=uow)],
    )
    async with serve(app) as server:
        async with connect(f"ws://127.0.0.1:{server.port}/", proxy=None) as socket:
            assert await database.observer.names() == ["handshake"]
            await socket.send("a")
            assert await socket.recv() == "stored a"
            assert await database.observer.names() == ["a", "handshake"]


async def test_shutdown_disposes_the_engine(
    uow: UnitOfWork, database: Database, engine: AsyncEngine
) -> None:
    """uvicorn's lifespan does it; nothing is left on the server."""
    async with serve(make_app(uow)) as server, httpx.AsyncClient() as client:
        url = f"http://127.0.0.1:{server.port}/"
        assert (await client.post(url, json={"name": "a"})).status_code == 201
        assert engine.pool.checkedin() == 1  # type: ignore[attr-defined]

    assert engine.pool.checkedin() == 0  # type: ignore[attr-defined]
