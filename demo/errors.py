"""What can go wrong in the shop, for reasons a caller can understand.

ShopError
├── BadInputError            422
├── WrongCredentialsError    401
├── NotLoggedInError         401
├── TooManyAttemptsError     429
├── NotAllowedError          403
├── NotFoundError            404
├── UnknownProductError      422
├── OutOfStockError          409
├── ChangedMeanwhileError    409
├── WrongStateError          409
├── PaymentRefusedError      402
└── ProviderError            502
"""

from __future__ import annotations

from typing import ClassVar


class ShopError(Exception):
    """The root of the shop's errors.

    Attributes:
        status: what the API answers it with.
        headers: of that answer.
        facts: what a program needs to know, beside the text for a person.
    """

    status: ClassVar[int]

    def __init__(self, text: str, **facts: object) -> None:
        super().__init__(text)
        self.facts = facts
        self.headers: dict[str, str] = {}


class BadInputError(ShopError):
    """Something that was sent cannot be used."""

    status = 422


class WrongCredentialsError(ShopError):
    """Nobody has this address with this password."""

    status = 401

    def __init__(self) -> None:
        super().__init__("Nobody has this address with this password.")
        self.headers["WWW-Authenticate"] = "Bearer"


class NotLoggedInError(ShopError):
    """The request has no token that is good."""

    status = 401

    def __init__(self, text: str) -> None:
        super().__init__(text)
        self.headers["WWW-Authenticate"] = "Bearer"


class TooManyAttemptsError(ShopError):
    """Somebody guesses passwords."""

    status = 429

    def __init__(self, seconds: int) -> None:
        super().__init__(f"Too many attempts to log in. Try again in {seconds} seconds.")
        self.headers["Retry-After"] = str(seconds)


class NotAllowedError(ShopError):
    """The account may not do this."""

    status = 403


class NotFoundError(ShopError):
    """What the path names does not exist, or is somebody else's."""

    status = 404

    def __init__(self, what: str) -> None:
        super().__init__(f"There is no {what}.")


class UnknownProductError(ShopError):
    """An order names a product that does not exist."""

    status = 422

    def __init__(self, sku: str) -> None:
        super().__init__(f"There is no product {sku!r}. Nothing was written.", sku=sku)


class OutOfStockError(ShopError):
    """An order asks for more than there is."""

    status = 409

    def __init__(self, sku: str, *, left: int, wanted: int) -> None:
        text = f"{wanted} of {sku!r} ordered, {left} in stock. Nothing was written."
        super().__init__(text, sku=sku, left=left)


class ChangedMeanwhileError(ShopError):
    """Somebody else changed it since the caller looked. `current` shows how it is now."""

    status = 409

    def __init__(self, what: str, current: object) -> None:
        super().__init__(f"Somebody changed {what} meanwhile. Nothing was written.")
        self.current = current


class WrongStateError(ShopError):
    """It is too early or too late for this."""

    status = 409


class PaymentRefusedError(ShopError):
    """The provider refused the card. The order is kept, and may be paid with another."""

    status = 402


class ProviderError(ShopError):
    """The payment provider cannot be reached. The payment may be sent again: it is charged once."""

    status = 502
