"""Faults with a name, one function each: what happens to the device, and how it comes out of it.

Each takes a bench whose device runs the first release and is offered the second, works on a copy of
it, and fails by AssertionError. What all have in common is said once, in `steady` and `arrived`:
whatever happens, the device runs a release that is whole and signed; and when it is over, the
update is done, the reports are there, each once, and the journal is the one it was.
"""

import shutil
import subprocess
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from functools import partial
from pathlib import Path
from typing import Any, Final

import numpy as np
from tests.device_fakes import Bundle
from tests.faults.bench import Bench, complaints, told
from tests.faults.device import GAVE_UP
from tests.faults.strace import Call, Fault
from tests.ota_fakes import Faults
from tests.slots_fakes import WIDTH

from wildflower.client.inference import ModelSlot
from wildflower.ota.device.journal import Journal
from wildflower.ota.errors import RefusedError

Scenario = Callable[[Bench], None]

PADDING: Final = 4_000_000
"""Bytes of the second release, about: enough that what headers cost does not count."""


def steady(bench: Bench, device: Path) -> None:
    """The device runs one of the releases, whole."""
    assert not (wrong := complaints(device, bench.known)), wrong


def arrived(bench: Bench, device: Path, release: Bundle | None = None) -> None:
    """The update is done and nothing is lost: every report is there once, in order."""
    steady(bench, device)
    expected = release or bench.second
    assert (device / "slots" / "current").readlink().name == expected.digest, reasons(device)
    reports = told(device)
    numbers = [number for number, _ in reports]  # rising; one that was queued twice leaves a gap
    assert numbers == sorted(set(numbers)), reports
    assert reports[0] == (1, "committed"), reports
    assert [outcome for _, outcome in reports].count("committed") == 2, reports
    assert not (device / "journal.damaged").exists()


def reasons(device: Path) -> list[str]:
    """Return the reports' reasons, for whoever reads a failure."""
    journal = Journal.peek(device / "journal.db")
    try:
        return [entry.reason for entry in journal.reports()]
    finally:
        journal.close()


@dataclass(frozen=True)
class Weather:
    """What the network does to the largest file of an update.

    Attributes:
        faults: What the server does wrong.
        then: What it does wrong from the second request for the file on; None for the same.
        is_passable: Whether the update arrives all the same.
        ratio: The most bytes that may be sent, as a multiple of the update's.
        timeout_s: How long the device waits for a byte.
    """

    faults: Mapping[str, Any]
    then: Mapping[str, Any] | None = None
    is_passable: bool = True
    ratio: float = 1.0
    timeout_s: float = 20.0


def share(percent: int) -> int:
    """Return the bytes that are so many hundredths of the largest file."""
    return PADDING * percent // 100


WEATHER: Final[Mapping[str, Weather]] = {
    "cut every 50 %": Weather({"cut": share(50)}, ratio=1.05),
    "cut every 10 %": Weather({"cut": share(10)}, ratio=1.05),
    "cut every 2 %": Weather({"cut": share(2)}, ratio=1.25),
    "corrupt once": Weather({"corrupt": 1}, ratio=2.1),
    "corrupt always": Weather({"corrupt": -1}, is_passable=False, ratio=2.1),
    "ended early": Weather({"cut": share(40), "unframed": True}, ratio=1.05),
    "said to be longer": Weather({"liar": 1000}, is_passable=False, ratio=2.1),
    "endless": Weather({"endless": True}, is_passable=False, ratio=6.0),
    "stalled": Weather({"stall": share(40)}, timeout_s=0.5, ratio=1.05),
    "wrong range": Weather({"cut": share(50)}, {"wrong_range": True}, ratio=2.6),
    "ranges ignored": Weather({"cut": share(50)}, {"ignores_range": True}, ratio=1.6),
    "no such range": Weather({"cut": share(50)}, {"busy": 1, "busy_status": 416}, ratio=1.6),
    "packed unasked": Weather({"encoding": "gzip"}, is_passable=False, ratio=2.1),
    "busy": Weather({"busy": 3, "retry_after": "1"}, ratio=1.05),
    "busy for an hour": Weather({"busy": 3, "retry_after": "3600"}, is_passable=False),
    "redirected for ever": Weather({"location": "/blobs/again"}, is_passable=False),
    "gone": Weather({"busy": 9, "busy_status": 404}, is_passable=False),
    "the same half for ever": Weather(
        {"cut": share(50), "ignores_range": True}, is_passable=False, ratio=3.6
    ),
}


