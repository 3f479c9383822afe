"""The agent's process: `python -m wildflower.client.daemon --dir DIR`.

It needs the base install only; an import contract keeps it from torch, flwr, onnx, sqlmodel and
the command line's packages, so that an idle agent stays small. Training runs in a child.
"""

import argparse
import contextlib
import fcntl
import logging
import signal
import threading
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path
from random import Random

import httpx

import wildflower
from wildflower.client.agent import Agent
from wildflower.client.channel import GrpcChannel, Hint
from wildflower.client.config import AgentConfig, load_config
from wildflower.client.errors import AgentError
from wildflower.client.identity import Identity
from wildflower.client.policy import load_policy
from wildflower.client.spool import Spool
from wildflower.logs import LogFormat, configure_logging
from wildflower.ota import canonical
from wildflower.ota.device.journal import Journal
from wildflower.ota.device.slots import Slots
from wildflower.ota.errors import FormatError
from wildflower.ota.release.fetch import ReleaseClient

log = logging.getLogger(__name__)


def run_daemon(directory: Path) -> None:
    """Run the agent until SIGTERM or SIGINT.

    Raises:
        AgentError: The device is not enrolled, or another agent runs in the directory.
        ConfigError: agent.toml or policy.toml is wrong.
    """
    config, identity = load_config(directory), Identity.load(directory)
    stop = threading.Event()
    with alone(directory), contextlib.closing(Journal.open(directory / "journal.db")) as journal:
        agent = _wire(config, identity, journal, stop)

        def end(*_: object) -> None:
            stop.set()
            agent.hints.put(Hint.HEARTBEAT)  # wakes the loop

        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, end)
        log.info("agent started", extra={"device": config.device_id[:12], "dir": str(directory)})
        agent.run()
    log.info("agent ended", extra={"device": config.device_id[:12]})


def _wire(
    config: AgentConfig, identity: Identity, journal: Journal, stop: threading.Event
) -> Agent:
    directory = config.directory
    now = clock(journal)
    policy = load_policy(directory)
    return Agent(
        config=config,
        policy=policy,
        identity=identity,
        channel=GrpcChannel(config.endpoints_channel, identity, agent=wildflower.__version__),
        journal=journal,
        slots=Slots(directory / "slots"),
        releases=ReleaseClient(
            directory / "tuf",
            identity.root,
            config.all_sources,
            lambda: httpx.Client(verify=identity.ssl_context(), timeout=30.0, trust_env=False),
            now,
        ),
        spool=Spool(directory / "spool"),
        now=now,
        stop=stop,
        random=Random(),  # noqa: S311  for jitter, not for secrets
    )


def clock(journal: Journal) -> Callable[[], datetime]:
    """Return the device's clock: the system's, but never earlier than a signed time it has seen.

    A device without a battery wakes in 1970; what was fresh when it was last online has expired
    since, or not, as of then.
    """

    def now() -> datetime:
        system = datetime.now(UTC)
        try:
            return max(system, canonical.from_time(journal.fact("seen-time")))
        except FormatError:
            return system

    return now


@contextlib.contextmanager
def alone(directory: Path) -> Iterator[None]:
    """Hold the directory against a second agent.

    Raises:
        AgentError: One runs there already.
    """
    with (directory / ".lock").open("a") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise AgentError(
                f"an agent already runs in {directory}", hint="wildflower agent status shows it."
            ) from error
        yield


def main() -> None:
    """Parse the arguments and run."""
    parser = argparse.ArgumentParser(description="Run a device's agent.")
    parser.add_argument("--dir", type=Path, required=True, help="the device's directory")
    configure_logging(LogFormat.TEXT, verbosity=1)
    run_daemon(parser.parse_args().dir)


if __name__ == "__main__":
    main()
