"""Devices that are hit while software other than models is installed: their benches and judges.

    with bench_of(Labels, place, pair()) as found: ...       by a handler of its owner's
    with bench_of(SelfUpdate, place, pair()) as found: ...   the agent itself, by its own handler

Both run one release, which nothing is to touch, and are offered software. Whatever happens, what is
in place is the old version or the new one, whole; once the device has been switched on again one of
them is, for good, every step was done in its order, and the server is told once.
"""

import hashlib
import shlex
import sys
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, ClassVar

from tests.client_fakes import Releases, today
from tests.faults.bench import Bench, Ended
from tests.faults.crashes import End
from tests.faults.strace import Fault, command_of, was_hit
from tests.faults.watched import started
from tests.wheel_fakes import write_wheel

import wildflower.client.self_update
from wildflower.client.self_update import DAEMON, Environments
from wildflower.ota.release.ceremony import Authority
from wildflower.ota.release.keys import SOFTWARE, RoleKeys, generate_key
from wildflower.ota.release.manifest import FileEntry
from wildflower.ota.release.repository import Changes
from wildflower.ota.release.software import Software
from wildflower.ota.release.software_role import propose_role, propose_software

OLD, NEW = b"dark\nbright\n", b"night\nday\n"
BEFORE = "a" * 64
"""The version of the agent that a device begins with."""
HANDLER = '''#!PYTHON -IS
"""A handler as an owner writes one: every step bears to be repeated."""
import os, pathlib, sys

step, place = sys.argv[1], pathlib.Path(sys.argv[2])
home = pathlib.Path(os.environ["WILDFLOWER_DIR"])
live, before, new = home / "labels.txt", place / "state/before", place / "files/labels.txt"


def sync(path):
    descriptor = os.open(path, os.O_RDONLY)
    os.fsync(descriptor)
    os.close(descriptor)


def put(path, data):
    beside = path.with_name(path.name + ".new")
    beside.write_bytes(data)
    sync(beside)
    beside.replace(path)
    sync(path.parent)


put(home / "steps", (home / "steps").read_bytes() + step.encode() + b"\\n")
if step == "Install":
    if not before.exists():
        put(before, live.read_bytes())
    put(live, new.read_bytes())
elif step == "NeedsRestart":
    print("yes")
elif step == "Commit" and (FAILS or live.read_bytes() != new.read_bytes()):
    sys.exit("it does not work")
elif step == "Rollback" and before.exists():
    put(live, before.read_bytes())
'''
STEPS = ("Download", "Install", "NeedsRestart", "Commit")
AGENT = "import sys\nassert '--dir' in sys.argv\nprint('VERSION')\nsys.exit(CODE)\n"


def agent(version: str, code: int) -> str:
    """Return an agent that says its version and ends."""
    return AGENT.replace("VERSION", version).replace("CODE", str(code))


@dataclass(frozen=True)
class Ending(End):
    """How an installation ends.

    Attributes:
        version: What is in place then, as the bench names it.
        steps: What the handler was asked for, a repeated step counted once; () for anything.
    """

    version: str
    bench: "Installing"
    steps: tuple[str, ...] = ()

    def losses(self, device: Path) -> list[str]:
        """Return what is wrong once all is over; [] for nothing."""
        return super().losses(device) + self._unlike(device)

    def shortfall(self, device: Path) -> list[str]:
        """Return what is wrong once all is over, where attempts may have failed in between."""
        return super().shortfall(device) + self._unlike(device)

    def _unlike(self, device: Path) -> list[str]:
        found = []
        if (version := self.bench.version(device)) != self.version:
            found.append(f"has {version}, expected {self.version}")
        steps = self.bench.steps(device)
        if self.steps and steps != list(self.steps):
            found.append(f"did {steps}, expected {self.steps}")
        if rest := [path.name for path in device.glob("software/*")]:
            found.append(f"left {rest}")
        return found


