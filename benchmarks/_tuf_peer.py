"""Side by side: python-tuf's own client and ours, under the same faults.

    figures, rows = compare()        the same repository, server, release and judge for both

python-tuf's `ngclient` is what ours is built on, and promises less: it verifies what it is given.
It does not resume, sync or rename, its documentation does not say that it does, and an application
that needs this has to add it. So there are two of it: used as its documentation shows it
(`Updater(bootstrap=...)`, `find_cached_target(...) or download_target(...)`, its default fetcher,
a file's name stays the same from release to release), and by an application that takes the care to
fetch beside that file and rename. Both try up to eight times. What is not compared: trials,
rollback, reports; python-tuf has none, and does not mean to.

Judged is what an application would open. Torn: a file that is neither the old release's nor the new
one's, right after the fault. Not recovered: not the new release, once the device has been switched
on again in fair weather.
"""

import hashlib
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import closing, contextmanager
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any, Final

from tests.client_fakes import Releases, today
from tests.device_fakes import Bundle
from tests.faults.bench import Bench, Devices, bench, pair
from tests.faults.benches import INSTALLED
from tests.faults.crashes import End, Matrix, Verdict
from tests.faults.scenarios import PADDING, WEATHER, Weather, begin, end

from benchmarks.faults import RATIOS
from wildflower.ota.device.slots import Slots
from wildflower.ota.release.ceremony import next_unsigned, read_root
from wildflower.ota.release.manifest import target_path
from wildflower.ota.release.repository import Changes

TRIES: Final = 8
"""How often an application of python-tuf begins anew before it leaves."""
CRASHED: Final = 260_000
"""Bytes of a release, about, in whose installation devices are killed: each write is a point."""
OURS: Final = "ours"
PLAIN: Final = "python-tuf"
RENAMED: Final = "python-tuf, renamed"
KEYS: Final = {PLAIN: "tuf", RENAMED: "tuf_renamed", OURS: "ours"}
"""How the keys of each one's figures begin."""


@dataclass
class Peer(Bench):
    """A device whose client is python-tuf's.

    Attributes:
        renames: Whether its application fetches beside the file and renames.
    """

    renames: bool = False

    @property
    def base(self) -> Path:
        """The device that all others are copies of."""
        return self.place / "device"

    def complaints(self, device: Path) -> list[str]:
        """Return which files are neither the old release's nor the new one's; [] for none."""
        return _others(device, self.first, self.second)

    def order(self, device: Path) -> dict[str, Any]:
        """Return the order to install the second release."""
        return self.order_of(self.second, device)

    def order_of(self, one: Bundle, device: Path) -> dict[str, Any]:
        """Return the order to install a release."""
        return {
            "directory": str(device),
            "source": self.server.url,
            "timeout_s": self.timeout_s,
            "release": target_path("auto", one.release.target_group, one.release.order),
            "root": str(self.place / "root.json"),
            "tries": TRIES,
            "renames": self.renames,
        }


@dataclass(frozen=True)
class Whole(End):
    """An update by python-tuf's client has ended: every file is the new release's."""

    def losses(self, device: Path) -> list[str]:
        """Return which files are not."""
        return _others(device, self.release)


@dataclass(frozen=True)
class Side:
    """One of those that are compared.

    Attributes:
        bench: Its device.
        end: How the update ends.
        has_arrived: Whether a device has the new release, whatever it owes to the server.
        sample: A quick run takes each so-manyth crash.
    """

    bench: Bench
    end: End
    has_arrived: Callable[[Path], bool]
    sample: int


@dataclass(frozen=True)
class Fate:
    """What a weather did to a device.

    Attributes:
        arrived: Whether the update was done in it.
        torn: Whether the application could open what nobody signed.
        recovered: Whether the update was done when the weather was fair again.
        ratio: Bytes sent in it, by the update's size.
    """

    arrived: bool
    torn: bool
    recovered: bool
    ratio: float

    def __str__(self) -> str:
        told = "arrives" if self.arrived else "does not arrive" if self.recovered else "is lost"
        return f"{told}{', torn' * self.torn} {self.ratio:.2f}"


@dataclass(frozen=True)
class Crashes:
    """What killing a device, and cutting its power, did to it.

    Attributes:
        points: How many faults there were.
        torn: How many left a file that nobody signed.
        lost: How many were not recovered from.
    """

    points: int
    torn: int
    lost: int

    @classmethod
    def of(cls, verdicts: Iterable[Verdict]) -> "Crashes":
        """Count verdicts.

        Raises:
            RuntimeError: There are none: no fault came.
        """
        found = list(verdicts)
        if not found:
            raise RuntimeError("nothing was ever hit")
        torn, lost = sum(bool(one.torn) for one in found), sum(bool(one.lost) for one in found)
        return cls(len(found), torn, lost)

    def __add__(self, other: "Crashes") -> "Crashes":
        return Crashes(self.points + other.points, self.torn + other.torn, self.lost + other.lost)

    def __str__(self) -> str:
        return f"{self.torn} torn, {self.lost} lost of {self.points}"


def compare(*, quick: bool = False) -> tuple[dict[str, float], list[tuple[str, str]]]:
    """Return the figures by their keys, and the rows of the table.

    Args:
        quick: Whether a few crashes and the weathers that have a bound are enough.
    """
    fates, crashes = weathers(quick=quick), killings(quick=quick)
    figures: dict[str, float] = {}
    for name, key in KEYS.items():
        every = crashes["killed"][name] + crashes["power cut"][name]
        figures |= {
            f"{key}_crash_points": every.points,
            f"{key}_torn": every.torn,
            f"{key}_not_recovered": every.lost,
        }
    for name in (PLAIN, OURS):
        figures |= _weather_figures(KEYS[name], {what: one[name] for what, one in fates.items()})
    return figures, [*_table(fates, (PLAIN, OURS)), *_table(crashes, tuple(KEYS))]


