"""What the shop does. Services are built once, when their module is imported.

`async with self._shop` joins the unit of the request that is being served, and opens one
elsewhere: at start, say. An exception that leaves the block lets all of it roll back.
"""
