"""Secure aggregation beside Flower's own, a plain sum, memcpy and a plain round.

    python -m benchmarks.secagg [--quick]

Both protocols do the same work in the same process, in turns, on one thread; of several turns the
fastest of each counts, because other programs can only slow a turn down. CPU time, not wall time.
"""

import argparse
import math
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

import numpy as np
from tests.secagg_cases import CASES, Outcome, outcome_of

from benchmarks._outcome import tell
from benchmarks._secagg_accuracy import Plan, accuracy_drop_pt
from benchmarks._secagg_field import field_rounds
from benchmarks._secagg_flower import flower_round
from benchmarks._secagg_one_shot import one_shot_client_ms
from benchmarks._secagg_ours import Clock, Cohort, Cost, Load, TimedSession, updates_of
from wildflower.strategies.secagg.graph import plan_graph
from wildflower.strategies.secagg.masking import add_masks

MEMCPY: Final = 1 << 28  # bytes, far more than any cache
SHORT: Final = 4  # times in each turn that what takes only a moment is measured
PARTS: Final = ("speed", "widths", "growth", "losses", "accuracy", "field")

Figures = dict[str, float]


@dataclass(frozen=True, slots=True)
class Scale:
    """How much to measure."""

    load: Load
    turns: int
    growth: tuple[int, ...]
    growth_size: int
    accuracy: Plan
    rounds: int


FULL: Final = Scale(
    load=Load(clients=100, size=1_000_000, degree=20, threshold=11, dropped=10),
    turns=3,
    growth=(10, 100, 1000),
    growth_size=100_000,
    accuracy=Plan(clients=100, rounds=30, seeds=3),
    rounds=3,
)
QUICK: Final = Scale(
    load=Load(clients=20, size=200_000, degree=10, threshold=6, dropped=2),
    turns=1,
    growth=(10, 100),
    growth_size=20_000,
    accuracy=Plan(clients=100, rounds=6, seeds=1),
    rounds=1,
)


def measure_speed(scale: Scale) -> Figures:
    """Compare client, server and masks with what they are to be compared with."""
    cohort, load = Cohort(scale.load.clients), scale.load
    ours, flower, plain, masks = [], [], [], []
    for _ in range(scale.turns):
        ours.append(TimedSession(cohort, load).run())
        plain += [_plain_sum_s(load) for _ in range(SHORT)]
        masks += [_mask_and_memcpy(load.size) for _ in range(SHORT)]
        flower.append(flower_round(load))
    best, theirs = _best(ours), _best(flower)
    return {
        "client_ms": best.client_ms,
        "server_s": best.server_s,
        "flower_client_ms": theirs.client_ms,
        "flower_server_s": theirs.server_s,
        "plain_sum_s": min(plain),
        "client_speedup_vs_flower": theirs.client_ms / best.client_ms,
        "server_speedup_vs_flower": theirs.server_s / best.server_s,
        "server_over_plain_sum": best.server_s / min(plain),
        "mask_over_memcpy": max(mask for mask, _ in masks) / max(copy for _, copy in masks),
        "helper_client_ms_per_1m": one_shot_client_ms(load.size) * 1e6 / load.size,
    }


def _best(costs: list[Cost]) -> Cost:
    return Cost(
        min(cost.client_ms for cost in costs),
        min(cost.server_s for cost in costs),
        costs[0].upload,
    )


def _plain_sum_s(load: Load) -> float:
    """Return the CPU time of adding up what stays of the cohort, as 32-bit floats."""
    updates = [update.vector for update in updates_of(load.size)]
    received = [updates[n % len(updates)].copy() for n in range(load.clients - load.dropped)]
    total = np.zeros(load.size, np.float32)
    clock = Clock()
    with clock:
        for vector in received:
            np.add(total, vector, out=total)
    return clock.seconds


def _mask_and_memcpy(size: int) -> tuple[float, float]:
    """Return the throughputs of masking and of copying memory, in bytes per second."""
    source, target = np.ones(MEMCPY, np.uint8), np.ones(MEMCPY, np.uint8)
    residues, keys = np.zeros(size, np.uint32), [bytes([number]) * 32 for number in range(32)]
    masked, copied = Clock(), Clock()
    with copied:
        np.copyto(target, source)
    with masked:
        add_masks(residues, keys, [])
    return len(keys) * residues.nbytes / masked.seconds, MEMCPY / copied.seconds


def measure_widths(scale: Scale) -> Figures:
    """Count what a client sends, in both widths."""
    cohort = Cohort(scale.load.clients)
    return {
        f"bytes_per_param_{bits}": TimedSession(cohort, scale.load, bits=bits).run().upload
        / scale.load.size
        for bits in (32, 16)
    }


