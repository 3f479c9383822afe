"""What a device survives: `python -m benchmarks.faults`; needs `strace`.

Killed before every system call that changes the disk, the power cut at the same points, every write
failed once; bytes that a bad network costs; and each fault that has a name. The device is enrolled,
its repository signed, its trial runs ONNX Runtime; a scenario that is not survived is named.
"""

import argparse
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from typing import Any, Final

from tests.faults import delta_scenarios, software_scenarios
from tests.faults.bench import bench, bench_of, pair
from tests.faults.benches import ERRORS, FAILING, MATRICES
from tests.faults.crashes import Verdict
from tests.faults.scenarios import PADDING, SCENARIOS, WEATHER, Scenario, weather
from tests.faults.software import Labels
from tests.faults.strace import is_here

from benchmarks._outcome import tell

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


Counts = dict[str, "Count"]
Task = Callable[[], Counts]


def killed(name: str, every: int) -> Counts:
    """Return how a matrix ended: killed at each point."""
    with tempfile.TemporaryDirectory() as place, MATRICES[name](Path(place), every) as matrix:
        return {f"SIGKILL, {name}": _hit(name, _count(matrix.kills()))}


def cut_off(name: str, every: int) -> Counts:
    """Return how a matrix ended: the power cut at each point."""
    with tempfile.TemporaryDirectory() as place, MATRICES[name](Path(place), every) as matrix:
        return {f"power cut, {name}": _hit(name, _count(matrix.power_cuts()))}


def failing(name: str, every: int) -> Counts:
    """Return how a matrix ended in which one write failed, each in its turn."""
    with tempfile.TemporaryDirectory() as place, MATRICES[name](Path(place), every) as matrix:
        return {f"{error}, {name}": _count(matrix.errors(error)) for error in ERRORS}


def _hit(name: str, count: Count) -> Count:
    """Return a count; one in which nothing was hit says nothing, least of all success."""
    if not count.points:
        raise RuntimeError(f"{name}: no fault ever came")
    return count


def run(tasks: list[Task], jobs: int) -> Counts:
    """Return what all tasks counted, in their order; some at the same time."""
    counts: Counts = {}
    with ProcessPoolExecutor(jobs, mp_context=get_context("spawn")) as pool:
        for found in pool.map(_call, tasks):
            counts |= found
    return counts


def _call(task: Task) -> Counts:
    return task()


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


def named(*, quick: bool) -> Counts:
    """Return how each scenario that has a name ended."""
    most = 2 if quick else None
    plain = partial(bench, releases=pair())
    deltas = partial(bench, releases=delta_scenarios.delta_pair())
    labels = partial(bench_of, Labels, releases=pair())
    return (
        _play_all(SCENARIOS, plain, most)
        | _play_all(delta_scenarios.SCENARIOS, deltas, most)
        | _play_all(software_scenarios.SCENARIOS, labels, most)
    )


def _play_all(scenarios: Mapping[str, Any], bench_at: Any, most: int | None) -> Counts:
    chosen = list(scenarios.items())[:most]
    return {name: _play(name, scenario, bench_at) for name, scenario in chosen}


def _play(name: str, scenario: Scenario, bench_at: Any) -> Count:
    with tempfile.TemporaryDirectory() as place, bench_at(place=Path(place)) as found:
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


def figures(*, quick: bool, jobs: int = 1) -> tuple[dict[str, float], list[tuple[str, str]]]:
    """Return all figures by their keys, and the rows of the table.

    Args:
        quick: Whether to take a sample.
        jobs: How many matrices to go through at the same time.
    """
    every = QUICK if quick else 1
    matrices, refusing = (SAMPLE, SAMPLE[:1]) if quick else (MATRICES, FAILING)
    hit: list[Task] = [partial(act, name, every) for name in matrices for act in (killed, cut_off)]
    refused: list[Task] = [partial(failing, name, every) for name in refusing]
    rest: list[Task] = [partial(named, quick=quick)]
    counts = run(hit + refused + rest, jobs)
    ratios, networks = byte_ratios(quick=quick)
    counts |= networks
    crashes = [name for name in counts if name.startswith(("SIGKILL", "power cut"))]
    errors = [name for name in counts if name.startswith(ERRORS)]
    scenes = [name for name in counts if name not in {*crashes, *errors}]
    found: dict[str, float] = {
        "crash_points": sum(counts[name].points for name in crashes),
        "crash_recovered": sum(counts[name].recovered for name in crashes),
        "torn": sum(count.torn for count in counts.values()),
        "error_points": sum(counts[name].points for name in errors),
        "error_recovered": sum(counts[name].recovered for name in errors),
        "scenarios": len(scenes),
        "scenarios_survived": sum(counts[name].recovered for name in scenes),
    }
    found |= {key: round(ratios[name], 4) for key, name in RATIOS.items() if name in ratios}
    rows = [(name, str(count)) for name, count in counts.items()]
    rows += [(f"{name}, bytes", f"{ratio:5.2f} times") for name, ratio in ratios.items()]
    rows += [("not survived", line) for count in counts.values() for line in count.failed]
    return found, rows


def main() -> None:
    """Run all and tell the counts."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "--quick", action="store_true", help=f"every {QUICK}th point of a few matrices"
    )
    parser.add_argument("--jobs", type=int, default=1, help="matrices at the same time")
    options = parser.parse_args()
    if not is_here():
        sys.exit("no strace on this machine that may trace: apt install strace")
    tell("faults", *figures(quick=options.quick, jobs=options.jobs))


if __name__ == "__main__":
    main()
