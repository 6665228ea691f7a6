"""What can go wrong in the shop, for reasons a caller can understand."""

from __future__ import annotations

from typing import ClassVar


class ShopError(Exception):
    """The root of the shop's errors; `status` is what the API answers it with."""

    status: ClassVar[int]


class BadInputError(ShopError):
    """A request that cannot be understood."""

    status = 422


class WrongCredentialsError(ShopError):
    """Nobody has this address with this password."""

    status = 401

    def __init__(self) -> None:
        super().__init__("Nobody has this address with this password.")


class UnknownProductError(ShopError):
    """An order names a product that does not exist."""

    status = 422

    def __init__(self, sku: str) -> None:
        super().__init__(f"There is no product {sku!r}. Nothing was written.")


class OutOfStockError(ShopError):
    """An order asks for more than there is."""

    status = 409

    def __init__(self, sku: str, *, left: int, wanted: int) -> None:
        super().__init__(f"{wanted} of {sku!r} ordered, {left} in stock. Nothing was written.")
