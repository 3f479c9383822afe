"""The audit: mechanisms that keep their promise pass, broken ones are caught by the same test."""

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from wildflower.strategies.algorithms.algorithm import Sum
from wildflower.strategies.arrays import Update
from wildflower.strategies.dp.accounting import epsilon_of
from wildflower.strategies.dp.audit import epsilon_lower_bound
from wildflower.strategies.dp.central import CentralDP
from wildflower.strategies.dp.contribution import Bounds, Contribution
from wildflower.strategies.dp.distributed import SkellamEncoding
from wildflower.strategies.dp.events import Event, Gaussian
from wildflower.strategies.dp.local import RELATION, event, randomise
from wildflower.strategies.dp.rule import ClientRule

DELTA = 1e-5
TRIALS = 1500
SIZE = 16
CONTRIBUTION = Contribution(SIZE, 1.0)
CANARY = np.eye(1, SIZE)[0].astype(np.float32) * np.float32(1000)  # far longer than the norm
NOTHING = np.zeros(SIZE, np.float32)


def audited(score: Callable[[Any, bytes], float], *, trials: int = TRIALS) -> float:
    """Return the lower bound on epsilon of a mechanism whose releases are scored."""
    scores = [
        np.array([score(vector, (2 * i + odd).to_bytes(32)) for i in range(trials)])
        for odd, vector in enumerate((NOTHING, CANARY))
    ]
    return epsilon_lower_bound(scores[0], scores[1], delta=DELTA)


def central_score(dp: CentralDP, *, is_clipped: bool = True) -> Callable[[Any, bytes], float]:
    rule = ClientRule(1.0)

    def score(vector: Any, entropy: bytes) -> float:
        update = Update(vector, 1.0, {})
        sent = rule.bound(update, entropy).vector if is_clipped else vector
        total = Sum(sent.astype(np.float64) + 5.0, 6.0, {}, 6)
        return float(dp.release(total, entropy=entropy).vector[0])

    return score


def skellam_score(encoding: SkellamEncoding, present: int) -> Callable[[Any, bytes], float]:
    others = Update(np.full(SIZE, 0.2, np.float32), 1.0, {})

    def score(vector: Any, entropy: bytes) -> float:
        total = encoding.encode(Update(vector, 1.0, {}), entropy)
        for other in range(present - 1):
            total = total + encoding.encode(others, entropy[::-1][:30] + other.to_bytes(2))
        return float(encoding.decode(total, encoding.clients).vector[0])

    return score


def test_central_noise_keeps_its_promise() -> None:
    dp = CentralDP(1.0, CONTRIBUTION)
    bound = audited(central_score(dp))
    assert 0.1 < bound < epsilon_of([dp.event()], delta=DELTA)


def test_a_server_that_adds_a_quarter_of_its_noise_is_caught() -> None:
    claimed = CentralDP(2.0, CONTRIBUTION)
    bound = audited(central_score(CentralDP(0.5, CONTRIBUTION)))
    assert bound > epsilon_of([claimed.event()], delta=DELTA)


def test_a_device_that_does_not_clip_is_caught() -> None:
    dp = CentralDP(2.0, CONTRIBUTION)
    assert audited(central_score(dp, is_clipped=False)) > epsilon_of([dp.event()], delta=DELTA)


def test_statistics_keep_the_same_promise() -> None:
    """The canary is in the vector and in the statistic at once; the test looks along both."""
    contribution = Contribution(4, 1.0, (("loss", Bounds(0.0, 8.0)),), share=0.3)
    dp = CentralDP(1.0, contribution)
    direction = np.array([math.sqrt(1 - 0.3), 0, 0, 0, math.sqrt(0.3)])

    def score(vector: Any, entropy: bytes) -> float:
        loss = 900.0 if vector.any() else 4.0  # the middle adds nothing
        sent = contribution.clip(Update(vector[:4], 1.0, {"loss": loss}))
        total = Sum(sent.vector.astype(np.float64), 1.0, sent.statistics, 1)
        released = dp.release(total, entropy=entropy)
        return float(direction @ contribution.join_sum(released))

    assert 0.1 < audited(score) < epsilon_of([dp.event()], delta=DELTA)


