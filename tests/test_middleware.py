"""What is around the rule: websockets, lifespan, mounts, several databases, arguments."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from fastapi import BackgroundTasks, Depends, FastAPI
from sqlalchemy import select
from sqlalchemy.exc import IntegrityError
from sqlalchemy.ext.asyncio import AsyncEngine, AsyncSession, async_sessionmaker
from starlette.applications import Starlette
from starlette.authentication import AuthCredentials, AuthenticationBackend, SimpleUser
from starlette.middleware import Middleware
from starlette.middleware.authentication import AuthenticationMiddleware
from starlette.requests import HTTPConnection, Request
from starlette.responses import JSONResponse, PlainTextResponse, Response
from starlette.routing import Mount, Route, WebSocketRoute
from starlette.websockets import WebSocket

from starlette_uow import (
    MiddlewareTwiceError,
    NoUnitError,
    UnitDoomedError,
    UnitEndedError,
    UnitOfWork,
    UnitOfWorkMiddleware,
    WebSocketUnitError,
    WrongLoopError,
    create_engine,
    current_session,
    current_uow,
)
from starlette_uow.context import current_frame, open_units
from tests.asgi import Exchange, PassThrough, http_scope, layers
from tests.databases import Database
from tests.models import Item, Part


async def write(name: str) -> None:
    current_session().add(Item(name=name))
    await current_session().flush()


# --- who shares the session ----------------------------------------------------------------


class Backend(AuthenticationBackend):
    """Reads the session where a real one reads the user."""

    async def authenticate(self, conn: HTTPConnection) -> tuple[AuthCredentials, SimpleUser]:
        await current_session().execute(select(Item))
        conn.state.sessions = [current_session()]
        return AuthCredentials(), SimpleUser("somebody")


@pytest.mark.parametrize("count", [0, 1, 2])
async def test_one_session_for_auth_backend_endpoint_service_and_task_group(
    uow: UnitOfWork, database: Database, count: int
) -> None:
    """Everybody below the middleware has the same one."""

    async def service() -> AsyncSession:
        return current_session()

    async def endpoint(request: Request) -> Response:
        sessions = request.state.sessions
        sessions.append(uow.session)
        async with asyncio.TaskGroup() as tg:
            tasks = [tg.create_task(service()) for _ in range(3)]
        sessions.extend(task.result() for task in tasks)
        assert current_uow() is uow
        return JSONResponse([len(sessions), len(set(map(id, sessions)))])

    app = Starlette(
        routes=[Route("/", endpoint)],
        middleware=[
            Middleware(UnitOfWorkMiddleware, uow=uow),
            *layers(count),
            Middleware(AuthenticationMiddleware, backend=Backend()),
        ],
    )
    exchange = await Exchange(app, database.observer).run()

    assert exchange.text == "[5,1]"


async def test_fastapi_dependencies_share_the_session(uow: UnitOfWork, database: Database) -> None:
    """Plain ones, and those that yield, before and after the response."""
    seen: list[AsyncSession] = []
    app = FastAPI()
    app.add_middleware(UnitOfWorkMiddleware, uow=uow)

    async def plain() -> AsyncSession:
        return current_session()

    async def yielding() -> Any:
        seen.append(current_session())
        yield current_session()
        seen.append(current_session())

    @app.post("/", status_code=201)
    async def endpoint(
        background: BackgroundTasks,
        first: Any = Depends(plain),
        second: Any = Depends(yielding),
    ) -> dict[str, bool]:
        await write("a")
        background.add_task(write, "background")
        seen.extend([first, second])
        return {"same": first is second is current_session()}

    exchange = await Exchange(app, database.observer).run(method="POST")

    assert exchange.error is None
    assert exchange.events[0] == ("start", 201, ["a"])
    assert exchange.text == '{"same":true}'
    assert len(seen) == 4
    assert len(set(map(id, seen))) == 1
    assert await database.observer.names() == ["a", "background"]


async def test_request_that_does_not_touch_the_database(
    uow: UnitOfWork, database: Database, engine: AsyncEngine
) -> None:
    """No unit, no session, no connection."""
    made: list[AsyncSession] = []
    make = uow._make_session

    def make_and_note() -> AsyncSession:
        made.append(make())
        return made[-1]

    uow._make_session = make_and_note  # type: ignore[method-assign]

    async def endpoint(request: Request) -> Response:
        assert open_units() == []
        return PlainTextResponse("answer")

    app = UnitOfWorkMiddleware(Starlette(routes=[Route("/", endpoint)]), uow=uow)
    exchange = await Exchange(app, database.observer).run()

    assert exchange.status == 200
    assert made == []
    assert engine.pool.checkedin() == 0  # type: ignore[attr-defined]


async def test_first_use_after_the_request(uow: UnitOfWork, database: Database) -> None:
    """The request is over, although it had no unit: nobody would end one."""
    strays: list[asyncio.Task[AsyncSession]] = []
    over = asyncio.Event()

    async def stray() -> AsyncSession:
        await over.wait()
        return current_session()

    async def endpoint(request: Request) -> Response:
        strays.append(asyncio.create_task(stray()))
        return PlainTextResponse("answer")

    app = UnitOfWorkMiddleware(Starlette(routes=[Route("/", endpoint)]), uow=uow)
    await Exchange(app, database.observer).run()
    over.set()

    with pytest.raises(UnitEndedError, match="no database"):
        await strays[0]


async def test_first_use_in_another_event_loop(uow: UnitOfWork, database: Database) -> None:
    """In a thread with a copy of the context."""

    async def use() -> None:
        with pytest.raises(WrongLoopError):
            current_session()

    async def endpoint(request: Request) -> Response:
        await asyncio.to_thread(asyncio.run, use())
        return PlainTextResponse("answer")

    app = UnitOfWorkMiddleware(Starlette(routes=[Route("/", endpoint)]), uow=uow)
    exchange = await Exchange(app, database.observer).run()

    assert exchange.error is None


async def test_block_around_a_request_that_is_left_inside(
    uow: UnitOfWork, database: Database, engine: AsyncEngine
) -> None:
    """The request's unit is the same before and after."""
    around = UnitOfWork(engine).new()

    async def endpoint(request: Request) -> Response:
        await around.__aexit__(None, None, None)
        await write("a")
        return PlainTextResponse("answer")

    app = UnitOfWorkMiddleware(Starlette(routes=[Route("/", endpoint)]), uow=uow)

    async def request() -> Exchange:
        await around.__aenter__()
        return await Exchange(app, database.observer).run()

    exchange = await asyncio.create_task(request())

    assert exchange.events[0] == ("start", 200, ["a"])


