"""Which log lines there are."""

from __future__ import annotations

import logging


def set_up_logging() -> None:
    """Show the shop's own lines, and everybody else's warnings."""
    logging.basicConfig(format="%(message)s", level=logging.WARNING)
    logging.getLogger("demo").setLevel(logging.INFO)
    logging.getLogger("starlette_admin").setLevel(logging.ERROR)  # our line has the status
    # What a view logs is raised as well, or told in the form that it was typed in.
    logging.getLogger("starlette_admin.contrib.sqla.view").setLevel(logging.CRITICAL)