def test_local_noise_keeps_its_promise() -> None:
    def score(vector: Any, entropy: bytes) -> float:
        opposite = vector if vector.any() else -CANARY
        update = Update(opposite, 1.0, {})
        answer = randomise(update, CONTRIBUTION, noise_multiplier=2.0, entropy=entropy)
        return float(answer.vector[0])

    claim = epsilon_of([event(2.0)], delta=DELTA, relation=RELATION)
    assert 0.1 < audited(score) < claim


@pytest.fixture(scope="module")
def encoding() -> SkellamEncoding:
    return SkellamEncoding.for_cohort(
        CONTRIBUTION, noise_multiplier=2.0, clients=50, min_cohort=2, rotation=bytes(16)
    )


def test_distributed_noise_keeps_its_promise(encoding: SkellamEncoding) -> None:
    # two devices take part; `decode` is told of 50 so that it accepts other numbers as well
    bound = audited(skellam_score(encoding, 2))
    assert 0.1 < bound < epsilon_of([encoding.event(2)], delta=DELTA)


def test_noise_sized_for_more_devices_than_there_are_is_caught(encoding: SkellamEncoding) -> None:
    sized = SkellamEncoding.for_cohort(
        CONTRIBUTION, noise_multiplier=2.0, clients=50, min_cohort=50, rotation=bytes(16)
    )
    bound = audited(skellam_score(sized, 2))
    planned: list[Event] = [sized.event(50)]
    assert bound > epsilon_of(planned, delta=DELTA)
    assert bound < epsilon_of([sized.event(2)], delta=DELTA)  # accounted by who was there, it holds


def test_a_device_that_lengthens_its_update_after_clipping_is_caught(
    encoding: SkellamEncoding,
) -> None:
    nothing = Update(NOTHING, 1.0, {})

    def score(vector: Any, entropy: bytes) -> float:
        total = encoding.encode(nothing, entropy) + encoding.encode(nothing, entropy[::-1])
        longer = 6 * encoding.integers(Update(vector, 1.0, {}), entropy)
        return float(encoding.decode(total + longer.astype(np.uint16), 50).vector[0])

    assert audited(score) > epsilon_of([encoding.event(2)], delta=DELTA)


def test_scores_that_tell_nothing_bound_nothing() -> None:
    rng = np.random.default_rng(0)
    assert epsilon_lower_bound(rng.normal(size=500), rng.normal(size=500), delta=0.0) < 0.1
    assert epsilon_lower_bound(np.zeros(50), np.zeros(50), delta=DELTA) == 0.0


def test_scores_that_tell_all_bound_what_the_trials_allow() -> None:
    found = epsilon_lower_bound(np.zeros(400), np.ones(400), delta=DELTA)
    assert found == pytest.approx(math.log(200 / 6.1), abs=0.15)
    assert epsilon_lower_bound(np.zeros(4000), np.ones(4000), delta=DELTA) > found


def test_the_bound_is_below_the_truth_for_a_known_mechanism() -> None:
    """At the confidence it says: 40 audits of a Gaussian, none above its exact epsilon."""
    rng = np.random.default_rng(5)
    claim = epsilon_of([Gaussian(1.0)], delta=DELTA)
    bounds = [
        epsilon_lower_bound(rng.normal(size=1000), rng.normal(1.0, size=1000), delta=DELTA)
        for _ in range(40)
    ]
    assert max(bounds) < claim
    assert min(bounds) > 0.1


@pytest.mark.parametrize(
    ("changes", "key"),
    [({"delta": -1.0}, "delta"), ({"confidence": 1.0}, "confidence"), ({"trials": 10}, "trials")],
)
def test_absurd_parameters_are_refused_by_key(changes: dict[str, Any], key: str) -> None:
    given = {"delta": DELTA, "trials": 100, **changes}
    scores = np.zeros(given.pop("trials"))
    with pytest.raises(ValueError, match=f"{key} is"):
        epsilon_lower_bound(scores, scores, **given)