async def test_connection_is_back_before_the_client_is_answered(
    uow: UnitOfWork, database: Database, engine: AsyncEngine
) -> None:
    """A slow client keeps no connection."""
    checked_out: list[int] = []

    async def endpoint(request: Request) -> Response:
        await write("a")
        return PlainTextResponse("answer")

    app = UnitOfWorkMiddleware(Starlette(routes=[Route("/", endpoint)]), uow=uow)
    exchange = Exchange(app, database.observer)
    pool: Any = engine.pool
    exchange.on_message = lambda message: checked_out.append(pool.checkedout())
    await exchange.run()

    assert checked_out == [0, 0]


# --- where the middleware stands -----------------------------------------------------------


async def test_session_factory_is_enough_for_the_plain_case(
    sessions: async_sessionmaker[AsyncSession], database: Database
) -> None:
    """Without a definition of one's own."""

    async def endpoint(request: Request) -> Response:
        await write("a")
        return PlainTextResponse("answer", 201)

    app = Starlette(routes=[Route("/", endpoint)])
    app.add_middleware(UnitOfWorkMiddleware, session_factory=sessions)
    exchange = await Exchange(app, database.observer).run()

    assert exchange.events[0] == ("start", 201, ["a"])


@pytest.mark.parametrize("as_starlette", [True, False])
async def test_middleware_added_twice_is_an_error_at_the_first_request(
    uow: UnitOfWork, database: Database, as_starlette: bool
) -> None:
    """Under Starlette and any other ASGI app."""

    async def endpoint(request: Request) -> Response:
        return PlainTextResponse("answer")

    app: Any = Starlette(routes=[Route("/", endpoint)])
    if as_starlette:
        app.add_middleware(UnitOfWorkMiddleware, uow=uow)
        app.add_middleware(UnitOfWorkMiddleware, uow=uow)
    else:
        app = UnitOfWorkMiddleware(UnitOfWorkMiddleware(app, uow=uow), uow=uow)
    exchange = await Exchange(app, database.observer).run()

    assert isinstance(exchange.error, MiddlewareTwiceError)


