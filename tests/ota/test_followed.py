"""Followed int8 releases of real small networks, and the stage that chooses among builds."""

from dataclasses import dataclass

import numpy as np
import onnx
import pytest
import torch
from onnx import numpy_helper
from torch import nn

from wildflower.ota.build import choice, followed, quantise
from wildflower.ota.build.choice import Quality, Tolerance, Way, choose_int8
from wildflower.ota.build.export import to_onnx
from wildflower.ota.delta.encode import diff
from wildflower.ota.delta.quantiser import Rules
from wildflower.ota.delta.tensors import regions_of
from wildflower.ota.device.runtime import OrtRuntime
from wildflower.ota.errors import QuantiseError

LIMIT = 127
ROWS = np.random.default_rng(0).normal(size=(48, 3, 8, 8)).astype(np.float32)


@dataclass(frozen=True)
class Round:
    """One global model: fp32 as its quantiser sees it, and its own int8 build."""

    master: bytes
    naive: bytes

    def tensors(self, data: bytes) -> dict[str, np.ndarray]:
        graph = onnx.load_from_string(data).graph
        return {one.name: numpy_helper.to_array(one) for one in graph.initializer}


def network(width: int = 24) -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, width, 3, padding=1),
        nn.BatchNorm2d(width),
        nn.ReLU(),
        nn.Conv2d(width, 32, 3),
        nn.ReLU(),
        nn.Flatten(),
        nn.LayerNorm(32 * 36),
        nn.Linear(32 * 36, 10),
    )


def built(model: nn.Module) -> Round:
    master = quantise.prepared(to_onnx(model.eval(), ROWS))
    return Round(master, quantise.quantised(master, ROWS, reduce_range=False))


@pytest.fixture(scope="module")
def rounds() -> list[Round]:
    """Three rounds of one network, each a small step from the one before."""
    model, found = network(), []
    generator = torch.Generator().manual_seed(1)
    for _ in range(3):
        found.append(built(model))
        with torch.no_grad():
            for weights in model.parameters():
                size = 0.001 * weights.abs().mean()
                weights.add_(size * torch.randn(weights.shape, generator=generator))
    return found


def follow(base: bytes, one: Round, hold: float = 0.05) -> bytes:
    return followed.follow(base, one.naive, one.master, rules=Rules(hold), limit=LIMIT)


def sent(old: bytes, new: bytes) -> int:
    return len(diff(old, new, regions_of(old), regions_of(new)))


def answers(model: bytes) -> np.ndarray:
    return OrtRuntime().load(model).run(ROWS)


def test_a_followed_release_is_smaller_to_send_and_answers_as_well(rounds: list[Round]) -> None:
    before, after = rounds[:2]
    base = followed.first(before.naive, before.master, limit=LIMIT)
    release = follow(base, after)
    assert sent(base, release) < 0.6 * sent(before.naive, after.naive)
    exact = answers(after.master)
    naive_error = np.abs(answers(after.naive) - exact).mean()
    assert np.abs(answers(release) - exact).mean() < 1.3 * naive_error


def test_errors_do_not_add_up_over_releases(rounds: list[Round]) -> None:
    release = followed.first(rounds[0].naive, rounds[0].master, limit=LIMIT)
    for one in rounds[1:]:
        release = follow(release, one)
        found, masters = one.tensors(release), one.tensors(one.master)
        names = [name for name in found if name.endswith("_quantized") and found[name].ndim > 1]
        assert names
        for name in names:
            source = name.removesuffix("_quantized")
            scales = found[f"{source}_scale"].astype(np.float64)
            axis = next(at for at, length in enumerate(found[name].shape) if length == scales.size)
            shape = [-1 if at == axis else 1 for at in range(found[name].ndim)]
            error = masters[source] / scales.reshape(shape) - found[name]
            assert np.abs(error).max() <= 0.55 + 1e-4


def test_the_ranges_of_activations_and_the_graph_stay_as_they_were(rounds: list[Round]) -> None:
    base = followed.first(rounds[0].naive, rounds[0].master, limit=LIMIT)
    release = follow(base, rounds[1])
    before, after = onnx.load_from_string(base).graph, onnx.load_from_string(release).graph
    assert [node.SerializeToString() for node in before.node] == [
        node.SerializeToString() for node in after.node
    ]
    old, new = (rounds[0].tensors(one) for one in (base, release))
    flows = {node.input[1] for node in before.node if node.op_type == "QuantizeLinear"}
    assert flows
    assert all(np.array_equal(old[name], new[name]) for name in flows)


def test_following_twice_gives_the_same_bytes(rounds: list[Round]) -> None:
    base = followed.first(rounds[0].naive, rounds[0].master, limit=LIMIT)
    assert follow(base, rounds[1]) == follow(base, rounds[1])


