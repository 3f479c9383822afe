"""A device, its server and whoever wishes them ill: what every scenario of faults stands on.

The server is on loopback and does wrong what it is told to; repository, signatures, metadata, model
and trial are real. The device is enrolled, runs one release, owes the server the report about it,
and is offered the next one.
"""

import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta
from pathlib import Path
from typing import IO, Any, ClassVar, Final, TypeVar

from tests.client_fakes import LONG_AGO, FakeServer, Releases, today
from tests.device_fakes import Bundle, bundle, golden_of
from tests.faults.strace import Call, Fault, read_log, traced, was_hit
from tests.ota_fakes import Faults, FaultServer
from tests.slots_fakes import scaling_model

from wildflower.ota.device.journal import Journal
from wildflower.ota.device.runtime import OrtRuntime
from wildflower.ota.device.slots import Slots
from wildflower.ota.release.manifest import Release

TIMEOUT_S: Final = 20.0
LATER: Final = timedelta(hours=2)
"""After this a device has forgiven whatever one or two faults made it wait for."""
COMMITTED: Final = "committed"


@dataclass
class Shelf:
    """What the hostile server has to serve.

    Attributes:
        releases: Where it comes from.
        before: Told of every path before it is served.
    """

    releases: Releases
    before: Callable[[str], None] = lambda _: None

    def read(self, path: str) -> bytes | None:
        self.before(path)
        if path.startswith("/blobs/"):
            return self.releases.blobs.get(path.removeprefix("/blobs/"))
        file = self.releases.directory / path.lstrip("/").replace("%2F", "/")
        return file.read_bytes() if file.is_file() else None


@dataclass(frozen=True)
class Ended:
    """How a run of a device ended.

    Attributes:
        status: Its exit status; negative for a signal.
        failures: What it could not do, as its log would tell.
        calls: What it did to files, if it was traced.
        is_hit: Whether a fault came about.
    """

    status: int
    failures: tuple[str, ...]
    calls: tuple[Call, ...] = ()
    is_hit: bool = False

    @property
    def is_killed(self) -> bool:
        return self.status == -9


class Devices:
    """The process that devices are forked off: a module that ends in `device.serve`."""

    def __init__(self, module: str = "tests.faults.device") -> None:
        command = [sys.executable, "-m", module]
        self._process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )

    def warm(self, order: dict[str, Any]) -> list[str]:
        self._tell(order)
        return list(self._hear()["failures"])

    def run(
        self,
        order: dict[str, Any],
        log: Path | None = None,
        fault: Fault | None = None,
        *,
        follows: bool = False,
        brief: bool = False,
    ) -> Ended:
        self._tell(order | {"traced": log is not None})
        process = int(self._hear()["process"])
        calls: list[Call] = []
        if log is not None:
            await_stop(process)
            try:
                with traced(process, log, fault, follows=follows, brief=brief):
                    pass
            except BaseException:
                os.kill(process, signal.SIGKILL)  # or it would wait for a tracer for ever
                raise
            calls = [] if brief else read_log(log)
        ended = self._hear()
        is_hit = log is not None and was_hit(log)
        return Ended(ended["status"], tuple(ended["failures"]), tuple(calls), is_hit)

    def close(self) -> None:
        self._pipe(self._process.stdin).close()
        self._process.wait()
        self._pipe(self._process.stdout).close()

    def _tell(self, order: dict[str, Any]) -> None:
        pipe = self._pipe(self._process.stdin)
        pipe.write(json.dumps(order) + "\n")
        pipe.flush()

    def _hear(self) -> dict[str, Any]:
        line = self._pipe(self._process.stdout).readline()
        assert line, "the devices' process has ended"
        return dict(json.loads(line))

    @staticmethod
    def _pipe(pipe: IO[str] | None) -> IO[str]:
        assert pipe is not None
        return pipe


def await_stop(process: int) -> None:
    """Wait until a process has stopped itself."""
    while Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0] != "T":
        pass  # microseconds; the test's time-out bounds it


