"""The training child: a process of its own that lives as long as a training asks for it.

    python -m wildflower.client.trainer --dir DEVICE

The agent's daemon starts it when the server invites the device, so that flwr and torch are in
memory only then. It connects to the Fleet API through the gateway with the device's certificate,
answers the messages of a run, keeps the state of secure-aggregation sessions in `training/`, and
ends when its run is over, when nothing happens for `training_idle_s`, or with the agent.

Exit code 0: it is done. 1: it could not begin, or lost the server for too long.
"""

import argparse
import contextlib
import ctypes
import logging
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final, NoReturn, Protocol

from flwr.app import Context, Error, Message, RecordDict

from wildflower.client.app import guard_of
from wildflower.client.config import AgentConfig, load_config
from wildflower.client.errors import ClientError
from wildflower.client.identity import Identity
from wildflower.client.local_app import Scalar, find_app, flower_app_config
from wildflower.logs import LogFormat, configure_logging
from wildflower.strategies.errors import LinkError, RunEndedError, StrategyError
from wildflower.strategies.flower_compat.fleet import FleetConnection
from wildflower.strategies.mod import FAILED, App

log = logging.getLogger("wildflower.client.trainer")  # run as a module, its name is __main__

POLL_S: Final = (0.1, 0.5)
"""Seconds between two looks for a message: right after one, and when nothing has come for long."""

RUN_CHECK_S: Final = 2.0
"""How often an idle child asks whether its run goes on, in seconds."""

RECONNECT_S: Final = 0.5
"""Seconds between two attempts to connect."""

PR_SET_PDEATHSIG: Final = 1  # <linux/prctl.h>


class Connection(Protocol):
    """What the child needs of a `FleetConnection`."""

    @property
    def node_id(self) -> int:
        """The node's id."""
        ...

    def receive(self) -> Message | None:
        """Return the next message, or None."""
        ...

    def reply(self, message: Message, *, runtime_s: float = 0.0) -> None:
        """Send a reply."""
        ...

    def is_running(self, run_id: int) -> bool:
        """Tell whether a run goes on."""
        ...


@dataclass
class TrainingChild:
    """Answers the messages of a device's runs.

    Attributes:
        app: The device's app behind its policy.
        node_config: What the app is told of the device.
        run_config: What the app is told of the run: its own defaults; no server decides them.
        idle_s: It ends after so many seconds without a run.
        clock: Seconds that never go back.
        wait: Waits so many seconds.
    """

    app: App
    node_config: Mapping[str, Scalar]
    run_config: Mapping[str, Scalar]
    idle_s: float
    clock: Callable[[], float] = time.monotonic
    wait: Callable[[float], object] = field(default_factory=lambda: threading.Event().wait)
    _contexts: dict[int, Context] = field(default_factory=dict)

    def work(self, connection: Connection) -> str:
        """Answer messages until there is nothing more to do; return why.

        Raises:
            LinkError: The connection is lost; call again with a new one.
        """
        last = checked = self.clock()
        pause = POLL_S[0]
        while True:
            now = self.clock()
            message = connection.receive()
            if message is not None:
                self._answer(connection, message)
                last = checked = self.clock()
                pause = POLL_S[0]
                continue
            if self._contexts and now - checked > RUN_CHECK_S:
                checked = now
                if not self._forget_ended(connection):
                    return "the run is over"
            if not self._contexts and now - last > self.idle_s:
                return f"nothing to do for {self.idle_s:g} s"
            self.wait(pause)
            pause = min(pause * 1.3, POLL_S[1])

    def _answer(self, connection: Connection, message: Message) -> None:
        run_id, began = message.metadata.run_id, self.clock()
        context = self._contexts.setdefault(run_id, self._context(connection.node_id, run_id))
        try:
            reply = self.app(message, context)
        except Exception as error:  # the device stays in the fleet whatever happens
            log.exception("no answer", extra={"kind": message.metadata.message_type})
            reply = Message(Error(FAILED, f"failed: {type(error).__name__}"), reply_to=message)
        took = self.clock() - began
        with contextlib.suppress(RunEndedError):  # nobody waits for it any more
            connection.reply(reply, runtime_s=took)
        log.info(
            "answered",
            extra={
                "kind": message.metadata.message_type,
                "run": run_id,
                "seconds": round(took, 3),
                "error": reply.error.reason if reply.has_error() else "",
            },
        )

    def _context(self, node_id: int, run_id: int) -> Context:
        return Context(
            run_id=run_id,
            node_id=node_id,
            node_config=dict(self.node_config),
            state=RecordDict(),
            run_config=dict(self.run_config),
        )

    def _forget_ended(self, connection: Connection) -> bool:
        """Forget the runs that are over; tell whether one goes on."""
        for run_id in list(self._contexts):
            if not connection.is_running(run_id):
                del self._contexts[run_id]
        return bool(self._contexts)


