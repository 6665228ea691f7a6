"""A task without a turn of the event loop: who awaits it runs it, and may stop and go on.

For asyncio it is a task of its own: the work's timeouts and cancellations concern the work alone,
and those of the task that runs it do not reach the work.
"""

from __future__ import annotations

import asyncio
import types
from asyncio import _enter_task, _leave_task
from collections.abc import Callable, Coroutine, Generator
from contextvars import Context
from typing import Any, TypeVar

T = TypeVar("T")

Callback = Callable[[Any], object]


class InlineTask(asyncio.Future[T]):
    """Runs `work` in the task that awaits `run()`, as the current task of the event loop
    (https://docs.python.org/3/library/asyncio-extending.html#task-lifetime-support).

    A cancellation of the task that runs it leaves `run()` and not the work, which stays where it
    is, and goes on with the next `run()`.

    Args:
        work: what to run.
    """

    def __init__(self, work: Coroutine[Any, Any, T]) -> None:
        super().__init__()
        self._work = work
        self._cancel_requests = 0
        # As those of asyncio.Task are called, where anyio looks for them.
        self._fut_waiter: asyncio.Future[Any] | None = None
        self._must_cancel = False
        self._pause: _Pause | None = None
        self._is_to_be_left = False

    def leave(self) -> None:
        """Let `run()` raise a CancelledError, as if the task that runs it was cancelled."""
        self._is_to_be_left = True
        if self._pause is not None:
            self._pause.cancel()

    @types.coroutine
    def run(self) -> Generator[Any, None, None]:
        """Run until the work is done, whose result is then that of this future.

        Raises:
            CancelledError: the task that runs it is cancelled.
        """
        runner = asyncio.current_task()
        self._is_to_be_left = False
        error: Exception | None = None
        while not self.done():
            if self._is_to_be_left:
                raise asyncio.CancelledError
            if self._fut_waiter is not None and not self._fut_waiter.done():
                self._pause = _Pause(self._fut_waiter)
                try:
                    yield from self._pause
                except Exception as refused:  # by asyncio: a future of another event loop, say
                    error = refused
                finally:
                    self._pause = None
                if error is None:
                    continue
            if self._step(runner, error):
                yield  # as asyncio.sleep(0) does
            error = None

    def _step(self, runner: Any, error: BaseException | None) -> bool:
        """Run until the work waits. Whether that is for the event loop alone."""
        loop = self.get_loop()
        task: Any = self
        if self._must_cancel:
            self._must_cancel, error = False, asyncio.CancelledError()
        self._fut_waiter = None
        _leave_task(loop, runner)
        _enter_task(loop, task)
        try:
            awaited = self._work.send(None) if error is None else self._work.throw(error)
            if awaited is None:
                return True
            awaited._asyncio_future_blocking = False  # as a task does, so that others may wait, too
            self._fut_waiter = awaited
            if self._must_cancel:
                self._must_cancel = not awaited.cancel()
        except StopIteration as stop:
            self.set_result(stop.value)
        except asyncio.CancelledError:
            super().cancel()
        except BaseException as failed:
            # BaseException: as asyncio.Task does, it is raised in whoever asks for the result.
            self.set_exception(failed)
        finally:
            _leave_task(loop, task)
            _enter_task(loop, runner)
        return False

    # --- what asyncio.Task has, beside what a future has ---------------------------------------

    def cancel(self, msg: Any | None = None) -> bool:
        """Cancel the work."""
        if self.done():
            return False
        self._cancel_requests += 1
        if self._fut_waiter is None or not self._fut_waiter.cancel(msg):
            self._must_cancel = True
        return True

    def cancelling(self) -> int:
        """How many cancellations were asked for, and not taken back."""
        return self._cancel_requests

    def uncancel(self) -> int:
        """Take back a cancellation."""
        self._cancel_requests = max(0, self._cancel_requests - 1)
        self._must_cancel = self._must_cancel and bool(self._cancel_requests)
        return self._cancel_requests

    def get_coro(self) -> Coroutine[Any, Any, T]:
        """The work."""
        return self._work

    def get_name(self) -> str:
        """For messages."""
        return repr(self._work)


class _Pause:
    """What a task waits for while its inline task waits for a future: a future like that one, which
    the task's cancellation does not reach
    (https://docs.python.org/3/library/asyncio-future.html#asyncio.isfuture).
    """

    _asyncio_future_blocking = True

    def __init__(self, waits_for: Any) -> None:
        self._waits_for = waits_for
        self._cancelled: asyncio.CancelledError | None = None
        self._callbacks: list[tuple[Callback, Callback, Context | None]] = []

    def __iter__(self) -> Generator[Any, None, None]:
        try:
            yield self
        finally:
            self._callbacks.clear()  # they refer to this
        self.result()

    def done(self) -> bool:
        return self._cancelled is not None or bool(self._waits_for.done())

    def result(self) -> None:
        if self._cancelled is not None:
            raise self._cancelled

    def cancel(self, msg: Any | None = None) -> bool:
        self._cancelled = asyncio.CancelledError() if msg is None else asyncio.CancelledError(msg)
        for _, waited, context in self._callbacks:
            if self._waits_for.remove_done_callback(waited):
                self.get_loop().call_soon(waited, self, context=context)
        return True

    def get_loop(self) -> asyncio.AbstractEventLoop:
        loop: asyncio.AbstractEventLoop = self._waits_for.get_loop()
        return loop

    def add_done_callback(self, callback: Callback, *, context: Context | None = None) -> None:
        def waited(_: object) -> None:
            callback(self)

        self._callbacks.append((callback, waited, context))
        self._waits_for.add_done_callback(waited, context=context)

    def remove_done_callback(self, callback: Callback) -> int:
        removed = [entry for entry in self._callbacks if entry[0] == callback]
        self._callbacks = [entry for entry in self._callbacks if entry not in removed]
        return sum(self._waits_for.remove_done_callback(waited) for _, waited, _ in removed)
