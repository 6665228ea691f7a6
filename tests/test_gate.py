"""`Gate` alone, without a database: whose turn it is, who waits for whom, and who never hangs."""

from __future__ import annotations

import asyncio
import gc
import random
import weakref
from collections.abc import AsyncIterator, Coroutine
from contextlib import asynccontextmanager
from typing import Any

import pytest

from starlette_uow import SessionDeadlockError, UnitEndedError, WrongLoopError, WrongThreadError
from starlette_uow.gate import Gate, Hold

Task = asyncio.Task[Any]

pytestmark = pytest.mark.anyio


class Boom(Exception):
    """What a gate is closed with in these tests."""


@pytest.fixture
async def gate() -> AsyncIterator[Gate]:
    """A gate, and a check that nobody is left in it."""
    gate = Gate("a test", wait_timeout=20)
    yield gate
    assert is_idle(gate)


def is_idle(gate: Gate) -> bool:
    return gate._task is None and not gate._waiters and not gate._holds


@asynccontextmanager
async def turn(gate: Gate, **how: Any) -> AsyncIterator[None]:
    """Have the turn for a block."""
    await gate.enter(**how)
    try:
        yield
    finally:
        gate.leave()


@asynccontextmanager
async def held(gate: Gate) -> AsyncIterator[Hold]:
    """Hold the gate for a block, as a savepoint does; its end waits, whatever is cancelled."""
    async with turn(gate):
        hold = gate.hold("a savepoint")
    try:
        yield hold
    finally:
        await end(gate, hold)


async def end(gate: Gate, hold: Hold) -> None:
    cancelled: BaseException | None = None
    entered = False
    while not entered:
        try:
            await gate.enter(inside=hold)
            entered = True
        except asyncio.CancelledError as error:
            cancelled = error
    gate.release(hold)
    gate.leave()
    if cancelled is not None:
        raise cancelled


async def step(count: int = 1) -> None:
    """Let the event loop go round so many times: that runs every task up to its next wait."""
    for _ in range(count):
        await asyncio.sleep(0)


async def started(work: Coroutine[Any, Any, Any]) -> Task:
    """A task that has run up to its first wait."""
    task = asyncio.create_task(work)
    await step()
    return task


async def note(gate: Gate, log: list[str], name: str, **how: Any) -> None:
    async with turn(gate, **how):
        log.append(name)


# --- turns ---------------------------------------------------------------------------------


async def test_first_come_first_served(gate: Gate) -> None:
    """Each turn goes to who has waited longest."""
    log: list[str] = []

    async with turn(gate):
        tasks = [await started(note(gate, log, name)) for name in "abc"]
        assert log == []
    await asyncio.gather(*tasks)

    assert log == ["a", "b", "c"]


async def test_turn_that_comes_back_goes_to_the_queue_first(gate: Gate) -> None:
    """Who leaves and enters again at once does not overtake those who wait."""
    log: list[str] = []

    async with turn(gate):
        task = await started(note(gate, log, "waited"))
    await note(gate, log, "came back")
    await task

    assert log == ["waited", "came back"]


async def test_task_enters_again_what_it_has_entered(gate: Gate) -> None:
    """Event listeners call back into the session; the turn ends with the outermost leave()."""
    async with turn(gate):
        async with turn(gate):
            assert gate.try_enter()
            gate.leave()
        other = await started(note(gate, [], "other"))
        assert not other.done()
    await other


async def test_child_task_does_not_share_the_turn(gate: Gate) -> None:
    """Re-entrancy is by task: what a parent runs in run_sync() cannot run beside its children."""
    async with turn(gate):
        child = await started(note(gate, [], "child"))
        assert not child.done()
        assert not gate._waiters[0].future.done()
    await child


async def test_gate_knows_who_entered_last_and_how_often(gate: Gate) -> None:
    """Units ask it, to tell whether a block has used the session, and who did last."""
    async with turn(gate):
        waiting = await started(note(gate, [], "waiting"))
        assert gate.last_task is asyncio.current_task()
    await waiting

    assert gate.last_task is waiting
    assert gate.entered == 2


