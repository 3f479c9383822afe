"""How the server's daemon reaches Flower: it registers devices and opens the grid of a run.

`wildflower.server.rounds` runs the rounds itself, in this process: no `flwr-serverapp`, no
superexec. The SuperLink is Flower's own program, on loopback only (`superlink_command`).
"""

import contextlib
import logging
import sys
import threading
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from flwr.serverapp import Grid

    from wildflower.strategies.flower_compat.superlink import SuperLink

log = logging.getLogger(__name__)

SERVER_APP: Final = "wildflower.server.app:app"
CLIENT_APP: Final = "wildflower.client.app:app"

ENVIRONMENT: Final[Mapping[str, str]] = {
    "FLWR_DISABLE_RUNTIME_DEPENDENCY_INSTALLATION": "1",
    "FLWR_TELEMETRY_ENABLED": "0",
    "FLWR_DISABLE_UPDATE_CHECK": "1",
    "RAY_USAGE_STATS_ENABLED": "0",
}
"""Keeps Flower's programs from installing packages, from telemetry and from looking for updates."""


def superlink_environment(directory: Path | None = None) -> dict[str, str]:
    """Return what the SuperLink's process needs in its environment, besides what we have.

    Args:
        directory: The server's directory; without it Flower keeps its files in the user's home.
    """
    home = {} if directory is None else {"FLWR_HOME": str(directory / "superlink" / "flwr")}
    return {**ENVIRONMENT, **home}


def superlink_command(directory: Path, port: int) -> list[str]:
    """Return the command line of the SuperLink.

    Args:
        directory: The server's directory; the SuperLink's files are in `superlink/` below it.
        port: Where it listens on 127.0.0.1.
    """
    files = directory / "superlink"
    program = Path(sys.executable).with_name("flower-superlink")
    return [
        *(str(program), "--host", "127.0.0.1", "--port", str(port)),
        *("--ssl-ca-certfile", str(files / "ca.pem")),
        *("--ssl-certfile", str(files / "server.pem")),
        *("--ssl-keyfile", str(files / "server.key")),
        *("--database", str(files / "superlink.db")),
        *("--superexec-auth-secret-file", str(files / "superexec.secret")),
        *("--isolation", "process", "--enable-supernode-auth"),
        "--disable-runtime-dependency-installation",
    ]


class FlowerLink:
    """The daemon's link to its SuperLink; safe to use from several threads.

    It keeps nothing that a restart of the SuperLink could make wrong: connections are made anew,
    a node that is no longer known is registered again by `register`, and a run that was lost ends
    its body with a `LinkError`.
    """

    def __init__(self, address: str, ca_pem: bytes, secret: bytes) -> None:
        """Prepare the link; nothing is sent.

        Args:
            address: Where the SuperLink listens, `host:port`.
            ca_pem: Certificate that its TLS certificate is signed by, PEM.
            secret: The superexec secret.
        """
        self._address, self._ca_pem, self._secret = address, ca_pem, secret
        self._turn = threading.Lock()

    def register(self, public_key_pem: str) -> int:
        """Let a device connect; return its node id. Repeating it changes nothing.

        Raises:
            LinkError: The SuperLink does not answer, or refuses the key.
        """
        with self._superlink() as superlink:
            return superlink.register(public_key_pem)

    @contextlib.contextmanager
    def run(self, name: str) -> Iterator["Grid"]:
        """Start a Flower run and yield its grid; report how the body ended.

        Args:
            name: The training's id; it only serves the log.

        Raises:
            UnreachableError: The SuperLink does not answer.
            RunEndedError: The run was stopped while the body ran.
            LinkError: The SuperLink refused.
        """
        from wildflower.strategies.flower_compat.superlink import build_fab
        from wildflower.strategies.flower_compat.task import ServerTask

        fab = build_fab("wildflower-app", server=SERVER_APP, client=CLIENT_APP)
        with self._superlink() as superlink:
            with self._turn:  # acquiring hands out the oldest task, whoever asks
                run_id = superlink.start_run(fab)
                token = superlink.acquire(run_id)
            log.info("flower run started", extra={"training": name, "run": run_id})
            with ServerTask(self._address, ca_pem=self._ca_pem, token=token) as task:
                yield task.grid
        log.info("flower run ended", extra={"training": name, "run": run_id})

    def stop(self, run_id: int) -> None:
        """Stop a run; one that has ended already stays as it is.

        Raises:
            UnreachableError: The SuperLink does not answer.
        """
        from wildflower.strategies.errors import RunEndedError

        with self._superlink() as superlink, contextlib.suppress(RunEndedError):
            superlink.stop_run(run_id)

    def _superlink(self) -> "SuperLink":
        from wildflower.strategies.flower_compat.superlink import SuperLink

        return SuperLink(self._address, ca_pem=self._ca_pem, secret=self._secret)
