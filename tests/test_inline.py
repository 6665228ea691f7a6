"""A task that is run by the task that waits for it."""

from __future__ import annotations

import asyncio
import gc
import weakref
from collections.abc import Awaitable, Callable
from contextlib import suppress
from contextvars import ContextVar

import anyio
import pytest

from starlette_uow import shield
from starlette_uow.inline import InlineTask
from starlette_uow.shield import to_completion


def nothing() -> None:
    """What is there to be terminated."""


async def completed(work: Callable[[], Awaitable[str]]) -> str:
    async def run() -> str:
        return await work()

    return await to_completion(run(), timeout=5, terminate=nothing)


class Gate:
    """A work that waits until it may go on."""

    def __init__(self) -> None:
        self.reached = asyncio.Event()
        self.open = asyncio.Event()
        self.passed = False

    async def pass_through(self) -> str:
        self.reached.set()
        await self.open.wait()
        self.passed = True
        return "passed"


async def at_once() -> str:
    return "at once"


async def after_a_turn() -> str:
    await asyncio.sleep(0)
    return "after a turn"


async def after_a_while() -> str:
    await asyncio.sleep(0.001)
    return "after a while"


async def in_a_group() -> str:
    async with asyncio.TaskGroup() as group:
        task = group.create_task(after_a_while())
    return task.result()


async def in_another() -> str:
    return await completed(after_a_while)


WORKS = [at_once, after_a_turn, after_a_while, in_a_group, in_another]


@pytest.mark.parametrize("work", WORKS)
async def test_result(work: Callable[[], Awaitable[str]]) -> None:
    assert await completed(work) == await work()


@pytest.mark.parametrize("work", WORKS)
async def test_error(work: Callable[[], Awaitable[str]]) -> None:
    """It reaches the caller as it is."""

    async def fail() -> str:
        raise ValueError(await work())

    with pytest.raises(ValueError, match=await work()):
        await completed(fail)


@pytest.mark.parametrize("cancellations", [1, 2, 3])
@pytest.mark.parametrize("nested", [False, True])
async def test_cancellations_wait(cancellations: int, nested: bool) -> None:
    """The work does not notice; the caller is cancelled when it is done."""
    gate = Gate()
    work = (lambda: completed(gate.pass_through)) if nested else gate.pass_through
    task = asyncio.create_task(completed(work))
    await gate.reached.wait()
    for _ in range(cancellations):
        task.cancel("enough")
        await asyncio.wait([task], timeout=0)
    assert not task.done()
    gate.open.set()

    with pytest.raises(asyncio.CancelledError, match="enough"):
        await task

    assert gate.passed


async def test_cancelled_all_the_time() -> None:
    """As anyio does it to the tasks below `asyncio.gather()`: the work comes to its end."""
    begun, gate = asyncio.Event(), Gate()
    gate.open.set()

    async def work() -> str:
        begun.set()
        for _ in range(10):
            await asyncio.sleep(0)
            await after_a_while()
        return await gate.pass_through()

    task = asyncio.create_task(completed(work))
    await begun.wait()
    while not task.done():
        task.cancel()
        await asyncio.sleep(0)

    assert task.cancelled()
    assert gate.passed


@pytest.mark.parametrize("moment", ["before", "at the same moment"])
async def test_cancellation_beside_what_the_work_waits_for(moment: str) -> None:
    """None gets lost."""
    gate = Gate()
    task = asyncio.create_task(completed(gate.pass_through))
    if moment == "before":
        task.cancel()  # before its first step, so the work never begins
    else:
        await gate.reached.wait()
        gate.open.set()
        task.cancel()

    with pytest.raises(asyncio.CancelledError):
        await task

    assert gate.passed is (moment != "before")


@pytest.mark.parametrize("first", ["scope", "task"])
async def test_task_and_its_scope_cancelled(first: str) -> None:
    """A scope of anyio cancels again whatever is awaited next. A task is cancelled but once."""
    gate, scope = Gate(), anyio.CancelScope()

    async def run() -> None:
        with scope:
            assert await completed(gate.pass_through) == "passed"
        await asyncio.sleep(10)

    task = asyncio.create_task(run())
    await gate.reached.wait()
    cancels = [scope.cancel, task.cancel]
    for cancel in cancels if first == "scope" else reversed(cancels):
        cancel()
        await asyncio.wait([task], timeout=0.001)
    gate.open.set()

    with pytest.raises(asyncio.CancelledError):
        async with asyncio.timeout(1):
            await task

    assert task.cancelled()
    assert gate.passed