async def test_first_goes_before_everybody_who_waits(gate: Gate) -> None:
    """The end of a unit does."""
    log: list[str] = []

    async with turn(gate):
        tasks = [await started(note(gate, log, "early"))]
        tasks.append(await started(note(gate, log, "first", first=True)))
    await asyncio.gather(*tasks)

    assert log == ["first", "early"]


async def test_gate_is_free_for_who_could_enter_at_once(gate: Gate) -> None:
    """For the one with the turn, for those inside the hold, and otherwise for all."""

    async def free() -> bool:
        return gate.is_free()

    assert gate.is_free()
    async with turn(gate):
        assert gate.is_free()
        assert not await asyncio.create_task(free())
    outside = asyncio.get_running_loop().create_future()
    stranger = await started(_after(outside, free))
    async with held(gate):
        assert await asyncio.create_task(free())
        outside.set_result(None)
        assert not await stranger


async def _after(event: asyncio.Future[None], work: Any) -> Any:
    await event
    return await work()


# --- holds ---------------------------------------------------------------------------------


async def test_hold_admits_its_task_and_the_tasks_started_inside(gate: Gate) -> None:
    """Also their children; whoever was there before waits."""
    log: list[str] = []
    opened = asyncio.get_running_loop().create_future()

    async def parent() -> None:
        await asyncio.create_task(note(gate, log, "grandchild"))

    stranger = await started(_after(opened, lambda: note(gate, log, "stranger")))
    async with held(gate):
        opened.set_result(None)
        await step(2)
        await note(gate, log, "own")
        await asyncio.create_task(parent())
    await stranger

    assert log == ["own", "grandchild", "stranger"]


async def test_waiter_outside_the_hold_does_not_block_those_inside(gate: Gate) -> None:
    """The queue is passed over by those who may, in their order."""
    log: list[str] = []
    opened = asyncio.get_running_loop().create_future()
    stranger = await started(_after(opened, lambda: note(gate, log, "stranger")))

    async with held(gate):
        opened.set_result(None)
        async with turn(gate):
            await step()
            inside = [await started(note(gate, log, name)) for name in ("first", "second")]
        await asyncio.gather(*inside)
    await stranger

    assert log == ["first", "second", "stranger"]


async def test_nested_holds_end_from_the_inside(gate: Gate) -> None:
    """Who is inside the outer one only waits for the inner one."""
    log: list[str] = []

    async def inner(opened: asyncio.Event, leave: asyncio.Event) -> None:
        async with held(gate):
            opened.set()
            await leave.wait()
            await note(gate, log, "inner")

    async with held(gate):
        opened, leave = asyncio.Event(), asyncio.Event()
        child = asyncio.create_task(inner(opened, leave))
        await opened.wait()
        outer = await started(note(gate, log, "outer"))
        assert not outer.done()
        leave.set()
        await asyncio.gather(child, outer)

    assert log == ["inner", "outer"]


async def test_two_children_of_a_holder_hold_one_after_the_other(gate: Gate) -> None:
    """Savepoints are a stack, so siblings cannot both have one."""
    log: list[str] = []

    async def child(name: str) -> None:
        async with held(gate):
            for _ in range(3):
                await note(gate, log, name)
                await step()

    async with held(gate):
        await asyncio.gather(child("a"), child("b"))

    assert log == ["a"] * 3 + ["b"] * 3


async def test_end_of_the_outer_hold_waits_for_the_inner_one(gate: Gate) -> None:
    """Nobody pulls a savepoint from below another task's."""
    opened, leave = asyncio.Event(), asyncio.Event()

    async def inner() -> None:
        async with held(gate):
            opened.set()
            await leave.wait()

    async with held(gate):
        child = asyncio.create_task(inner())
        await opened.wait()
        asyncio.get_running_loop().call_soon(leave.set)
    assert child.done()


