"""Byzantine updates: each does what its name says, and spoils what it is said to spoil."""

import dataclasses

import numpy as np
import pytest

from wildflower.strategies.algorithms.fedavg import FedAvg
from wildflower.strategies.arrays import Update
from wildflower.strategies.attacks.byzantine import (
    Attack,
    inner_product,
    label_flip,
    little_is_enough,
    noise,
    poison,
    scale,
    sign_flip,
    zero,
)
from wildflower.strategies.errors import UpdateRefusedError
from wildflower.strategies.guards import check_update
from wildflower.strategies.task import Examples


def update(*elements: float, weight: float = 4.0) -> Update:
    return Update(np.array(elements, np.float32), weight, {"loss": 0.5})


def honest(clients: int = 9, size: int = 50) -> list[Update]:
    rng = np.random.default_rng(5)
    rows = rng.normal(0.5, 0.1, (clients, size)).astype(np.float32)
    return [Update(row, 4.0, {}) for row in rows]


def mean(updates: list[Update]) -> np.ndarray[tuple[int], np.dtype[np.float64]]:
    rule = FedAvg()
    total = rule.zero(updates[0].vector.size)
    for each in updates:
        total = rule.add(total, each)
    return total.vector / total.weight


@pytest.mark.parametrize(
    ("attack", "expected"),
    [
        (sign_flip, [-1.0, 2.0, -0.5]),
        (lambda u: scale(u, 10.0), [10.0, -20.0, 5.0]),
        (lambda u: scale(u, 0.0), [0.0, 0.0, 0.0]),
        (zero, [0.0, 0.0, 0.0]),
        (poison, [float("nan"), -2.0, 0.5]),
        (lambda u: poison(u, float("inf"), elements=2), [float("inf")] * 2 + [0.5]),
    ],
)
def test_an_attack_changes_the_vector_and_nothing_else(
    attack: Attack, expected: list[float]
) -> None:
    before = update(1.0, -2.0, 0.5)
    after = attack(before)
    np.testing.assert_array_equal(after.vector, np.array(expected, np.float32))
    assert after.vector.dtype == np.float32
    assert (after.weight, after.statistics) == (before.weight, before.statistics)
    np.testing.assert_array_equal(before.vector, np.array([1.0, -2.0, 0.5], np.float32))


def test_noise_has_the_deviation_that_was_asked_for_and_nothing_of_the_update() -> None:
    before = Update(np.full(20_000, 7.0, np.float32), 1.0, {})
    after = noise(before, np.random.default_rng(3), 2.0)
    assert after.vector.std() == pytest.approx(2.0, rel=0.03)
    assert abs(after.vector.mean()) < 0.1


@pytest.mark.parametrize("attack", [poison, zero])
def test_the_guard_refuses_what_would_spoil_or_empty_a_sum(attack: Attack) -> None:
    with pytest.raises(UpdateRefusedError):
        check_update(attack(update(1.0, 2.0)), 2)


def test_one_scaled_update_replaces_a_plain_mean() -> None:
    others = honest()
    target = np.full(50, -3.0, np.float32)
    boosted = scale(Update(target, 4.0, {}), 10.0)
    assert mean([*others, boosted]) == pytest.approx(target + 0.9 * mean(others))


def test_a_little_is_enough_hides_within_the_spread_and_moves_the_mean() -> None:
    others = honest()
    stack = np.stack([each.vector for each in others])
    hidden = little_is_enough(others, clients=13, corrupt=4)
    assert ((stack.min(axis=0) <= hidden) & (hidden <= stack.max(axis=0))).mean() > 0.95
    attacked = [*others, *(Update(hidden, 4.0, {}) for _ in range(4))]
    assert (mean(attacked) < mean(others)).all()


def test_the_width_of_a_little_is_worked_out_by_hand() -> None:
    # 10 clients, 4 attackers: 2 supporters are needed of 6; the quantile is 4/6, z = 0.4307
    pair = [update(0.0, 4.0), update(2.0, 4.0)]
    found = little_is_enough(pair, clients=10, corrupt=4)
    assert found == pytest.approx([1.0 - 0.4307, 4.0], abs=1e-4)


def test_more_supporters_than_half_leave_no_room_to_hide() -> None:
    assert little_is_enough([update(0.0), update(2.0)], clients=5, corrupt=1) == pytest.approx([1])


@pytest.mark.parametrize(("known", "clients", "corrupt"), [(1, 10, 2), (3, 10, 5), (3, 10, 0)])
def test_attackers_that_are_no_minority_or_know_nothing_are_refused(
    known: int, clients: int, corrupt: int
) -> None:
    with pytest.raises(ValueError, match="a minority of 1 or more"):
        little_is_enough([update(1.0)] * known, clients, corrupt)


def test_an_inner_product_attack_points_against_the_honest_mean() -> None:
    others = honest()
    against = inner_product(others, 0.1)
    assert float(against @ mean(others)) < 0
    assert np.linalg.norm(against) == pytest.approx(0.1 * np.linalg.norm(mean(others)), rel=1e-5)


@pytest.mark.parametrize("strength", [0.0, -1.0, float("nan")])
def test_an_inner_product_attack_needs_a_strength(strength: float) -> None:
    with pytest.raises(ValueError, match="above 0"):
        inner_product(honest(), strength)
    with pytest.raises(ValueError, match="0 updates"):
        inner_product([], 1.0)


def test_a_weight_is_lied_about_by_replacing_it() -> None:
    assert dataclasses.replace(update(1.0), weight=1e9).weight == 1e9


def test_flipped_labels_are_the_mirrored_ones_and_flip_back() -> None:
    examples = Examples(np.zeros((4, 2), np.float32), np.array([0, 1, 8, 9]))
    flipped = label_flip(examples, 10)
    assert flipped.targets.tolist() == [9, 8, 1, 0]
    assert label_flip(flipped, 10).targets.tolist() == [0, 1, 8, 9]
    assert len(label_flip(Examples(np.zeros((0, 2), np.float32), np.array([], np.int64)), 3)) == 0


@pytest.mark.parametrize("labels", [[0, 10], [-1, 2]])
def test_labels_outside_of_the_classes_are_refused(labels: list[int]) -> None:
    with pytest.raises(ValueError, match="expected 0 to 9"):
        label_flip(Examples(np.zeros((2, 1), np.float32), np.array(labels)), 10)
