"""Groups and the rule over their means: numbers worked out by hand, and what a liar can do."""

from collections import Counter

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.secagg_fakes import entropy_of

from wildflower.strategies.algorithms.algorithm import Sum
from wildflower.strategies.errors import RoundAbortedError
from wildflower.strategies.secagg.grouped import COLUMNS, Grouping, Rule, combine, divide


def total(mean: list[float], weight: float = 10.0, clients: int = 3) -> Sum:
    return Sum(np.array(mean) * weight, weight, {"loss": weight}, clients)


@given(st.integers(3, 9), st.integers(3, 5), st.integers(0, 20), st.binary(min_size=1))
def test_every_node_is_in_one_group_and_sizes_differ_by_one(
    groups: int, smallest: int, more: int, entropy: bytes
) -> None:
    grouping = Grouping(groups, smallest)
    nodes = list(range(100, 100 + grouping.devices + more))
    found = divide(nodes, grouping, entropy=entropy)
    assert sorted(node for group in found for node in group) == nodes
    sizes = Counter(map(len, found))
    assert max(sizes) - min(sizes) <= 1
    assert min(sizes) >= smallest
    assert found == divide(nodes[::-1], grouping, entropy=entropy)


def test_groups_are_others_in_the_next_round() -> None:
    nodes = list(range(12))
    drawn = {tuple(divide(nodes, Grouping(3), entropy=entropy_of(n))) for n in range(20)}
    assert len(drawn) == 20


def test_too_few_devices_are_refused_by_number() -> None:
    with pytest.raises(RoundAbortedError, match="11 devices, 4 groups of 3 or more need 12"):
        divide(range(11), Grouping(4), entropy=entropy_of("x"))


def test_the_median_of_three_means_is_the_middle_one() -> None:
    found = combine([total([1, 5]), total([2, 4], 20.0), total([9, -7], 30.0)], Grouping(3))
    assert found.vector.tolist() == [2 * 60.0, 4 * 60.0]
    assert (found.weight, found.clients, found.statistics) == (60.0, 9, {"loss": 60.0})


def test_the_trimmed_mean_leaves_out_both_ends() -> None:
    sums = [total([value]) for value in (1.0, 2.0, 3.0, 4.0, 100.0)]
    grouping = Grouping(5, rule=Rule.TRIMMED_MEAN, trim=1)
    assert combine(sums, grouping).vector.tolist() == [3.0 * 50]
    assert combine(sums, Grouping(5, rule=Rule.TRIMMED_MEAN, trim=2)).vector.tolist() == [150.0]


@given(
    st.integers(1, 3),
    st.sampled_from(list(Rule)),
    st.lists(st.floats(-1e6, 1e6), min_size=3, max_size=3),
)
def test_as_many_liars_as_the_rule_withstands_cannot_leave_the_range_of_the_honest(
    liars: int, rule: Rule, lies: list[float]
) -> None:
    honest = [total([0.9, -1.1]), total([1.0, -1.0]), total([1.1, -0.9]), total([1.05, -1.05])]
    bad = [total([lies[index], -lies[index]]) for index in range(liars)]
    grouping = Grouping(len(honest) + liars, rule=rule, trim=liars)
    found = combine([*bad, *honest], grouping)
    assert 0.9 - 1e-9 <= found.vector[0] / found.weight <= 1.1 + 1e-9
    assert -1.1 - 1e-9 <= found.vector[1] / found.weight <= -0.9 + 1e-9


def test_equal_means_are_that_mean_whatever_the_size() -> None:
    mean = np.linspace(-1, 1, 2 * COLUMNS + 3)
    sums = [Sum(mean * weight, weight, {}, 3) for weight in (1.0, 2.0, 4.0)]
    for grouping in (Grouping(3), Grouping(3, rule=Rule.TRIMMED_MEAN)):
        found = combine(sums, grouping)
        assert found.vector == pytest.approx(mean * 7.0, abs=1e-12)


def test_an_evaluation_has_no_vector_and_its_statistics_add_up() -> None:
    found = combine([total([], 0.0) for _ in range(3)], Grouping(3))
    assert (found.vector.size, found.weight, found.clients) == (0, 0.0, 9)


def test_a_group_that_weighs_nothing_has_no_mean_and_no_vote() -> None:
    sums = [total([1.0]), total([2.0]), total([3.0]), Sum(np.array([7.0]), 0.0, {"loss": 0.0}, 3)]
    assert combine(sums, Grouping(4)).vector.tolist() == [2.0 * 30]
    with pytest.raises(RoundAbortedError, match="2 groups came through, median needs 3"):
        combine(sums[2:] + sums[:1], Grouping(3))


def test_too_few_groups_to_compare_are_refused() -> None:
    with pytest.raises(RoundAbortedError, match="4 groups came through, trimmed-mean needs 5"):
        combine([total([1.0])] * 4, Grouping(5, rule=Rule.TRIMMED_MEAN, trim=2))


@pytest.mark.parametrize(
    ("changes", "why"),
    [
        ({"groups": 2}, "groups is 2, allowed are 3 to 1000"),
        ({"groups": 1001}, "groups is 1001"),
        ({"groups": 3, "min_group": 2}, "min_group is 2, allowed are 3 and above"),
        ({"groups": 5, "rule": Rule.TRIMMED_MEAN, "trim": 3}, "trim is 3, allowed are 1 to 2"),
        ({"groups": 5, "rule": Rule.TRIMMED_MEAN, "trim": 0}, "trim is 0"),
    ],
)
def test_what_protects_nothing_cannot_be_asked_for(changes: dict[str, int], why: str) -> None:
    with pytest.raises(ValueError, match=why):
        Grouping(**changes)  # type: ignore[arg-type]  # a test's own values
