"""The processes that a server supervises, and how each shows that it serves."""

import contextlib
import socket
import ssl
import sys
from functools import partial
from pathlib import Path
from typing import Final

import httpx

from wildflower.server.flower_link import superlink_command, superlink_environment
from wildflower.server.settings import Settings
from wildflower.server.supervise import Child

PROBE_S: Final = 2.0


def children(settings: Settings) -> list[Child]:
    """Return the processes that a server supervises."""
    home = settings.directory
    health = f"https://{settings.superlink_address}/health"
    signer = home / "signer"
    return [
        Child(
            "superlink",
            superlink_command(home, settings.superlink_port),
            partial(_answers, health, str(home / "superlink" / "ca.pem")),
            superlink_environment(home),
        ),
        Child(
            "signer",
            [sys.executable, "-m", "wildflower.server.signer", "--dir", str(signer)],
            partial(_accepts, signer / "signer.sock"),
        ),
    ]


def _answers(url: str, ca: str) -> bool:
    trusted = ssl.create_default_context(cafile=ca)
    try:
        return httpx.get(url, verify=trusted, timeout=PROBE_S, trust_env=False).is_success
    except httpx.HTTPError:
        return False


def _accepts(path: Path) -> bool:
    with contextlib.closing(socket.socket(socket.AF_UNIX)) as probe:
        probe.settimeout(PROBE_S)
        try:
            probe.connect(str(path))
        except OSError:
            return False
        return True
