"""The crash matrix: killed before every system call that changes the disk, and the power cut there.

    for verdict in matrix.kills(): ...          SIGKILL by strace before each call of an update
    for verdict in matrix.power_cuts(): ...     what a power cut at the same points may leave
    for verdict in matrix.errors("EIO"): ...    each call that writes fails once

Every state that is left is judged twice: at once (does the device run a release that is whole and
signed?) and after the device was switched on again (is the update done, nothing lost, nothing told
twice?). States of the disk that are equal byte for byte are switched on once.
"""

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from tests.device_fakes import Bundle
from tests.faults.bench import Bench, losses, told
from tests.faults.device import CRASHED
from tests.faults.disk import Disk, View
from tests.faults.strace import WRITES, Call, Fault

from wildflower.ota.device.slots import Slots


@dataclass(frozen=True)
class Verdict:
    """What a fault did to a device.

    Attributes:
        point: Where it came.
        torn: What was wrong with what the device runs right after it; () for nothing.
        lost: What was wrong once the device had been switched on again; () for nothing.
    """

    point: str
    torn: tuple[str, ...] = ()
    lost: tuple[str, ...] = ()

    @property
    def is_survived(self) -> bool:
        return not self.torn and not self.lost


@dataclass(frozen=True)
class End:
    """How an update ends, whatever happens in the middle of it.

    Attributes:
        release: What runs then.
        reports: What the device owes to the server.
    """

    release: Bundle
    reports: Sequence[tuple[int, str]]

    def losses(self, device: Path) -> list[str]:
        """Return what is wrong once all is over; [] for nothing."""
        return losses(device, self.release, list(self.reports))

    def shortfall(self, device: Path) -> list[str]:
        """Return what is wrong once all is over, where attempts may have failed in between."""
        found = told(device)
        numbers = [number for number, _ in found]
        wrong = [f"told twice: {found}"] if numbers != sorted(set(numbers)) else []
        if Slots(device / "slots").running() != self.release.digest:
            wrong.append(f"does not run {self.release.digest[:12]}")
        if _lasting(found) != _lasting(self.reports):
            wrong.append(f"owes the reports {found}, expected {self.reports} and failed attempts")
        return wrong