async def test_release_of_an_outer_hold_ends_what_was_opened_inside(gate: Gate) -> None:
    """A transaction's end takes all its savepoints with it."""
    async with turn(gate):
        outer = gate.hold("outer")
        inner = gate.hold("inner")
        gate.release(outer)
        gate.release(inner)

    assert (outer.task, inner.task) == (None, None)
    assert gate.chain() == ()


async def test_over_holds_does_not_wait_for_savepoints(gate: Gate) -> None:
    """A rollback has no reason to; it still waits for the operation that runs."""
    log: list[str] = []
    outside = asyncio.get_running_loop().create_future()
    over = await started(_after(outside, lambda: note(gate, log, "over", over_holds=True)))

    async with held(gate):
        async with turn(gate):
            outside.set_result(None)
            await step()
            log.append("operation")
        await over
        log.append("held")

    assert log == ["operation", "over", "held"]


async def test_inside_counts_as_inside_whatever_the_context_says(gate: Gate) -> None:
    """A savepoint may be left in another task than it was entered in."""
    leave = asyncio.get_running_loop().create_future()
    holds: list[Hold] = []
    other = await started(_after(leave, lambda: end(gate, holds[0])))

    async with turn(gate):
        holds.append(gate.hold("a savepoint"))
    leave.set_result(None)
    await other

    assert gate.is_free()


async def test_inside_for_the_task_that_has_the_turn(gate: Gate) -> None:
    """A listener that leaves a savepoint does not wait for itself."""
    async with turn(gate):
        hold = gate.hold("a savepoint")
        async with turn(gate, inside=hold):
            gate.release(hold)


async def test_hold_whose_task_is_done_is_nobodys(gate: Gate) -> None:
    """wait_for() around __aenter__() opens savepoints so; who waits is woken."""
    leave = asyncio.Event()
    holds: list[Hold] = []

    async def open_and_die() -> None:
        async with turn(gate):
            holds.append(gate.hold("a savepoint"))
        await leave.wait()

    dying = await started(open_and_die())
    waiting = await started(note(gate, [], "waiting"))
    assert not waiting.done()
    leave.set()
    await waiting

    assert dying.done()
    assert gate.is_free()
    await end(gate, holds[0])


async def test_hold_below_one_that_is_nobodys_still_keeps_others_out(gate: Gate) -> None:
    """A stranger's write would be undone with the savepoint around it."""
    opened = asyncio.get_running_loop().create_future()
    stranger = await started(_after(opened, lambda: note(gate, [], "stranger")))
    orphans: list[Hold] = []

    async def open_and_die() -> None:
        async with turn(gate):
            orphans.append(gate.hold("an orphan"))

    async with held(gate):
        await asyncio.create_task(open_and_die())
        opened.set_result(None)
        await step(5)
        entered = stranger.done()
        await note(gate, [], "own")
        await end(gate, orphans[0])
    await stranger

    assert not entered


async def test_hold_that_is_over_leaves_nothing_behind_in_its_task() -> None:
    """A worker that lives for months must not keep the session of each message."""

    class Session:
        def when_free(self) -> None: ...

    async def one_message() -> weakref.ref[Session]:
        session = Session()
        gate = Gate("a message", wait_timeout=20, when_free=session.when_free)
        async with held(gate):
            pass
        return weakref.ref(session)

    sessions = [await one_message() for _ in range(3)]
    await step()  # the loop forgets timers that were cancelled
    gc.collect()

    assert [session() for session in sessions] == [None, None, None]


# --- cancellation --------------------------------------------------------------------------


async def test_waiter_that_is_cancelled_costs_nobody_anything(gate: Gate) -> None:
    """It leaves the queue; the others keep their places."""
    log: list[str] = []

    async with turn(gate):
        tasks = [await started(note(gate, log, name)) for name in "abc"]
        tasks[1].cancel()
        await step()
        assert tasks[1].cancelled()
    await asyncio.gather(tasks[0], tasks[2])

    assert log == ["a", "c"]


