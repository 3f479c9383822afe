"""What a device survives: `python -m benchmarks.faults`; needs `strace`.

Killed before every system call that changes the disk, the power cut at the same points, every write
failed once; bytes that a bad network costs; and each fault that has a name. The device is enrolled,
its repository signed, its trial runs ONNX Runtime; a scenario that is not survived is named.
"""

import argparse
import sys
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from tests.faults.bench import bench, pair
from tests.faults.benches import MATRICES
from tests.faults.crashes import Verdict
from tests.faults.scenarios import PADDING, SCENARIOS, WEATHER, Scenario, weather
from tests.faults.strace import is_here

from benchmarks._outcome import tell

ERRORS: Final = ("ENOSPC", "EIO")
RATIOS: Final = {
    "bytes_ratio_cut10": "cut every 10 %",
    "bytes_ratio_cut2": "cut every 2 %",
    "bytes_ratio_corrupt": "corrupt always",
}
QUICK: Final = 24
"""A quick run takes each n-th point, and of the matrices these."""
SAMPLE: Final = ("update", "update by delta", "order back")


@dataclass
class Count:
    """How often a device was hit, and how it came out of it."""

    points: int = 0
    recovered: int = 0
    torn: int = 0
    failed: list[str] = field(default_factory=list)

    def add(self, verdict: Verdict) -> None:
        """Count one fault."""
        self.points += 1
        self.recovered += verdict.is_survived
        self.torn += bool(verdict.torn)
        if not verdict.is_survived:
            self.failed.append(str(verdict))

    def __str__(self) -> str:
        return f"{self.recovered:4} of {self.points:4} recovered, {self.torn} torn"


def crashes(*, quick: bool) -> dict[str, Count]:
    """Return how each matrix ended: kills, and power cuts at the same points.

    Raises:
        RuntimeError: No fault came in one of them: it says nothing.
    """
    every, counts = QUICK if quick else 1, {}
    for name in SAMPLE if quick else MATRICES:
        with tempfile.TemporaryDirectory() as place, MATRICES[name](Path(place), every) as matrix:
            counts[f"SIGKILL, {name}"] = _count(matrix.kills())
            counts[f"power cut, {name}"] = _count(matrix.power_cuts())
    if untouched := [name for name, count in counts.items() if not count.points]:
        raise RuntimeError(f"nothing was ever hit: {', '.join(untouched)}")
    return counts


def errors(*, quick: bool) -> dict[str, Count]:
    """Return how updates ended in which one write failed."""
    with (
        tempfile.TemporaryDirectory() as place,
        MATRICES["update"](Path(place), QUICK if quick else 1) as matrix,
    ):
        return {f"{error} at a write": _count(matrix.errors(error)) for error in ERRORS}


def byte_ratios(*, quick: bool) -> tuple[dict[str, float], dict[str, Count]]:
    """Return bytes sent by bytes of the update, in each weather, and how each one ended."""
    ratios, counts = {}, {}
    with tempfile.TemporaryDirectory() as place, bench(Path(place), pair(padding=PADDING)) as found:
        for name in RATIOS.values() if quick else WEATHER:
            count = counts[f"network: {name}"] = Count(1)
            try:
                ratios[name] = weather(found, WEATHER[name])
            except AssertionError as error:
                count.failed.append(f"{name}: {error}")
                found.clear_up()
            else:
                count.recovered = 1
    return ratios, counts


def named(*, quick: bool) -> dict[str, Count]:
    """Return how each scenario that has a name ended."""
    scenarios: Mapping[str, Scenario] = SCENARIOS
    if quick:
        scenarios = dict(list(SCENARIOS.items())[:5])
    return {name: _play(name, scenario) for name, scenario in scenarios.items()}


def _play(name: str, scenario: Scenario) -> Count:
    with tempfile.TemporaryDirectory() as place, bench(Path(place)) as found:
        try:
            scenario(found)
        except AssertionError as error:
            return Count(1, failed=[f"{name}: {error}"])
    return Count(1, 1)


def _count(verdicts: Iterator[Verdict]) -> Count:
    count = Count()
    for verdict in verdicts:
        count.add(verdict)
    return count


def figures(*, quick: bool) -> tuple[dict[str, float], list[tuple[str, str]]]:
    """Return all figures by their keys, and the rows of the table."""
    killed, failing, scenes = crashes(quick=quick), errors(quick=quick), named(quick=quick)
    ratios, networks = byte_ratios(quick=quick)
    scenes |= networks
    every = killed | failing | scenes
    found: dict[str, float] = {
        "crash_points": sum(count.points for count in killed.values()),
        "crash_recovered": sum(count.recovered for count in killed.values()),
        "torn": sum(count.torn for count in every.values()),
        "error_points": sum(count.points for count in failing.values()),
        "error_recovered": sum(count.recovered for count in failing.values()),
        "scenarios": len(scenes),
        "scenarios_survived": sum(count.recovered for count in scenes.values()),
    }
    found |= {key: round(ratios[name], 4) for key, name in RATIOS.items() if name in ratios}
    rows = [(name, str(count)) for name, count in every.items()]
    rows += [(f"{name}, bytes", f"{ratio:5.2f} times") for name, ratio in ratios.items()]
    rows += [("not survived", line) for count in every.values() for line in count.failed]
    return found, rows


def main() -> None:
    """Run all and tell the counts."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "--quick", action="store_true", help=f"every {QUICK}th point of a few matrices"
    )
    quick = parser.parse_args().quick
    if not is_here():
        sys.exit("no strace on this machine that may trace: apt install strace")
    tell("faults", *figures(quick=quick))


if __name__ == "__main__":
    main()
