"""What there is to buy, and how the shop does."""

from __future__ import annotations

from typing import Annotated
from urllib.parse import urlencode

from fastapi import APIRouter, Path, Query

from demo.api.caller import Staff
from demo.api.schemas import Code, ProductIn, ProductOut, ProductsOut, SummaryOut
from demo.models import Product
from demo.services.catalog import catalog
from demo.services.reports import reports

router = APIRouter(prefix="/api", tags=["products"])

Sku = Annotated[Code, Path()]
Limit = Annotated[int, Query(ge=1, le=100)]


@router.get("/products")
async def list_products(
    limit: Limit = 20, after: Code | None = None, category: Code | None = None
) -> ProductsOut:
    """List products by SKU, page by page."""
    found = await catalog.page(after=after or "", limit=limit + 1, category=category)
    items = [ProductOut.model_validate(product) for product in found[:limit]]
    more = {"limit": limit, "after": items[-1].sku} if len(found) > limit else None
    if more and category is not None:
        more["category"] = category
    return ProductsOut(items=items, next=f"/api/products?{urlencode(more)}" if more else None)


@router.get("/products/{sku}", response_model=ProductOut)
async def show_product(sku: Sku) -> Product:
    """Show a product and its version."""
    return await catalog.find(sku)


@router.patch("/products/{sku}", response_model=ProductOut)
async def change_product(sku: Sku, body: ProductIn, caller: Staff) -> Product:
    """Change what you have seen: 409 with the current state if somebody was faster."""
    return await catalog.change(sku, version=body.version, name=body.name, price=body.price)


@router.get("/summary")
async def show_summary(caller: Staff) -> SummaryOut:
    """Answer four figures, asked for at once."""
    return SummaryOut.model_validate(await reports.summary())