@pytest.mark.parametrize("path", ["/inner", ""])
async def test_middleware_in_a_mounted_app_joins(
    uow: UnitOfWork, database: Database, path: str
) -> None:
    """The inner app's handlers answer a refused commit."""
    sessions: list[AsyncSession] = []

    class Note:
        def __init__(self, app: Any) -> None:
            self.app = app

        async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
            sessions.append(current_session())
            await self.app(scope, receive, send)

    async def endpoint(request: Request) -> Response:
        sessions.append(current_session())
        current_session().add(Part(item_id=999))
        return PlainTextResponse("answer", 201)

    async def conflict(request: Request, exc: Exception) -> Response:
        return PlainTextResponse("inner conflict", 409)

    async def outer_conflict(request: Request, exc: Exception) -> Response:
        return PlainTextResponse("outer conflict", 409)

    inner = Starlette(
        routes=[Route("/", endpoint)],
        middleware=[Middleware(UnitOfWorkMiddleware, uow=uow)],
        exception_handlers={IntegrityError: conflict},
    )
    app = Starlette(
        routes=[Mount(path, app=inner)],
        middleware=[Middleware(UnitOfWorkMiddleware, uow=uow), Middleware(Note)],
        exception_handlers={IntegrityError: outer_conflict},
    )
    exchange = await Exchange(app, database.observer).run(f"{path}/")

    assert sessions[0] is sessions[1]
    assert (exchange.status, exchange.text) == (409, "inner conflict")


async def test_outer_handler_answers_where_the_mounted_app_has_none(
    uow: UnitOfWork, database: Database
) -> None:
    """Also when the mounted app's table shadows the outer one's in the scope."""

    async def endpoint(request: Request) -> Response:
        current_session().add(Part(item_id=999))
        return PlainTextResponse("answer", 201)

    def conflict(request: Request, exc: Exception) -> Response:
        return PlainTextResponse("outer conflict", 409)

    app = Starlette(
        routes=[Mount("/inner", app=Starlette(routes=[Route("/", endpoint)]))],
        middleware=[Middleware(UnitOfWorkMiddleware, uow=uow)],
        exception_handlers={IntegrityError: conflict},
    )
    exchange = await Exchange(app, database.observer).run("/inner/")

    assert (exchange.status, exchange.text) == (409, "outer conflict")


async def test_two_databases(
    uow: UnitOfWork, sessions: async_sessionmaker[AsyncSession], database: Database, tmp_path: Any
) -> None:
    """Two definitions, two middlewares; the innermost is the default."""
    from tests.databases import SQLiteObserver, create_tables

    url = f"sqlite+aiosqlite:///{tmp_path}/audit.sqlite"
    await create_tables(url)
    audit = UnitOfWork(create_engine(url))
    audit_log = SQLiteObserver(tmp_path / "audit.sqlite")

    async def endpoint(request: Request) -> Response:
        assert current_session() is current_session(audit) is audit.session
        assert current_session(uow) is uow.session is not audit.session
        uow.session.add(Item(name="a"))
        audit.session.add(Item(name="audit"))
        return PlainTextResponse("answer", 201)

    app = Starlette(
        routes=[Route("/", endpoint)],
        middleware=[
            Middleware(UnitOfWorkMiddleware, uow=uow),
            Middleware(UnitOfWorkMiddleware, uow=audit),
        ],
    )
    exchange = await Exchange(app, database.observer).run()

    assert exchange.events[0] == ("start", 201, ["a"])
    assert await audit_log.names() == ["audit"]
    audit_log.connection.close()
    await audit.dispose()