def begin(bench: Bench, case: Weather) -> None:
    """Let a weather begin, and count the bytes that are sent in it."""
    large = max(bench.second.blobs, key=lambda digest: len(bench.second.blobs[digest]))
    fair, foul = Faults(), Faults(**case.faults)
    later = foul if case.then is None else Faults(**case.then)
    asked: list[str] = []

    def before(path: str) -> None:
        is_large = path.endswith(large)
        asked.extend([path] * is_large)
        bench.server.faults = fair if not is_large else foul if len(asked) == 1 else later

    bench.shelf.before, bench.server.served, bench.timeout_s = before, 0, case.timeout_s


def end(bench: Bench) -> float:
    """Let fair weather begin; return the bytes that were sent before, by the update's size."""
    bench.shelf.before, bench.server.faults = lambda _: None, Faults()
    return bench.server.served / sum(map(len, bench.second.blobs.values()))


def weather(bench: Bench, case: Weather) -> float:
    """Let the device update in a weather, then in fair; return the bytes sent by its size."""
    device = bench.copy()
    begin(bench, case)
    ended = bench.run(device)
    ratio = end(bench)
    assert ended.status == 0, ended
    steady(bench, device)
    if not case.is_passable:
        assert (device / "slots" / "current").readlink().name == bench.first.digest
        ended = bench.later(device)
    arrived(bench, device)
    assert ratio <= case.ratio, ratio
    return ratio


def clock_of_1970(bench: Bench) -> None:
    """A device without a battery wakes in 1970; it has seen a signed time since."""
    device = bench.copy()
    bench.now = datetime(1970, 1, 1, tzinfo=UTC)
    bench.run(device)
    arrived(bench, device)


def clock_of_2040(bench: Bench) -> None:
    """The clock is far ahead: all metadata has expired, what runs runs; then it is put right."""
    device, now = bench.copy(), bench.now
    bench.now = datetime(2040, 1, 1, tzinfo=UTC)
    assert any("expired" in failure for failure in bench.run(device).failures)
    steady(bench, device)
    bench.now = now
    bench.run(device)
    arrived(bench, device)


def clock_jumps(bench: Bench, to: datetime) -> None:
    """The clock jumps in the middle of a download, and is put right for the next look."""
    device, now = bench.copy(), bench.now
    clock = bench.place / "clock"

    def before(path: str) -> None:
        if path.startswith("/blobs/"):
            clock.write_text(to.isoformat())

    bench.shelf.before = before
    assert bench.run(device).status == 0
    steady(bench, device)
    bench.shelf.before = lambda _: None
    bench.now = now + timedelta(minutes=10)
    bench.run(device)
    arrived(bench, device)


def cache_wiped(bench: Bench) -> None:
    """The metadata that was seen is gone, and so are half the files."""
    device = bench.copy()
    bench.trace(device, Fault("rename", "6"))
    shutil.rmtree(device / "tuf")
    shutil.rmtree(device / "downloads", ignore_errors=True)
    bench.run(device)
    arrived(bench, device)


def journal_wiped(bench: Bench) -> None:
    """The journal is gone: what runs and what may be installed is known from the slots."""
    device = bench.copy()
    for path in device.glob("journal.db*"):
        path.unlink()
    assert bench.run(device).failures == ()
    steady(bench, device)
    ((number, outcome),) = told(device)
    assert outcome == "committed"
    assert number > 1_000_000  # none is used twice


def slot_damaged(bench: Bench) -> None:
    """The disk changes the slot that runs: found, refused, fetched again."""
    device = bench.copy()
    victim = device / "slots" / bench.first.digest / bench.first.release.artifact.name
    victim.chmod(0o644)
    victim.write_bytes(bytes(bench.first.release.artifact.length))
    bench.shelf.releases.roll_out(bench.first)
    try:
        assert not answers(device)
        bench.run(device)
        assert answers(device)
    finally:
        bench.shelf.releases.roll_out(bench.second)
    arrived(bench, device, bench.first)


