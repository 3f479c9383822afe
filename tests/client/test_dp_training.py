"""DP-SGD on the device: it learns, its noise is secret, and it is what the accountant thinks."""

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from tests.tiny_task import Tiny, points, task
from torch import nn

from wildflower.client.dp_training import (
    PrivatePlan,
    _secret_generator,
    train_privately,
)
from wildflower.client.errors import TrainingError
from wildflower.client.training import evaluate
from wildflower.strategies.arrays import Parameters
from wildflower.strategies.dp.accounting import epsilon_of
from wildflower.strategies.dp.events import Gaussian, Sampling, Scheme
from wildflower.strategies.dp.private_task import PrivateTask
from wildflower.strategies.dp.sgd import event_of
from wildflower.strategies.initial import initial_model
from wildflower.strategies.task import Examples, Task

PRIVATE = PrivateTask(task)
ENTROPY = bytes(32)


class Normed(Tiny):
    """A model with a BatchNorm between two layers."""

    def build_model(self) -> nn.Module:
        return nn.Sequential(nn.Linear(2, 4), nn.BatchNorm1d(4), nn.Linear(4, 2))


class Bare(nn.Module):
    """A layer with a buffer, which may hold anything; Opacus refuses it."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(2))
        self.register_buffer("offset", torch.zeros(2))

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        found: torch.Tensor = inputs * self.scale
        return found


class Odd(Tiny):
    def build_model(self) -> nn.Module:
        return Bare()


def trained(
    private: PrivatePlan,
    examples: Examples,
    *,
    of: PrivateTask = PRIVATE,
    entropy: bytes = ENTROPY,
    epochs: int = 1,
    batch_size: int = 8,
    learning_rate: float = 0.5,
) -> tuple[Parameters, dict[str, np.ndarray]]:
    model = initial_model(of, 1)
    event = event_of(private.noise, examples=len(examples), batch_size=batch_size, epochs=epochs)
    after = train_privately(
        of,
        model,
        examples,
        event,
        private=private,
        learning_rate=learning_rate,
        momentum=0.0,
        entropy=entropy,
    )
    return model, after


@pytest.mark.parametrize("mode", ["ghost", "hooks"])
def test_private_training_learns_and_names_stay_plain(mode: str) -> None:
    before, after = trained(PrivatePlan(0.5, 1.0, mode), points(400), epochs=3, batch_size=40)
    assert set(after) == set(before)
    held = points(100, seed=9)
    worse, better = (evaluate(task, each, held)["eval-correct"] for each in (before, after))
    assert better > max(worse, 85)


def test_ghost_clipping_and_hooks_release_the_same_sum() -> None:
    """One way holds every example's gradient, the other never does; coins and noise are equal."""
    ghost, hooks = (trained(PrivatePlan(1.0, 0.1, m), points(60))[1] for m in ("ghost", "hooks"))
    for name in ghost:
        np.testing.assert_allclose(ghost[name], hooks[name], atol=1e-5)


def test_coins_and_noise_come_from_entropy_alone() -> None:
    plan = PrivatePlan(1.0)
    one, again, other = (
        trained(plan, points(60), entropy=entropy)[1] for entropy in (ENTROPY, ENTROPY, b"x" * 32)
    )
    assert all(np.array_equal(one[name], again[name]) for name in one)
    assert not np.array_equal(one["weight"], other["weight"])


def test_no_seed_of_32_bits_makes_the_noise() -> None:
    """PyTorch keeps 32 bits of a seed; here every word of the state is filled."""
    seeded = [torch.Generator().manual_seed(seed) for seed in (5, 2**40 + 5)]
    assert torch.equal(*(torch.rand(4, generator=each) for each in seeded))
    states = [_secret_generator(entropy).get_state().numpy() for entropy in (b"a", b"b")]
    words = [state[24 : 24 + 8 * 624].view(np.uint64) for state in states]
    assert np.count_nonzero(words[0] != words[1]) == 624
    assert all(len(np.unique(each)) > 600 for each in words)


def test_the_noise_has_the_spread_that_is_accounted() -> None:
    """The noise is a thousand times what the examples can move."""
    moved = []
    for seed in range(30):
        before, after = trained(
            PrivatePlan(1000.0, 1e-3), points(16), entropy=seed.to_bytes(32), learning_rate=1.0
        )
        moved += [*(after["weight"] - before["weight"]).ravel(), *after["bias"] - before["bias"]]
    expected = 1000.0 * 1e-3 / 8 * math.sqrt(2)  # two steps of an expected 8 examples
    assert np.std(moved) == pytest.approx(expected, rel=0.2)


