"""Releases and devices in figures: `python -m benchmarks.ota`.

trust     the conformance table that the devices' client passes
deltas    sizes and speed, over consecutive federated rounds
device    what looking for a release costs, and what a swap of models costs the application
faults    what devices survive, and what a bad network costs; the longest part, needs `strace`
peer      python-tuf's own client beside ours, under the same faults; needs `strace`

At the end each figure stands beside its bound (`_bounds`).
"""

import argparse
import sys
from collections.abc import Callable, Mapping
from functools import partial
from typing import Final

from tests.faults.strace import is_here

from benchmarks import _conformance, _delta_models, _deltas, _device, _tuf_peer
from benchmarks import faults as _faults
from benchmarks._bounds import judged
from benchmarks._outcome import tell

Part = tuple[dict[str, float], list[tuple[str, str]]]


def trust(*, quick: bool) -> Part:
    """Play every scenario of the conformance table."""
    del quick  # it takes ten seconds
    passed, total, failed = _conformance.play_all()
    rows = [("conformance", f"{passed} of {total} scenarios")]
    rows += [("not passed", name) for name in failed]
    return {"conformance_passed": passed, "conformance_total": total}, rows


def deltas(*, quick: bool) -> Part:
    """Train pairs of rounds and measure what an update of each would send."""
    return _deltas.figures(_delta_models.pairs("cnn-small" if quick else ""))


def device(*, quick: bool) -> Part:
    """Measure what the agent and the application's slot cost."""
    figures = _device.figures(quick=quick)
    return figures, [(name, f"{value:g}") for name, value in figures.items()]


def faults(*, quick: bool, jobs: int = 1) -> Part:
    """Let devices be killed, cut off, lied to and refused; without strace there is no figure."""
    _need_strace()
    return _faults.figures(quick=quick, jobs=jobs)


def peer(*, quick: bool) -> Part:
    """Put python-tuf's own client under the same faults as ours."""
    _need_strace()
    return _tuf_peer.compare(quick=quick)


def _need_strace() -> None:
    if not is_here():
        sys.exit("no strace on this machine that may trace: apt install strace")


PARTS: Final[Mapping[str, Callable[..., Part]]] = {
    "trust": trust,
    "deltas": deltas,
    "device": device,
    "faults": faults,
    "peer": peer,
}


def run(parts: Mapping[str, Callable[..., Part]], *, quick: bool) -> Part:
    """Run parts, one after the other; return their figures, their rows and those of the bounds.

    Raises:
        RuntimeError: A part did not give a figure that it owes.
    """
    figures: dict[str, float] = {}
    rows: list[tuple[str, str]] = []
    for part in parts.values():
        found, told = part(quick=quick)
        figures |= found
        rows += told
    return figures, rows + judged(figures, parts, quick=quick)


def main() -> None:
    """Run every part, or one."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="one pair of rounds, fewer repeats")
    parser.add_argument("--jobs", type=int, default=1, help="matrices of faults at the same time")
    parser.add_argument("--only", choices=PARTS, action="append", help="this part alone")
    options = parser.parse_args()
    parts: dict[str, Callable[..., Part]] = {**PARTS, "faults": partial(faults, jobs=options.jobs)}
    chosen = {name: part for name, part in parts.items() if name in (options.only or parts)}
    tell("ota", *run(chosen, quick=options.quick))


if __name__ == "__main__":
    main()
