"""Which tensors may lag behind: those whose lag the answers hardly show."""

from collections.abc import Callable

import numpy as np
import onnx
import pytest
import torch
from onnx import numpy_helper
from torch import nn

from wildflower.ota.build import quantise
from wildflower.ota.build.choice import Quality, Way, choose_int8
from wildflower.ota.build.export import to_onnx
from wildflower.ota.build.followed import first, follow, steps_of
from wildflower.ota.build.lag import changed, mixed, mixtures
from wildflower.ota.delta.encode import diff
from wildflower.ota.delta.quantiser import HOLDS, Rules
from wildflower.ota.delta.tensors import regions_of
from wildflower.ota.device.runtime import OrtRuntime

ROWS = np.random.default_rng(0).normal(size=(32, 40)).astype(np.float32)
LIMIT = 127
LOUD = 4
"""How much larger the weights of one layer are than the other's, and their steps with them."""


class Uneven(nn.Module):
    """Two equal layers, of which the answers hardly show one."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.quiet, self.loud = nn.Linear(40, 40, bias=False), nn.Linear(40, 40, bias=False)
        with torch.no_grad():
            self.loud.weight.mul_(LOUD)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.relu(self.quiet(x)) + torch.relu(self.loud(x))


class Rounds:
    """A base, and the releases that follow it to the next model, by their hold."""

    def __init__(self) -> None:
        model = Uneven().eval()
        before, naive = self._built(model)
        generator = torch.Generator().manual_seed(1)
        with torch.no_grad():
            for weights in model.parameters():
                size = 0.02 * weights.abs().mean()
                weights.add_(size * torch.randn(weights.shape, generator=generator))
        self.master, self.naive = self._built(model)
        self.base = first(naive, before, limit=LIMIT)
        self.held = [
            follow(self.base, self.naive, self.master, rules=Rules(hold), limit=LIMIT)
            for hold in reversed(HOLDS)
        ]
        self.answers = OrtRuntime().load(self.master).run(ROWS)
        self.quiet, self.loud = self._names()
        self.ways = [*mixtures(self.base, self.held, self.master, self.error)]

    def error(self, model: bytes) -> float:
        found = OrtRuntime().load(model).run(ROWS)
        return float(np.square(found.astype(np.float64) - self.answers).mean())

    def sent(self, model: bytes) -> int:
        return len(diff(self.base, model, regions_of(self.base), regions_of(model)))

    def _names(self) -> list[str]:
        """Return the two weights, the quiet one first."""
        weights = steps_of(self.base)
        return sorted(weights, key=lambda name: float(weights[name][1].mean()))

    @staticmethod
    def _built(model: nn.Module) -> tuple[bytes, bytes]:
        master = quantise.prepared(to_onnx(model, ROWS))
        return master, quantise.quantised(master, ROWS, reduce_range=False)


@pytest.fixture(scope="module")
def rounds() -> Rounds:
    return Rounds()


def integers(model: bytes) -> dict[str, np.ndarray]:
    return {name: held[0] for name, held in steps_of(model).items()}


def level(rounds: Rounds, model: bytes, name: str) -> int:
    """Return which release a tensor is from, the lowest of those it may be from."""
    found = integers(model)[name]
    return next(
        at for at, one in enumerate(rounds.held) if np.array_equal(integers(one)[name], found)
    )


def test_the_tensor_that_the_answers_hardly_show_lags_further(rounds: Rounds) -> None:
    levels = [
        (level(rounds, one, rounds.quiet), level(rounds, one, rounds.loud)) for one in rounds.ways
    ]
    assert len(levels) > 2
    assert all(quiet >= loud for quiet, loud in levels)
    assert any(quiet > loud for quiet, loud in levels)


def test_the_shortest_delta_is_tried_first(rounds: Rounds) -> None:
    found = rounds.ways
    sizes = [rounds.sent(one) for one in found]
    assert sizes == sorted(sizes)
    assert sizes[0] < rounds.sent(rounds.held[0])
    assert len({*found}) == len(found)


def test_for_fewer_bytes_answers_are_nearer_than_with_one_hold_for_all(rounds: Rounds) -> None:
    def cost(model: bytes) -> tuple[int, float]:
        """Return the bytes to send, and what lag alone does to the answers."""
        lagging, exact, lagged = steps_of(model), steps_of(rounds.held[0]), rounds.master
        for name, (found, steps) in lagging.items():
            lagged = changed(lagged, name, (found - exact[name][0]) * steps)
        return rounds.sent(model), rounds.error(lagged)

    uneven = [cost(one) for one in rounds.ways]
    alike = [cost(one) for one in rounds.held[1:-1]]
    assert any(
        sent < size and found < 0.9 * error for sent, found in uneven for size, error in alike
    )
    assert not any(
        size < sent and error < 0.9 * found for sent, found in uneven for size, error in alike
    )


def test_where_lag_does_no_harm_all_lag(rounds: Rounds) -> None:
    (found,) = mixtures(rounds.base, rounds.held, rounds.master, lambda _: 0.0)
    assert integers(found).keys() == {rounds.quiet, rounds.loud}
    for name, tensor in integers(rounds.held[-1]).items():
        assert np.array_equal(integers(found)[name], tensor)


def test_a_model_that_did_not_change_has_nothing_to_save(rounds: Rounds) -> None:
    found = [*mixtures(rounds.base, [rounds.base, rounds.base], rounds.master, rounds.error)]
    assert found == [mixed([rounds.base], {})]


def test_a_mixture_takes_each_tensor_from_its_release(rounds: Rounds) -> None:
    last = len(rounds.held) - 1
    found = integers(mixed(rounds.held, {rounds.loud: last}))
    assert np.array_equal(found[rounds.loud], integers(rounds.held[-1])[rounds.loud])
    assert np.array_equal(found[rounds.quiet], integers(rounds.held[0])[rounds.quiet])


def test_a_weight_is_changed_and_no_other(rounds: Rounds) -> None:
    made = changed(rounds.master, rounds.loud, np.full((40, 40), 0.5))
    before, after = (
        {
            one.name: numpy_helper.to_array(one)
            for one in onnx.load_from_string(data).graph.initializer
        }
        for data in (rounds.master, made)
    )
    differences = {name: float(np.abs(after[name] - before[name]).max()) for name in before}
    assert differences.pop(rounds.loud) == pytest.approx(0.5)
    assert set(differences.values()) <= {0.0}


def test_no_integer_lags_further_than_the_largest_hold(rounds: Rounds) -> None:
    masters = {
        one.name: numpy_helper.to_array(one)
        for one in onnx.load_from_string(rounds.master).graph.initializer
    }
    for one in rounds.ways:
        for name, (found, steps) in steps_of(one).items():
            assert np.abs(masters[name] / steps - found).max() <= 0.5 + max(HOLDS) + 1e-4


def refusing(models: set[bytes]) -> Callable[[bytes], Quality]:
    return lambda model: Quality(2.0, 0.9) if model in models else Quality(1.0, 0.98)


def test_the_release_that_lags_furthest_and_passes_is_chosen(rounds: Rounds) -> None:
    ways = rounds.ways

    def chosen(refused: set[bytes]) -> tuple[Way, str, bytes]:
        found = choose_int8(
            rounds.base,
            rounds.naive,
            rounds.master,
            limit=LIMIT,
            judge=refusing(refused),
            error=rounds.error,
        )
        return found.way, found.knob, found.model

    assert chosen(set()) == (Way.FOLLOWED, "lag 1", ways[0])
    assert chosen({ways[0]}) == (Way.FOLLOWED, "lag 2", ways[1])
    closest = rounds.held[0]
    found = chosen({*ways} - {closest})
    assert found[0] is Way.FOLLOWED
    assert integers(found[2])[rounds.loud].tolist() == integers(closest)[rounds.loud].tolist()
