"""A device whose updates are processes: each is forked off a warm one, so that it starts at once.

python tests/faults/device.py        orders come in as lines of JSON, answers go out the same way

An order names the device's directory, the server to ask, the file that holds the time, what is
changed in the settings, and how often the device looks for news before it is switched off. The
first one is carried out by this process itself, which loads whatever an update needs; every other
one by a child, which may be held until a tracer has attached. Wired as `client.daemon` does it,
without the channel: what is owed to the server stays in the journal.
"""

import itertools
import json
import os
import signal
import socket
import sys
from collections.abc import Callable
from dataclasses import replace
from datetime import datetime
from pathlib import Path
from typing import Any

from wildflower.client.config import load_config
from wildflower.client.daemon import alone, clock
from wildflower.client.errors import ClientError
from wildflower.client.identity import Identity
from wildflower.client.policy import Policy
from wildflower.client.updates import Updates
from wildflower.ota.device.journal import Journal
from wildflower.ota.device.slots import Slots
from wildflower.ota.errors import OtaError
from wildflower.ota.release.connection import Connection
from wildflower.ota.release.fetch import ReleaseClient

Act = Callable[[dict[str, Any]], list[str]]
"""Carries out an order; returns what it could not do."""
SAID = 4000  # bytes of an answer; errors of several sources are long
AN_HOUR_S = 3600.0
"""What passes between two looks at the clock that nobody can set."""
PASSED = 0
GAVE_UP = 1
"""Exit status of an agent that cannot start: it says why, and its supervisor starts it again."""
CRASHED = 70
"""Exit status of an update that ended by an error that the agent would not have caught: a bug."""


def update(order: dict[str, Any]) -> list[str]:
    """Switch the device on, as the agent's loop does; return what it could not do."""
    directory = Path(order["directory"])
    with alone(directory):
        return look(directory, order, lambda: None)


def look(directory: Path, order: dict[str, Any], restart: Callable[[], None]) -> list[str]:
    """Be the agent from its start to its end; return what it could not do.

    Args:
        directory: The device's.
        order: What it was told.
        restart: Called when the agent wants to be started anew.
    """

    def system() -> datetime:
        return datetime.fromisoformat(Path(order["clock"]).read_text())

    config = load_config(directory)
    source = order["source"]
    config = replace(config, sources=(source,), endpoints_device=source, **order["settings"])
    identity, slots = Identity.load(directory), Slots(directory / "slots")
    journal = Journal.open(directory / "journal.db", now=system(), is_first=not slots.running())
    now = clock(journal, system)
    releases = ReleaseClient(
        directory / "tuf",
        identity.root,
        config.all_sources,
        lambda: Connection(None, timeout_s=order["timeout_s"]),
        now,
        wait=lambda _: None,
        draw=lambda: 1.0,
    )
    updates = Updates(
        config=config,
        policy=Policy(release=("auto",), software=tuple(order.get("software", ()))),
        journal=journal,
        slots=slots,
        releases=releases,
        now=now,
        should_stop=lambda: False,
        steady=itertools.count(0.0, AN_HOUR_S).__next__,
        restart=restart,
    )
    steps = (updates.begin, *[updates.look] * order["looks"], updates.end)
    failures = [failure for step in steps if (failure := _guarded(step))]
    journal.close()
    return failures


def _guarded(step: Callable[[], None]) -> str:
    """Do what the agent's loop does with what cannot be done now."""
    try:
        step()
    except (ClientError, OtaError) as error:
        return f"{type(error).__name__}: {error}"
    return ""


def _fork(order: dict[str, Any], act: Act) -> dict[str, Any]:
    """Carry an order out in a child; say its process id first, so that it can be traced or killed.

    The answer comes through a socket: `write` may be made to fail in the child.
    """
    ours, theirs = socket.socketpair()
    with ours:
        with theirs:
            child = os.fork()
            if not child:
                ours.close()
                _live(order, theirs, act)
        _say({"process": child})
        said = ours.makefile("rb").read()
    status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    return {"status": status, "failures": json.loads(said or b"[]")}


def _live(order: dict[str, Any], answer: socket.socket, act: Act) -> None:
    if order["traced"]:
        os.kill(os.getpid(), signal.SIGSTOP)
    try:
        failures, status = act(order), PASSED
    except (ClientError, OtaError) as error:
        failures, status = [f"{type(error).__name__}: {error}"], GAVE_UP
    except BaseException as error:  # noqa: BLE001  the child's edge
        failures, status = [f"{type(error).__name__}: {error}"], CRASHED
    answer.sendall(json.dumps([failure[:SAID] for failure in failures]).encode())
    os._exit(status)


def _say(document: dict[str, Any]) -> None:
    sys.stdout.write(json.dumps(document) + "\n")
    sys.stdout.flush()


def serve(act: Act) -> None:
    """Carry out orders until there are no more."""
    warming = json.loads(sys.stdin.readline())
    _say({"failures": act(warming)})
    for line in sys.stdin:
        _say(_fork(json.loads(line), act))


if __name__ == "__main__":
    serve(update)
