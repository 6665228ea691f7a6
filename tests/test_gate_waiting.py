"""`Gate` alone: who waits is never forgotten, whoever is cancelled, and never hangs."""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator

import pytest

from starlette_uow import SessionDeadlockError, UnitEndedError, WrongLoopError, WrongThreadError
from starlette_uow.gate import Gate
from tests.gates import Task, after, end, held, is_idle, note, started, step, turn

pytestmark = pytest.mark.anyio


class Boom(Exception):
    """What a gate is closed with in these tests."""


@pytest.fixture
async def gate() -> AsyncIterator[Gate]:
    """A gate, and a check that nobody is left in it."""
    gate = Gate("a test", wait_timeout=20)
    yield gate
    assert is_idle(gate)


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
    """The turn goes to the next one, and who gives it notices nothing."""
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
    strangers = [await started(after(opened, lambda: note(gate, [], "stranger"))) for _ in range(2)]

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

    waiter = asyncio.create_task(after(opened, lambda: note(gate, [], "waiter")), name="waiter")
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
    last = await started(after(opened, lambda: note(gate, log, "last")))

    async def work() -> None:
        for _ in range(6):
            async with turn(gate):
                if not opened.done():
                    opened.set_result(None)
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


@pytest.mark.parametrize("given", [False, True])
async def test_patient_task_that_is_cancelled_and_refused(gate: Gate, given: bool) -> None:
    """The unit has ended, so that it waits for nothing any more: it is cancelled."""
    async with turn(gate):
        waiting = await started(gate.enter(patient=True))
        waiting.cancel()
        await step()
        if not given:
            gate.close(lambda: UnitEndedError("a test", "rolled back"))
    if given:  # the turn, at the same moment
        gate.close(lambda: UnitEndedError("a test", "rolled back"))

    with pytest.raises(asyncio.CancelledError):
        await waiting


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
    for seed in range(40):
        party = Party(seed)
        async with asyncio.timeout(5):
            await party.run(cancellations)

        assert is_idle(party.gate), f"seed {seed}"
        assert party.inside == 0
        assert cancellations or not party.unfinished
