"""What the shop does. Services are built once, when this package is imported.

`async with self._shop` joins the unit of the request that is being served, and opens one
elsewhere: at start, say. An exception that leaves the block lets all of it roll back.
"""

from demo.feed import feed
from demo.payments import provider
from demo.services.accounts import Accounts
from demo.services.catalog import Catalog
from demo.services.ordering import Ordering
from demo.services.paying import Paying
from demo.services.reports import Reports
from demo.shop import shop

accounts = Accounts(shop)
catalog = Catalog(shop)
ordering = Ordering(shop, feed)
paying = Paying(shop, provider)
reports = Reports(shop)

__all__ = ["accounts", "catalog", "ordering", "paying", "reports"]
