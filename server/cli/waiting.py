"""Progress while a command waits: each event on a line of standard error."""

import logging

from wildflower.server.api.views import EventView

log = logging.getLogger(__name__)


def show_progress() -> None:
    """Show our lines, whatever else the command line asked for."""
    if not log.isEnabledFor(logging.INFO):
        log.setLevel(logging.INFO)


def tell(event: EventView) -> None:
    """Log an event as one line."""
    fields = {name: _short(value) for name, value in event.fields.items()}
    log.info("%s", event.kind, extra={"subject": event.subject[:24], **_safe(fields)})


def _short(value: object) -> object:
    match value:
        case float():
            return round(value, 4)
        case str() if len(value) == 64:
            return value[:12]
        case _:
            return value


def _safe(fields: dict[str, object]) -> dict[str, object]:
    """A log record has attributes of its own that no field may overwrite."""
    taken = {"name": "model_name", "message": "text", "module": "code"}
    return {taken.get(name, name): value for name, value in fields.items()}
