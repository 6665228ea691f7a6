"""What a faulty wire to PostgreSQL does to a unit of work, and what it cannot do.

Here one request meets one fault. `tests/torture` has every message of every endpoint.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from typing import Any

import pytest
from sqlalchemy import insert, text
from sqlalchemy.exc import DBAPIError
from sqlalchemy.ext.asyncio import AsyncEngine, AsyncSession
from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response
from starlette.routing import Route
from starlette.types import ASGIApp, Receive, Scope, Send

from starlette_uow import (
    CommitOutcomeUnknownError,
    UnitDoomedError,
    UnitOfWork,
    UnitOfWorkMiddleware,
    create_engine,
    current_session,
    postgres,
)
from starlette_uow.context import open_units
from tests.crowd import Client, besiege
from tests.models import Item, Part
from tests.proxy import Fault, Match, Proxy, Sender, answers, sends
from tests.test_server import serve
from tests.wire import (
    AppFactory,
    Blow,
    Witness,
    eventually,
    late,
    strike,
    strike_everywhere,
    tasks_since,
    terminated,
    violations,
    witness,
)
from tests.wire_app import ask, broken_promises, create, make_app, say_unknown, write


@pytest.fixture
async def seen(postgres_url: str) -> AsyncIterator[Witness]:
    async with witness(postgres_url) as seen:
        yield seen


# --- the truth about one message -----------------------------------------------------------------


@pytest.mark.parametrize(
    ("where", "blow", "word", "is_written"),
    [
        (answers("INSERT"), Fault.CUT, "failure", False),
        (answers("INSERT"), Fault.HALF, "failure", False),
        (answers("INSERT"), terminated, "failure", False),
        (sends("COMMIT"), Fault.CUT, "unknown", False),
        (sends("COMMIT"), Fault.HALF, "unknown", False),
        (sends("COMMIT"), terminated, "unknown", False),
        (sends("COMMIT"), Fault.PASS_AND_CUT, "unknown", True),
        (answers("COMMIT"), Fault.CUT, "unknown", True),
        (answers("COMMIT"), Fault.HALF, "unknown", True),
        (answers("COMMIT"), terminated, "success", True),
    ],
)
async def test_what_a_lost_connection_comes_to(
    postgres_url: str, seen: Witness, where: Match, blow: Blow, word: str, is_written: bool
) -> None:
    """Before COMMIT is sent, nothing is written; afterwards nobody knows, and nobody says so."""
    result = await strike(postgres_url, seen, "create", blow, where)

    assert (result.told.word, bool(result.written)) == (word, is_written)
    assert result.violations == []


@pytest.mark.parametrize("blow", [Fault.CUT, Fault.PASS_AND_CUT, terminated])
@pytest.mark.parametrize(
    ("trusted_for", "word", "is_written"), [(0, "success", True), (1000, "failure", False)]
)
async def test_connection_lost_at_begin(
    postgres_url: str,
    seen: Witness,
    monkeypatch: pytest.MonkeyPatch,
    blow: Blow,
    trusted_for: float,
    word: str,
    is_written: bool,
) -> None:
    """It is replaced, or the request fails if the connection was used a moment ago."""
    monkeypatch.setattr(postgres, "TRUSTED_FOR", trusted_for)

    result = await strike(postgres_url, seen, "create", blow, sends("BEGIN"))

    assert (result.told.word, bool(result.written)) == (word, is_written)
    assert result.violations == []


@pytest.mark.parametrize(
    ("scenario", "where", "word", "is_written"),
    [
        ("create", answers("INSERT"), "failure", False),
        ("create", answers("COMMIT"), "nothing", True),
        ("stream", answers("COMMIT"), "nothing", True),
        ("websocket", answers("COMMIT"), "unknown", True),
    ],
)
async def test_request_that_is_cancelled_on_a_wire_that_stalls(
    postgres_url: str, seen: Witness, scenario: str, where: Match, word: str, is_written: bool
) -> None:
    """The server makes a 500 of it only if nothing is written; otherwise it breaks off."""
    result = await strike(postgres_url, seen, scenario, Fault.STALL, where)

    assert (result.told.word, bool(result.written)) == (word, is_written)
    assert result.violations == []


@pytest.mark.parametrize(
    ("where", "word"), [(answers("INSERT"), "failure"), (answers("COMMIT"), "unknown")]
)
async def test_answer_that_comes_after_the_timeout_of_the_driver(
    postgres_url: str, seen: Witness, where: Match, word: str
) -> None:
    """The connection is whole, and yet nobody knows what became of a COMMIT."""
    result = await strike(postgres_url, seen, "create", late, where, timeout=0.3)

    assert result.told.word == word
    assert result.violations == []


@pytest.mark.parametrize(
    ("scenario", "blow", "step"),
    [
        ("create", Fault.CUT, 2),
        ("create", Fault.PASS_AND_CUT, 3),
        ("create", Fault.STALL, 5),
        ("savepoints", Fault.CUT, 20),
        ("stream", Fault.HALF, 30),
        ("background", terminated, 10),
        ("websocket", Fault.CUT, 6),
    ],
)
async def test_fault_at_any_message(
    postgres_url: str, seen: Witness, scenario: str, blow: Blow, step: int
) -> None:
    """The client is told the truth, nothing is left open, and the next request is fine."""
    strikes = await strike_everywhere(postgres_url, seen, scenario, blow, step=step, width=4)

    assert violations(strikes) == []
    assert len(strikes) > 2


# --- what the checks can see ---------------------------------------------------------------------

kept: list[object] = []
"""What a careless app forgets to give back."""

ByHand = Callable[[AsyncEngine, str], Awaitable[int]]


async def write_by_hand(session: AsyncSession, name: str) -> None:
    item = await session.scalar(insert(Item).values(name=name).returning(Item.id))
    await session.execute(insert(Part).values(item_id=item))


async def commit_after_the_answer(engine: AsyncEngine, name: str) -> int:
    async def commit() -> None:
        async with AsyncSession(engine) as session:
            await write_by_hand(session, name)
            await session.commit()

    after_answer.append(commit)
    return 201


async def believe_that_it_failed(engine: AsyncEngine, name: str) -> int:
    try:
        async with AsyncSession(engine) as session, session.begin():
            await write_by_hand(session, name)
    except Exception:
        return 500
    return 201


async def commit_twice(engine: AsyncEngine, name: str) -> int:
    try:
        async with AsyncSession(engine) as session:
            item = await session.scalar(insert(Item).values(name=name).returning(Item.id))
            await session.commit()
            await session.execute(insert(Part).values(item_id=item))
            await session.commit()
    except Exception:
        return 504
    return 201


async def forget_the_session(engine: AsyncEngine, name: str) -> int:
    session = AsyncSession(engine)
    await write_by_hand(session, name)
    if name.endswith("-unit"):
        kept.append(session)
        return 504
    await session.commit()
    await session.close()
    return 201


async def forget_a_task(engine: AsyncEngine, name: str) -> int:
    kept.append(asyncio.create_task(asyncio.Event().wait()))
    return await believe_that_it_failed(engine, name)


after_answer: list[Callable[[], Awaitable[None]]] = []


def by_hand(work: ByHand) -> AppFactory:
    def factory(engine: AsyncEngine, count: int, end_timeout: float) -> ASGIApp:
        async def app(scope: Scope, receive: Receive, send: Send) -> None:
            status = await work(engine, scope["path"].rpartition("/")[2])
            await PlainTextResponse("", status)(scope, receive, send)
            while after_answer:
                await after_answer.pop()()

        return app

    return factory


@pytest.mark.parametrize(
    ("work", "where", "noticed"),
    [
        (commit_after_the_answer, sends("COMMIT"), ["success was told, and nothing is written"]),
        (believe_that_it_failed, answers("COMMIT"), ["failure was told, and the unit is written"]),
        (commit_twice, sends("INSERT INTO parts"), ["half of"]),
        (forget_a_task, 99, ["tasks were left"]),
        (
            forget_the_session,
            99,
            [
                "were not given back",
                "left on the server: ['idle in tr",
                "the next request was told",
            ],
        ),
    ],
)
async def test_carelessness_is_noticed(
    postgres_url: str,
    seen: Witness,
    monkeypatch: pytest.MonkeyPatch,
    work: ByHand,
    where: Match | int,
    noticed: list[str],
) -> None:
    """The same checks, on what people write by hand."""
    monkeypatch.setattr("tests.wire.PATIENCE", 0.3)
    before = asyncio.all_tasks()

    result = await strike(postgres_url, seen, "create", Fault.CUT, where, factory=by_hand(work))
    result.violations += await tasks_since(before)

    for violation in noticed:
        assert violation in str(result.violations)
    for thing in kept:
        if isinstance(thing, AsyncSession):
            await thing.invalidate()
        elif isinstance(thing, asyncio.Task):
            thing.cancel()
    kept.clear()


# --- cancelled while it commits ------------------------------------------------------------------


@pytest.mark.parametrize("scenario", ["create", "stream", "background"])
@pytest.mark.parametrize("count", [0, 1])
async def test_request_that_the_server_cancels_while_it_commits(
    postgres_url: str, seen: Witness, scenario: str, count: int
) -> None:
    """The commit is carried through, and uvicorn must not answer 500 to it."""
    committing, go_on = asyncio.Event(), asyncio.Event()

    async def hold() -> None:
        committing.set()
        await go_on.wait()

    name = f"cancelled-{scenario}-{count}"
    async with Proxy(postgres_url) as proxy:
        uow = UnitOfWork(create_engine(proxy.url))
        async with serve(make_app(uow, count), log_config=None) as server:
            proxy.at(answers("COMMIT"), hold)
            client = Client(server.port)
            asked = asyncio.create_task(client.post(f"/{scenario}/{name}"))
            await committing.wait()
            for task in server.server_state.tasks:
                task.cancel()
            await asyncio.sleep(0)
            go_on.set()
            told = await asked
            await client.leave()

    written = await seen.units(name)
    assert name in written
    assert broken_promises(scenario, name, told.word, written) == []


# --- timeouts of the server ----------------------------------------------------------------------


@asynccontextmanager
async def app_with(
    url: str, endpoint: Callable[[Request], Awaitable[Response]], **settings: str
) -> AsyncIterator[ASGIApp]:
    """An app on an engine with these settings, whose pool has to be whole at the end."""
    connect_args = {"server_settings": {"application_name": APPLICATION, **settings}}
    engine = create_engine(url, pool_size=1, max_overflow=0, connect_args=connect_args)
    yield Starlette(
        routes=[Route("/work", endpoint), Route("/create/{name}", create)],
        middleware=[Middleware(UnitOfWorkMiddleware, uow=UnitOfWork(engine))],
        exception_handlers={CommitOutcomeUnknownError: say_unknown},
    )
    assert engine.pool.checkedout() == 0  # type: ignore[attr-defined]
    await engine.dispose()


APPLICATION = f"wire-{os.getpid()}"


async def test_statement_timeout_in_the_middle_of_a_unit(postgres_url: str, seen: Witness) -> None:
    """The error goes to the client, the unit is rolled back, and its connection stays in use."""

    async def endpoint(request: Request) -> Response:
        write("statement-timeout")
        await current_session().execute(text("select pg_sleep(60)"))
        raise AssertionError

    async with app_with(postgres_url, endpoint, statement_timeout="500ms") as app:
        told = await ask(app, "/work")
        backends = await seen.fetch(PIDS, APPLICATION)
        assert (await ask(app, "/create/statement-timeout-after")).word == "success"
        assert await seen.fetch(PIDS, APPLICATION) == backends

    assert told.word == "failure"
    assert list(await seen.units("statement-timeout")) == ["statement-timeout-after"]


async def test_statement_timeout_that_the_app_swallows(postgres_url: str, seen: Witness) -> None:
    """PostgreSQL aborted the transaction, so 201 would be a lie."""

    async def endpoint(request: Request) -> Response:
        write("swallowed-timeout")
        with suppress(DBAPIError):
            await current_session().execute(text("select pg_sleep(60)"))
        return PlainTextResponse("created", 201)

    async with app_with(postgres_url, endpoint, statement_timeout="500ms") as app:
        told = await ask(app, "/work")

    assert told.word == "failure"
    assert isinstance(told.error, UnitDoomedError)
    assert "statement timeout" in str(told.error)
    assert await seen.units("swallowed-timeout") == {}


@pytest.mark.parametrize("setting", ["idle_in_transaction_session_timeout", "transaction_timeout"])
async def test_idle_timeout_in_the_middle_of_a_unit(
    postgres_url: str, seen: Witness, setting: str
) -> None:
    """The server ended the session before COMMIT was sent: known to be rolled back."""

    async def endpoint(request: Request) -> Response:
        write(setting)
        await current_session().flush()
        connection = await current_session().connection()
        driver: Any = (await connection.get_raw_connection()).driver_connection
        assert await eventually(lambda: seen.backends(APPLICATION), []) == []
        assert await eventually(lambda: is_closed(driver), True)  # the driver has heard of it
        return PlainTextResponse("created", 201)

    async def is_closed(driver: Any) -> bool:
        return bool(driver.is_closed())

    async with app_with(postgres_url, endpoint, **{setting: "500ms"}) as app:
        told = await ask(app, "/work")
        assert (await ask(app, f"/create/{setting}-after")).word == "success"

    assert told.word == "failure"
    assert list(await seen.units(setting)) == [f"{setting}-after"]


PIDS = "select pid from pg_stat_activity where application_name = $1"


# --- a crowd -------------------------------------------------------------------------------------


async def test_crowd_of_clients_while_the_wire_is_faulty(postgres_url: str, seen: Witness) -> None:
    """A quarter of them leave. What each was told is held against the tables."""
    siege = await besiege(postgres_url, seen, clients=20, seconds=4, every=0.4, end_timeout=2)

    assert siege.violations == []
    assert siege.unexpected_noise == {}
    assert siege.ledger.words()["success"] > 0


# --- the end of an app ---------------------------------------------------------------------------


@pytest.mark.parametrize("is_stalled", [False, True])
async def test_dispose_is_bounded(postgres_url: str, seen: Witness, is_stalled: bool) -> None:
    """Idle connections say goodbye. Those that cannot are closed without, all of them."""
    user = f"dispose-{os.getpid()}"
    async with Proxy(postgres_url) as proxy:
        engine = create_engine(proxy.url, application_name=user)
        uow = UnitOfWork(engine)
        async with uow.new(), uow.new(), uow.new():
            for frame in open_units():
                await frame.session.connection()
        assert engine.pool.checkedin() == 3  # type: ignore[attr-defined]
        goodbyes = proxy.at(lambda m: m.kind == "X", Fault.PASS_AND_CUT, times=3)
        if is_stalled:
            proxy.stall(Sender.FRONTEND)

        async with asyncio.timeout(5):
            await uow.dispose(timeout=0.3)

        assert engine.pool.checkedin() == 0  # type: ignore[attr-defined]
        assert is_stalled or goodbyes.sprung.is_set()
        proxy.flow()
        assert await eventually(lambda: seen.backends(user), []) == []
