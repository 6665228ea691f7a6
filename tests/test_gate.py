"""`Gate` alone, without a database: whose turn it is, and whom a hold lets in."""

from __future__ import annotations

import asyncio
import gc
import weakref
from collections.abc import AsyncIterator

import pytest

from starlette_uow.gate import Gate, Hold
from tests.gates import after, end, held, is_idle, note, started, step, turn

pytestmark = pytest.mark.anyio


@pytest.fixture
async def gate() -> AsyncIterator[Gate]:
    """A gate, and a check that nobody is left in it."""
    gate = Gate("a test", wait_timeout=20)
    yield gate
    assert is_idle(gate)


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
    stranger = await started(after(outside, free))
    async with held(gate):
        assert await asyncio.create_task(free())
        outside.set_result(None)
        assert not await stranger


# --- holds ---------------------------------------------------------------------------------


async def test_hold_admits_its_task_and_the_tasks_started_inside(gate: Gate) -> None:
    """Also their children; whoever was there before waits."""
    log: list[str] = []
    opened = asyncio.get_running_loop().create_future()

    async def parent() -> None:
        await asyncio.create_task(note(gate, log, "grandchild"))

    stranger = await started(after(opened, lambda: note(gate, log, "stranger")))
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
    stranger = await started(after(opened, lambda: note(gate, log, "stranger")))

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
    over = await started(after(outside, lambda: note(gate, log, "over", over_holds=True)))

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
    other = await started(after(leave, lambda: end(gate, holds[0])))

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
    stranger = await started(after(opened, lambda: note(gate, [], "stranger")))
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
        gate = Gate("a message", wait_timeout=20)
        gate.when_free = session.when_free
        async with held(gate):
            pass
        return weakref.ref(session)

    sessions = [await one_message() for _ in range(3)]
    await step()  # the loop forgets timers that were cancelled
    gc.collect()

    assert [session() for session in sessions] == [None, None, None]