def measure_growth(scale: Scale) -> Figures:
    """Return the exponent of a client's time in the cohort's size, at fixed security."""
    cohort, found = Cohort(max(scale.growth)), {}
    for clients in scale.growth:
        graph = plan_graph(clients)
        load = Load(clients, scale.growth_size, graph.degree, graph.threshold, clients // 10)
        turns = max(1, min(3, 300 // clients))
        found[clients] = min(TimedSession(cohort, load).run().client_ms for _ in range(turns))
    slope, _ = np.polyfit([math.log(n) for n in found], [math.log(ms) for ms in found.values()], 1)
    times = {f"client_ms_{clients}": ms for clients, ms in found.items()}
    return {**times, "client_growth_exponent": float(slope)}


def measure_losses(_: Scale) -> Figures:
    """Play every case of the table of losses."""
    outcomes = Counter(outcome_of(case) for case in CASES)
    return {
        "dropout_cases_exact_or_aborted": outcomes[Outcome.EXACT] + outcomes[Outcome.ABORTED],
        "dropout_cases_exact": outcomes[Outcome.EXACT],
        "dropout_cases_wrong": outcomes[Outcome.WRONG],
    }


def measure_accuracy(scale: Scale) -> Figures:
    """Train in both widths."""
    accuracy, drop = accuracy_drop_pt(scale.accuracy)
    return {"accuracy_32bit_pct": accuracy, "acc_drop_16bit_pt": drop}


def measure_field(scale: Scale) -> Figures:
    """Train with real agents."""
    found = field_rounds(devices=8, rounds=scale.rounds)
    return {
        "field_round_s": found.secure_s,
        "field_plain_round_s": found.plain_s,
        "field_trips": found.trips,
        "field_plain_trips": found.plain_trips,
    }


MEASURES: Final = dict(
    zip(
        PARTS,
        (
            measure_speed,
            measure_widths,
            measure_growth,
            measure_losses,
            measure_accuracy,
            measure_field,
        ),
        strict=True,
    )
)

TITLES: Final[Mapping[str, tuple[str, str]]] = {
    "client_ms": ("client, CPU", "{:.1f} ms"),
    "flower_client_ms": ("client of Flower's SecAgg+, CPU", "{:.1f} ms"),
    "client_speedup_vs_flower": ("client, faster than Flower's", "{:.1f} x"),
    "server_s": ("server, CPU", "{:.3f} s"),
    "flower_server_s": ("server of Flower's SecAgg+, CPU", "{:.2f} s"),
    "server_speedup_vs_flower": ("server, faster than Flower's", "{:.1f} x"),
    "plain_sum_s": ("plain sum of the survivors, CPU", "{:.4f} s"),
    "server_over_plain_sum": ("server, slower than a plain sum", "{:.1f} x"),
    "mask_over_memcpy": ("masking against memcpy", "{:.2f} x"),
    "helper_client_ms_per_1m": ("one-shot client, CPU for 1M parameters", "{:.2f} ms"),
    "bytes_per_param_32": ("upload of 32-bit residues", "{:.4f} B/parameter"),
    "bytes_per_param_16": ("upload of 16-bit residues", "{:.4f} B/parameter"),
    "client_growth_exponent": ("client's time grows as clients to the power of", "{:.2f}"),
    "dropout_cases_exact_or_aborted": ("losses: exact or cleanly aborted", "{:.0f} cases"),
    "dropout_cases_exact": ("losses: of these exact", "{:.0f} cases"),
    "dropout_cases_wrong": ("losses: wrong sums", "{:.0f} cases"),
    "accuracy_32bit_pct": ("accuracy with 32-bit residues", "{:.2f} %"),
    "acc_drop_16bit_pt": ("accuracy lost with 16-bit residues", "{:.2f} points"),
    "field_round_s": ("round of 8 real agents, secure", "{:.2f} s"),
    "field_plain_round_s": ("round of 8 real agents, plain", "{:.2f} s"),
    "field_trips": ("trips of a secure round", "{:.0f}"),
    "field_plain_trips": ("trips of a plain round", "{:.0f}"),
}


def main() -> None:
    """Measure and tell."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="small cohorts, one turn of each")
    parser.add_argument("--only", choices=PARTS, action="append", help="measure only this")
    options = parser.parse_args()
    scale = QUICK if options.quick else FULL
    figures: Figures = {}
    for part in options.only or PARTS:
        figures |= MEASURES[part](scale)
    rows = [
        (title, form.format(figures[key]))
        for key, (title, form) in TITLES.items()
        if key in figures
    ]
    tell("secagg", figures, rows)


if __name__ == "__main__":
    main()
