"""One operation at a time: the turns that the tasks of a unit take on its session.

Pure asyncio: nothing here knows SQLAlchemy. Two identities are at work. Who may enter again is
the *task* (event listeners call back into the session). Who may enter while a savepoint is open
is everybody who was *started inside it*: a chain in a context variable, which child tasks
inherit.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Iterator
from contextvars import Context, ContextVar
from typing import Any

from starlette_uow.errors import SessionDeadlockError, WrongLoopError, WrongThreadError

Task = asyncio.Task[Any]


class Hold:
    """The session belongs to the task that opened the hold, and to the tasks started inside it.

    Attributes:
        task: who opened it; None when it is over.
        what: for messages.
        undoes: whether its end may undo what was done inside it, as a savepoint's may.
    """

    __slots__ = ("_on_done", "task", "undoes", "what")

    def __init__(
        self, task: Task, what: str, on_done: Callable[[Task], object], *, undoes: bool
    ) -> None:
        self.task: Task | None = task
        self.what = what
        self.undoes = undoes
        self._on_done: Callable[[Task], object] | None = on_done
        task.add_done_callback(on_done)

    def end(self) -> None:
        """Be nobody's, and leave nothing behind in the task that opened it."""
        if self.task is not None and self._on_done is not None:
            self.task.remove_done_callback(self._on_done)
        self.task = self._on_done = None


Chain = tuple[Hold, ...]


def check_loop(loop: asyncio.AbstractEventLoop, name: str) -> None:
    """Raise unless this event loop, to which the unit of that name belongs, is the running one."""
    try:
        running = asyncio.get_running_loop()
    except RuntimeError:
        raise WrongThreadError from None
    if running is not loop:
        raise WrongLoopError(name)


# Never reset by token: a savepoint may be left in a task with a copy of the context.
_chain: ContextVar[Chain] = ContextVar("starlette_uow_holds", default=())


class _Waiter:
    __slots__ = ("chain", "future", "moves", "over_holds", "task", "timer")

    def __init__(self, task: Task, chain: Chain, over_holds: bool) -> None:
        self.task = task
        self.chain = chain
        self.over_holds = over_holds
        self.future: asyncio.Future[None] = task.get_loop().create_future()
        self.moves = 0
        self.timer: asyncio.TimerHandle | None = None


