"""Central noise: its size, what it leaves out, and a norm that follows a quantile."""

import math
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from wildflower.strategies.algorithms.algorithm import Sum
from wildflower.strategies.dp.central import AdaptiveClipping, CentralDP
from wildflower.strategies.dp.contribution import WITHIN, Bounds, Contribution
from wildflower.strategies.dp.events import Gaussian, Sampling, Scheme
from wildflower.strategies.errors import RoundAbortedError

STATISTICS = (("loss", Bounds(0.0, 4.0)), (WITHIN, Bounds(0.0, 1.0)))
CONTRIBUTION = Contribution(40_000, 2.0, STATISTICS)
TOTAL = Sum(np.zeros(40_000), 50.0, {"loss": 80.0, WITHIN: 25.0, "clipped": 7.0}, 50)


def released(dp: CentralDP, seed: int = 0, **given: Any) -> Sum:
    return dp.release(TOTAL, entropy=seed.to_bytes(32), **given)


def test_the_noise_is_as_large_as_asked_for() -> None:
    found = released(CentralDP(1.5, CONTRIBUTION))
    assert np.std(found.vector) == pytest.approx(1.5 * CONTRIBUTION.radius, rel=0.02)
    assert CentralDP(1.5, CONTRIBUTION).deviation() == 1.5 * CONTRIBUTION.radius
    assert (found.weight, found.clients) == (50.0, 50)


def test_statistics_are_noisy_too_and_those_without_a_bound_stay_out() -> None:
    found = [released(CentralDP(1.0, CONTRIBUTION), seed) for seed in range(200)]
    assert set(found[0].statistics) == {"loss", WITHIN}
    losses = np.array([each.statistics["loss"] for each in found])
    expected = CONTRIBUTION.radius / CONTRIBUTION.amplitude * 2.0  # half of the width of 4
    assert np.std(losses) == pytest.approx(expected, rel=0.2)
    assert np.mean(losses) == pytest.approx(80.0, abs=6 * expected / math.sqrt(200))


def test_rounding_to_residues_needs_more_noise() -> None:
    found = released(CentralDP(1.0, CONTRIBUTION), quantum=0.01)
    expected = CONTRIBUTION.radius + 0.01 * 200
    assert np.std(found.vector) == pytest.approx(expected, rel=0.02)


def test_the_mean_is_over_the_expected_cohort_where_that_is_said() -> None:
    assert released(CentralDP(1.0, CONTRIBUTION), denominator=64.0).weight == 64.0
    with pytest.raises(ValueError, match="denominator is 0"):
        released(CentralDP(1.0, CONTRIBUTION), denominator=0.0)


def test_weighted_updates_are_refused() -> None:
    weighted = replace(TOTAL, weight=900.0)
    with pytest.raises(RoundAbortedError, match="weigh 900: user-level privacy needs weight 1"):
        CentralDP(1.0, CONTRIBUTION).release(weighted, entropy=bytes(32))


def test_a_sum_of_statistics_alone_is_released_too() -> None:
    dp = CentralDP(1.0, Contribution(0, 2.0, STATISTICS))
    total = Sum(np.zeros(0), 0.0, TOTAL.statistics, 50)
    assert dp.release(total, entropy=bytes(32)).statistics["loss"] != 80.0


def test_the_same_entropy_is_the_same_noise() -> None:
    dp = CentralDP(1.0, CONTRIBUTION)
    assert np.array_equal(released(dp, 1).vector, released(dp, 1).vector)
    assert not np.array_equal(released(dp, 1).vector, released(dp, 2).vector)


def test_what_a_release_is_accounted_as() -> None:
    sampling = Sampling(Scheme.POISSON, 50, 1000)
    assert CentralDP(1.5, CONTRIBUTION).event(sampling) == Gaussian(1.5, 1, sampling)


@pytest.mark.parametrize("quantile", [0.3, 0.5, 0.8])
def test_the_norm_finds_the_quantile_of_norms(quantile: float) -> None:
    """Norms are log-normal; noise as with a cohort of 200 and z = 1."""
    rng = np.random.default_rng(7)
    clipping, norm, seen = AdaptiveClipping(quantile), 0.01, []
    for _ in range(300):
        norms = rng.lognormal(0.0, 0.5, 200)
        within = float(np.count_nonzero(norms <= norm)) + rng.normal(0, 5)
        norm = clipping.next(norm, Sum(np.zeros(0), 0.0, {WITHIN: within}, 200))
        seen.append(norm)
    expected = float(np.quantile(np.random.default_rng(8).lognormal(0.0, 0.5, 100_000), quantile))
    assert np.mean(seen[-100:]) == pytest.approx(expected, rel=0.05)
    assert np.max(np.abs(np.diff(np.log(seen)))) <= 0.2 * max(quantile, 1 - quantile) + 1e-12


def test_the_norm_stays_within_its_limits() -> None:
    clipping = AdaptiveClipping(0.5, 2.0, lowest=0.5, highest=2.0)
    for within, expected in ((-100.0, 2.0), (300.0, 0.5)):
        total = Sum(np.zeros(0), 0.0, {WITHIN: within}, 100)
        assert clipping.next(1.0, total) == expected


def test_a_sum_that_says_nothing_about_norms_is_refused() -> None:
    for total in (TOTAL.__class__(np.zeros(0), 0.0, {}, 5), Sum(np.zeros(0), 0, {WITHIN: 0.0}, 0)):
        with pytest.raises(ValueError, match="has no statistic 'dp-within'"):
            AdaptiveClipping().next(1.0, total)


@pytest.mark.parametrize(
    ("make", "key"),
    [
        (lambda: CentralDP(-1.0, CONTRIBUTION), "noise_multiplier"),
        (lambda: CentralDP(math.nan, CONTRIBUTION), "noise_multiplier"),
        (lambda: AdaptiveClipping(1.0), "quantile"),
        (lambda: AdaptiveClipping(0.5, 0.0), "rate"),
        (lambda: AdaptiveClipping(0.5, 0.2, 0.0), "lowest"),
        (lambda: AdaptiveClipping(0.5, 0.2, 2.0, 1.0), "highest"),
    ],
)
def test_absurd_parameters_are_refused_by_key(make: Any, key: str) -> None:
    with pytest.raises(ValueError, match=f"{key} is"):
        make()
