"""The rule of `UnitOfWorkMiddleware` as a truth table, seen from outside.

Each case compares one ordered list: every ASGI message, with what a second connection saw in
the table when it was sent.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator
from typing import Any

import pytest
from sqlalchemy import select, text
from sqlalchemy.exc import IntegrityError
from starlette.applications import Starlette
from starlette.background import BackgroundTask
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import JSONResponse, PlainTextResponse, Response, StreamingResponse
from starlette.routing import Route

from starlette_uow import UnitDoomedError, UnitOfWork, UnitOfWorkMiddleware, current_session
from tests.asgi import Exchange, layers
from tests.databases import Database
from tests.models import Item, Part

Events = list[tuple[Any, ...]]


class Boom(Exception):
    """What the apps of these tests raise."""


def make_app(
    uow: UnitOfWork,
    endpoint: Any,
    count: int,
    handlers: dict[Any, Any] | None = None,
    **options: Any,
) -> Starlette:
    return Starlette(
        routes=[Route("/", endpoint, methods=["GET", "POST"])],
        middleware=[Middleware(UnitOfWorkMiddleware, uow=uow, **options), *layers(count)],
        exception_handlers=handlers or {},
    )


def answer(status: int, text: str, items: list[str], count: int) -> Events:
    """The messages of a plain response; a BaseHTTPMiddleware closes the body by itself."""
    if not count:
        return [("start", status, items), ("body", text, False, items)]
    return [
        ("start", status, items),
        ("body", text, True, items),
        ("body", "", False, items),
    ]


async def fill(uow: UnitOfWork) -> None:
    async with uow:
        uow.session.add(Item(name="filled"))


async def write(name: str) -> None:
    current_session().add(Item(name=name))
    await current_session().flush()


async def violate_deferred_constraint() -> None:
    """Succeeds now; the COMMIT will be refused."""
    current_session().add(Part(item_id=999))
    await current_session().flush()


BEHAVIOURS = ["returns", "raises", "refused", "doomed", "joined block fails", "aborted"]


@pytest.mark.parametrize("count", [0, 1, 2])
@pytest.mark.parametrize("streaming", [False, True])
@pytest.mark.parametrize("status", [201, 303, 404, 500])
@pytest.mark.parametrize("behaviour", BEHAVIOURS)
async def test_endpoint_that_writes(
    uow: UnitOfWork,
    database: Database,
    behaviour: str,
    status: int,
    streaming: bool,
    count: int,
) -> None:
    """Rows 1 to 5 of the rule, for work that is done before the response starts."""

    async def body() -> AsyncIterator[str]:
        yield "an"
        yield "swer"

    async def endpoint(request: Request) -> Response:
        await write("a")
        if behaviour == "raises":
            raise Boom
        if behaviour == "refused":
            await violate_deferred_constraint()
        if behaviour == "doomed":
            uow.doom()
        if behaviour == "joined block fails":
            try:
                async with uow:
                    raise Boom
            except Boom:
                pass
        if behaviour == "aborted":
            try:
                await current_session().execute(text("select * from nowhere"))
            except Exception:
                pass
        if streaming:
            return StreamingResponse(body(), status)
        return PlainTextResponse("answer", status)

    exchange = await Exchange(make_app(uow, endpoint, count), database.observer).run()

    succeeds = status < 400
    refused = behaviour in ("refused", "joined block fails")
    if behaviour == "aborted":  # SQLite undoes the failed statement alone, and goes on
        refused = database.is_postgres
    if behaviour == "raises" or (succeeds and refused):
        expected = answer(500, "Internal Server Error", [], 0)
    else:
        items = ["a"] if succeeds and behaviour != "doomed" else []
        if streaming:
            expected = [
                ("start", status, items),
                ("body", "an", True, items),
                ("body", "swer", True, items),
                ("body", "", False, items),
            ]
        else:
            expected = answer(status, "answer", items, count)
    assert exchange.events == expected
    assert await database.observer.names() == expected[-1][-1]
    if behaviour == "raises":
        assert isinstance(exchange.error, Boom)
    elif succeeds and behaviour == "refused":
        assert isinstance(exchange.error, IntegrityError)
    elif succeeds and refused:
        assert isinstance(exchange.error, UnitDoomedError)
    else:
        assert exchange.error is None


@pytest.mark.parametrize("count", [0, 1, 2])
@pytest.mark.parametrize("status", [200, 404])
@pytest.mark.parametrize("fails", [False, True])
@pytest.mark.parametrize("in_endpoint", [False, True])
async def test_body_that_writes(
    uow: UnitOfWork, database: Database, in_endpoint: bool, fails: bool, status: int, count: int
) -> None:
    """Row 7: a second transaction, ended before the last body message; lost with a failing body."""

    async def body() -> AsyncIterator[str]:
        yield "1"
        await write("body")
        yield "2"
        if fails:
            raise Boom

    async def endpoint(request: Request) -> Response:
        if in_endpoint:
            await write("endpoint")
        return StreamingResponse(body(), status)

    exchange = await Exchange(make_app(uow, endpoint, count), database.observer).run()

    succeeds = status < 400
    first = ["endpoint"] if in_endpoint and succeeds else []
    both = ["body", *first] if succeeds else []
    expected: Events = [
        ("start", status, first),
        ("body", "1", True, first),
        ("body", "2", True, first),
    ]
    if fails:
        assert exchange.events == expected
        assert isinstance(exchange.error, Boom)
        assert await database.observer.names() == first
    else:
        assert exchange.events == [*expected, ("body", "", False, both)]
        assert exchange.error is None


@pytest.mark.parametrize(("status", "items"), [(399, ["a"]), (400, [])])
async def test_status_400_is_the_first_that_rolls_back(
    uow: UnitOfWork, database: Database, status: int, items: list[str]
) -> None:
    """Rows 1 and 2 meet there."""

    async def endpoint(request: Request) -> Response:
        await write("a")
        return PlainTextResponse("answer", status)

    exchange = await Exchange(make_app(uow, endpoint, 0), database.observer).run()

    assert exchange.events == answer(status, "answer", items, 0)


@pytest.mark.parametrize("count", [0, 1, 2])
async def test_body_whose_commit_is_refused_is_broken_off(
    uow: UnitOfWork, database: Database, count: int
) -> None:
    """A client never sees the end of a body whose transaction was not committed."""

    async def body() -> AsyncIterator[str]:
        yield "1"
        await write("body")
        await violate_deferred_constraint()

    async def endpoint(request: Request) -> Response:
        return StreamingResponse(body())

    exchange = await Exchange(make_app(uow, endpoint, count), database.observer).run()

    assert exchange.events == [("start", 200, []), ("body", "1", True, [])]
    assert isinstance(exchange.error, IntegrityError)
    assert await database.observer.names() == []


@pytest.mark.parametrize("count", [0, 1, 2])
async def test_body_that_used_the_session_in_finished_tasks_only_is_committed(
    uow: UnitOfWork, database: Database, count: int
) -> None:
    """The task that used the session last being done does not mean that the body failed."""
    import asyncio

    async def body() -> AsyncIterator[str]:
        yield "1"
        await asyncio.gather(write("body"))
        yield "2"

    async def endpoint(request: Request) -> Response:
        return StreamingResponse(body())

    exchange = await Exchange(make_app(uow, endpoint, count), database.observer).run()

    assert exchange.is_complete
    assert exchange.events[-1] == ("body", "", False, ["body"])


@pytest.mark.parametrize("count", [0, 1, 2])
@pytest.mark.parametrize("behaviour", ["returns", "raises", "refused"])
async def test_background_task_that_writes(
    uow: UnitOfWork, database: Database, behaviour: str, count: int
) -> None:
    """Row 8: a transaction of its own, committed if no task raised, when the app returns."""

    async def work() -> None:
        await write("background")
        if behaviour == "raises":
            raise Boom
        if behaviour == "refused":
            await violate_deferred_constraint()

    async def endpoint(request: Request) -> Response:
        await write("endpoint")
        return PlainTextResponse("answer", 201, background=BackgroundTask(work))

    exchange = await Exchange(make_app(uow, endpoint, count), database.observer).run()

    assert exchange.events == answer(201, "answer", ["endpoint"], count)
    error = {"returns": type(None), "raises": Boom, "refused": IntegrityError}[behaviour]
    assert isinstance(exchange.error, error)
    items = ["background", "endpoint"] if behaviour == "returns" else ["endpoint"]
    assert await database.observer.names() == items


@pytest.mark.parametrize("count", [0, 1, 2])
async def test_body_that_writes_is_complete_before_background_tasks_run(
    uow: UnitOfWork, database: Database, count: int
) -> None:
    """Row 7: its client waits for the commit of the body, and not for the background tasks."""
    seen: list[Any] = []

    async def body() -> AsyncIterator[str]:
        yield "1"
        await write("body")

    async def work() -> None:
        seen.extend((exchange.is_complete, await database.observer.names()))

    async def endpoint(request: Request) -> Response:
        return StreamingResponse(body(), background=BackgroundTask(work))

    exchange = Exchange(make_app(uow, endpoint, count), database.observer)
    await exchange.run()

    assert seen == [True, ["body"]]


@pytest.mark.parametrize("count", [0, 1, 2])
async def test_background_tasks_of_a_refused_answer_do_not_run(
    uow: UnitOfWork, database: Database, count: int
) -> None:
    """Row 5: the app's own answer is dropped whole."""
    ran: list[str] = []

    async def endpoint(request: Request) -> Response:
        await write("a")
        await violate_deferred_constraint()
        return PlainTextResponse("answer", 201, background=BackgroundTask(ran.append, "task"))

    exchange = await Exchange(make_app(uow, endpoint, count), database.observer).run()

    assert exchange.status == 500
    assert ran == []


