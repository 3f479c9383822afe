"""Logging for every process: one line per decision, ids as fields, never payloads or keys.

A field travels as `extra={"device_id": ...}`; the text format appends `device_id=...`, the JSON
format makes it a key of its own. What is logged may hold text that a device or a mirror chose, so
nothing in it can begin a line, end a field, or reach the terminal as a control sequence.
"""

import json
import logging
import re
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

BARE: Final = re.compile(r"[\w.:/+@%,\[\]()-]+")
"""Field values that need no quotes: they hold no space, quote or equals sign."""


def one_line(text: str) -> str:
    r"""Return the text with everything that is not printable written as an escape.

    Example:
        >>> one_line("fine\nERROR: forged\x1b[2J")
        'fine\\nERROR: forged\\x1b[2J'
    """
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def extra_fields(record: logging.LogRecord) -> dict[str, object]:
    """Return the fields that the call gave with `extra`."""
    return {key: value for key, value in vars(record).items() if key not in STANDARD}


class TextFormatter(logging.Formatter):
    """`08:09:10 INFO wildflower.server.rounds: round recorded  round=3`."""

    def formatMessage(self, record: logging.LogRecord) -> str:  # noqa: N802  logging's name
        """Return the line without a traceback, its fields at the end."""
        record.message = one_line(record.message)
        told = "".join(f"  {key}={_field(value)}" for key, value in extra_fields(record).items())
        return super().formatMessage(record) + told

    def formatException(self, ei: object) -> str:  # noqa: N802  logging's name
        """Return the traceback indented, so that no line of it looks like a record."""
        lines = super().formatException(ei).splitlines()  # type: ignore[arg-type]  # typeshed's private alias
        return "\n".join(f"    {one_line(line)}" for line in lines)


class JsonFormatter(logging.Formatter):
    """One JSON object per line."""

    def format(self, record: logging.LogRecord) -> str:
        """Return the object as one line; a field never replaces what is known of the record."""
        line = extra_fields(record) | {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(),
            "level": record.levelname,
            "logger": record.name,
            "message": record.getMessage(),
        }
        if record.exc_info:
            line["exception"] = self.formatException(record.exc_info)
        return json.dumps(line, default=str)


class StderrLines(logging.Handler):
    """Writes to what stderr is at that moment: daemons and tests replace it."""

    def emit(self, record: logging.LogRecord) -> None:
        """Write one record and flush."""
        try:
            print(self.format(record), file=sys.stderr, flush=True)  # noqa: T201  this is the log
        except Exception:  # noqa: BLE001  as every handler of logging does
            self.handleError(record)


def _field(value: object) -> str:
    text = str(value)
    return text if BARE.fullmatch(text) else one_line(json.dumps(text, ensure_ascii=False))


def configure_logging(style: LogFormat, *, verbosity: int = 0) -> None:
    """Send log lines to stderr.

    Args:
        style: How each line is written.
        verbosity: 0 shows warnings, 1 our decisions, 2 and more everything of everyone.
    """
    handler = StderrLines()
    line = "%(asctime)s %(levelname)s %(name)s: %(message)s"
    handler.setFormatter(
        JsonFormatter() if style is LogFormat.JSON else TextFormatter(line, "%H:%M:%S")
    )
    logging.basicConfig(handlers=[handler], level=logging.WARNING, force=True)
    ours = (logging.NOTSET, logging.INFO)[verbosity] if verbosity < 2 else logging.DEBUG
    logging.getLogger("wildflower").setLevel(ours)
    if verbosity > 1:
        logging.getLogger().setLevel(logging.DEBUG)


def show_decisions() -> None:
    """Show our decisions whatever the command line asked for; the format stays as asked.

    For commands that a person watches, such as `server up`: at least as if `-v` was given.
    """
    ours = logging.getLogger("wildflower")
    if not ours.isEnabledFor(logging.INFO):
        ours.setLevel(logging.INFO)
