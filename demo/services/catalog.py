"""What there is to buy."""

from __future__ import annotations

from collections.abc import Sequence
from decimal import Decimal

from sqlalchemy.orm.exc import StaleDataError

from demo.errors import ChangedMeanwhileError, NotFoundError
from demo.models import Product
from demo.shop import Shop, shop


class Catalog:
    """What there is to buy."""

    def __init__(self, shop: Shop) -> None:
        self._shop = shop

    async def page(
        self, *, after: str = "", limit: int = 100, category: str | None = None
    ) -> Sequence[Product]:
        """List products by SKU."""
        async with self._shop as unit:
            return await unit.products.page(after=after, limit=limit, category=category)

    async def find(self, sku: str) -> Product:
        """Find a product, or raise `NotFoundError`."""
        async with self._shop as unit:
            product = await unit.products.by_sku(sku)
        if product is None:
            raise NotFoundError(f"product {sku!r}")
        return product

    async def change(
        self, sku: str, *, version: int, name: str | None = None, price: Decimal | None = None
    ) -> Product:
        """Change what the caller has seen in this version, or raise `ChangedMeanwhileError`.

        A change that was there before the caller asked shows in the version. One that comes
        between our look and our UPDATE shows in `StaleDataError`; the savepoint keeps the
        transaction alive, so that the caller can be told how the product is now.
        """
        async with self._shop as unit:
            product = await self.find(sku)
            if product.version == version:
                try:
                    async with unit.savepoint():
                        product.name = product.name if name is None else name
                        product.price = product.price if price is None else price
                        await unit.session.flush()
                except StaleDataError:
                    await unit.session.refresh(product)
                else:
                    return product
        raise ChangedMeanwhileError(f"product {sku!r}", product)

    async def deliver(self, product_id: int, quantity: int) -> Product:
        """Put what has arrived into the stock, or raise `NotFoundError`."""
        async with self._shop as unit:
            product = await unit.products.put(product_id, quantity)
            if product is None:
                raise NotFoundError(f"product {product_id}")
            product.reordered_at = None
        return product


catalog = Catalog(shop)