def answers(device: Path) -> bool:
    """Whether the user's way to the model gives an answer; a damaged one never does."""
    try:
        with ModelSlot(device) as slot:
            slot.infer(np.ones((1, WIDTH), np.float32))
    except RefusedError:
        return False
    return True


def reboot_loop(bench: Bench) -> None:
    """The trial takes the device down, again and again: given up, and never tried again."""
    device = bench.copy()
    for _ in range(2):
        assert bench.trace(device, Fault("vfork", "1")).is_killed
        steady(bench, device)
    for _ in range(2):
        bench.run(device)
        steady(bench, device)
    assert told(device) == [(1, "committed"), (2, "rolled-back")]


def killed_while_it_recovers(bench: Bench, places: int = 12) -> None:
    """Killed in an update, in the recovery from it, and in the recovery from that.

    Each time at as many places from the first call to the last; of the recoveries, in the middle.

    Args:
        bench: Where it happens.
        places: How many.
    """
    calls = changing(bench, bench.base)
    for call in calls[:: len(calls) // places]:
        device = bench.copy()
        assert bench.trace(device, Fault(call.name, str(call.count))).is_killed, call
        steady(bench, device)
        for _ in range(2):
            rest = changing(bench, device)
            middle = rest[len(rest) // 2]
            bench.trace(device, Fault(middle.name, str(middle.count)))
            steady(bench, device)
        bench.run(device)
        steady(bench, device)
        reports = told(device)
        trial_fell = [(1, "committed"), (2, "rolled-back")]
        assert reports in ([(1, "committed"), (2, "committed")], trial_fell), reports


def changing(bench: Bench, state: Path) -> list[Call]:
    """Return the calls that change the disk when a device in some state is switched on."""
    device = bench.copy(state)
    calls = bench.trace(device).calls
    return [call for call in calls if call.changes(device) and call.result >= 0]


def two_agents(bench: Bench) -> None:
    """A second agent starts in the middle of a download: it ends at once and touches nothing."""
    device = bench.copy()
    ends: list[int] = []

    def before(path: str) -> None:
        if path.startswith("/blobs/") and not ends:
            command = [sys.executable, "-m", "wildflower.client.daemon", "--dir", str(device)]
            ended = subprocess.run(command, stderr=subprocess.PIPE, text=True, check=False)
            assert "an agent already runs" in ended.stderr, ended.stderr
            ends.append(ended.returncode)

    bench.shelf.before = before
    assert bench.run(device).failures == ()
    assert ends == [1]
    arrived(bench, device)


def refusing_disk(bench: Bench, error: str) -> None:
    """Every write fails from the first one on, then none does."""
    device = bench.copy()
    calls = "write,pwrite64,ftruncate,sendfile,rename,unlink,mkdir,symlink,fsync,fdatasync"
    ended = bench.trace(device, Fault(calls, "1+", error))
    assert ended.status == GAVE_UP, ended
    assert "the journal" in ended.failures[0], ended
    steady(bench, device)
    bench.later(device)
    arrived(bench, device)


FAR: Final = datetime(2040, 1, 1, tzinfo=UTC)
NEAR: Final = datetime(1970, 1, 1, tzinfo=UTC)

SCENARIOS: Final[Mapping[str, Scenario]] = {
    "clock of 1970": clock_of_1970,
    "clock of 2040, then right": clock_of_2040,
    "clock to 2040 in mid-download": partial(clock_jumps, to=FAR),
    "clock to 1970 in mid-download": partial(clock_jumps, to=NEAR),
    "cache wiped": cache_wiped,
    "journal wiped": journal_wiped,
    "running slot damaged": slot_damaged,
    "reboot loop in the trial": reboot_loop,
    "killed while it recovers, twice": killed_while_it_recovers,
    "two agents at once": two_agents,
    "read-only file system": partial(refusing_disk, error="EROFS"),
    "full disk": partial(refusing_disk, error="ENOSPC"),
    "broken disk": partial(refusing_disk, error="EIO"),
}