@pytest.mark.parametrize("count", [0, 1, 2])
@pytest.mark.parametrize("end", ["complete", "fails", "refused", "closed early"])
async def test_body_read_from_the_requests_own_transaction(
    uow: UnitOfWork, database: Database, end: str, count: int
) -> None:
    """Row 6: a streaming result that is open at response start defers the commit to the end."""

    async def endpoint(request: Request) -> Response:
        for name in "abc":
            await write(name)
        if end == "refused":
            await violate_deferred_constraint()
        names = select(Item.name).order_by(Item.name).execution_options(yield_per=1)
        result = await current_session().stream(names)

        async def body() -> AsyncIterator[str]:
            async for name in result.scalars():
                yield name
                if end == "fails":
                    raise Boom
                if end == "closed early":
                    await result.close()
                    break

        return StreamingResponse(body(), 201)

    exchange = await Exchange(make_app(uow, endpoint, count), database.observer).run()

    if end == "complete":
        assert exchange.events == [
            ("start", 201, []),
            ("body", "a", True, []),
            ("body", "b", True, []),
            ("body", "c", True, []),
            ("body", "", False, ["a", "b", "c"]),
        ]
        assert exchange.error is None
    elif end == "closed early":
        assert exchange.events == [
            ("start", 201, []),
            ("body", "a", True, []),
            ("body", "", False, ["a", "b", "c"]),
        ]
    elif end == "fails":
        assert exchange.events == [("start", 201, []), ("body", "a", True, [])]
        assert isinstance(exchange.error, Boom)
        assert await database.observer.names() == []
    else:
        assert [event[1] for event in exchange.events] == [201, "a", "b", "c"]
        assert isinstance(exchange.error, IntegrityError)
        assert await database.observer.names() == []