def weathers(*, quick: bool) -> dict[str, dict[str, Fate]]:
    """Return what became of an update of 4 MB in each weather, by client."""
    names = RATIOS.values() if quick else WEATHER
    with tempfile.TemporaryDirectory() as place, side_by_side(Path(place), PADDING) as sides:
        return {
            what: {name: fate_of(sides[name], WEATHER[what]) for name in (PLAIN, OURS)}
            for what in names
        }


def killings(*, quick: bool) -> dict[str, dict[str, Crashes]]:
    """Return how crashes of an update with a rotation of the root ended, by client."""
    found: dict[str, dict[str, Crashes]] = {"killed": {}, "power cut": {}}
    with tempfile.TemporaryDirectory() as place, side_by_side(Path(place), CRASHED) as sides:
        for name, side in sides.items():
            every = side.sample if quick else 1
            matrix = Matrix(side.bench, [side.end], side.bench.base, every)
            found["killed"][name] = Crashes.of(matrix.kills())
            found["power cut"][name] = Crashes.of(matrix.power_cuts())
    return found


@contextmanager
def side_by_side(place: Path, padding: int) -> Iterator[Mapping[str, Side]]:
    """Yield devices of all clients that run the first release and are offered the second.

    The root has been rotated meanwhile.

    Args:
        place: A directory that is empty.
        padding: Bytes of the second release, about.
    """
    with (
        bench(place / "ours", pair(padding=padding)) as found,
        _beside(found, place / "plain", renames=False) as plain,
        _beside(found, place / "renamed", renames=True) as renamed,
    ):
        rotate_root(found.shelf.releases)
        ours = Side(found, End(found.second, INSTALLED), lambda one: _runs_second(found, one), 96)
        yield {PLAIN: plain, RENAMED: renamed, OURS: ours}


@contextmanager
def _beside(ours: Bench, place: Path, *, renames: bool) -> Iterator[Side]:
    """Yield a device of python-tuf's at the same server as one of ours."""
    place.mkdir()
    (place / "root.json").write_bytes(ours.shelf.releases.root)
    with closing(Devices("benchmarks._tuf_peer_child")) as devices:
        peer = Peer(place, ours.server, ours.shelf, devices, ours.first, ours.second)
        peer.renames = renames
        failures = devices.warm(peer.order_of(ours.first, peer.base))
        if failures or _others(peer.base, ours.first):
            raise RuntimeError(f"python-tuf's client could not install: {failures}")
        yield Side(
            peer,
            Whole(ours.second, ()),
            has_arrived=lambda device: not _others(device, ours.second),
            sample=12,
        )


def rotate_root(releases: Releases) -> None:
    """Publish the next root; the same keys sign it."""
    keys, now = releases.keys, today()
    root = read_root(next_unsigned(read_root(releases.root), now + timedelta(days=365)))
    for signer in keys["root"].signers:
        root.sign(signer, append=True)
    releases.repository.publish(Changes(root=root.to_bytes()), keys, now)


def fate_of(side: Side, case: Weather) -> Fate:
    """Let a device update in a weather, then in fair; return what became of it."""
    found = side.bench
    device = found.copy()
    begin(found, case)
    found.run(device)
    ratio = end(found)
    torn, arrived = bool(found.complaints(device)), side.has_arrived(device)
    if not arrived:
        found.later(device)
    recovered = side.has_arrived(device)
    found.clear_up()
    return Fate(arrived, torn, recovered, ratio)


def _runs_second(found: Bench, device: Path) -> bool:
    running = Slots(device / "slots").running()
    return running == found.second.digest and not found.complaints(device)


def _others(device: Path, *releases: Bundle) -> list[str]:
    """Return which of a device's files are of none of these releases; [] for none."""
    signed = {entry.digest for one in releases for entry in one.release.files}
    found = []
    for entry in releases[0].release.files:
        path = device / "files" / entry.name
        if not path.is_file():
            found.append(f"{entry.name} is gone")
        elif hashlib.sha256(path.read_bytes()).hexdigest() not in signed:
            found.append(f"{entry.name} is torn")
    return found


def _weather_figures(key: str, fates: Mapping[str, Fate]) -> dict[str, float]:
    passable = [fate for what, fate in fates.items() if WEATHER[what].is_passable]
    return {
        **{f"{key}_{ratio}": round(fates[what].ratio, 4) for ratio, what in RATIOS.items()},
        f"{key}_weathers_passable": len(passable),
        f"{key}_weathers_arrived": sum(fate.arrived for fate in passable),
        f"{key}_weathers_torn": sum(fate.torn for fate in fates.values()),
        f"{key}_weathers_not_recovered": sum(not fate.recovered for fate in fates.values()),
    }


def _table(
    found: Mapping[str, Mapping[str, object]], columns: tuple[str, ...]
) -> list[tuple[str, str]]:
    """Return a row for each fault, a column for each client.

    Of a weather it says whether the update arrives in it, and the bytes sent by the update's size.
    """
    cells = [("side by side", columns)]
    cells += [(what, tuple(str(one[name]) for name in columns)) for what, one in found.items()]
    return [(what, "".join(f"{cell:<24}" for cell in row).rstrip()) for what, row in cells]
