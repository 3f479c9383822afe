"""The operator's processes: store, enrolment, gateway, rounds, release line, rollouts, REST."""

from typing import TYPE_CHECKING

from wildflower.lazy import lazily

if TYPE_CHECKING:
    from wildflower.server.cli.remote import Remote
    from wildflower.server.errors import ServerError
    from wildflower.server.store import Store

__all__ = ["Remote", "ServerError", "Store"]
__getattr__, __dir__ = lazily(
    __name__,
    {
        "Remote": "cli.remote",
        "ServerError": "errors",
        "Store": "store",
    },
)
