"""What each figure of releases and devices must be: `benchmarks.ota` prints one beside the other.

Every key here is printed by a whole run, under exactly this name; a run in which one is missing
fails. A figure may have no bound: then it is there to be compared with.
"""

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Final


@dataclass(frozen=True, slots=True)
class Bound:
    """What a figure must be.

    Attributes:
        part: The part of the benchmark that gives it.
        most: What it may be at most.
        least: What it must be at least: a number, or the key of another figure.
        in_quick: Whether a quick run gives it, and enough of it to be judged.
    """

    part: str
    most: float = math.inf
    least: float | str = -math.inf
    in_quick: bool = True

    def __str__(self) -> str:
        return " and ".join(
            f"{word} {limit}"
            for word, limit in (("at least", self.least), ("at most", self.most))
            if isinstance(limit, str) or math.isfinite(limit)
        )


BOUNDS: Final[Mapping[str, Bound]] = {
    "conformance_total": Bound("trust", least=40),
    "conformance_passed": Bound("trust", least="conformance_total"),
    "int8_delta_vs_bsdiff4_max": Bound("deltas", most=1.0),
    "int8_delta_vs_bsdiff4_mean": Bound("deltas", most=0.9),
    "aware_delta_fraction_lm": Bound("deltas", most=0.01, in_quick=False),
    "aware_delta_fraction_cnn_small": Bound("deltas", most=0.05),
    "aware_delta_fraction_cnn_large": Bound("deltas", most=0.13, in_quick=False),
    "aware_nll_change": Bound("deltas", most=0.07),
    "aware_agreement_over_naive": Bound("deltas", least=0.0),
    "fp32_release_fraction": Bound("deltas", most=0.105),
    "fp32_release_agreement": Bound("deltas", least=0.997),
    "lossless_fp32_fraction": Bound("deltas", most=0.70),
    "int8_coding_vs_entropy": Bound("deltas", most=1.15),
    "decode_s_per_10mb": Bound("deltas", most=0.1),
    "decode_peak_mib_over_input": Bound("deltas", most=4.0),
    "refresh_lookup_ms": Bound("device", most=10.0),
    "idle_poll_bytes": Bound("device", most=1024),
    "idle_poll_requests": Bound("device", most=2),
    "agent_rss_mib_inference_only": Bound("device", most=40.0),
    "hot_swap_dropped": Bound("device", most=0),
    "hot_swap_pause_ms_p99": Bound("device", most=5.0),
    "crash_points": Bound("faults", least=200, in_quick=False),
    "crash_recovered": Bound("faults", least="crash_points"),
    "torn": Bound("faults", most=0),
    "bytes_ratio_cut10": Bound("faults", most=1.05),
    "bytes_ratio_cut2": Bound("faults", most=1.25),
    "bytes_ratio_corrupt": Bound("faults", most=2.1),
    "tuf_crash_points": Bound("peer"),
    "tuf_torn": Bound("peer"),
    "tuf_not_recovered": Bound("peer"),
    "tuf_weathers_passable": Bound("peer"),
    "tuf_weathers_arrived": Bound("peer"),
    "tuf_bytes_ratio_cut10": Bound("peer"),
    "tuf_bytes_ratio_cut2": Bound("peer"),
    "tuf_bytes_ratio_corrupt": Bound("peer"),
}


def judged(
    figures: Mapping[str, float], parts: Iterable[str], *, quick: bool = False
) -> list[tuple[str, str]]:
    """Return a row for each figure that has a bound: what it is, must be, and whether it is so.

    Args:
        figures: What was measured, by key.
        parts: The parts that were run.
        quick: Whether they were run quickly: some figures need the whole run.

    Raises:
        RuntimeError: A part did not give a figure that it owes.
    """
    chosen = set(parts)
    owed = {
        key: bound
        for key, bound in BOUNDS.items()
        if bound.part in chosen and (bound.in_quick or not quick)
    }
    compared = {bound.least for bound in owed.values() if isinstance(bound.least, str)}
    if missing := sorted((owed.keys() | compared) - figures.keys()):
        raise RuntimeError(f"figures that nothing gave: {', '.join(missing)}")
    return [(key, _row(figures, key, bound)) for key, bound in owed.items() if str(bound)]


def _row(figures: Mapping[str, float], key: str, bound: Bound) -> str:
    found = figures[key]
    least = figures[bound.least] if isinstance(bound.least, str) else bound.least
    verdict = "holds" if least <= found <= bound.most else "MISSED"
    return f"{found:<10.5g} {bound!s:<30} {verdict}"
