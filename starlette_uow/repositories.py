"""`repository()`: what a `UnitOfWork` offers, one for each unit, built at first use."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Generic, Self, TypeVar, cast, overload

from sqlalchemy.ext.asyncio import AsyncSession

from starlette_uow.context import current_unit
from starlette_uow.errors import ConfigurationError

if TYPE_CHECKING:
    from starlette_uow.uow import UnitOfWork

R = TypeVar("R")


class _Repository(Generic[R]):
    def __init__(self, factory: Callable[[AsyncSession], R]) -> None:
        self._factory = factory
        self.__doc__ = factory.__doc__

    @overload
    def __get__(self, uow: None, owner: type[UnitOfWork]) -> Self: ...

    @overload
    def __get__(self, uow: UnitOfWork, owner: type[UnitOfWork]) -> R: ...

    def __get__(self, uow: UnitOfWork | None, owner: type[UnitOfWork]) -> Self | R:
        if uow is None:
            return self
        unit = current_unit(uow)
        if unit.repositories is None or self not in unit.repositories:
            repository = self._factory(unit.session)
            if unit.repositories is None:
                unit.repositories = {}
            unit.repositories[self] = repository
        return cast(R, unit.repositories[self])


def repository(factory: Callable[[AsyncSession], R]) -> _Repository[R]:
    """Declare a repository of a `UnitOfWork` subclass: one for each unit, built at first use.

    Args:
        factory: a class or function that takes the unit's session.

    Example:
        ```python
        class Shop(UnitOfWork):
            orders = repository(OrderRepository)   # shop.orders in an open unit
        ```
    """
    if not callable(factory):
        raise ConfigurationError(
            f"repository() takes a class or function of a session, and got {factory!r}. "
            f"Write `users = repository(UserRepository)`."
        )
    return _Repository(factory)
