"""Which log lines there are."""

from __future__ import annotations

import logging


def set_up_logging() -> None:
    """Show the shop's own lines, and everybody else's warnings."""
    logging.basicConfig(format="%(message)s", level=logging.WARNING)
    logging.getLogger("demo").setLevel(logging.INFO)
    logging.getLogger("starlette_admin").setLevel(logging.CRITICAL)  # our line has the status
