"""Free ports for a server that keeps them: chosen once, at init, and written down.

Ports that the kernel hands to outgoing connections are avoided: a device that tries to reconnect
while its server restarts could otherwise be given the server's own port, and take it away.
"""

import contextlib
import random
import socket
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from wildflower.server.errors import StartError

LOWEST: Final = 10_000
USUAL_EPHEMERAL: Final = 32_768  # Linux' default, for when it cannot be read
RANGE: Final = Path("/proc/sys/net/ipv4/ip_local_port_range")
TRIES: Final = 1000


def choose_ports(count: int, hosts: Sequence[str], rng: random.Random) -> list[int]:
    """Return ports that are free now on every host.

    Args:
        count: How many.
        hosts: Addresses to bind.
        rng: Where to begin; two servers set up at once should begin elsewhere.

    Raises:
        StartError: There are not that many.
    """
    highest = max(_first_ephemeral(), LOWEST + TRIES)
    chosen: list[int] = []
    for port in rng.sample(range(LOWEST, highest), TRIES):
        if len(chosen) == count:
            break
        if all(_is_free(host, port) for host in dict.fromkeys(hosts)):
            chosen.append(port)
    if len(chosen) < count:
        raise StartError(
            f"no {count} free ports in [{LOWEST}, {highest})", hint="Set them in server.toml."
        )
    return chosen


def _first_ephemeral() -> int:
    try:
        return int(RANGE.read_text().split()[0])
    except (OSError, ValueError, IndexError):
        return USUAL_EPHEMERAL


def _is_free(host: str, port: int) -> bool:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with contextlib.closing(socket.socket(family, socket.SOCK_STREAM)) as probe:
        try:
            probe.bind((host, port))
        except OSError:
            return False
    return True