class Placed(nn.Module):
    """A network with weights that the quantiser treats like activations, or leaves alone."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.places = nn.Parameter(torch.randn(3, 8, 8))
        self.powers = nn.Parameter(torch.rand(192) + 1)
        self.head = nn.Linear(192, 10)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        found: torch.Tensor = self.head(torch.pow((x + self.places).flatten(1).abs(), self.powers))
        return found


def test_every_kind_of_weight_moves_with_the_model() -> None:
    model = Placed()
    before = built(model)
    with torch.no_grad():
        for weights in model.parameters():
            weights.mul_(1.03)
    after = built(model)
    base = followed.first(before.naive, before.master, limit=LIMIT)
    release = follow(base, after)
    old, new = after.tensors(base), after.tensors(release)
    assert {"places_quantized", "powers"} <= new.keys()
    assert all(not np.array_equal(old[name], new[name]) for name in ("places_quantized", "powers"))
    assert new["powers"] == pytest.approx(after.tensors(after.master)["powers"], rel=0.01)
    exact = answers(after.master)
    stale = np.abs(answers(base) - exact).mean()
    assert np.abs(answers(release) - exact).mean() < 0.5 * stale


def test_another_architecture_is_not_followed(rounds: list[Round]) -> None:
    other = built(network(width=16))
    with pytest.raises(QuantiseError) as caught:
        follow(other.naive, rounds[0])
    assert "whole" in caught.value.hint


def test_another_graph_is_not_followed(rounds: list[Round]) -> None:
    model = onnx.load_from_string(rounds[0].naive)
    model.graph.node[0].output[0] += "x"
    with pytest.raises(QuantiseError, match="graph is another"):
        follow(model.SerializeToString(), rounds[1])


def test_a_master_without_a_tensor_is_refused(rounds: list[Round]) -> None:
    with pytest.raises(QuantiseError, match="is not in the new model"):
        followed.first(rounds[0].naive, onnx.ModelProto().SerializeToString(), limit=LIMIT)


GOOD = Quality(1.0, 0.98)


def test_the_first_release_goes_out_whole(rounds: list[Round]) -> None:
    one = rounds[0]
    found = choose_int8(None, one.naive, one.master, limit=LIMIT, judge=lambda _: GOOD)
    assert (found.way, found.delta, found.knob) == (Way.WHOLE, b"", "")


def test_the_largest_hold_that_the_judge_allows_is_released(rounds: list[Round]) -> None:
    base = followed.first(rounds[0].naive, rounds[0].master, limit=LIMIT)
    after = rounds[1]
    bad = {follow(base, after, 0.25), follow(base, after, 0.1)}
    found = choose_int8(
        base,
        after.naive,
        after.master,
        limit=LIMIT,
        judge=lambda model: Quality(2.0, 0.9) if model in bad else GOOD,
    )
    assert (found.way, found.knob, found.model) == (Way.FOLLOWED, "hold 0.05", follow(base, after))
    assert len(found.delta) == sent(base, found.model)


def test_where_nothing_followed_is_good_enough_the_naive_build_goes_out(
    rounds: list[Round],
) -> None:
    before, after = rounds[:2]
    found = choose_int8(
        before.naive,
        after.naive,
        after.master,
        limit=LIMIT,
        judge=lambda model: GOOD if model == after.naive else Quality(2.0, 0.9),
    )
    assert (found.way, found.model, found.knob) == (Way.NAIVE, after.naive, "")


def test_a_delta_that_saves_little_is_not_made(
    rounds: list[Round], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(choice, "is_worthwhile", lambda *_: False)
    before, after = rounds[:2]
    found = choose_int8(before.naive, after.naive, after.master, limit=LIMIT, judge=lambda _: GOOD)
    assert (found.way, found.delta) == (Way.WHOLE, b"")


def test_another_architecture_goes_out_by_its_own_build(rounds: list[Round]) -> None:
    other = built(network(width=16))
    found = choose_int8(
        other.naive, rounds[0].naive, rounds[0].master, limit=LIMIT, judge=lambda _: GOOD
    )
    assert found.way in (Way.NAIVE, Way.WHOLE)
    assert found.knob == ""


@pytest.mark.parametrize(
    ("found", "is_allowed"),
    [
        (Quality(1.05, 0.98), True),
        (Quality(1.06, 0.98), False),
        (Quality(0.5, 0.975), True),
        (Quality(0.5, 0.965), False),
        (Quality(0.5, 0.99), True),
    ],
)
def test_what_a_followed_release_may_lose(found: Quality, is_allowed: bool) -> None:
    assert Tolerance().allows(found, GOOD) is is_allowed
