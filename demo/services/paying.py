"""Money: payments by card, and refunds."""

from __future__ import annotations

from collections.abc import Sequence
from decimal import Decimal

from demo.errors import NotFoundError, PaymentRefusedError, WrongStateError
from demo.models import Order, Payment, Refund, User
from demo.payments import Provider, provider
from demo.races import repeat_lost_races
from demo.shop import Shop, shop


class Paying:
    """Money: payments by card, and refunds."""

    def __init__(self, shop: Shop, provider: Provider) -> None:
        self._shop = shop
        self._provider = provider

    async def pay(self, user: User, reference: str, card: str) -> Order:
        """Pay an order, or raise `PaymentRefusedError`.

        That a charge is on its way is committed before the provider is asked, and the connection
        is given back while it thinks. Whatever happens to us meanwhile, the same payment can be
        sent again: the provider charges each key once.
        """
        async with self._shop as unit:
            order, payment = await self._open_payment(user, reference)
            payment.state = "sent"
            key, amount = payment.id, payment.amount
            await unit.checkpoint()
            accepted = await self._provider.charge(key, amount, card)
            order, payment = await self._open_payment(user, reference, key=str(key))
            if accepted:
                payment.state, order.status = "paid", "paid"
                return order
            payment.state = "refused"
            order.payments.append(Payment(amount=order.total))
            await unit.checkpoint()  # kept, although the answer is an error
        raise PaymentRefusedError("The card was refused. The order is kept: try another card.")

    async def refund(self, reference: str, amount: Decimal, reason: str) -> Refund:
        """Give money back, at most what was paid, or raise `WrongStateError`.

        Two refunds at once could each find enough left, and be too much together: neither reads
        what the other has not committed yet. SERIALIZABLE lets one of them fail instead, which
        is then done again, in a new unit. The transaction of the caller's login is ended first:
        it has the usual isolation, and would hold a second connection.
        """
        async with self._shop as unit:
            await unit.checkpoint()
            refunds = await repeat_lost_races(lambda: self._refund([reference], amount, reason))
        return refunds[0]

    async def refund_whole(self, references: Sequence[str], reason: str) -> None:
        """Give back all that is left of each order: of all of them, or of none."""
        async with self._shop as unit:
            await unit.checkpoint()
            await repeat_lost_races(lambda: self._refund(references, None, reason))

    @shop.transactional(propagation="new", isolation_level="SERIALIZABLE")
    async def _refund(
        self, references: Sequence[str], amount: Decimal | None, reason: str
    ) -> list[Refund]:
        refunds = [await self._refund_one(reference, amount, reason) for reference in references]
        await self._shop.session.flush()
        return refunds

    async def _refund_one(self, reference: str, amount: Decimal | None, reason: str) -> Refund:
        order = await self._shop.orders.by_reference(reference)
        if order is None:
            raise NotFoundError(f"order {reference!r}")
        if order.status not in ("paid", "shipped"):
            raise WrongStateError(f"The order {reference} is {order.status}: it has no refund.")
        left = order.total - await self._shop.refunds.total(order)
        amount = left if amount is None else amount
        if amount > left:
            raise WrongStateError(f"Only {left} is left to be refunded.")
        refund = Refund(order=order, amount=amount, reason=reason)
        self._shop.refunds.add(refund)
        if amount == left:
            order.status = "refunded"
        return refund

    async def _open_payment(
        self, user: User, reference: str, *, key: str | None = None
    ) -> tuple[Order, Payment]:
        order = await self._shop.orders.by_reference(reference, lock=True)
        if order is None or order.customer.user_id != user.id:
            raise NotFoundError(f"order {reference!r}")
        for payment in order.payments:
            if payment.state in ("due", "sent") and key in (None, str(payment.id)):
                return order, payment
        raise WrongStateError(f"The order {reference} is paid, or is being paid right now.")


paying = Paying(shop, provider)
