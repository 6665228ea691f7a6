"""A small shop on starlette-uow: an API, an admin, one transaction per request."""
