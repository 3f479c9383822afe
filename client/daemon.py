"""The agent's process: `python -m wildflower.client.daemon --dir DIR`.

It needs the base install only; an import contract keeps it from torch, flwr, onnx, sqlmodel and
the command line's packages, so that an idle agent stays small. Training runs in a child.

The main thread does nothing but wait for signals; the agent works in a thread of its own. Told to
end, the agent has a moment to finish what it is at. If it does not come back (a server that does
not answer), the process ends all the same: after a power cut it could not have finished either.
"""

import wildflower.client.lean  # first: what follows imports httpx

# isort: split
import argparse
import contextlib
import fcntl
import logging
import os
import sys
import threading
import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path
from random import Random
from typing import Final

import wildflower
from wildflower.client.agent import Agent
from wildflower.client.channel import GrpcChannel, Hint
from wildflower.client.config import AgentConfig, load_config
from wildflower.client.errors import AgentError, ClientError
from wildflower.client.identity import Identity
from wildflower.client.notify import Notifier
from wildflower.client.policy import load_policy
from wildflower.client.power import METERED_VARIABLE, Senses, Timing
from wildflower.client.spool import Spool
from wildflower.client.training_child import TrainingProcess
from wildflower.client.updates import Updates
from wildflower.logs import LogFormat, configure_logging
from wildflower.ota import canonical
from wildflower.ota.device.journal import Journal
from wildflower.ota.device.slots import Slots
from wildflower.ota.errors import FormatError, OtaError
from wildflower.ota.release.connection import Connection
from wildflower.ota.release.fetch import ReleaseClient
from wildflower.wakeup import woken_by_signals

log = logging.getLogger("wildflower.client.daemon")  # also where this module is __main__

GRACE_S: Final = 0.8
"""Seconds the agent has to finish what it is at; the whole end takes less than two."""
ENDED: Final = "the agent does not run, what is installed answers all the same"
"""What a person is told beside why."""
HTTP_S: Final = 30.0
"""Seconds without a byte after which a download has failed."""


def run_daemon(directory: Path) -> None:
    """Run the agent until SIGTERM or SIGINT.

    Raises:
        AgentError: The device is not enrolled, or another agent runs in the directory.
        ConfigError: agent.toml or policy.toml is wrong.
        StorageError: The journal cannot be opened.
    """
    config, identity = load_config(directory), Identity.load(directory)
    with alone(directory):
        slots = Slots(directory / "slots")
        journal = Journal.open(
            directory / "journal.db", now=datetime.now(UTC), is_first=not slots.running()
        )
        stop = threading.Event()
        agent = wire(config, identity, journal, slots, stop)
        told = {"device": config.device_id[:12], "dir": str(directory)}
        log.info("agent started", extra=told)
        failures: list[BaseException] = []
        with woken_by_signals() as wait:
            worker = threading.Thread(
                target=_work, args=(agent, failures, wait.wake), name="agent", daemon=True
            )
            worker.start()
            wait.sleep()
            agent.notifier.stopping()
            stop.set()
            agent.hints.put(Hint.HEARTBEAT)  # wakes the loop
            agent.channel.close()
            worker.join(GRACE_S)
            agent.training.end()
        log.info("agent ended", extra=told)
        if worker.is_alive():
            logging.shutdown()
            os._exit(0)
        journal.close()
    if failures:
        raise failures[0]


def wire(
    config: AgentConfig,
    identity: Identity,
    journal: Journal,
    slots: Slots,
    stop: threading.Event,
) -> Agent:
    """Return a device's agent with everything real around it."""
    directory, now = config.directory, clock(journal)
    notifier = Notifier.from_environment(os.environ, os.getpid())
    context = identity.ssl_context()
    releases = ReleaseClient(
        directory / "tuf",
        identity.root,
        config.all_sources,
        lambda: Connection(context, timeout_s=HTTP_S),
        now,
        wait=watched_wait(stop, notifier),
    )
    policy = load_policy(directory)
    senses = Senses(metered_command=os.environ.get(METERED_VARIABLE, ""))
    updates = Updates(
        config=config,
        policy=policy,
        journal=journal,
        slots=slots,
        releases=releases,
        now=now,
        should_stop=watched_stop(stop, notifier),
        why_wait=Timing(policy.fetching, senses.look, lambda: now().astimezone()).why_wait,
    )
    return Agent(
        config=config,
        identity=identity,
        channel=GrpcChannel(config.endpoints_channel, identity, agent=wildflower.__version__),
        updates=updates,
        spool=Spool(directory / "spool"),
        training=TrainingProcess(directory),
        now=now,
        stop=stop,
        random=Random(),  # noqa: S311  for jitter, not for secrets
        notifier=notifier,
    )


def watched_stop(stop: threading.Event, notifier: Notifier) -> Callable[[], bool]:
    """Return what long work asks whether to end; asking is getting ahead."""

    def should_stop() -> bool:
        notifier.beat()
        return stop.is_set()

    return should_stop


def watched_wait(stop: threading.Event, notifier: Notifier) -> Callable[[float], bool]:
    """Return a wait that ends when the agent is told to, and feeds the watchdog meanwhile."""

    def wait(seconds: float) -> bool:
        end_s = time.monotonic() + seconds
        while (left_s := end_s - time.monotonic()) > 0 and not stop.is_set():
            notifier.beat()
            stop.wait(min(left_s, notifier.longest_wait_s))
        return stop.is_set()

    return wait


def system_clock() -> datetime:
    """Return what the system says the time is."""
    return datetime.now(UTC)


def clock(
    journal: Journal, system: Callable[[], datetime] = system_clock
) -> Callable[[], datetime]:
    """Return the device's clock: the system's, but never earlier than a signed time it has seen.

    A device without a battery wakes in 1970; what was fresh when it was last online has expired
    since, or not, as of then.
    """

    def now() -> datetime:
        told = system()
        try:
            return max(told, canonical.from_time(journal.fact("seen-time")))
        except FormatError:
            return told

    return now


@contextlib.contextmanager
def alone(directory: Path) -> Iterator[None]:
    """Hold the directory against a second agent.

    Raises:
        AgentError: One runs there already, or the directory cannot be locked.
    """
    path = directory / ".lock"
    try:
        file = path.open("a")
    except OSError as error:
        raise AgentError(
            f"{path} cannot be opened: {error.strerror}",
            hint="Is the disk full or read-only? What runs goes on running.",
        ) from error
    with file as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise AgentError(
                f"an agent already runs in {directory}", hint="wildflower agent status shows it."
            ) from error
        yield


def _work(agent: Agent, failures: list[BaseException], wake: Callable[[], None]) -> None:
    try:
        agent.run()
    except BaseException as error:  # noqa: BLE001  the thread's edge; the main thread raises it
        failures.append(error)
    finally:
        wake()


def main() -> int:
    """Parse the arguments and run; return the exit code."""
    parser = argparse.ArgumentParser(description="Run a device's agent.")
    parser.add_argument("--dir", type=Path, required=True, help="The device's directory.")
    parser.add_argument(
        "--log-format", type=LogFormat, choices=list(LogFormat), default=LogFormat.TEXT
    )
    options = parser.parse_args()
    configure_logging(options.log_format, verbosity=1)
    try:
        run_daemon(options.dir)
    except (ClientError, OtaError) as error:
        log.error("%s; %s", error, ENDED, extra={"hint": error.hint})
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