@dataclass
class Bench:
    """One enrolled device and copies of it, and the server.

    Attributes:
        place: A directory for all of it.
        server: What serves, and does wrong.
        shelf: What it has to serve.
        devices: Where runs come from.
        first: The release that runs.
        second: The one that is offered.
        now: The device's time.
        timeout_s: How long it waits for a byte.
        settings: What is changed in its settings.
        looks: How often it looks for news before it is switched off; an hour passes in between.
        is_bare: Whether a device may run nothing yet.
        follows: Whether the processes that a device starts change what a fault may hit.
    """

    module: ClassVar[str] = "tests.faults.device"
    """What its devices are."""

    place: Path
    server: FaultServer
    shelf: Shelf
    devices: Devices
    first: Bundle
    second: Bundle
    now: datetime = field(default_factory=today)
    timeout_s: float = TIMEOUT_S
    settings: dict[str, Any] = field(default_factory=dict)
    looks: int = 1
    is_bare: bool = False
    follows: bool = False
    made: int = 0

    @property
    def base(self) -> Path:
        """The device that all others are copies of."""
        return self.place / "device"

    @property
    def enrolled(self) -> Path:
        """A device that has never looked for a release."""
        return self.place / "enrolled"

    @property
    def known(self) -> dict[str, Release]:
        """Every release that was ever signed."""
        return {one.digest: one.release for one in (self.first, self.second)}

    def furnish(self) -> None:
        """Put onto the enrolled device what its owner does before it is first switched on."""

    def offer(self) -> None:
        """Offer what a device is to be hit in."""
        offer(self.shelf.releases, self.second)

    def complaints(self, device: Path) -> list[str]:
        """Return what is wrong with what a device would run this very moment; [] for nothing."""
        if self.is_bare and not Slots(device / "slots").running():
            return []
        return complaints(device, self.known)

    def copy(self, of: Path | None = None) -> Path:
        """Return a device that is in the state of another one."""
        target = self.fresh()
        shutil.copytree(of or self.base, target, symlinks=True)
        return target

    def fresh(self) -> Path:
        """Return a path for a device that does not exist yet."""
        self.made += 1
        return self.place / f"d{self.made}"

    def order(self, device: Path) -> dict[str, Any]:
        clock = self.place / "clock"
        clock.write_text(self.now.isoformat())
        return {
            "directory": str(device),
            "source": self.server.url,
            "clock": str(clock),
            "timeout_s": self.timeout_s,
            "settings": self.settings,
            "looks": self.looks,
        }

    def run(self, device: Path) -> Ended:
        """Switch a device on for one look."""
        return self.devices.run(self.order(device))

    def trace(self, device: Path, fault: Fault | None = None) -> Ended:
        """Switch a device on for one look, traced, with a fault."""
        follows = bool(fault.path) if fault else self.follows
        return self.devices.run(self.order(device), self.place / "log", fault, follows=follows)

    def hit(self, device: Path, fault: Fault) -> Ended:
        """Switch a device on for one look, with a fault; what it did is not told."""
        order, log, follows = self.order(device), self.place / "log", bool(fault.path)
        return self.devices.run(order, log, fault, follows=follows, brief=True)

    def clear_weather(self) -> None:
        """Let the server do nothing wrong any more."""
        self.shelf.before, self.server.faults = (lambda _: None), Faults()

    def clear_up(self) -> None:
        """Let the server do nothing wrong any more, forget what was asked, remove all copies."""
        self.clear_weather()
        self.server.asked.clear()
        for path in self.place.glob("d[0-9]*"):
            shutil.rmtree(path)

    def later(self, device: Path) -> Ended:
        """Switch a device on when it has forgiven what went wrong."""
        now, self.now = self.now, self.now + LATER
        try:
            return self.run(device)
        finally:
            self.now = now


B = TypeVar("B", bound=Bench)


def pair(*, padding: int = 0, bad: bool = False, probation_s: int = 0) -> tuple[Bundle, Bundle]:
    """Return two releases.

    Args:
        padding: Bytes to add to the second one.
        bad: Whether the second one fails its trial.
        probation_s: For how long the second one runs before it is committed.
    """
    first = bundle(1, scale=1.0, not_before=LONG_AGO)
    golden = golden_of(scaling_model(2.0), off=0.5) if bad else None
    trial = replace(first.release.trial, probation_s=probation_s)
    second = bundle(2, scale=2.0, golden=golden, padding=padding, not_before=LONG_AGO, trial=trial)
    return first, second


@contextmanager
def bench(place: Path, releases: tuple[Bundle, Bundle] | None = None) -> Iterator[Bench]:
    """Set up a device that runs a release and is offered another.

    Args:
        place: A directory that is empty.
        releases: Both; a plain pair if not given.
    """
    with bench_of(Bench, place, releases or pair()) as found:
        yield found


@contextmanager
def bench_of(kind: type[B], place: Path, releases: tuple[Bundle, Bundle]) -> Iterator[B]:
    """Set up a bench of a kind."""
    with ExitStack() as stack:
        fake = stack.enter_context(FakeServer(place / "server"))
        shelf = Shelf(fake.releases)
        server = stack.enter_context(FaultServer(shelf))
        devices = Devices(kind.module)
        stack.callback(devices.close)
        found = kind(place, server, shelf, devices, *releases)
        fake.enrol(found.base)
        found.furnish()
        shutil.copytree(found.base, found.enrolled)
        offer(fake.releases, found.first)
        failures = devices.warm(found.order(found.base))
        assert not failures, failures
        found.offer()
        found.now += timedelta(seconds=30)
        yield found


def offer(releases: Releases, one: Bundle) -> None:
    """Sign a release and offer it to everybody."""
    releases.publish(one)
    releases.roll_out(one)


def complaints(device: Path, known: dict[str, Release]) -> list[str]:
    """Return what is wrong with what a device would run this very moment; [] for nothing."""
    slots = Slots(device / "slots")
    running = slots.running()
    if running not in known:
        return [f"runs {running!r}, which nobody signed"]
    if not slots.is_complete(known[running]):
        return [f"runs {running[:12]}, which is torn"]
    OrtRuntime().load((slots.path(running) / known[running].artifact.name).read_bytes())
    return []


def told(device: Path) -> list[tuple[int, str]]:
    """Return the reports of a device: their numbers and outcomes."""
    journal = Journal.peek(device / "journal.db")
    try:
        return [(entry.sequence, entry.outcome.value) for entry in journal.reports(unsent=True)]
    finally:
        journal.close()


def losses(device: Path, expected: Bundle, reports: list[tuple[int, str]]) -> list[str]:
    """Return what a device has lost, or has too much of, after all is over; [] for nothing."""
    slots = Slots(device / "slots")
    found = []
    if slots.running() != expected.digest:
        found.append(f"runs {slots.running()[:12]}, expected {expected.digest[:12]}")
    if (said := told(device)) != reports:
        found.append(f"owes the reports {said}, expected {reports}")
    if (device / "journal.damaged").exists():
        found.append("its journal was damaged")
    rest = sorted(path.name for path in slots.root.iterdir() if path.name.startswith("."))
    rest += [path.name for path in device.glob("downloads/*")]
    if rest:
        found.append(f"left {rest}")
    return found