@pytest.mark.parametrize("count", [0, 1, 2])
@pytest.mark.parametrize("refused", [False, True])
async def test_plain_answer_with_a_stream_left_open(
    uow: UnitOfWork, database: Database, refused: bool, count: int
) -> None:
    """Row 6: the start waits for the first body message, so a refusal can become an answer."""

    async def endpoint(request: Request) -> Response:
        await write("a")
        if refused:
            await violate_deferred_constraint()
        request.state.result = await current_session().stream(select(Item))
        return PlainTextResponse("answer", 201)

    async def conflict(request: Request, exc: Exception) -> Response:
        return JSONResponse({"error": "conflict"}, 409)

    app = make_app(uow, endpoint, count, {IntegrityError: conflict})
    exchange = await Exchange(app, database.observer).run()

    if not refused:
        if count:  # there the first body message is not the last
            assert exchange.events == [
                ("start", 201, []),
                ("body", "answer", True, []),
                ("body", "", False, ["a"]),
            ]
        else:
            assert exchange.events == answer(201, "answer", ["a"], 0)
    elif count:
        assert not exchange.is_complete
        assert isinstance(exchange.error, IntegrityError)
    else:
        assert exchange.events == answer(409, '{"error":"conflict"}', [], 0)
    assert await database.observer.names() == ([] if refused else ["a"])