@dataclass
class Installing(Bench):
    """A device on which software other than models is installed.

    Attributes:
        fails: Whether the new version turns out not to work.
    """

    module: ClassVar[str] = "tests.faults.watched"
    line: ClassVar[str] = ""
    judged: ClassVar[int] = 0
    """Which of the processes that the device starts is the handler's, once it has installed."""

    fails: bool = False

    def order(self, device: Path) -> dict[str, Any]:
        return super().order(device) | {"software": [self.line]}

    def hit(self, device: Path, fault: Fault) -> Ended:
        """Switch a device on for one look, with a fault; an error of a file hits its handler."""
        if not fault.path or not fault.error:
            return super().hit(device, fault)
        log, handler = self.place / "log", device / "handlers" / self.line
        log.write_bytes(b"")
        real = handler.rename(handler.with_name(f".{self.line}"))
        command = shlex.join([*command_of(fault, log), str(real)])
        handler.write_text(f'#!/bin/sh\nexec {command} "$@"\n')
        handler.chmod(0o755)
        ended = self.run(device)
        real.replace(handler)
        return replace(ended, is_hit=was_hit(log))

    def version(self, device: Path) -> str:
        """Return the name of the version in place; what is wrong with it if it is not whole."""
        raise NotImplementedError

    def steps(self, device: Path) -> list[str]:
        """Return the steps that were done, each run of the same as one."""
        told = device / "steps"
        steps = told.read_text().split() if told.exists() else []
        return [step for at, step in enumerate(steps) if at == 0 or step != steps[at - 1]]

    def complaints(self, device: Path) -> list[str]:
        version = self.version(device)
        wrong = [] if version in ("old", "new") else [version]
        return super().complaints(device) + wrong

    def handler(self, name: str, text: str) -> None:
        """Put a handler onto the device."""
        path = self.base / "handlers" / name
        path.parent.mkdir()
        path.write_text(text)
        path.chmod(0o755)

    def publish(self, name: str, data: bytes) -> Software:
        """Sign a file as the line's first software, and serve it."""
        releases = self.shelf.releases
        keys = RoleKeys((generate_key(self.place / "software.pem"),), 1)
        current = releases.repository.current
        authority = Authority(current("root"), current("targets"))
        bundle = propose_role(authority, keys.public_keys, 1, today())
        signers = (*releases.keys["targets"].signers, *keys.signers)
        put(releases, bundle.signed_by(signers)[0])
        entry = FileEntry("payload", name, hashlib.sha256(data).hexdigest(), len(data))
        one = Software(self.line, 1, self.line, "linux-generic", "0.0.1", (entry,))
        authority = Authority(current("root"), current("targets"))
        proposed = propose_software(authority, current(SOFTWARE), one, today())
        put(releases, proposed.signed_by(keys.signers)[0])
        releases.blobs[entry.digest] = data
        return one


def put(releases: Releases, bundle: Any) -> None:
    """Publish what was signed."""
    changes = Changes(bundle.proposals, bundle.targets)
    releases.repository.publish(changes, releases.keys, today())


@dataclass
class Labels(Installing):
    """A file that the owner's own program installs, and wants the agent started anew for."""

    line: ClassVar[str] = "labels"
    judged: ClassVar[int] = 3

    def furnish(self) -> None:
        text = HANDLER.replace("PYTHON", sys.executable).replace("FAILS", str(self.fails))
        self.handler(self.line, text)
        (self.base / "labels.txt").write_bytes(OLD)
        (self.base / "steps").write_text("")

    def offer(self) -> None:
        self.publish("labels.txt", NEW)

    def version(self, device: Path) -> str:
        found = (device / "labels.txt").read_bytes()
        return {OLD: "old", NEW: "new"}.get(found, f"torn labels: {found!r}")


@dataclass
class FailingLabels(Labels):
    """The handler finds at its last step that what it installed does not work."""

    fails: bool = True


@dataclass
class SelfUpdate(Installing):
    """The agent itself, in an environment of its own.

    Attributes:
        digest: The version that is offered.
    """

    line: ClassVar[str] = "agent"
    judged: ClassVar[int] = 4

    digest: str = field(default="")

    def furnish(self) -> None:
        script = wildflower.client.self_update.__file__
        self.handler(self.line, f'#!/bin/sh\nexec {sys.executable} {script} "$@"\n')
        environments = Environments(self.base)
        write_wheel(self.place / "wheels", "1.0", agent("1.0", 0))
        environments.make(BEFORE, self.place / "wheels")
        environments.begin_trial(BEFORE)
        environments.commit(BEFORE)

    def offer(self) -> None:
        wheel = write_wheel(self.place / "new", "2.0", agent("2.0", 3 * self.fails))
        self.digest = self.publish(wheel.name, wheel.read_bytes()).digest

    def version(self, device: Path) -> str:
        """Return which version the next start is of; it is started, to see that it does."""
        environments = Environments(device)
        current = environments.target("current")
        command = [str(environments.python(current)), "-m", DAEMON, "--dir", str(device)]
        ended = started(command)
        told = (current, ended.stdout.strip(), ended.returncode)
        if told == (BEFORE, "1.0", 0):
            return "old"
        if told == (self.digest, "2.0", 3 * self.fails):
            return "new"
        return f"an agent that does not start: {told}, {ended.stderr[-200:]}"


@dataclass
class FailingSelfUpdate(SelfUpdate):
    """The new version of the agent ends as soon as it is started."""

    fails: bool = True
