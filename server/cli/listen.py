"""Where a small service listens: the option `--listen` of its `run`."""

from typing import TYPE_CHECKING

from wildflower.server.errors import SettingsError

if TYPE_CHECKING:
    from wildflower.server.listener import Place


def read_place(listen: str) -> "Place":
    """Return the place that `host:port` names; a host with colons stands in brackets.

    Raises:
        SettingsError: It names none.
    """
    from wildflower.server.listener import Place

    host, _, port = listen.rpartition(":")
    if not host or not port.isdecimal() or not 0 <= int(port) <= 65_535:
        raise SettingsError(
            f"--listen = {listen!r} is not allowed", hint="Allowed: host:port, port in [0, 65535]."
        )
    return Place(host.strip("[]"), int(port), "--listen", "of this command")
