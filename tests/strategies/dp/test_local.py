"""Local noise: on all that leaves, of the size that was asked for."""

import numpy as np
import pytest

from wildflower.strategies.arrays import Update
from wildflower.strategies.dp import local
from wildflower.strategies.dp.accounting import epsilon_of
from wildflower.strategies.dp.contribution import Bounds, Contribution
from wildflower.strategies.dp.events import Gaussian, Relation

CONTRIBUTION = Contribution(50_000, 1.0, (("loss", Bounds(0.0, 2.0)),))
LONG = Update(np.ones(50_000, np.float32), 9.0, {"loss": 5.0})


def test_the_answer_is_clipped_and_noisy() -> None:
    found = local.randomise(LONG, CONTRIBUTION, noise_multiplier=0.5, entropy=bytes(32))
    noise = found.vector - np.float32(1 / np.sqrt(50_000))
    assert np.std(noise) == pytest.approx(0.5 * CONTRIBUTION.radius, rel=0.02)
    assert abs(np.mean(noise)) < 6 * 0.5 / np.sqrt(50_000)
    assert found.weight == 1.0
    assert found.vector.dtype == np.float32
    assert found.statistics["loss"] != 2.0


def test_absurd_noise_is_refused() -> None:
    with pytest.raises(ValueError, match="noise_multiplier is 0"):
        local.randomise(LONG, CONTRIBUTION, noise_multiplier=0.0, entropy=bytes(32))


def test_an_answer_is_accounted_as_one_of_two_that_could_have_been() -> None:
    assert local.event(2.0, 3) == Gaussian(2.0, 3)
    assert local.RELATION is Relation.REPLACE
    replaced = epsilon_of([local.event(2.0)], delta=1e-5, relation=local.RELATION)
    assert replaced == epsilon_of([Gaussian(1.0)], delta=1e-5)
