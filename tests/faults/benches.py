"""The matrices and how they are drawn: what tests and the benchmark have in common."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Final

from tests.delta_fakes import delta_of, model_of, with_deltas
from tests.faults.bench import COMMITTED, Bench, bench, bench_of, pair
from tests.faults.crashes import End, Matrix, after_fetching, before_child
from tests.faults.software import (
    STEPS,
    Ending,
    FailingLabels,
    FailingSelfUpdate,
    Installing,
    Labels,
    SelfUpdate,
)
from tests.faults.strace import Fault

from wildflower.ota.rollout.document import Order

PROBATION_S: Final = 600
INSTALLED: Final = ((1, COMMITTED), (2, COMMITTED))
GIVEN_UP: Final = ((1, COMMITTED), (2, "rolled-back"))
FAILED: Final = ((1, COMMITTED), (2, "failed"))
RECALLED: Final = (*INSTALLED, (3, "rolled-back"))


@contextmanager
def update(place: Path, every: int = 1) -> Iterator[Matrix]:
    """A release is fetched, tried and committed."""
    with bench(place) as found:
        yield of_update(found, every)


def of_update(found: Bench, every: int = 1) -> Matrix:
    """Return the matrix of the update that a bench offers."""
    return Matrix(found, [End(found.second, INSTALLED)], found.base, every)


@contextmanager
def delta(place: Path, every: int = 1) -> Iterator[Matrix]:
    """The model of the release is made from the one that runs and a delta."""
    old, new = with_deltas(1), with_deltas(2, ((model_of(1), delta_of(1, 2)),))
    with bench(place, (old, new)) as found:
        whole = f"/blobs/{new.release.artifact.digest}"
        assert found.run(found.copy()).failures == ()
        assert whole not in [path for path, _ in found.server.asked]
        yield of_update(found, every)


@contextmanager
def first_release(place: Path, every: int = 1) -> Iterator[Matrix]:
    """A device that was enrolled just now gets its first release."""
    with bench(place) as found:
        found.is_bare = True
        yield Matrix(found, [End(found.second, INSTALLED[:1])], found.enrolled, every)


@contextmanager
def failed_trial(place: Path, every: int = 1) -> Iterator[Matrix]:
    """A release fails its trial, is quarantined and left; crashes from the trial on."""
    with bench(place, pair(bad=True)) as found:
        end = End(found.first, GIVEN_UP)
        yield Matrix(found, [end], found.base, every, after_fetching)


@contextmanager
def recall(place: Path, every: int = 1) -> Iterator[Matrix]:
    """A signed order sends the device back to the release before."""
    with bench(place) as found:
        device = found.copy()
        assert found.run(device).failures == ()
        found.shelf.releases.roll_out(found.second, order=Order.ROLL_BACK)
        yield Matrix(found, [End(found.first, RECALLED)], device, every)


@contextmanager
def recovery(place: Path, every: int = 1) -> Iterator[Matrix]:
    """A device that was killed in the middle of an update picks up, and is killed again.

    Two of these may fall into the trial: it is then given up, as it shall be.
    """
    with bench(place) as found:
        device = found.copy()
        assert found.trace(device, Fault("rename", "7")).is_killed
        ends = [End(found.second, INSTALLED), End(found.first, GIVEN_UP)]
        yield Matrix(found, ends, device, every)


@contextmanager
def second_recovery(place: Path, every: int = 1) -> Iterator[Matrix]:
    """It was killed in the recovery from that too, when a release was being switched to."""
    with bench(place) as found:
        device = found.copy()
        for fault in (Fault("fdatasync", "9"), Fault("symlink", "1")):
            assert found.trace(device, fault).is_killed
        ends = [End(found.second, INSTALLED), End(found.first, GIVEN_UP)]
        yield Matrix(found, ends, device, every)


@contextmanager
def on_probation(place: Path) -> Iterator[Bench]:
    """Yield a bench whose base runs the second release, on probation, and has not told of it."""
    with bench(place, pair(probation_s=PROBATION_S)) as found:
        assert found.run(found.base).failures == ()
        assert (found.base / "slots" / "current").readlink().name == found.second.digest
        yield found


@contextmanager
def passed_probation(place: Path, every: int = 1) -> Iterator[Matrix]:
    """A release on probation does well for long enough, and is committed."""
    with on_probation(place) as found:
        found.looks = 2
        yield Matrix(found, [End(found.second, INSTALLED)], found.base, every)


@contextmanager
def failed_probation(place: Path, every: int = 1) -> Iterator[Matrix]:
    """The owner's check says that a release harms the device: the one before comes back."""
    with on_probation(place) as found:
        found.settings = {"health_check": "/bin/false"}
        yield Matrix(found, [End(found.first, GIVEN_UP)], found.base, every)


@contextmanager
def software(place: Path, every: int, kind: type[Installing]) -> Iterator[Matrix]:
    """Software other than models is installed, up to where it is judged; fetched as any is.

    Where the device itself goes down, the step is done again and succeeds. Where a process that it
    started does, or a write fails, that step has failed, and the old version is put back.
    """
    with bench_of(kind, place, pair()) as found:
        works, fails = ends_of(found)
        until = partial(before_child, number=found.judged)
        skip = partial(before_child, number=2) if kind is SelfUpdate else lambda _: 0
        yield Matrix(found, [works], found.base, every, skip, until, [fails])


@contextmanager
def software_judged(place: Path, every: int, kind: type[Installing]) -> Iterator[Matrix]:
    """Software that is installed is judged: it stays, or what was there before comes back."""
    with bench_of(kind, place, pair()) as found:
        device = found.copy()
        assert found.trace(device, Fault("vfork", str(found.judged))).is_killed
        works, fails = ends_of(found)
        # An error hits each process that comes there, so it may be the way back that fails too.
        spared = [fails, replace(fails, version="new")] if isinstance(found, Labels) else [fails]
        steps = (*works.steps, "Rollback") if works.steps else ()
        end = replace(fails, steps=steps) if found.fails else works
        yield Matrix(found, [end], device, every, spared=spared)


def ends_of(found: Installing) -> tuple[Ending, Ending]:
    """Return how software ends that works, and that does not."""
    found.follows = True
    steps = STEPS if isinstance(found, Labels) else ()
    works = Ending(found.first, INSTALLED, "new", found, steps)
    return works, Ending(found.first, FAILED, "old", found)


MATRICES: Final[Mapping[str, Callable[[Path, int], AbstractContextManager[Matrix]]]] = {
    "update": update,
    "update by delta": delta,
    "first release": first_release,
    "failed trial": failed_trial,
    "passed probation": passed_probation,
    "failed probation": failed_probation,
    "order back": recall,
    "recovery": recovery,
    "recovery of a recovery": second_recovery,
    "handlers": partial(software, kind=Labels),
    "handlers, judged": partial(software_judged, kind=Labels),
    "handlers, taken back": partial(software_judged, kind=FailingLabels),
    "self-update": partial(software, kind=SelfUpdate),
    "self-update, judged": partial(software_judged, kind=SelfUpdate),
    "self-update, taken back": partial(software_judged, kind=FailingSelfUpdate),
}
ERRORS: Final = ("ENOSPC", "EIO")
FAILING: Final = tuple(
    name for name in MATRICES if name not in ("first release", "failed trial", "passed probation")
)
"""Matrices whose writes fail too; what the others write is in these."""