async def test_waiter_cancelled_just_before_it_was_given_the_turn(gate: Gate) -> None:
    """Its future is cancelled, but it has not run yet: the turn goes to the next, and who gives
    it notices nothing.
    """
    log: list[str] = []

    async with turn(gate):
        tasks = [await started(note(gate, log, name)) for name in "ab"]
        tasks[0].cancel()
    await tasks[1]

    assert tasks[0].cancelled()
    assert log == ["b"]


async def test_waiter_cancelled_just_after_it_was_given_the_turn(gate: Gate) -> None:
    """It hands the turn on in the same breath."""
    log: list[str] = []

    async with turn(gate):
        tasks = [await started(note(gate, log, name)) for name in "ab"]
    tasks[0].cancel()
    await tasks[1]

    assert tasks[0].cancelled()
    assert log == ["b"]


async def test_cancelled_waiter_outside_a_hold_wakes_nobody_wrongly(gate: Gate) -> None:
    """The hold keeps its owner whoever gives up on it."""
    opened = asyncio.get_running_loop().create_future()
    strangers = [
        await started(_after(opened, lambda: note(gate, [], "stranger"))) for _ in range(2)
    ]

    async with held(gate):
        opened.set_result(None)
        await step(2)
        strangers[0].cancel()
        await step(2)
        assert not strangers[1].done()
    await strangers[1]


# --- closing -------------------------------------------------------------------------------


async def test_close_fails_who_waits_and_who_comes_later(gate: Gate) -> None:
    """Each with an error of its own."""
    async with turn(gate):
        waiting = [await started(note(gate, [], name)) for name in "ab"]
        gate.close(Boom)
        errors = await asyncio.gather(*waiting, return_exceptions=True)
    with pytest.raises(Boom):
        await gate.enter()
    with pytest.raises(Boom):
        gate.try_enter()
    with pytest.raises(Boom):
        gate.check_usable()

    assert [type(error) for error in errors] == [Boom, Boom]
    assert errors[0] is not errors[1]


async def test_close_reaches_who_was_given_the_turn_and_has_not_run_yet(gate: Gate) -> None:
    """A stray task must not begin a transaction on a session that has ended."""
    log: list[str] = []

    async with turn(gate):
        stray = await started(note(gate, log, "stray"))
    gate.close(lambda: UnitEndedError("a test", "committed"))
    with pytest.raises(UnitEndedError):
        await stray

    assert log == []


async def test_close_ends_the_holds(gate: Gate) -> None:
    """Their owner may release them afterwards."""
    async with turn(gate):
        hold = gate.hold("a savepoint")
        gate.close(Boom)
        gate.release(hold)

    assert hold.task is None


# --- deadlocks -----------------------------------------------------------------------------


async def test_standstill_ends_in_an_error_that_names_both_tasks() -> None:
    """The holder waits for a task that it started before its savepoint."""
    gate = Gate("POST /orders", wait_timeout=0.05)
    opened = asyncio.get_running_loop().create_future()

    async def holder(waiter: Task) -> None:
        async with held(gate):
            opened.set_result(None)
            await asyncio.wait({waiter})

    waiter = asyncio.create_task(_after(opened, lambda: note(gate, [], "waiter")), name="waiter")
    holding = asyncio.create_task(holder(waiter), name="holder")
    with pytest.raises(SessionDeadlockError, match="POST /orders") as caught:
        await waiter
    await holding

    assert (caught.value.waiter, caught.value.holder) == ("waiter", "holder")
    assert "a savepoint" in str(caught.value)
    assert is_idle(gate)


async def test_long_operation_is_no_deadlock() -> None:
    """A slow query may take as long as it needs."""
    gate = Gate("a test", wait_timeout=0.02)
    finished = asyncio.Event()

    async with turn(gate):
        waiting = await started(note(gate, [], "waiting"))
        asyncio.get_running_loop().call_later(0.15, finished.set)
        await finished.wait()
    await waiting


