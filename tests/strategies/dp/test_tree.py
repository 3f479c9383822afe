"""Trees: which nodes a prefix holds, restarts of the process and of the tree, stored states."""

import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from wildflower.strategies.algorithms.algorithm import Sum
from wildflower.strategies.dp.contribution import Bounds, Contribution
from wildflower.strategies.dp.events import Tree
from wildflower.strategies.dp.tree import TreeDP, TreeState, from_bytes, restart, to_bytes
from wildflower.strategies.errors import RoundAbortedError, StoredStateError

SEED = bytes(range(32))
SIZE = 4000
DP = TreeDP(1.0, Contribution(SIZE, 1.0), steps=16)
ZERO = Sum(np.zeros(SIZE), 3.0, {}, 3)
states = st.builds(
    TreeState,
    st.binary(min_size=32, max_size=40),
    st.integers(0, 1000),
    st.lists(st.integers(1, 1000), max_size=5).map(tuple),
)


def prefixes(dp: TreeDP, rounds: int) -> list[Any]:
    state, total, found = TreeState(SEED), np.zeros(dp.contribution.size), []
    for _ in range(rounds):
        state, released = dp.release(state, ZERO)
        total = total + released.vector
        found.append(total)
    return found


def test_a_prefix_has_the_noise_of_the_nodes_that_tile_it() -> None:
    found = prefixes(DP, 16)
    for step, noise in enumerate(found, start=1):
        assert np.std(noise) == pytest.approx(math.sqrt(step.bit_count()), rel=0.06)
        assert DP.deviation(step) == math.sqrt(step.bit_count())


def test_prefixes_share_the_nodes_that_they_share() -> None:
    found = prefixes(DP, 7)
    # 5 = 4 + 1, 6 = 4 + 2, 7 = 4 + 2 + 1: what they have beyond node(1..4) are whole nodes
    four, five, six, seven = found[3], found[4], found[5], found[6]
    assert np.std(seven - six) == pytest.approx(1.0, rel=0.06)
    assert np.std(five - four) == pytest.approx(1.0, rel=0.06)
    correlation = np.corrcoef(four, seven)[0, 1]
    assert correlation == pytest.approx(1 / math.sqrt(3), abs=0.06)
    assert abs(np.corrcoef(found[0], found[1])[0, 1]) < 6 / math.sqrt(SIZE)


def test_noise_of_100_rounds_is_far_below_that_of_100_independent_ones() -> None:
    assert np.std(prefixes(TreeDP(1.0, Contribution(SIZE, 1.0), 100), 100)[-1]) < 0.2 * 10


def test_sums_are_added_exactly_but_for_the_grid() -> None:
    total = Sum(np.linspace(-1, 1, SIZE), 3.0, {}, 3)
    _, with_sum = DP.release(TreeState(SEED), total)
    _, without = DP.release(TreeState(SEED), ZERO)
    assert np.allclose(with_sum.vector - without.vector, total.vector, atol=2.0**-28)


def test_a_restarted_server_goes_on_with_the_noise_it_had() -> None:
    state = TreeState(SEED)
    for step in range(1, 9):
        after, released = DP.release(state, ZERO)
        again, repeated = DP.release(from_bytes(to_bytes(state)), ZERO)
        assert again == after
        assert np.array_equal(released.vector, repeated.vector)
        assert after.step == step
        state = after


def test_a_new_tree_has_new_noise_and_costs_once_more() -> None:
    state, first = DP.release(TreeState(SEED), ZERO)
    assert DP.events(state) == (Tree(1.0, 1),)
    state = restart(state)
    assert DP.events(state) == (Tree(1.0, 1),)  # nothing released in the new tree yet
    state, second = DP.release(state, ZERO)
    assert not np.any(first.vector == second.vector)
    state, _ = DP.release(state, ZERO)
    assert DP.events(state) == (Tree(1.0, 1), Tree(1.0, 2))


def test_restarting_a_tree_that_released_nothing_changes_nothing() -> None:
    state = TreeState(SEED)
    assert restart(state) is state
    assert DP.events(state) == ()


def test_a_complete_tree_has_to_be_restarted() -> None:
    state = TreeState(SEED, 16)
    with pytest.raises(RoundAbortedError, match="the tree's 16 rounds are over"):
        DP.release(state, ZERO)
    assert DP.release(restart(state), ZERO)[0].step == 1


def test_trees_have_an_end() -> None:
    with pytest.raises(RoundAbortedError, match="10000 trees"):
        restart(TreeState(SEED, 1, (1,) * 10_000))


def test_weighted_updates_are_refused() -> None:
    with pytest.raises(RoundAbortedError, match="needs weight 1"):
        DP.release(TreeState(SEED), Sum(np.zeros(SIZE), 30.0, {}, 3))


def test_statistics_have_their_noise_and_residues_need_more() -> None:
    contribution = Contribution(SIZE, 1.0, (("loss", Bounds(0.0, 1.0)),))
    dp = TreeDP(1.0, contribution, 4, quantum=0.05)
    total = Sum(np.zeros(SIZE), 3.0, {"loss": 1.0}, 3)
    _, released = dp.release(TreeState(SEED), total)
    assert released.statistics["loss"] != 1.0
    expected = contribution.radius + 0.05 * math.sqrt(SIZE)
    assert dp.sensitivity == pytest.approx(expected)
    assert np.std(released.vector) == pytest.approx(expected, rel=0.06)


@given(states)
def test_the_stored_state_is_the_same_state(state: TreeState) -> None:
    assert from_bytes(to_bytes(state)) == state


@given(st.binary(max_size=200))
def test_other_bytes_are_refused(data: bytes) -> None:
    with pytest.raises(StoredStateError):
        from_bytes(data)


@pytest.mark.parametrize(
    "change",
    [
        (b'"step":3', b'"step":-3'),
        (b'"step":3', b'"step":true'),
        (b'"step":3', b'"step": 3'),
        (b'"format":1', b'"format":2'),
        (b"[2]", b"[0]"),
        (b"[2]", b"2"),
        (b'"seed":"00', b'"seed":"'),
    ],
)
def test_a_changed_state_is_refused_and_its_seed_not_repeated(change: tuple[bytes, bytes]) -> None:
    data = to_bytes(TreeState(SEED, 3, (2,)))
    changed = data.replace(*change)
    assert changed != data
    with pytest.raises(StoredStateError) as caught:
        from_bytes(changed)
    assert SEED.hex() not in str(caught.value)


def test_the_seed_is_not_shown() -> None:
    assert SEED.hex() not in repr(TreeState(SEED))
    assert repr(SEED) not in repr(TreeState(SEED))


@pytest.mark.parametrize(("given_", "key"), [((0.0, 4), "noise_multiplier"), ((1.0, 0), "steps")])
def test_absurd_parameters_are_refused_by_key(given_: tuple[float, int], key: str) -> None:
    with pytest.raises(ValueError, match=f"{key} is"):
        TreeDP(given_[0], Contribution(1, 1.0), given_[1])
    with pytest.raises(ValueError, match="quantum is -1"):
        TreeDP(1.0, Contribution(1, 1.0), 1, quantum=-1.0)
