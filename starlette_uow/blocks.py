"""The blocks in which code works in a unit: what entering and leaving one does."""

from __future__ import annotations

from types import TracebackType
from typing import TYPE_CHECKING, Any, Generic, TypeVar

from starlette_uow.context import Frame, current_frame, frame_of, without
from starlette_uow.engine import READ_ONLY
from starlette_uow.errors import ConfigurationError
from starlette_uow.policy import Doom
from starlette_uow.unit import Unit

if TYPE_CHECKING:
    from starlette_uow.uow import UnitOfWork

U = TypeVar("U", bound="UnitOfWork")

BLOCK = "an `async with` block"
"""What a unit serves that no request opened."""


def joinable_frame(uow: UnitOfWork) -> Frame | None:
    """The innermost entry of a unit of work whose unit is still open."""
    frame = frame_of(uow)
    if frame is None or frame.unit is None or frame.unit.ended is not None:
        return None
    return frame


def enter_block(uow: UnitOfWork, unit: Unit, *, owner: object, joined: bool) -> Frame:
    """Let the code from here on work in `unit`."""
    frame = Frame(uow, unit, current_frame.get(), owner=owner, joined=joined)
    current_frame.set(frame)
    return frame


async def leave_block(frame: Frame, exc: BaseException | None) -> None:
    """End the unit if the block opened it; doom it if the block joined it and failed."""
    unit = frame.unit
    assert unit is not None
    try:
        if frame.joined:
            if exc is not None and _is_failure(exc, unit.operations > frame.operations):
                unit.doom(Doom(f"{exc!r} left a block that joined the unit", cause=exc))
        else:
            await unit.finish(commit=exc is None)
    finally:
        # Never with a token: the block may be left in a copy of its context.
        current_frame.set(without(current_frame.get(), frame))


def _is_failure(exc: BaseException, used: bool) -> bool:
    """Whether an exception that leaves a joined block means that its work is incomplete."""
    if isinstance(exc, GeneratorExit):
        return False  # the consumer of a generator stopped reading
    return isinstance(exc, Exception) or used


class NewUnit(Generic[U]):
    """The block of `uow.new()`. It keeps its own state, so it may be left in any context."""

    def __init__(self, uow: U, options: dict[str, Any]) -> None:
        self._uow = uow
        self._options = options
        self._frame: Frame | None = None

    async def __aenter__(self) -> U:
        if self._frame is not None:
            raise ConfigurationError(
                f"The block of {self._uow!r}.new() is entered already. Call new() for each block."
            )
        unit = self._uow.open_unit(BLOCK, self._options)
        self._frame = enter_block(self._uow, unit, owner=self, joined=False)
        return self._uow

    async def __aexit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        frame, self._frame = self._frame, None
        assert frame is not None
        await leave_block(frame, exc)


def transaction_options(isolation_level: str | None, read_only: bool) -> dict[str, Any]:
    """The execution options by which SQLAlchemy begins such transactions."""
    options: dict[str, Any] = {}
    if isolation_level is not None:
        options["isolation_level"] = isolation_level
    if read_only:
        options[READ_ONLY] = True
        options["postgresql_readonly"] = True
    return options
