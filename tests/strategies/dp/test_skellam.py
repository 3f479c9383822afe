"""Skellam variables: probabilities against mpmath's, and the draws against the probabilities."""

import math

import mpmath
import numpy as np
import pytest
from scipy import stats

from wildflower.strategies.dp.noise import Words
from wildflower.strategies.dp.skellam import LARGEST, probabilities, reach, skellam

KEY = bytes(range(32))
DRAWS = 400_000


@pytest.mark.parametrize("variance", [1e-6, 0.01, 0.7, 4.0, 100.0, 4000.0])
def test_probabilities_are_those_of_the_bessel_functions(variance: float) -> None:
    """scipy's `ive` is off by 1e-7 at such orders, so mpmath it is."""
    largest = reach(variance)
    found = probabilities(variance, largest)
    for k in sorted({0, 1, largest // 5, largest // 2, largest - 1, largest}):
        exact = float(
            mpmath.besseli(k, variance, maxterms=10**6) * mpmath.exp(-mpmath.mpf(variance))
        )
        assert found[k] == pytest.approx(exact, rel=1e-11)


def test_probabilities_of_a_large_variance_are_those_of_its_expansion() -> None:
    """Abramowitz and Stegun 9.7.1 at order 0, and the variance, which every one of them makes."""
    variance, largest = LARGEST, reach(LARGEST)
    found = probabilities(variance, largest)
    first = 1 / math.sqrt(2 * math.pi * variance) * (1 + 1 / (8 * variance))
    assert found[0] == pytest.approx(first, rel=1e-12)
    moment = 2 * math.fsum(found * np.arange(largest + 1.0) ** 2)
    assert moment == pytest.approx(variance, rel=1e-11)


@pytest.mark.parametrize("variance", [1e-6, 0.5, 9.0, 1e4, LARGEST])
def test_what_is_beyond_the_table_is_never_missed(variance: float) -> None:
    """Beyond 8.3 standard deviations, 2 million elements of 10,000 rounds see nothing."""
    largest = reach(variance)
    if variance < 1e5:
        assert stats.skellam.sf(largest, variance / 2, variance / 2) < 2.0**-60
    assert largest >= 9 * math.sqrt(variance)


@pytest.mark.parametrize("variance", [0.02, 1.0, 12.5, 400.0, 1.2e5])
def test_draws_fit_their_probabilities(variance: float) -> None:
    found = skellam(variance).draw(Words(KEY), DRAWS)
    largest = int(np.abs(found).max())
    half = probabilities(variance, max(largest, reach(variance)))
    expected = np.concatenate((half[largest:0:-1], half[: largest + 1])) * DRAWS
    counts = np.bincount(found + largest, minlength=2 * largest + 1)
    common = expected >= 8
    rest = DRAWS - expected[common].sum()
    seen = np.append(counts[common], DRAWS - counts[common].sum())
    wanted = np.append(expected[common], rest)
    keep = wanted > 1e-6
    wanted = wanted[keep] * seen[keep].sum() / wanted[keep].sum()
    assert stats.chisquare(seen[keep], wanted).pvalue > 1e-9


@pytest.mark.parametrize("variance", [0.3, 50.0, 1.2e5, LARGEST])
def test_draws_have_the_variance_and_no_mean_or_memory(variance: float) -> None:
    found = skellam(variance).draw(Words(KEY), DRAWS).astype(np.float64)
    kurtosis = 3 + 1 / variance
    assert abs(found.mean()) < 6 * math.sqrt(variance / DRAWS)
    assert found.var() == pytest.approx(variance, rel=6 * math.sqrt((kurtosis - 1) / DRAWS))
    assert abs(np.corrcoef(found[:-1], found[1:])[0, 1]) < 6 / math.sqrt(DRAWS)


def test_sums_of_draws_are_skellam_with_the_sum_of_the_variances() -> None:
    stream = Words(KEY)
    found = sum(skellam(0.8).draw(stream, 50_000) for _ in range(5))
    expected = probabilities(4.0, reach(4.0))
    share = np.array([np.mean(np.abs(found) == k) for k in range(8)])
    wanted = expected[:8] * np.where(np.arange(8), 2, 1)
    assert np.all(np.abs(share - wanted) < 6 * np.sqrt(wanted / 50_000))


def test_the_same_stream_gives_the_same_draws_and_goes_on() -> None:
    table = skellam(3.0)
    one, two = Words(KEY), Words(KEY)
    assert np.array_equal(table.draw(one, 100), table.draw(two, 100))
    assert not np.array_equal(table.draw(one, 100), table.draw(Words(KEY), 100))
    assert table.draw(one, 0).shape == (0,)


@pytest.mark.parametrize("variance", [0.0, -1.0, math.nan, 2 * LARGEST])
def test_a_variance_that_has_no_table_is_refused(variance: float) -> None:
    with pytest.raises(ValueError, match="variance is"):
        skellam(variance)