@pytest.mark.parametrize(
    ("path", "excluded"),
    [("/health", True), ("/health/deep", True), ("/healthy", False), ("/", False)],
)
async def test_excluded_paths_get_no_unit(
    uow: UnitOfWork, database: Database, path: str, excluded: bool
) -> None:
    """With everything below them; the error says so."""

    async def app(scope: Any, receive: Any, send: Any) -> None:
        try:
            text = str(current_session() is not None)
        except NoUnitError as error:
            text = str(error)
        await PlainTextResponse(text)(scope, receive, send)

    served = UnitOfWorkMiddleware(app, uow=uow, exclude=["/health/"])
    exchange = await Exchange(served, database.observer).run(path)

    assert ("is excluded" in exchange.text) is excluded
    assert (repr(path) in exchange.text) is excluded


async def test_block_on_an_excluded_path_opens_a_unit(uow: UnitOfWork, database: Database) -> None:
    """As anywhere outside a request."""

    async def app(scope: Any, receive: Any, send: Any) -> None:
        async with uow:
            await write("a")
        await PlainTextResponse("answer")(scope, receive, send)

    served = UnitOfWorkMiddleware(app, uow=uow, exclude=["/"])
    exchange = await Exchange(served, database.observer).run()

    assert exchange.events[0] == ("start", 200, ["a"])


async def test_request_started_in_the_context_of_another_one(
    uow: UnitOfWork, database: Database
) -> None:
    """uvicorn does that on keep-alive connections: each request opens its own unit all the same."""

    async def endpoint(request: Request) -> Response:
        if request.url.path == "/first":
            second = Exchange(app, database.observer)
            await asyncio.create_task(second.run("/second"))
            assert second.events[0] == ("start", 201, ["/second"])
        await write(request.url.path)
        return PlainTextResponse("answer", 201)

    app = Starlette(
        routes=[Route("/{name}", endpoint)], middleware=[Middleware(UnitOfWorkMiddleware, uow=uow)]
    )
    if not database.is_postgres:
        return  # one writer at a time
    first = await Exchange(app, database.observer).run("/first")

    assert first.events[0] == ("start", 201, ["/first", "/second"])


async def test_context_does_not_grow_with_requests(uow: UnitOfWork, database: Database) -> None:
    """A request that starts in the context of another one does not hold on to it."""
    depths: list[int] = []

    async def app(scope: Any, receive: Any, send: Any) -> None:
        frame, depth = current_frame.get(), 0
        while frame is not None:
            frame, depth = frame.outer, depth + 1
        depths.append(depth)
        if len(depths) < 5:
            await asyncio.create_task(Exchange(served, database.observer).run())
        await PlainTextResponse("answer")(scope, receive, send)

    served = UnitOfWorkMiddleware(app, uow=uow)
    await Exchange(served, database.observer).run()

    assert depths == [1] * 5


async def test_scope_may_be_served_again(uow: UnitOfWork, database: Database) -> None:
    """By something that tries one app after another: a request leaves nothing of ours behind."""

    async def endpoint(request: Request) -> Response:
        await current_session().execute(select(Item))
        return PlainTextResponse("answer")

    app = UnitOfWorkMiddleware(Starlette(routes=[Route("/", endpoint)]), uow=uow)
    scopes: list[Any] = []

    async def twice(scope: Any, receive: Any, send: Any) -> None:
        for _ in range(2):
            await app(scope, receive, send)
            scopes.append([key for key in scope if key.startswith("starlette_uow") and scope[key]])

    exchange = await Exchange(twice, database.observer).run()

    assert exchange.error is None
    assert exchange.text == "answer" * 2
    assert scopes == [[], []]


