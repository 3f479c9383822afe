"""The benchmark of releases and devices owes certain figures under certain names.

Measuring them takes long; here is checked that none can be missing without being noticed.
"""

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from benchmarks._bounds import BOUNDS, judged
from benchmarks.ota import PARTS, Part, run
from tests.faults.strace import is_here

ROOT = Path(__file__).parents[1]
OWED = [
    "conformance_passed",
    "conformance_total",
    "crash_points",
    "crash_recovered",
    "torn",
    "bytes_ratio_cut10",
    "bytes_ratio_cut2",
    "bytes_ratio_corrupt",
    "int8_delta_vs_bsdiff4_max",
    "int8_delta_vs_bsdiff4_mean",
    "aware_delta_fraction_lm",
    "aware_delta_fraction_cnn_small",
    "aware_delta_fraction_cnn_large",
    "aware_nll_change",
    "fp32_release_fraction",
    "lossless_fp32_fraction",
    "int8_coding_vs_entropy",
    "decode_s_per_10mb",
    "decode_peak_mib_over_input",
    "refresh_lookup_ms",
    "idle_poll_bytes",
    "idle_poll_requests",
    "agent_rss_mib_inference_only",
    "hot_swap_dropped",
    "hot_swap_pause_ms_p99",
]


def good() -> dict[str, float]:
    """Return figures that hold every bound, each just so."""
    found = dict.fromkeys(BOUNDS, 0.0)
    for key, bound in BOUNDS.items():
        if isinstance(bound.least, float | int) and bound.least > 0:
            found[key] = bound.least
        elif bound.most < float("inf"):
            found[key] = bound.most
    for key, bound in BOUNDS.items():
        if isinstance(bound.least, str):
            found[key] = found[bound.least]
    return found


def parts(figures: dict[str, float]) -> dict[str, Callable[..., Part]]:
    """Return parts that all give these figures."""

    def give(*, quick: bool) -> Part:
        return figures, [("quick", str(quick))]

    return dict.fromkeys(PARTS, give)


@pytest.mark.parametrize("key", OWED)
def test_a_figure_that_is_owed_has_its_name_a_part_and_a_bound(key: str) -> None:
    assert BOUNDS[key].part in PARTS
    assert str(BOUNDS[key])


def test_every_part_owes_figures() -> None:
    assert {bound.part for bound in BOUNDS.values()} == set(PARTS)


@pytest.mark.parametrize("key", BOUNDS)
def test_a_whole_run_in_which_a_figure_is_missing_fails(key: str) -> None:
    figures = good()
    del figures[key]
    with pytest.raises(RuntimeError, match=rf"nothing gave: {key}$"):
        run(parts(figures), quick=False)


def test_figures_that_hold_their_bounds_just_so_hold_them() -> None:
    figures, rows = run(parts(good()), quick=False)
    assert figures == good()
    told = dict(rows)
    assert told.pop("quick") == "False"
    assert set(told) == {key for key, bound in BOUNDS.items() if str(bound)}
    assert all(row.endswith("holds") for row in told.values())


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("torn", 1),
        ("bytes_ratio_cut10", 1.051),
        ("crash_points", 199),
        ("crash_recovered", 199),
        ("conformance_passed", 39),
        ("aware_agreement_over_naive", -0.001),
    ],
)
def test_a_figure_beyond_its_bound_is_told_as_missed(key: str, value: float) -> None:
    rows = dict(judged(good() | {key: value}, PARTS))
    assert rows[key].endswith("MISSED")
    assert rows[key].startswith(f"{value:g}")


def test_a_part_alone_owes_its_own_figures() -> None:
    found = {key: value for key, value in good().items() if BOUNDS[key].part == "device"}
    assert dict(judged(found, ["device"])).keys() == found.keys()


def test_a_quick_run_is_not_judged_by_what_needs_a_whole_one() -> None:
    late = {key for key, bound in BOUNDS.items() if not bound.in_quick}
    found = {key: value for key, value in good().items() if key not in late - {"crash_points"}}
    assert not late & dict(judged(found, PARTS, quick=True)).keys()
    with pytest.raises(RuntimeError, match="aware_delta_fraction_cnn_large"):
        judged(found, PARTS)


@pytest.mark.slow
@pytest.mark.timeout(1200)
@pytest.mark.skipif(not is_here(), reason="strace is not here: apt install strace")
def test_a_quick_run_gives_all_that_it_owes() -> None:
    command = [sys.executable, "-m", "benchmarks.ota", "--quick"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    figures = json.loads(done.stdout.splitlines()[-1])["figures"]
    assert figures.keys() >= {key for key, bound in BOUNDS.items() if bound.in_quick}