async def test_task_and_its_scope_cancelled_at_once() -> None:
    """The task is cancelled, although what is awaited last is inside the scope."""
    gate, scope = Gate(), anyio.CancelScope()

    async def run() -> None:
        with scope:
            await completed(gate.pass_through)

    task = asyncio.create_task(run())
    await gate.reached.wait()
    task.cancel()
    scope.cancel()
    await asyncio.wait([task], timeout=0.001)
    gate.open.set()
    await asyncio.wait([task])

    assert task.cancelled()
    assert gate.passed


async def test_time_limit_in_a_cancelled_scope() -> None:
    """It is told as what it is."""
    gate = Gate()

    async def run() -> None:
        with anyio.CancelScope() as scope:
            asyncio.get_running_loop().call_later(0.001, scope.cancel)
            asyncio.get_running_loop().call_later(0.02, gate.open.set)
            async with asyncio.timeout(0.01):
                await completed(gate.pass_through)

    with pytest.raises(TimeoutError):
        await run()

    assert gate.passed


@pytest.mark.parametrize("known", [True, False])
async def test_scope_that_is_cancelled_meanwhile(
    known: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What was completed is handed over: the scope's cancellation comes with the next await.

    So it is where a later anyio has another name for the scopes of its tasks.
    """
    if not known:
        monkeypatch.setattr(shield, "_task_states", None)
    gate = Gate()
    with anyio.CancelScope() as scope:
        asyncio.get_running_loop().call_soon(scope.cancel)
        asyncio.get_running_loop().call_later(0.001, gate.open.set)

        assert await completed(gate.pass_through) == "passed"

        await asyncio.sleep(10)

    assert scope.cancelled_caught


async def test_work_that_cancels_its_caller() -> None:
    caller = asyncio.create_task(completed(lambda: work()))

    async def work() -> str:
        caller.cancel()
        return await after_a_while()

    with pytest.raises(asyncio.CancelledError):
        await caller


async def test_work_that_is_cancelled() -> None:
    """By itself, as by any other task."""

    async def work() -> str:
        task = asyncio.current_task()
        assert task is not None
        task.cancel()
        await asyncio.sleep(10)
        return "not cancelled"

    with pytest.raises(asyncio.CancelledError):
        async with asyncio.timeout(1):
            await completed(work)


async def test_time_limit_inside() -> None:
    """It concerns what is inside, and not the caller."""

    async def work() -> str:
        with suppress(TimeoutError):
            async with asyncio.timeout(0.001):
                await asyncio.sleep(10)
        with anyio.move_on_after(0.001):
            await asyncio.sleep(10)
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(asyncio.sleep(10), 0.001)
        return "in time"

    caller = asyncio.current_task()

    assert await completed(work) == "in time"
    assert caller is not None
    assert caller.cancelling() == 0


async def test_current_task() -> None:
    """The work sees one of its own all the time, and the caller itself again afterwards."""
    caller = asyncio.current_task()
    seen = []

    async def work() -> str:
        seen.append(asyncio.current_task())
        await after_a_while()
        seen.append(asyncio.current_task())
        return "done"

    await completed(work)

    assert isinstance(seen[0], InlineTask)
    assert seen[0] is seen[1]
    assert asyncio.current_task() is caller


async def test_context_is_that_of_the_caller() -> None:
    variable: ContextVar[str] = ContextVar("variable")

    async def work() -> str:
        variable.set("set")
        return "done"

    await completed(work)

    assert variable.get() == "set"


async def test_work_that_ignores_that_it_is_terminated(monkeypatch: pytest.MonkeyPatch) -> None:
    """It is cancelled."""
    monkeypatch.setattr("starlette_uow.shield.GRACE", 0.01)
    terminated = []

    with pytest.raises(asyncio.CancelledError):
        await to_completion(
            asyncio.sleep(10), timeout=0.01, terminate=lambda: terminated.append(1), grace=0.01
        )

    assert terminated == [1]


async def test_work_that_ignores_everything(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nobody waits for it any longer, but it comes to its end."""
    monkeypatch.setattr("starlette_uow.shield.GRACE", 0.01)
    gate = Gate()

    async def work() -> None:
        with suppress(asyncio.CancelledError):
            await asyncio.sleep(10)
        await gate.pass_through()

    before = asyncio.all_tasks()
    with pytest.raises(TimeoutError, match="hangs"):
        await to_completion(work(), timeout=0.01, terminate=nothing, grace=0.01)
    assert not gate.passed
    gate.open.set()
    await asyncio.wait(asyncio.all_tasks() - before)

    assert gate.passed


async def test_somebody_else_who_waits_for_the_same() -> None:
    """What a task waits for may have other callbacks, as any future may."""
    gate = Gate()
    called: list[object] = []
    task = asyncio.create_task(completed(gate.pass_through))
    await gate.reached.wait()
    waits_for = task._fut_waiter  # type: ignore[attr-defined]  # of asyncio's tasks, to debug them

    for callback in (never := lambda _: called.append("never"), called.append):
        waits_for.add_done_callback(callback)
    assert waits_for.remove_done_callback(never) == 1
    gate.open.set()

    assert await task == "passed"
    assert called == [waits_for]
    assert waits_for.done()


async def test_nothing_is_left_to_the_garbage_collector() -> None:
    gate = Gate()
    task = asyncio.create_task(completed(gate.pass_through))
    await gate.reached.wait()
    waits_for = weakref.ref(task._fut_waiter)  # type: ignore[attr-defined]  # of asyncio's tasks
    gc.disable()
    try:
        gate.open.set()
        await task
        del task

        assert waits_for() is None
    finally:
        gc.enable()


async def test_future_that_others_wait_for_too() -> None:
    """As with any task: asyncio's mark on the future is taken off."""
    future: asyncio.Future[str] = asyncio.get_running_loop().create_future()

    async def work() -> str:
        return await future

    waiting = [asyncio.create_task(completed(work)), asyncio.create_task(work())]
    await asyncio.sleep(0)
    future.set_result("for all")

    assert await asyncio.gather(*waiting) == ["for all", "for all"]


async def test_work_that_spins_and_ignores_everything(monkeypatch: pytest.MonkeyPatch) -> None:
    """It waits for nothing that could be taken away, and is given up all the same."""
    monkeypatch.setattr("starlette_uow.shield.GRACE", 0.01)
    stop = asyncio.Event()

    async def work() -> None:
        while not stop.is_set():
            with suppress(asyncio.CancelledError):
                await asyncio.sleep(0)

    before = asyncio.all_tasks()
    with pytest.raises(TimeoutError, match="hangs"):
        async with asyncio.timeout(1):
            await to_completion(work(), timeout=0.01, terminate=nothing, grace=0.01)
    stop.set()
    await asyncio.wait(asyncio.all_tasks() - before)


async def test_future_of_another_event_loop() -> None:
    """The work hears of it, as a task would, and can clean up."""
    other = asyncio.new_event_loop()
    cleaned_up = []

    async def work() -> str:
        try:
            await other.create_future()
        finally:
            cleaned_up.append(True)
        return "never"

    with pytest.raises(RuntimeError, match="attached to a different loop"):
        await completed(work)

    assert cleaned_up == [True]
    other.close()


async def test_process_that_is_to_end() -> None:
    """Although the caller is cancelled, too."""
    loop = asyncio.get_running_loop()
    caller = asyncio.current_task()
    assert caller is not None

    async def work() -> str:
        await asyncio.sleep(0.001)
        raise SystemExit

    loop.call_soon(caller.cancel)
    with pytest.raises(SystemExit):
        await completed(work)
    caller.uncancel()


async def test_anyio_inside() -> None:
    """It looks at the current task."""

    async def work() -> str:
        return str(anyio.get_current_task().id)

    assert await completed(work)