def serve(directory: Path) -> str:
    """Connect and answer until there is nothing more to do; return why it ended.

    Raises:
        ClientError: The device's files are missing or wrong, or name no app.
        StrategyError: The app cannot be loaded, or the server is away for too long.
    """
    config, identity = load_config(directory), Identity.load(directory)
    guard = guard_of(directory)
    child = TrainingChild(
        guard.around(find_app(config.app, config.data, guard.privacy)),
        {"directory": str(directory), "name": config.name, "data": config.data},
        flower_app_config(Path(config.app)) if Path(config.app).is_dir() else {},
        config.training_idle_s,
    )
    why = _work_through_losses(child, config, identity)
    guard.mod.end_all()
    return why


def _work_through_losses(child: TrainingChild, config: AgentConfig, identity: Identity) -> str:
    """Work; when the connection is lost, make a new one, until the server is away too long."""
    note = config.directory / "training" / "node"
    lost = time.monotonic()
    while True:
        connection = FleetConnection(
            config.endpoints_device,
            tls=identity.ssl_context(),
            key=identity.private_key,
            last_node=_read_node(note),
        )
        connected = False
        try:
            with connection:
                connected = True
                note.write_text(str(connection.node_id))
                log.info("connected", extra={"node": connection.node_id})
                return child.work(connection)
        except LinkError as error:
            log.warning("no connection", extra={"why": str(error)})
            lost = time.monotonic() if connected else lost
            if time.monotonic() - lost > config.training_idle_s:
                raise
        threading.Event().wait(RECONNECT_S)


def _read_node(note: Path) -> int:
    """Return the node id of the connection before, 0 if there was none."""
    try:
        return int(note.read_text())
    except (OSError, ValueError):
        return 0


def die_with_parent() -> None:
    """Ask the kernel for SIGTERM when the thread of the agent that started this process ends.

    An agent that ended before we could ask is no harm: nobody calls, and the child ends when idle.
    """
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGTERM)


def _stop(_signal: int, _frame: object) -> NoReturn:
    sys.exit(0)  # leaves the connection in good order


def main() -> int:
    """Run the child; return its exit code."""
    parser = argparse.ArgumentParser(description="Train as the server asks and the policy allows.")
    parser.add_argument("--dir", type=Path, required=True, help="The device's directory.")
    parser.add_argument("--log-format", choices=list(LogFormat), default=LogFormat.TEXT)
    options = parser.parse_args()
    configure_logging(LogFormat(options.log_format), verbosity=1)
    signal.signal(signal.SIGTERM, _stop)
    die_with_parent()
    # A device has other work, and a second thread on a contended core makes training slower.
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    try:
        why = serve(options.dir)
    except (ClientError, StrategyError) as error:
        log.error("training child failed", extra={"why": str(error), "hint": error.hint})
        return 1
    log.info("training child ends", extra={"why": why})
    return 0


if __name__ == "__main__":
    sys.exit(main())
