"""Dealing out examples: all of them, each once, unequally, repeatably."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from wildflower.simulation.errors import SimulationError
from wildflower.simulation.partition import dirichlet_parts, partition
from wildflower.strategies.task import Examples

LABELS = np.random.default_rng(0).integers(0, 10, 400)


@settings(max_examples=40, deadline=None)
@given(st.integers(1, 40), st.floats(0.01, 100.0), st.integers(0, 5))
def test_every_example_is_in_exactly_one_part_and_no_part_is_poor(
    parts: int, concentration: float, seed: int
) -> None:
    found = dirichlet_parts(LABELS, parts, concentration=concentration, seed=seed)
    assert len(found) == parts
    assert np.array_equal(np.sort(np.concatenate(found)), np.arange(LABELS.size))
    assert min(part.size for part in found) >= 8


def test_equal_seeds_give_equal_parts_and_others_do_not() -> None:
    one, again, other = (
        dirichlet_parts(LABELS, 5, concentration=0.5, seed=seed) for seed in (1, 1, 2)
    )
    assert all(np.array_equal(a, b) for a, b in zip(one, again, strict=True))
    assert not all(np.array_equal(a, b) for a, b in zip(one, other, strict=True))


def test_a_small_concentration_makes_devices_differ() -> None:
    def spread(concentration: float) -> float:
        parts = dirichlet_parts(LABELS, 8, concentration=concentration, seed=0)
        shares = [np.bincount(LABELS[part], minlength=10) / part.size for part in parts]
        return float(np.std(shares, axis=0).mean())

    assert spread(0.1) > 2 * spread(100.0)


def test_too_few_examples_are_told() -> None:
    with pytest.raises(SimulationError, match="400 examples are too few for 51 devices"):
        dirichlet_parts(LABELS, 51, concentration=1.0, seed=0)


@pytest.mark.parametrize(("parts", "concentration"), [(0, 1.0), (2, 0.0)])
def test_misuse_is_told(parts: int, concentration: float) -> None:
    with pytest.raises(ValueError, match="above 0"):
        dirichlet_parts(LABELS, parts, concentration=concentration, seed=0)


def test_inputs_and_targets_stay_together() -> None:
    examples = Examples(LABELS[:, None].astype(np.float32), LABELS)
    for part in partition(examples, 4, concentration=0.5, seed=0):
        assert np.array_equal(part.inputs[:, 0], part.targets)