@dataclass
class Matrix:
    """Crashes of one run of a device.

    Attributes:
        bench: What it stands on.
        ends: How the run may end; the first one is how it does without a fault.
        base: The state of the device before the run.
        every: Takes every n-th point alone.
        skip: Tells how many calls from the beginning are not looked at.
        until: Tells how many calls from the beginning are looked at.
        spared: How else it may end where a fault hits not the device, but what it does or starts.
    """

    bench: Bench
    ends: Sequence[End]
    base: Path
    every: int = 1
    skip: Callable[[Sequence[Call]], int] = lambda _: 0
    until: Callable[[Sequence[Call]], int] = len
    spared: Sequence[End] = ()
    _known: dict[str, Verdict] = field(default_factory=dict)

    def points(self) -> tuple[Path, list[Call], list[Call]]:
        """Run once without a fault; return the device, all calls, and those to crash before."""
        device = self.bench.copy(self.base)
        ended = self.bench.trace(device)
        assert (ended.status, ended.failures) == (0, ()), ended
        assert not (wrong := self.ends[0].losses(device)), wrong
        calls = ended.calls
        later = calls[self.skip(calls) : self.until(calls)]
        changing = [call for call in later if call.changes(device) and call.result >= 0]
        return device, list(calls), changing[:: self.every]

    def kills(self) -> Iterator[Verdict]:
        """Kill before each point, for real: the device, or the process of it that comes there."""
        for fault in self._faults():
            device = self.bench.copy(self.base)
            ended = self.bench.hit(device, _on(fault, device))
            if not ended.is_hit:
                continue  # this run took another way and never came there
            torn = self.bench.complaints(device)
            ends = self.ends if ended.is_killed else (*self.ends, *self.spared)
            yield Verdict(str(fault), tuple(torn), self._recovered(device, ends))

    def errors(self, error: str) -> Iterator[Verdict]:
        """Let each call that writes fail once; the device may try again two hours later."""
        for fault in self._faults(error):
            device = self.bench.copy(self.base)
            ended = self.bench.hit(device, _on(fault, device))
            if not ended.is_hit:
                continue
            torn = self.bench.complaints(device)
            torn += [f"crashed: {ended.failures}"] * (ended.status == CRASHED)
            self.bench.later(device)
            lost = self.bench.complaints(device)
            wrong = [end.shortfall(device) for end in (*self.ends, *self.spared)]
            lost += [*wrong[0], f"after {ended.failures}"] if all(wrong) else []
            yield Verdict(str(fault), tuple(torn), tuple(lost))

    def power_cuts(self) -> Iterator[Verdict]:
        """Cut the power before each point, on the disk as it is replayed.

        Where a process that the device started was at work, it is also left as it is: SIGKILL of
        all processes at once loses nothing that was written.
        """
        device, calls, points = self.points()
        disk = Disk(self.bench.copy(self.base))
        moved = [_moved(call, device, disk.root) for call in calls]
        wanted = {id(calls[at]): at for at in range(len(calls))}
        chosen = {wanted[id(call)] for call in points}
        for at, call in enumerate(moved):
            if at in chosen:
                is_own = call.process == calls[0].process
                for view in (View.LOST, View.ZEROED) if is_own else View:
                    point = f"power cut, {view.value}, at {call.name} {Path(call.path).name}"
                    yield self._cut(disk, view, point)
            disk.apply(call)

    def _faults(self, error: str = "") -> list[Fault]:
        """Return what hits each point; paths of files are the device's."""
        device, calls, points = self.points()
        counts: Counter[tuple[int, str, str]] = Counter()
        found: dict[Fault, None] = {}
        for call in calls:
            path = call.changed.removeprefix(f"{device}/")
            counts[call.process, call.name, path] += 1
            if call not in points or (error and call.name not in WRITES):
                continue
            if call.process == calls[0].process:
                found[Fault(call.name, str(call.count), error)] = None
            elif path:  # a call without one, such as sync, is nobody's own
                count = counts[call.process, call.name, path]
                found[Fault(call.name, str(count), error, path)] = None
        return list(found)

    def _cut(self, disk: Disk, view: View, point: str) -> Verdict:
        state = disk.digest(view)
        if state not in self._known:
            device = self.bench.fresh()
            disk.lay_out(device, view)
            torn = self.bench.complaints(device)
            self._known[state] = Verdict(point, tuple(torn), self._recovered(device, self.ends))
        return replace(self._known[state], point=point)

    def _recovered(self, device: Path, ends: Sequence[End]) -> tuple[str, ...]:
        """Switch the device on again; return what is wrong with how it ends."""
        found: list[str] = []
        ended = self.bench.run(device)
        if ended.status != 0:
            found.append(f"the next start ended with {ended.status}: {ended.failures}")
        found += self.bench.complaints(device)
        wrong = [end.losses(device) for end in ends]
        if all(wrong):
            found += wrong[0] + [str(ended.failures)]
        return tuple(found)


def _moved(call: Call, old: Path, new: Path) -> Call:
    """Return a call that does to one copy what another one saw."""
    paths = [
        str(new) + path.removeprefix(str(old)) if f"{path}/".startswith(f"{old}/") else path
        for path in (call.path, call.other)
    ]
    return replace(call, path=paths[0], other=paths[1])


def _on(fault: Fault, device: Path) -> Fault:
    """Return a fault whose file is that of one copy."""
    return replace(fault, path=str(device / fault.path)) if fault.path else fault


def _lasting(reports: Sequence[tuple[int, str]]) -> list[str]:
    """Return outcomes but those of attempts that failed and were made again."""
    return [outcome for _, outcome in reports if outcome != "failed"]


def before_child(calls: Sequence[Call], number: int) -> int:
    """Return how many calls there are before the device starts its n-th process."""
    children = [
        at
        for at, call in enumerate(calls)
        if call.name == "vfork" and call.process == calls[0].process
    ]
    return children[number - 1]


def after_fetching(calls: Sequence[Call]) -> int:
    """Return how many calls there are up to the start of a trial's or a handler's process."""
    return next(at for at, call in enumerate(calls) if call.name == "vfork")
