"""Noise and rounds for a budget: enough, and no more than needed."""

import math
from typing import Any

import pytest

from wildflower.strategies.dp.accounting import Method, epsilon_of
from wildflower.strategies.dp.calibration import PRECISION, Budget, noise_for, rounds_for
from wildflower.strategies.dp.events import Event, Gaussian, Sampling, Scheme, Skellam, Tree

TENTH = Sampling(Scheme.POISSON, 100, 1000)


def sampled(noise: float) -> list[Event]:
    return [Gaussian(noise, 20, TENTH)]


def skellam(noise: float) -> list[Event]:
    return [Skellam(noise, 3500.0, 1e6, 50)]


def mixed(noise: float) -> list[Event]:
    return [Gaussian(noise, 10), Tree(noise, 30, 2)]


@pytest.mark.parametrize("release", [sampled, skellam, mixed])
def test_noise_is_enough_and_hardly_more_and_pld_needs_least(release: Any) -> None:
    found = []
    for method in Method:
        budget = Budget(2.0, 1e-5, method=method)
        noise = noise_for(release, budget)
        assert budget.allows(release(noise))
        assert not budget.allows(release(noise * (1 - 2 * PRECISION)))
        found.append(noise)
    assert found[0] < found[1] or release is skellam


def test_pld_is_followed_far_below_what_rdp_needs() -> None:
    """One of a thousand, sixty times, at a tiny delta: RDP needs a third more."""

    def release(noise: float) -> list[Event]:
        return [Gaussian(noise, 60, Sampling(Scheme.POISSON, 1, 1000))]

    needed = [noise_for(release, Budget(0.6, 1e-8, method=method)) for method in Method]
    assert needed[0] < 0.75 * needed[1]
    assert Budget(0.6, 1e-8).allows(release(needed[0]))


def test_a_budget_beyond_all_use_needs_the_least_noise() -> None:
    assert noise_for(lambda z: [Gaussian(max(z, 1.0))], Budget(900.0, 1e-5)) == 1e-3


def test_no_noise_is_enough_for_what_has_a_price_of_its_own() -> None:
    with pytest.raises(ValueError, match="no noise multiplier up to 1e"):
        noise_for(lambda _: [Gaussian(0.5)], Budget(1.0, 1e-5))


@pytest.mark.parametrize("method", list(Method))
def test_rounds_are_as_many_as_the_budget_allows(method: Method) -> None:
    budget = Budget(2.0, 1e-5, method=method)
    found = rounds_for(lambda n: [Gaussian(2.0, n, TENTH)], budget, most=300)
    assert budget.allows([Gaussian(2.0, found, TENTH)])
    assert not budget.allows([Gaussian(2.0, found + 1, TENTH)])


def test_rounds_end_at_none_and_at_the_most() -> None:
    budget = Budget(1.0, 1e-5)
    assert rounds_for(lambda n: [Gaussian(0.5, n)], budget) == 0
    assert rounds_for(lambda n: [Gaussian(1000.0, n)], budget, most=7) == 7
    sampling = Sampling(Scheme.POISSON, 1, 1000)
    between = rounds_for(lambda n: [Gaussian(0.7, n, sampling)], Budget(1.0, 1e-4), most=4)
    assert between == 4
    with pytest.raises(ValueError, match="most is 0"):
        rounds_for(lambda n: [Gaussian(1.0, n)], budget, most=0)


@pytest.mark.parametrize(
    ("given", "key"), [((0.0, 1e-5), "epsilon"), ((-1.0, 1e-5), "epsilon"), ((1.0, 0.0), "delta")]
)
def test_an_absurd_budget_is_refused_by_key(given: tuple[float, float], key: str) -> None:
    with pytest.raises(ValueError, match=f"{key} is"):
        Budget(*given)


def test_noise_for_many_rounds_grows_as_their_root() -> None:
    found = [noise_for(lambda z, n=n: [Gaussian(z, n)], Budget(2.0, 1e-5)) for n in (10, 1000)]  # type: ignore[misc]
    assert found[1] / found[0] == pytest.approx(10, rel=3 * PRECISION)
    assert epsilon_of([Gaussian(found[0], 10)], delta=1e-5) <= 2.0
    assert math.isfinite(found[1])
