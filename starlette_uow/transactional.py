"""`@uow.transactional()`: how a call gets its unit."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Awaitable, Callable, Coroutine
from typing import TYPE_CHECKING, Any, Literal, ParamSpec, TypeVar, get_args

from starlette_uow.blocks import NewUnit, joinable_frame, transaction_options
from starlette_uow.context import current_unit
from starlette_uow.errors import ConfigurationError, TransactionStartedError, UnitOpenError
from starlette_uow.unit import Unit

if TYPE_CHECKING:
    from starlette_uow.uow import UnitOfWork

P = ParamSpec("P")
R = TypeVar("R")

Propagation = Literal["required", "new", "savepoint", "mandatory", "never"]


def check_propagation(propagation: Propagation) -> None:
    """Raise `ConfigurationError` unless it is one."""
    if propagation not in get_args(Propagation):
        raise ConfigurationError(
            f"`propagation` cannot be {propagation!r}. Choose one of "
            f"{', '.join(get_args(Propagation))}."
        )


def in_unit(
    function: Callable[P, Awaitable[R]],
    uow: UnitOfWork,
    *,
    propagation: Propagation,
    isolation_level: str | None,
    read_only: bool,
) -> Callable[P, Coroutine[Any, Any, R]]:
    """A coroutine function that calls another one in a unit."""
    if not inspect.iscoroutinefunction(function):
        raise ConfigurationError(
            f"@transactional() needs a coroutine function, and got {function!r}. Declare "
            f"it with `async def`."
        )
    options = transaction_options(isolation_level, read_only)

    @functools.wraps(function)
    async def call(*args: P.args, **kwargs: P.kwargs) -> R:
        frame = joinable_frame(uow)
        if propagation == "never":
            if frame is not None and frame.unit is not None:
                raise UnitOpenError(function.__qualname__, frame.unit.name)
            return await function(*args, **kwargs)
        if propagation == "mandatory":
            current_unit(uow).check_usable()
        if propagation == "new" or frame is None:
            async with NewUnit(uow, options):
                return await function(*args, **kwargs)
        assert frame.unit is not None
        if isolation_level is not None:
            _choose_isolation(frame.unit, isolation_level)
        async with uow:
            if propagation != "savepoint":
                return await function(*args, **kwargs)
        async with uow.savepoint():
            return await function(*args, **kwargs)

    return call


def _choose_isolation(unit: Unit, isolation_level: str) -> None:
    options = unit.options or {}
    if options.get("isolation_level") == isolation_level:
        return
    if unit.has_begun:
        raise TransactionStartedError(unit.name, isolation_level)
    unit.set_options({**options, "isolation_level": isolation_level})