@pytest.mark.parametrize("end", ["read", "closed", "dropped"])
async def test_stream_that_is_done_does_not_hold_the_commit_back(
    uow: UnitOfWork, database: Database, end: str
) -> None:
    """Row 1: only a streaming result with rows left to read makes the commit wait for the body."""

    async def body() -> AsyncIterator[str]:
        yield "answer"

    async def endpoint(request: Request) -> Response:
        await write("a")
        result = await current_session().stream(select(Item))
        if end == "read":
            await result.all()
        elif end == "closed":
            await result.close()
        if end != "dropped":
            request.state.result = result
        return StreamingResponse(body(), 201)

    exchange = await Exchange(make_app(uow, endpoint, 0), database.observer).run()

    assert exchange.events == [
        ("start", 201, ["a"]),
        ("body", "answer", True, ["a"]),
        ("body", "", False, ["a"]),
    ]


@pytest.mark.parametrize("count", [0, 1, 2])
@pytest.mark.parametrize(
    ("status", "rule", "items"),
    [
        (404, True, ["a"]),
        (200, False, []),
        (201, True, ["a"]),
        (500, False, []),
    ],
)
async def test_commit_when_decides_instead_of_the_status(
    uow: UnitOfWork, database: Database, status: int, rule: bool, items: list[str], count: int
) -> None:
    """Row 2: the user's rule may turn any answer into a commit or a rollback."""
    seen = []

    def commit_when(status: int, scope: Any) -> bool:
        seen.append((status, scope["path"]))
        return rule

    async def endpoint(request: Request) -> Response:
        await write("a")
        return PlainTextResponse("answer", status)

    app = make_app(uow, endpoint, count, commit_when=commit_when)
    exchange = await Exchange(app, database.observer).run()

    assert exchange.events == answer(status, "answer", items, count)
    assert seen == [(status, "/")]


async def test_commit_when_never_commits_an_exception(uow: UnitOfWork, database: Database) -> None:
    """Row 4: whatever the rule says."""

    async def endpoint(request: Request) -> Response:
        await write("a")
        raise Boom

    app = make_app(uow, endpoint, 0, commit_when=lambda status, scope: True)
    exchange = await Exchange(app, database.observer).run()

    assert isinstance(exchange.error, Boom)
    assert await database.observer.names() == []


@pytest.mark.parametrize("count", [0, 1, 2])
async def test_refused_commit_is_answered_by_the_apps_handler(
    uow: UnitOfWork, database: Database, count: int
) -> None:
    """Row 5: the handler answers for a deferred constraint as it does for a flush."""

    async def conflict(request: Request, exc: Exception) -> Response:
        return JSONResponse({"error": type(exc).__name__}, 409)

    async def endpoint(request: Request) -> Response:
        await write("a")
        await violate_deferred_constraint()
        return PlainTextResponse("answer", 201)

    app = make_app(uow, endpoint, count, {IntegrityError: conflict})
    exchange = await Exchange(app, database.observer).run()

    assert exchange.events == answer(409, '{"error":"IntegrityError"}', [], 0)
    assert exchange.error is None


async def test_refused_commit_after_early_hints_is_answered_by_the_apps_handler(
    uow: UnitOfWork, database: Database
) -> None:
    """What a server is told before the answer is no answer yet
    (https://asgi.readthedocs.io/en/latest/extensions.html#early-hints).
    """

    async def conflict(request: Request, exc: Exception) -> Response:
        return JSONResponse({"error": type(exc).__name__}, 409)

    async def endpoint(request: Request) -> Response:
        await write("a")
        await violate_deferred_constraint()
        await request._send({"type": "http.response.early_hint", "links": []})
        return PlainTextResponse("answer", 201)

    exchange = Exchange(make_app(uow, endpoint, 0, {IntegrityError: conflict}), database.observer)
    kinds: list[str] = []
    exchange.on_message = lambda message: kinds.append(message["type"])
    await exchange.run()

    assert kinds == ["http.response.early_hint", "http.response.start", "http.response.body"]
    assert exchange.events == answer(409, '{"error":"IntegrityError"}', [], 0)


async def test_synchronous_handler_of_a_refused_commit_runs_in_a_thread(
    uow: UnitOfWork, database: Database
) -> None:
    """As Starlette runs it: it may block."""
    threads: list[int] = []

    def conflict(request: Request, exc: Exception) -> Response:
        threads.append(threading.get_ident())
        return PlainTextResponse("conflict", 409)

    async def endpoint(request: Request) -> Response:
        await violate_deferred_constraint()
        return PlainTextResponse("answer", 201)

    app = make_app(uow, endpoint, 0, {IntegrityError: conflict})
    exchange = await Exchange(app, database.observer).run()

    assert exchange.events == answer(409, "conflict", [], 0)
    assert threads != [threading.get_ident()]


