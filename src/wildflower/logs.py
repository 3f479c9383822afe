"""Logging for every process: one line per decision, ids as fields, never payloads or keys.

A field travels as `extra={"device_id": ...}`; the text format appends `device_id=...`, the JSON
format makes it a key of its own.
"""

import json
import logging
import sys
from datetime import UTC, datetime
from enum import StrEnum
from typing import Final


class LogFormat(StrEnum):
    """How log lines are written."""

    TEXT = "text"
    JSON = "json"


STANDARD: Final = frozenset(vars(logging.makeLogRecord({}))) | {"message", "asctime", "taskName"}
"""Attributes that every record has; what remains are the fields given with `extra`."""


def extra_fields(record: logging.LogRecord) -> dict[str, object]:
    """Return the fields that the call gave with `extra`."""
    return {key: value for key, value in vars(record).items() if key not in STANDARD}


class TextFormatter(logging.Formatter):
    """`08:09:10 INFO wildflower.server.rounds: round recorded  round=3`."""

    def format(self, record: logging.LogRecord) -> str:
        """Return the line, its fields at the end."""
        told = "".join(f"  {key}={value}" for key, value in extra_fields(record).items())
        return super().format(record) + told


class JsonFormatter(logging.Formatter):
    """One JSON object per line."""

    def format(self, record: logging.LogRecord) -> str:
        """Return the object as one line."""
        line = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(),
            "level": record.levelname,
            "logger": record.name,
            "message": record.getMessage(),
        }
        if record.exc_info:
            line["exception"] = self.formatException(record.exc_info)
        return json.dumps(line | extra_fields(record), default=str)


def configure_logging(style: LogFormat, *, verbosity: int = 0) -> None:
    """Send log lines to stderr.

    Args:
        style: How each line is written.
        verbosity: 0 shows warnings, 1 our decisions, 2 and more everything of everyone.
    """
    handler = logging.StreamHandler(sys.stderr)
    line = "%(asctime)s %(levelname)s %(name)s: %(message)s"
    handler.setFormatter(
        JsonFormatter() if style is LogFormat.JSON else TextFormatter(line, "%H:%M:%S")
    )
    logging.basicConfig(handlers=[handler], level=logging.WARNING, force=True)
    if verbosity:
        logging.getLogger("wildflower").setLevel(logging.INFO if verbosity == 1 else logging.DEBUG)
    if verbosity > 1:
        logging.getLogger().setLevel(logging.DEBUG)
