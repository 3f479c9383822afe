"""Releases and devices in figures: `python -m benchmarks.ota`.

trust     the conformance table that the devices' client passes
deltas    sizes and speed, over consecutive federated rounds
device    what looking for a release costs, and what a swap of models costs the application
faults    `python -m benchmarks.faults` prints them, with a line for each fault
"""

import argparse
from collections.abc import Callable, Mapping
from typing import Final

from benchmarks import _conformance, _delta_models, _deltas, _device
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


PARTS: Final[Mapping[str, Callable[..., Part]]] = {
    "trust": trust,
    "deltas": deltas,
    "device": device,
}


def main() -> None:
    """Run every part, or one."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="one pair of rounds, fewer repeats")
    parser.add_argument("--only", choices=PARTS, action="append", help="this part alone")
    options = parser.parse_args()
    figures: dict[str, float] = {}
    rows: list[tuple[str, str]] = []
    for name in options.only or PARTS:
        found, told = PARTS[name](quick=options.quick)
        figures |= found
        rows += told
    tell("ota", figures, rows)


if __name__ == "__main__":
    main()