async def test_handler_of_a_refused_commit_that_answers_nothing(
    uow: UnitOfWork, database: Database
) -> None:
    """The error goes on, so that the client gets an answer after all."""

    async def nothing(request: Request, exc: Exception) -> None:
        return None

    async def endpoint(request: Request) -> Response:
        await violate_deferred_constraint()
        return PlainTextResponse("answer", 201)

    app = make_app(uow, endpoint, 0, {IntegrityError: nothing})
    exchange = await Exchange(app, database.observer).run()

    assert exchange.status == 500
    assert isinstance(exchange.error, IntegrityError)


async def test_handler_of_all_exceptions_answers_a_refused_commit_as_any_other(
    uow: UnitOfWork, database: Database
) -> None:
    """Once, and the server hears of the error, too: that is left to ServerErrorMiddleware."""
    handled: list[type[Exception]] = []

    async def sorry(request: Request, exc: Exception) -> Response:
        handled.append(type(exc))
        return PlainTextResponse("sorry", 500)

    async def endpoint(request: Request) -> Response:
        await violate_deferred_constraint()
        return PlainTextResponse("answer", 201)

    app = make_app(uow, endpoint, 0, {Exception: sorry})
    exchange = await Exchange(app, database.observer).run()

    assert exchange.events == answer(500, "sorry", [], 0)
    assert handled == [IntegrityError]
    assert isinstance(exchange.error, IntegrityError)


async def test_refused_commit_is_not_raised_into_the_app(
    uow: UnitOfWork, database: Database
) -> None:
    """A middleware that mends an IntegrityError of a flush comes too late for one of the COMMIT."""
    caught: list[BaseException] = []

    class Mend:
        def __init__(self, app: Any) -> None:
            self.app = app

        async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
            try:
                await self.app(scope, receive, send)
            except IntegrityError as error:
                caught.append(error)

    async def endpoint(request: Request) -> Response:
        await violate_deferred_constraint()
        return PlainTextResponse("answer", 201)

    app = Starlette(
        routes=[Route("/", endpoint)],
        middleware=[Middleware(UnitOfWorkMiddleware, uow=uow), Middleware(Mend)],
    )
    exchange = await Exchange(app, database.observer).run()

    assert caught == []
    assert isinstance(exchange.error, IntegrityError)


async def test_handler_of_a_refused_commit_may_write(uow: UnitOfWork, database: Database) -> None:
    """It runs outside the failed transaction, in one of its own, which ends by its status."""

    async def recover(request: Request, exc: Exception) -> Response:
        await write("recovered")
        return PlainTextResponse("recovered", 200)

    async def endpoint(request: Request) -> Response:
        await write("a")
        await violate_deferred_constraint()
        return PlainTextResponse("answer", 201)

    app = make_app(uow, endpoint, 0, {IntegrityError: recover})
    exchange = await Exchange(app, database.observer).run()

    assert exchange.events == answer(200, "recovered", ["recovered"], 0)


async def test_handler_whose_own_commit_is_refused_ends_in_500(
    uow: UnitOfWork, database: Database
) -> None:
    """There is one second chance, and no third."""

    async def fail_again(request: Request, exc: Exception) -> Response:
        await violate_deferred_constraint()
        return PlainTextResponse("recovered", 200)

    async def endpoint(request: Request) -> Response:
        await violate_deferred_constraint()
        return PlainTextResponse("answer", 201)

    app = make_app(uow, endpoint, 0, {IntegrityError: fail_again})
    exchange = await Exchange(app, database.observer).run()

    assert exchange.status == 500
    assert isinstance(exchange.error, IntegrityError)


async def test_refusal_that_the_app_swallows_is_still_refused(
    uow: UnitOfWork, database: Database
) -> None:
    """A middleware that turns every exception into its own 200 cannot hide a failed commit."""

    class Swallow:
        def __init__(self, app: Any) -> None:
            self.app = app

        async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
            try:
                await self.app(scope, receive, send)
            except Exception:
                await PlainTextResponse("all is well")(scope, receive, send)

    async def endpoint(request: Request) -> Response:
        await violate_deferred_constraint()
        return PlainTextResponse("answer", 201)

    app = Starlette(
        routes=[Route("/", endpoint)],
        middleware=[Middleware(UnitOfWorkMiddleware, uow=uow), Middleware(Swallow)],
    )
    exchange = await Exchange(app, database.observer).run()

    assert exchange.status == 500
    assert isinstance(exchange.error, IntegrityError)


