"""Which log lines there are, and how they look: for a person, or as JSON for a program."""

from __future__ import annotations

import json
import logging
import os
from datetime import UTC, datetime

FIELDS = "fields"
"""The attribute of a log record that holds what its JSON has beside the message."""


class JsonFormatter(logging.Formatter):
    """One JSON object on a line, whatever is logged."""

    def format(self, record: logging.LogRecord) -> str:
        """Write a line."""
        line = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
            **getattr(record, FIELDS, {}),
        }
        if record.exc_info:
            line["traceback"] = self.formatException(record.exc_info)
        return json.dumps(line)


def set_up_logging() -> None:
    """Show the shop's own lines, and everybody else's warnings."""
    logging.basicConfig(format="%(asctime)s %(message)s", datefmt="%H:%M:%S", level=logging.WARNING)
    if os.environ.get("LOG_FORMAT") == "json":
        for handler in logging.getLogger().handlers:
            handler.setFormatter(JsonFormatter())
    logging.getLogger("demo").setLevel(logging.INFO)
    logging.getLogger("starlette_admin").setLevel(logging.ERROR)  # our line has the status
    # What a view logs is raised as well, or told in the form that it was typed in.
    logging.getLogger("starlette_admin.contrib.sqla.view").setLevel(logging.CRITICAL)
