"""Accuracy against epsilon for every mechanism: `python -m benchmarks.dp_utility [--write]`.

    central_vs_distributed_acc_gap_pt    accuracy with central noise minus accuracy with
                                         distributed Skellam noise in 16-bit residues at equal
                                         epsilon, in points, mean over seeds and epsilons

What is trained, and how, is told in `benchmarks._dp_fleet`. Each epsilon is of a whole training,
as the ledger would tell it, at delta 1e-4 (dpsgd: 1e-5). `--write` also writes the picture
`docs/images/dp-utility.png` and the table `server/dp_utility.json` that `wildflower privacy plan`
reads; `--quick` takes one seed and two epsilons, and writes nothing.
"""

import argparse
import json
import statistics
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

from benchmarks import _dp_fleet as fleet
from benchmarks._outcome import machine, tell
from wildflower.strategies.dp.calibration import Budget, noise_for

EPSILONS: Final = (0.5, 1.0, 2.0, 4.0, 8.0)
SEEDS: Final = (0, 1, 2)
SGD_DELTA: Final = 1e-5
ROOT: Final = Path(__file__).parents[1]
TABLE: Final = ROOT / "server" / "dp_utility.json"
PICTURE: Final = ROOT / "docs" / "images" / "dp-utility.png"

TASK: Final = "MNIST-5k pooled to 14 x 14, softmax of 1,970 parameters, 1,000 devices of 4 digits"
SETTINGS: Final[Mapping[str, str]] = {
    "central": f"{TASK}; all devices in each of 15 rounds",
    "distributed": f"{TASK}; all devices in each of 15 rounds, 16-bit residues",
    "sampled": f"{TASK}; 100 devices by coins in each of 40 rounds",
    "ftrl": f"{TASK}; 100 devices in turn in each of 30 rounds, 3 trees of 10",
    "local": f"{TASK}; all devices in each of 3 rounds",
    "dpsgd": "the same digits and model on 4 devices of 1,000 digits; 10 rounds; hides examples",
}

Curve = dict[float, list[float]]
"""Accuracies of the seeds in percent, by epsilon; 0 is no noise."""


def measure(epsilons: Sequence[float], seeds: Sequence[int]) -> dict[str, Curve]:
    """Return every mechanism's curve."""
    data = {seed: fleet.Data.of(seed) for seed in seeds}
    curves: dict[str, Curve] = {}
    for name, kind in fleet.MECHANISMS.items():
        noises = {epsilon: fleet.noise_of(kind, epsilon) for epsilon in epsilons}
        curves[name] = {
            epsilon: [fleet.learn(kind, noise, data[seed], seed) for seed in seeds]
            for epsilon, noise in ({0.0: 0.0} | noises).items()
        }
        report(name, curves[name])
    noises = {
        epsilon: noise_for(lambda z: [fleet.sgd_event(z)], Budget(epsilon, SGD_DELTA))
        for epsilon in epsilons
    }
    curves["dpsgd"] = {
        epsilon: [fleet.learn_by_sgd(noise, data[seed], seed) for seed in seeds]
        for epsilon, noise in noises.items()
    }
    report("dpsgd", curves["dpsgd"])
    return curves


def report(name: str, curve: Curve) -> None:
    """Say on standard error how far the benchmark is: a full run takes minutes."""
    means = {epsilon: round(statistics.mean(found), 1) for epsilon, found in curve.items()}
    print(name, means, file=sys.stderr, flush=True)


def gap(curves: Mapping[str, Curve], epsilons: Sequence[float]) -> float:
    """Return the mean difference of central and distributed noise, in points."""
    central, distributed = curves["central"], curves["distributed"]
    return statistics.mean(
        one - other
        for epsilon in epsilons
        for one, other in zip(central[epsilon], distributed[epsilon], strict=True)
    )


def table(curves: Mapping[str, Curve], seeds: Sequence[int]) -> dict[str, Any]:
    """Return what is committed: mean accuracies, and how they were measured."""
    return {
        "measured_by": "python -m benchmarks.dp_utility --write",
        "measured_on": machine(),
        "task": TASK,
        "seeds": list(seeds),
        "delta": fleet.DELTA,
        "mechanisms": {
            name: {
                "setting": SETTINGS[name],
                "without_noise": round(statistics.mean(curve[0.0]), 2),
                "accuracy": {
                    f"{epsilon:g}": round(statistics.mean(found), 2)
                    for epsilon, found in curve.items()
                    if epsilon
                },
            }
            for name, curve in curves.items()
            if 0.0 in curve
        },
    }


def draw(curves: Mapping[str, Curve], path: Path) -> None:
    """Draw the curves, and the range of the seeds around each."""
    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib import pyplot as plt

    figure, axes = plt.subplots(figsize=(7, 4.2), dpi=130)
    for name, curve in curves.items():
        epsilons = sorted(epsilon for epsilon in curve if epsilon)
        means = [statistics.mean(curve[epsilon]) for epsilon in epsilons]
        style = "--" if name == "dpsgd" else "-"
        (line,) = axes.plot(epsilons, means, style, marker="o", markersize=3.5, label=label(name))
        low, high = ([fold(curve[epsilon]) for epsilon in epsilons] for fold in (min, max))
        axes.fill_between(epsilons, low, high, color=line.get_color(), alpha=0.15, linewidth=0)
    free = statistics.mean(curves["central"][0.0])
    axes.axhline(free, color="black", linewidth=0.8, linestyle=":", label="no noise")
    axes.set_xscale("log", base=2)
    axes.set_xticks(EPSILONS, [f"{epsilon:g}" for epsilon in EPSILONS])
    axes.set_xlabel("epsilon of the whole training")
    axes.set_ylabel("accuracy, %")
    axes.set_ylim(0, 100)
    axes.legend(fontsize=8, loc="center right")
    axes.grid(alpha=0.25)
    figure.tight_layout()
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, metadata={"Software": None})
    plt.close(figure)


def label(name: str) -> str:
    """Return a curve's name in the picture."""
    return {
        "sampled": "central, sampled cohorts",
        "distributed": "distributed (Skellam, 16 bit)",
        "dpsgd": "DP-SGD (hides examples)",
    }.get(name, name)


def main() -> None:
    """Measure, and tell."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="one seed, two epsilons")
    parser.add_argument("--write", action="store_true", help="write the picture and the table")
    options = parser.parse_args()
    import torch

    torch.set_num_threads(1)
    epsilons, seeds = ((2.0, 8.0), (0,)) if options.quick else (EPSILONS, SEEDS)
    curves = measure(epsilons, seeds)
    if options.write and not options.quick:
        TABLE.write_text(json.dumps(table(curves, seeds), indent=2) + "\n")
        draw(curves, PICTURE)
    rows = [
        (f"{name}, epsilon {epsilon:g}" if epsilon else f"{name}, no noise", spread(found))
        for name, curve in curves.items()
        for epsilon, found in curve.items()
    ]
    figures = {"central_vs_distributed_acc_gap_pt": round(gap(curves, epsilons), 3)}
    tell("dp_utility", figures, rows)


def spread(found: Sequence[float]) -> str:
    """Return accuracies in words."""
    return f"{statistics.mean(found):5.1f} %  ({min(found):.1f} to {max(found):.1f})"


if __name__ == "__main__":
    main()