async def test_other_scopes_pass_through(uow: UnitOfWork) -> None:
    """Whatever an ASGI server invents."""
    seen: list[str] = []

    async def app(scope: Any, receive: Any, send: Any) -> None:
        seen.append(scope["type"])

    await UnitOfWorkMiddleware(app, uow=uow)({"type": "magic"}, None, None)  # type: ignore[arg-type]

    assert seen == ["magic"]


async def test_request_state_is_one_dict_for_everybody(uow: UnitOfWork, database: Database) -> None:
    """Also where the server gave none."""
    scope = http_scope()

    async def app(scope: Any, receive: Any, send: Any) -> None:
        Request(dict(scope)).state.seen = True  # routers copy the scope
        await PlainTextResponse("answer")(scope, receive, send)

    async def send(message: Any) -> None: ...

    await UnitOfWorkMiddleware(app, uow=uow)(scope, None, send)  # type: ignore[arg-type]

    assert scope["state"] == {"seen": True}


# --- websockets ----------------------------------------------------------------------------


async def run_websocket(app: Any, database: Database) -> tuple[list[Any], BaseException | None]:
    """Connect, receive one message, and note what was committed at each answer."""
    incoming = [
        {"type": "websocket.connect"},
        {"type": "websocket.receive", "text": "hello"},
        {"type": "websocket.disconnect", "code": 1000},
    ]
    events: list[Any] = []

    async def receive() -> Any:
        return incoming.pop(0)

    async def send(message: Any) -> None:
        detail = message.get("code") or message.get("status") or message.get("text")
        events.append((message["type"], detail, await database.observer.names()))

    scope = http_scope(extensions={"websocket.http.response": {}})
    scope.update({"type": "websocket", "scheme": "ws", "subprotocols": []})
    del scope["method"]
    try:
        await app(scope, receive, send)
    except Exception as error:
        return events, error
    return events, None


def socket_app(uow: UnitOfWork, endpoint: Any) -> Starlette:
    return Starlette(
        routes=[WebSocketRoute("/", endpoint)],
        middleware=[
            Middleware(UnitOfWorkMiddleware, uow=uow),
            Middleware(PassThrough),
            Middleware(AuthenticationMiddleware, backend=Backend()),
        ],
    )


async def test_handshake_is_committed_before_it_is_accepted(
    uow: UnitOfWork, database: Database
) -> None:
    """Afterwards each message wants a unit of its own, and the error says so."""

    async def endpoint(socket: WebSocket) -> None:
        await write("handshake")
        await socket.accept()
        await socket.receive_text()
        with pytest.raises(WebSocketUnitError, match="async with uow"):
            current_session()
        async with uow:
            await write("message")
        await socket.send_text("done")
        await socket.close()

    events, error = await run_websocket(socket_app(uow, endpoint), database)

    assert error is None
    assert events == [
        ("websocket.accept", None, ["handshake"]),
        ("websocket.send", "done", ["handshake", "message"]),
        ("websocket.close", 1000, ["handshake", "message"]),
    ]


async def test_handshake_that_is_closed_is_rolled_back(uow: UnitOfWork, database: Database) -> None:
    """Nobody was let in."""

    async def endpoint(socket: WebSocket) -> None:
        await write("handshake")
        await socket.close(4001)

    events, error = await run_websocket(socket_app(uow, endpoint), database)

    assert events == [("websocket.close", 4001, [])]
    assert error is None