async def test_exception_turned_into_a_redirect_commits_what_was_flushed(
    uow: UnitOfWork, database: Database
) -> None:
    """From outside, a handler that redirects looks like success: use a block, or `doom()`."""

    async def redirect(request: Request, exc: Exception) -> Response:
        return Response(status_code=303, headers={"location": "/sorry"})

    async def endpoint(request: Request) -> Response:
        await write("a")
        raise Boom

    exchange = await Exchange(make_app(uow, endpoint, 0, {Boom: redirect}), database.observer).run()

    assert exchange.status == 303
    assert await database.observer.names() == ["a"]


@pytest.mark.parametrize("remedy", ["block", "doom"])
async def test_exception_turned_into_a_redirect_with_the_remedy(
    uow: UnitOfWork, database: Database, remedy: str
) -> None:
    """A joined block sees the exception; `doom()` in the handler lets the redirect pass."""

    async def redirect(request: Request, exc: Exception) -> Response:
        if remedy == "doom":
            uow.doom()
        return Response(status_code=303, headers={"location": "/sorry"})

    async def endpoint(request: Request) -> Response:
        if remedy == "block":
            async with uow:
                await write("a")
                raise Boom
        await write("a")
        raise Boom

    exchange = await Exchange(make_app(uow, endpoint, 0, {Boom: redirect}), database.observer).run()

    assert await database.observer.names() == []
    assert exchange.status == (303 if remedy == "doom" else 500)
    if remedy == "block":
        assert isinstance(exchange.error, UnitDoomedError)
        assert "Boom" in str(exchange.error)


async def test_app_that_never_answers_is_rolled_back(uow: UnitOfWork, database: Database) -> None:
    """No complete answer, no commit."""

    async def app(scope: Any, receive: Any, send: Any) -> None:
        await write("a")

    exchange = await Exchange(UnitOfWorkMiddleware(app, uow=uow), database.observer).run()

    assert exchange.events == []
    assert await database.observer.names() == []


async def test_app_that_breaks_off_its_body_loses_the_bodys_work(
    uow: UnitOfWork, database: Database
) -> None:
    """What the body wrote is not committed if its end was never sent."""

    async def app(scope: Any, receive: Any, send: Any) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await write("a")
        await send({"type": "http.response.body", "body": b"1", "more_body": True})

    exchange = await Exchange(UnitOfWorkMiddleware(app, uow=uow), database.observer).run()

    assert not exchange.is_complete
    assert await database.observer.names() == []


@pytest.mark.parametrize("streaming", [False, True], ids=["body", "stream"])
@pytest.mark.parametrize("count", [0, 1, 2])
async def test_body_whose_client_left_in_the_middle_is_rolled_back(
    uow: UnitOfWork, database: Database, count: int, streaming: bool
) -> None:
    """Starlette cuts it off, returns as if nothing had happened, and below a BaseHTTPMiddleware
    the body even ends as if it were complete.
    """
    left: list[Exchange] = []

    async def endpoint(request: Request) -> Response:
        result = await uow.session.stream(select(Item), execution_options={"yield_per": 1})

        async def body() -> AsyncIterator[str]:
            yield "first"
            await write("half")
            left[0].disconnected.set()
            await asyncio.Event().wait()

        if not streaming:
            await result.close()
        return StreamingResponse(body())

    await fill(uow)
    left.append(Exchange(make_app(uow, endpoint, count), database.observer))
    exchange = await left[0].run(asgi={"version": "3.0", "spec_version": "2.3"})

    assert exchange.error is None
    assert await database.observer.names() == ["filled"]


async def test_path_send_ends_the_body(uow: UnitOfWork, database: Database) -> None:
    """`http.response.pathsend` is the last message of its answer."""
    seen: list[list[str]] = []

    async def app(scope: Any, receive: Any, send: Any) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await write("a")
        await send({"type": "http.response.pathsend", "path": "/dev/null"})

    async def send(message: Any) -> None:
        seen.append(await database.observer.names())

    from tests.asgi import http_scope

    await UnitOfWorkMiddleware(app, uow=uow)(http_scope(), None, send)  # type: ignore[arg-type]

    assert seen == [[], ["a"]]