class Gate:
    """Lets one task at a time operate on a session, first come first served.

    Args:
        name: of the unit, for messages.
        wait_timeout: seconds a task waits while nothing at all moves, before it is told that
            this is a deadlock.

    Attributes:
        when_free: called each time the turn has come back, before it is given away.
        last_task: the task that entered last, or that changed an object.
        entered: how often a task has.
    """

    __slots__ = (
        "_closed",
        "_depth",
        "_holds",
        "_loop",
        "_moves",
        "_name",
        "_task",
        "_wait_timeout",
        "_waiters",
        "entered",
        "last_task",
        "when_free",
    )

    def __init__(self, name: str, *, wait_timeout: float) -> None:
        self._loop = asyncio.get_running_loop()
        self._name = name
        self._wait_timeout = wait_timeout
        self._task: Task | None = None
        self._depth = 0
        self._holds: list[Hold] = []
        self._waiters: deque[_Waiter] = deque()
        self._moves = 0
        self._closed: Callable[[], Exception] | None = None
        self.when_free: Callable[[], None] | None = None
        self.last_task: Task | None = None
        self.entered = 0

    # --- turns -----------------------------------------------------------------------------

    def try_enter(self) -> bool:
        """Take the turn if it is free for the caller, or the caller's already.

        Raises:
            WrongLoopError, WrongThreadError: the caller runs elsewhere.
            UnitEndedError: the gate is closed (or the error it was closed with).
        """
        if self._closed is not None or asyncio._get_running_loop() is not self._loop:
            self.check_usable()
        task = asyncio.current_task(self._loop)
        if self._task is None and (not self._holds or self.admits(_chain.get())):
            self._task = task
            self._depth = 1
        elif self._task is task:
            self._depth += 1
        else:
            return False
        self.last_task = task
        self.entered += 1
        return True

    async def enter(
        self,
        *,
        first: bool = False,
        over_holds: bool = False,
        inside: Hold | None = None,
        patient: bool = False,
    ) -> asyncio.CancelledError | None:
        """Wait for the turn, and take it.

        A caller that is cancelled while it waits leaves the queue, and hands on a turn that it
        was given at the same moment: its cancellation costs nobody anything.

        Args:
            first: go before everybody who waits already.
            over_holds: do not wait for savepoints of other tasks.
            inside: count as inside this hold, whatever the context says.
            patient: wait on although cancelled; return the cancellation.

        Raises:
            SessionDeadlockError: for `wait_timeout` nothing ran, and nothing moved.
        """
        if inside is None and self.try_enter():
            return None
        cancelled = None
        task = self._current_task()
        chain = _chain.get() if inside is None else (*_chain.get(), inside)
        waiter = _Waiter(task, chain, over_holds)
        if first:
            self._waiters.appendleft(waiter)
        else:
            self._waiters.append(waiter)
        if self._task is task:  # only with `inside`
            self._waiters.remove(waiter)
            self._depth += 1
        else:
            self._give()
            cancelled = await self._wait(waiter, patient)
            if self._closed is not None:  # between the turn's grant and now
                self.leave()
                raise self._closed() if cancelled is None else cancelled
        self.last_task = task
        self.entered += 1
        return cancelled

    def note_use(self) -> None:
        """Count what a task does to the session without a turn: it adds or changes an object."""
        self.entered += 1
        if asyncio._get_running_loop() is self._loop:  # and not in a worker thread
            self.last_task = asyncio.current_task(self._loop)

    def leave(self) -> None:
        """Give the turn back, and on to the task that has waited longest and may have it."""
        self._depth -= 1
        if not self._depth:
            self._task = None
            self._moves += 1
            if self._waiters or self.when_free is not None:
                self._give()

    def is_free(self) -> bool:
        """Whether what the caller adds now is beside nobody else's operation or savepoint."""
        if self._task is not None:
            try:
                return self._task is asyncio.current_task()
            except RuntimeError:  # a worker thread that changes an object
                return False
        return not self._holds or self.is_safe(_chain.get())

    def close(self, error: Callable[[], Exception]) -> None:
        """Refuse every later turn, and those who wait, with the error that `error()` makes."""
        self._closed = error
        while self._waiters:
            self._refuse(self._waiters.popleft(), error())
        for hold in self._holds:
            hold.end()
        self._holds.clear()
        self.when_free = None
        self._forget_ended()

    @property
    def is_closed(self) -> bool:
        """Whether every turn is refused from now on."""
        return self._closed is not None

    def check_usable(self) -> None:
        """Raise unless the gate is open and belongs to the running event loop."""
        check_loop(self._loop, self._name)
        if self._closed is not None:
            raise self._closed()

    # --- holds -----------------------------------------------------------------------------

    def hold(self, what: str, *, undoes: bool = True) -> Hold:
        """Keep the session for the caller, who has the turn, and for the tasks it starts."""
        hold = self.reserve(what, undoes=undoes)
        self.keep(hold)
        return hold

    def reserve(self, what: str, *, undoes: bool = True) -> Hold:
        """Make a hold for the caller, which begins when somebody calls `keep()` with it."""
        # wait_for(cm.__aenter__()) opens a savepoint in a task that is then gone.
        hold = Hold(self._current_task(), what, lambda _: self._give(), undoes=undoes)
        _chain.set((*(h for h in _chain.get() if h.task is not None), hold))
        return hold

    def keep(self, hold: Hold) -> None:
        """Begin a hold. The caller has the turn, but need not be who made the hold."""
        if hold not in self._holds:
            self._holds.append(hold)

    def release(self, hold: Hold) -> None:
        """End a hold, and those that were opened inside it: a savepoint takes its inner ones along.

        A savepoint that outlives an exclusive block is its task's all the same.
        """
        if hold in self._holds:
            inner = self._holds[self._holds.index(hold) + 1 :]
            for ended in (hold, *inner) if hold.undoes else (hold,):
                ended.end()
                self._holds.remove(ended)
            self._forget_ended()
            self._moves += 1
            self._give()

    def chain(self) -> Chain:
        """The holds that the caller is inside of."""
        return _chain.get()

    def admits(self, chain: Chain) -> bool:
        """Whether the innermost hold lets a task with this chain pass."""
        top = self._top()
        return top is None or top in chain

    def is_safe(self, chain: Chain) -> bool:
        """Whether no hold can undo what a task with this chain adds, but those it is inside of."""
        return all(hold in chain for hold in self._alive() if hold.undoes)

    # --- private ---------------------------------------------------------------------------

    @staticmethod
    def _forget_ended() -> None:
        """Leave no hold in the caller's context that is over."""
        if chain := _chain.get():
            _chain.set(tuple(h for h in chain if h.task is not None))

    def _alive(self) -> Iterator[Hold]:
        """The holds, the innermost first. One whose task is done is nobody's."""
        return (h for h in reversed(self._holds) if h.task is not None and not h.task.done())

    def _top(self) -> Hold | None:
        return next(self._alive(), None)

    def _give(self) -> None:
        if self._task is not None:
            return
        if self.when_free is not None:
            self.when_free()
        for waiter in self._waiters:
            if waiter.future.done():
                continue  # cancelled, and about to leave the queue
            if waiter.over_holds or self.admits(waiter.chain):
                self._waiters.remove(waiter)
                self._task = waiter.task
                self._depth = 1
                waiter.future.set_result(None)
                return

    async def _wait(self, waiter: _Waiter, patient: bool) -> asyncio.CancelledError | None:
        self._arm(waiter)
        cancelled = None
        try:
            while patient and not waiter.future.done():
                try:
                    await asyncio.wait({waiter.future})
                except asyncio.CancelledError as error:
                    cancelled = error
            await waiter.future
        except asyncio.CancelledError:
            if self._task is waiter.task:
                self.leave()
            elif waiter in self._waiters:
                self._waiters.remove(waiter)
            raise
        except Exception as refused:
            if cancelled is None or self._closed is None:
                raise
            raise cancelled from refused  # there is nothing left to be patient for
        finally:
            if waiter.timer is not None:
                waiter.timer.cancel()
        return cancelled

    def _arm(self, waiter: _Waiter) -> None:
        waiter.moves = self._moves
        # An empty context: a timer must not keep the request's own alive.
        waiter.timer = self._loop.call_later(
            self._wait_timeout, self._check_progress, waiter, context=Context()
        )

    def _check_progress(self, waiter: _Waiter) -> None:
        if waiter not in self._waiters:
            return
        if self._task is not None or waiter.moves != self._moves:
            self._arm(waiter)
            return
        self._waiters.remove(waiter)
        top = self._top()
        assert top is not None
        assert top.task is not None
        holder = top.task.get_name()
        self._refuse(
            waiter,
            SessionDeadlockError(
                self._name, waiter.task.get_name(), holder, top.what, self._wait_timeout
            ),
        )

    @staticmethod
    def _refuse(waiter: _Waiter, error: Exception) -> None:
        if not waiter.future.done():
            waiter.future.set_exception(error)

    def _current_task(self) -> Task:
        if self._closed is not None or asyncio._get_running_loop() is not self._loop:
            self.check_usable()
        task = asyncio.current_task(self._loop)
        assert task is not None, "a greenlet of SQLAlchemy always runs in a task"
        return task