@pytest.mark.parametrize(("status", "items"), [(403, []), (303, ["handshake"])])
async def test_denial_response_ends_by_its_status(
    uow: UnitOfWork, database: Database, status: int, items: list[str]
) -> None:
    """As an HTTP answer does."""

    async def endpoint(socket: WebSocket) -> None:
        await write("handshake")
        await socket.send_denial_response(PlainTextResponse("no", status))

    events, error = await run_websocket(socket_app(uow, endpoint), database)

    assert events[0] == ("websocket.http.response.start", status, items)
    assert error is None


@pytest.mark.parametrize(
    ("status", "rule", "items"), [(403, True, ["handshake"]), (303, False, [])]
)
async def test_commit_when_decides_over_a_denial_response(
    uow: UnitOfWork, database: Database, status: int, rule: bool, items: list[str]
) -> None:
    """As over an HTTP answer: a login that was refused may be counted."""

    async def app(scope: Any, receive: Any, send: Any) -> None:
        await write("handshake")
        await WebSocket(scope, receive, send).send_denial_response(PlainTextResponse("no", status))

    served = UnitOfWorkMiddleware(app, uow=uow, commit_when=lambda status, scope: rule)
    events, error = await run_websocket(served, database)

    assert events[0] == ("websocket.http.response.start", status, items)
    assert error is None


@pytest.mark.parametrize("reason", ["refused", "doomed"])
async def test_handshake_whose_commit_fails_closes_the_socket(
    uow: UnitOfWork, database: Database, reason: str
) -> None:
    """With 1011, and the error is raised."""

    async def endpoint(socket: WebSocket) -> None:
        await write("handshake")
        if reason == "refused":
            current_session().add(Part(item_id=999))
        else:
            try:
                async with uow:
                    raise LookupError
            except LookupError:
                pass
        await socket.accept()

    events, error = await run_websocket(socket_app(uow, endpoint), database)

    assert events == [("websocket.close", 1011, [])]
    assert isinstance(error, IntegrityError if reason == "refused" else UnitDoomedError)


async def test_unit_has_ended_after_a_handshake_whose_commit_failed(
    uow: UnitOfWork, database: Database
) -> None:
    """What the app writes afterwards would be lost without a word. The server hears of it, too."""

    async def app(scope: Any, receive: Any, send: Any) -> None:
        current_session().add(Part(item_id=999))
        with pytest.raises(IntegrityError):
            await send({"type": "websocket.accept"})
        with pytest.raises(UnitEndedError, match="rolled back"):
            current_session()

    events, error = await run_websocket(UnitOfWorkMiddleware(app, uow=uow), database)

    assert events == [("websocket.close", 1011, [])]
    assert isinstance(error, IntegrityError)


@pytest.mark.parametrize("raises", [False, True])
async def test_handshake_that_is_never_answered_is_rolled_back(
    uow: UnitOfWork, database: Database, raises: bool
) -> None:
    """Whether the app returns or raises."""

    async def app(scope: Any, receive: Any, send: Any) -> None:
        await write("handshake")
        if raises:
            raise LookupError

    events, error = await run_websocket(UnitOfWorkMiddleware(app, uow=uow), database)

    assert events == []
    assert isinstance(error, LookupError) is raises
    assert await database.observer.names() == []


# --- lifespan ------------------------------------------------------------------------------


async def run_lifespan(app: Any) -> list[str]:
    incoming = [{"type": "lifespan.startup"}, {"type": "lifespan.shutdown"}]
    sent: list[str] = []

    async def receive() -> Any:
        return incoming.pop(0)

    async def send(message: Any) -> None:
        sent.append(message["type"])

    await app({"type": "lifespan", "asgi": {"version": "3.0"}, "state": {}}, receive, send)
    return sent