@pytest.mark.parametrize("in_a_hold", [False, True])
async def test_queue_that_moves_slowly_is_no_deadlock(in_a_hold: bool) -> None:
    """However long the last one waits in all."""
    gate = Gate("a test", wait_timeout=0.1)
    log: list[str] = []
    opened = asyncio.get_running_loop().create_future()
    last = await started(_after(opened, lambda: note(gate, log, "last")))

    async def work() -> None:
        for _ in range(6):
            async with turn(gate):
                opened.done() or opened.set_result(None)
                await step()
                log.append("operation")
            pause = asyncio.Event()
            asyncio.get_running_loop().call_later(0.04, pause.set)
            await pause.wait()

    if in_a_hold:
        async with held(gate):
            await work()
    else:
        await work()
    await last

    assert (log[-1] == "last") is in_a_hold
    assert is_idle(gate)


# --- elsewhere -----------------------------------------------------------------------------


async def test_thread_without_a_loop_is_refused(gate: Gate) -> None:
    """Synchronous endpoints run there."""
    with pytest.raises(WrongThreadError):
        await asyncio.to_thread(gate.try_enter)


async def test_another_event_loop_is_refused(gate: Gate) -> None:
    """Connections cannot change loops."""
    with pytest.raises(WrongLoopError, match="a test"):
        await asyncio.to_thread(asyncio.run, gate.enter())


# --- at random -----------------------------------------------------------------------------


class Party:
    """Tasks that operate, hold, start children and are cancelled, all at random."""

    def __init__(self, seed: int) -> None:
        self.random = random.Random(seed)
        self.gate = Gate(f"seed {seed}", wait_timeout=20)
        self.inside = 0
        self.open: list[object] = []
        self.tasks: list[Task] = []
        self.unfinished = 0

    async def operate(self, path: tuple[object, ...]) -> None:
        async with turn(self.gate):
            self.inside += 1
            assert self.inside == 1, "two tasks have the turn"
            assert not self.open or self.open[-1] in path, "a hold let a stranger in"
            try:
                await step(self.random.randrange(3))
            finally:
                self.inside -= 1

    async def hold(self, path: tuple[object, ...], depth: int) -> None:
        async with turn(self.gate):
            assert not self.open or self.open[-1] in path, "a hold inside another task's"
            hold = self.gate.hold("a savepoint")
            self.open.append(hold)
        try:
            await self.act((*path, hold), depth + 1)
        finally:
            try:
                await end(self.gate, hold)
            finally:
                self.open.remove(hold)

    async def children(self, path: tuple[object, ...], depth: int) -> None:
        async with asyncio.TaskGroup() as group:
            for _ in range(self.random.randint(1, 3)):
                self.tasks.append(group.create_task(self.act(path, depth + 1)))

    async def act(self, path: tuple[object, ...], depth: int) -> None:
        self.unfinished += 1
        for _ in range(self.random.randint(1, 4)):
            await step(self.random.randrange(3))
            choice = self.random.random()
            if choice < 0.5 or depth > 3:
                await self.operate(path)
            elif choice < 0.8:
                await self.hold(path, depth)
            else:
                await self.children(path, depth)
        self.unfinished -= 1

    async def run(self, cancellations: int) -> None:
        roots = [asyncio.create_task(self.act((), 0)) for _ in range(6)]
        self.tasks += roots
        for _ in range(cancellations):
            await step(self.random.randrange(8))
            self.random.choice(self.tasks).cancel()
        results = await asyncio.gather(*roots, return_exceptions=True)
        errors = [r for r in results if not isinstance(r, asyncio.CancelledError | None)]
        assert errors == []


@pytest.mark.parametrize("cancellations", [0, 3, 12])
async def test_random_tasks_exclude_each_other_and_all_come_to_an_end(cancellations: int) -> None:
    """Whatever they nest and whoever is cancelled, the gate is idle afterwards."""
    for seed in range(60):
        party = Party(seed)
        async with asyncio.timeout(5):
            await party.run(cancellations)

        assert is_idle(party.gate), f"seed {seed}"
        assert party.inside == 0
        assert cancellations or not party.unfinished
