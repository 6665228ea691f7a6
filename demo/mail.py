"""Mail, simulated: a line of log."""

from __future__ import annotations

import logging

log = logging.getLogger("demo.mail")


def send(to: str, text: str) -> None:
    """Send a mail."""
    log.info("mail to=%s text=%r", to, text)