def test_a_step_without_examples_still_adds_noise() -> None:
    """Else its absence would show that nobody was there."""
    event = Gaussian(1.0, 1, Sampling(Scheme.POISSON, 1, 10**6))
    model = initial_model(PRIVATE, 1)
    for mode in ("ghost", "hooks"):
        after = train_privately(
            PRIVATE,
            model,
            points(4),
            event,
            private=PrivatePlan(1.0, 1.0, mode),
            learning_rate=1.0,
            momentum=0.0,
            entropy=ENTROPY,
        )
        assert np.all(after["weight"] != model["weight"])


def test_the_event_is_what_opacus_accounts() -> None:
    from opacus.accountants import RDPAccountant

    event = event_of(1.1, examples=1000, batch_size=50, epochs=5)
    assert (event.rounds, event.sampling.rate) == (100, 0.05)
    theirs = RDPAccountant()
    theirs.history = [(1.1, 0.05, 100)]
    found = epsilon_of([event], delta=1e-5, method="rdp")
    assert found == pytest.approx(theirs.get_epsilon(1e-5), rel=0.01)


def test_fewer_examples_cost_more_so_the_smallest_device_is_accounted() -> None:
    found = [
        epsilon_of([event_of(1.0, examples=n, batch_size=32, epochs=10)], delta=1e-5, method="rdp")
        for n in (60, 64, 65, 200, 1000, 5000)
    ]
    assert found == sorted(found, reverse=True)


def test_batch_norm_becomes_group_norm_and_that_is_said(caplog: pytest.LogCaptureFixture) -> None:
    private = PrivateTask(Normed())
    assert private.replaced() == 1
    assert (private.name, private.recipe) == (task.name, task.recipe)
    with caplog.at_level("WARNING"):
        before, after = trained(PrivatePlan(1.0), points(40), of=private)
    assert set(after) == set(before) == {f"{n}.{p}" for n in "012" for p in ("weight", "bias")}
    assert "GroupNorm" in caplog.text


def test_a_model_with_batch_norm_is_refused_with_what_to_do() -> None:
    plain = initial_model(Normed(), 1)
    event = event_of(1.0, examples=8, batch_size=8, epochs=1)
    with pytest.raises(TrainingError, match="not the private one") as caught:
        train_privately(
            PrivateTask(Normed()),
            plain,
            points(8),
            event,
            private=PrivatePlan(1.0),
            learning_rate=0.1,
            momentum=0.0,
            entropy=ENTROPY,
        )
    assert "PrivateTask" in caught.value.hint


def test_a_model_that_opacus_cannot_train_is_told() -> None:
    odd = PrivateTask(Odd())
    with pytest.raises(TrainingError, match="cannot train this model"):
        trained(PrivatePlan(1.0, 1.0, "hooks"), points(8), of=odd)


def test_a_private_task_is_the_task_in_all_else(tmp_path: Path) -> None:
    points(3).save(tmp_path / "data.npz")
    assert len(PRIVATE.load(tmp_path / "data.npz")) == 3
    assert PRIVATE.example().shape == (1, 2)
    assert PRIVATE.metrics(np.eye(2, dtype=np.float32), np.array([0, 0])) == {"correct": 1.0}
    assert PRIVATE.replaced() == 0
    assert PrivateTask.of(PRIVATE) is PRIVATE
    assert isinstance(PrivateTask.of(task), PrivateTask)
    assert isinstance(PRIVATE, Task)


def test_a_round_without_dp_keys_is_not_private() -> None:
    assert PrivatePlan.of({"epochs": 3}) is None
    assert PrivatePlan.of({"dp-sgd-noise": 1}) == PrivatePlan(1.0, 1.0, "ghost")
    asked = {"dp-sgd-noise": 2.0, "dp-sgd-norm": 0.5, "dp-sgd-mode": "hooks"}
    assert PrivatePlan.of(asked) == PrivatePlan(2.0, 0.5, "hooks")
    assert PrivatePlan.of({**asked, "dp-sgd-examples": 50}) == PrivatePlan(2.0, 0.5, "hooks", 50)


@pytest.mark.parametrize(
    "config",
    [
        {"dp-sgd-noise": 0.0},
        {"dp-sgd-noise": -1.0},
        {"dp-sgd-noise": float("nan")},
        {"dp-sgd-noise": float("inf")},
        {"dp-sgd-noise": "much"},
        {"dp-sgd-noise": True},
        {"dp-sgd-norm": 1.0},
        {"dp-sgd-noise": 1.0, "dp-sgd-norm": 0.0},
        {"dp-sgd-noise": 1.0, "dp-sgd-mode": "fast"},
        {"dp-sgd-mode": "ghost"},
        {"dp-sgd-noise": 1.0, "dp-sgd-examples": 0},
    ],
)
def test_absurd_parameters_are_refused_by_name(config: dict[str, object]) -> None:
    with pytest.raises(TrainingError, match=r"dp-sgd-.* is .*, allowed are"):
        PrivatePlan.of(config)