async def test_shutdown_waits_for_open_units_and_disposes_the_engine(
    uow: UnitOfWork, database: Database, engine: AsyncEngine
) -> None:
    """Then `lifespan.shutdown.complete` passes."""
    entered, leave = asyncio.Event(), asyncio.Event()

    async def work() -> None:
        async with uow:
            await write("a")
            entered.set()
            await leave.wait()

    task = asyncio.create_task(work())
    await entered.wait()
    shutdown = asyncio.create_task(run_lifespan(UnitOfWorkMiddleware(Starlette(), uow=uow)))
    done, _ = await asyncio.wait({shutdown}, timeout=0.1)
    assert not done
    leave.set()

    assert await shutdown == ["lifespan.startup.complete", "lifespan.shutdown.complete"]
    await task
    assert engine.pool.checkedin() == 0  # type: ignore[attr-defined]
    assert await database.observer.names() == ["a"]


async def test_shutdown_waits_for_requests_that_have_no_unit_yet(
    uow: UnitOfWork, database: Database, engine: AsyncEngine
) -> None:
    """They may still need the engine."""
    entered, go_on = asyncio.Event(), asyncio.Event()

    async def endpoint(request: Request) -> Response:
        entered.set()
        await go_on.wait()
        if request.method == "POST":
            await write("a")
        return PlainTextResponse("answer")

    routes = [Route("/", endpoint, methods=["GET", "POST"])]
    app = UnitOfWorkMiddleware(Starlette(routes=routes), uow=uow)
    for method in ("GET", "POST"):
        entered.clear()
        go_on.clear()
        request = asyncio.create_task(Exchange(app, database.observer).run(method=method))
        await entered.wait()
        shutdown = asyncio.create_task(run_lifespan(app))
        done, _ = await asyncio.wait({shutdown}, timeout=0.1)
        assert not done
        go_on.set()

        async with asyncio.timeout(5):  # less than a shutdown waits for
            assert await shutdown == ["lifespan.startup.complete", "lifespan.shutdown.complete"]
        await request
    assert engine.pool.checkedin() == 0  # type: ignore[attr-defined]
    assert await database.observer.names() == ["a"]


@pytest.mark.parametrize("end", ["complete", "failed"])
async def test_engine_is_disposed_before_the_shutdown_ends(
    uow: UnitOfWork, engine: AsyncEngine, end: str
) -> None:
    """A server may leave as soon as it has the message."""
    async with uow:
        await uow.session.execute(select(Item))
    idle = [engine.pool.checkedin()]  # type: ignore[attr-defined]

    async def app(scope: Any, receive: Any, send: Any) -> None:
        await send({"type": f"lifespan.shutdown.{end}"})

    async def send(message: Any) -> None:
        idle.append(engine.pool.checkedin())  # type: ignore[attr-defined]

    await UnitOfWorkMiddleware(app, uow=uow)({"type": "lifespan"}, None, send)  # type: ignore[arg-type]

    assert idle == [1, 0]


async def test_shutdown_does_not_wait_for_ever(
    uow: UnitOfWork, caplog: pytest.LogCaptureFixture
) -> None:
    """What is still open is named."""
    async with uow:
        await uow.dispose(timeout=0.05)

    assert "open units of work: an `async with` block" in caplog.text


async def test_shutdown_leaves_a_memory_database_alone() -> None:
    """Disposing would delete it."""
    engine = create_engine("sqlite+aiosqlite://")
    uow = UnitOfWork(engine)
    async with uow:
        await uow.session.execute(__import__("sqlalchemy").text("create table t (x)"))

    await run_lifespan(UnitOfWorkMiddleware(Starlette(), uow=uow))

    async with uow:
        await uow.session.execute(__import__("sqlalchemy").text("select * from t"))
    await engine.dispose()


async def test_lifespan_has_no_unit(uow: UnitOfWork) -> None:
    """Start-up opens its own."""

    async def app(scope: Any, receive: Any, send: Any) -> None:
        with pytest.raises(NoUnitError, match="start-up"):
            current_session()

    await UnitOfWorkMiddleware(app, uow=uow)({"type": "lifespan"}, None, None)  # type: ignore[arg-type]
