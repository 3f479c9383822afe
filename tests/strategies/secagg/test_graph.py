"""Who is whose neighbour, and how dense the ring must be."""

from collections.abc import Collection, Iterator, Mapping
from fractions import Fraction
from math import comb

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import binomtest, hypergeom

from wildflower.strategies.errors import SessionAbortedError
from wildflower.strategies.secagg import graph as graph_module
from wildflower.strategies.secagg.graph import Adversary, Graph, Security, neighbours, plan_graph

CURIOUS, MALICIOUS = Adversary.CURIOUS, Adversary.SEMI_MALICIOUS
# Degree/threshold of Bell's bounds, for each (corrupt, dropout) and adversary below.
COLUMNS = [
    (0.05, 0.05, CURIOUS),
    (0.1, 0.1, CURIOUS),
    (0.1, 0.1, MALICIOUS),
    (0.2, 0.1, CURIOUS),
    (0.2, 0.1, MALICIOUS),
    (0.33, 0.1, CURIOUS),
    (0.33, 0.1, MALICIOUS),
]
TABLE = {
    20: "4/2 6/3 8/6 8/5 10/8 10/7 12/10",
    50: "6/3 12/6 16/11 16/11 22/17 22/17 28/23",
    100: "12/6 22/11 32/22 32/21 42/32 42/32 54/44",
    1000: "30/17 48/27 96/67 68/44 140/104 102/72 218/171",
}
DEVIATIONS: dict[tuple[object, ...], str] = {
    (20, "4/2"): "4/3",  # no sum of two
    # A client holds a share of its own seed: one holder more, which sometimes costs a neighbour.
    (50, "16/11", MALICIOUS): "18/13",
    (100, "54/44", MALICIOUS): "56/46",
    (1000, "96/67", MALICIOUS): "100/70",
}


def table() -> Iterator[tuple[int, float, float, Adversary, str]]:
    for clients, row in TABLE.items():
        for (corrupt, dropout, adversary), published in zip(COLUMNS, row.split(), strict=True):
            ours = DEVIATIONS.get((clients, published), published)
            ours = DEVIATIONS.get((clients, published, adversary), ours)
            yield clients, corrupt, dropout, adversary, ours


@pytest.mark.parametrize(("clients", "corrupt", "dropout", "adversary", "expected"), list(table()))
def test_degrees_and_thresholds_are_those_of_the_bounds(
    clients: int, corrupt: float, dropout: float, adversary: Adversary, expected: str
) -> None:
    found = plan_graph(clients, Security(corrupt=corrupt, dropout=dropout, adversary=adversary))
    assert f"{found.degree}/{found.threshold}" == expected


def test_many_dropouts_cost_many_neighbours() -> None:
    assert plan_graph(100, Security(corrupt=0.33, dropout=0.33)) == Graph(68, 34)


# Monte Carlo, with bounds so loose that what they allow is seen.

TRIALS = 1500
LOOSE = 2.0**-3


def hops(around: Mapping[str, Collection[str]], start: str, within: set[str]) -> set[str]:
    """Return who is reached from `start` without leaving `within`."""
    reached, todo = {start}, [start]
    while todo:
        new = set(around[todo.pop()]) & within - reached
        reached |= new
        todo += new
    return reached


def failures(clients: int, graph: Graph, corrupt: float, dropout: float) -> tuple[int, int]:
    """Return in how many rings somebody is exposed, and in how many somebody cannot be unmasked."""
    devices = [f"{number:02d}" for number in range(clients)]
    bad, gone = int(corrupt * clients + 1e-9), int(dropout * clients + 1e-9)
    rng = np.random.default_rng(clients)
    exposed = lost = 0
    for _ in range(TRIALS):
        around = neighbours(devices, graph.degree, entropy=rng.bytes(32))
        drawn = [devices[place] for place in rng.permutation(clients)]
        corrupted, survivors = set(drawn[:bad]), set(drawn[: clients - gone])
        honest = survivors - corrupted
        is_split = len(hops(around, min(honest), honest)) < len(honest)
        is_open = any(len(corrupted & set(each)) >= graph.threshold for each in around.values())
        exposed += is_split or is_open
        lost += any(len(survivors & set(each)) < graph.threshold for each in around.values())
    return exposed, lost


@pytest.mark.parametrize(
    ("clients", "corrupt", "dropout"), [(20, 0.1, 0.2), (40, 0.2, 0.1), (40, 0.1, 0.3)]
)
def test_random_rings_fail_no_more_often_than_promised(
    monkeypatch: pytest.MonkeyPatch, clients: int, corrupt: float, dropout: float
) -> None:
    monkeypatch.setattr(graph_module, "SECURITY", 3)
    monkeypatch.setattr(graph_module, "CORRECTNESS", 3)
    loose = plan_graph(clients, Security(corrupt=corrupt, dropout=dropout))
    assert loose.degree < clients - 1
    for failed in failures(clients, loose, corrupt, dropout):
        assert binomtest(failed, TRIALS, LOOSE, alternative="greater").pvalue > 1e-9


def test_rings_that_are_too_thin_are_seen_to_fail() -> None:
    exposed, lost = failures(40, Graph(4, 3), 0.3, 0.3)
    for failed in (exposed, lost):
        assert binomtest(failed, TRIALS, LOOSE, alternative="greater").pvalue < 1e-9


def fraction_disconnected(clients: int, degree: int, removed: int) -> Fraction:
    """Return Bell's union bound, exactly: pairs of cuts times P[all `degree` of a cut are gone]."""
    if removed < degree:
        return Fraction(0)
    cuts = Fraction(clients * (clients - degree - 1), 2)
    return cuts * Fraction(comb(clients - degree, removed - degree), comb(clients, removed))


@pytest.mark.parametrize(
    ("clients", "corrupt", "dropout", "degree"),
    [(45, 0.0, 0.5, 24), (47, 0.1, 0.3, 20), (39, 0.1, 0.5, 24), (47, 0.0, 0.6, 30)],
)
def test_the_ring_is_dense_enough_to_stay_in_one_piece(
    clients: int, corrupt: float, dropout: float, degree: int
) -> None:
    found = plan_graph(clients, Security(corrupt=corrupt, dropout=dropout))
    removed = int(clients * corrupt + 1e-9) + int(clients * dropout + 1e-9)
    assert found.degree == degree
    assert fraction_disconnected(clients, degree, removed) < Fraction(1, 2**41)
    assert fraction_disconnected(clients, degree - 2, removed) >= Fraction(1, 2**41)


@given(
    st.integers(11, 200),
    st.sampled_from([0.0, 0.05, 0.1, 0.2]),
    st.sampled_from([0.0, 0.05, 0.1]),
    st.sampled_from(Adversary),
)
@settings(max_examples=40, deadline=None)
def test_a_ring_keeps_both_promises(
    clients: int, corrupt: float, dropout: float, adversary: Adversary
) -> None:
    graph = plan_graph(clients, Security(corrupt=corrupt, dropout=dropout, adversary=adversary))
    bad, left = int(corrupt * clients + 1e-9), clients - int(dropout * clients + 1e-9)
    most = graph.threshold - 1
    if adversary is MALICIOUS:
        most = 2 * graph.threshold - graph.degree - 2  # corrupt ones that still fail
    assert hypergeom.sf(most, clients, bad, graph.degree) <= 2.0**-41 / clients * 1.001
    lost = hypergeom.cdf(graph.threshold - 1, clients, left, graph.degree)
    assert lost <= 2.0**-20 / clients * 1.001


@pytest.mark.parametrize(
    ("clients", "threshold"), [(3, 3), (4, 3), (5, 3), (6, 4), (7, 4), (8, 5), (9, 5), (10, 6)]
)
def test_small_cohorts_are_complete_with_a_majority(clients: int, threshold: int) -> None:
    assert plan_graph(clients) == Graph(clients - 1, threshold)


def test_a_semi_malicious_server_costs_small_cohorts_more() -> None:
    # Of 10 holders 2 answer both ways: 12 answers must not make two thresholds.
    found = plan_graph(10, Security(corrupt=0.2, adversary=MALICIOUS))
    assert found == Graph(9, 7)


def test_many_corrupt_clients_raise_the_threshold_of_small_cohorts() -> None:
    assert plan_graph(10, Security(corrupt=0.6, dropout=0.1)) == Graph(9, 7)


def test_where_no_ring_is_dense_enough_everyone_is_a_neighbour() -> None:
    found = plan_graph(50, Security(corrupt=0.33, dropout=0.33, adversary=MALICIOUS))
    assert found == Graph(49, 34)


@pytest.mark.parametrize("clients", [0, 1, 2])
def test_fewer_than_three_clients_are_refused(clients: int) -> None:
    with pytest.raises(SessionAbortedError, match=f"at least 3 clients, found {clients}"):
        plan_graph(clients)


def test_a_cohort_that_cannot_hold_its_promises_is_refused() -> None:
    with pytest.raises(SessionAbortedError, match="of 6 clients 3 may be corrupt and 3 may drop"):
        plan_graph(6, Security(corrupt=0.5, dropout=0.5))


@pytest.mark.parametrize(("corrupt", "dropout"), [(-0.1, 0), (1, 0), (0, 1), (0, -1)])
def test_shares_lie_between_zero_and_one(corrupt: float, dropout: float) -> None:
    with pytest.raises(ValueError, match="shares lie"):
        plan_graph(20, Security(corrupt=corrupt, dropout=dropout))


@given(st.integers(0, 40), st.sampled_from([2, 4, 6, 10]), st.binary(min_size=32, max_size=32))
@settings(max_examples=40)
def test_neighbourhood_is_mutual_and_of_one_size(count: int, degree: int, entropy: bytes) -> None:
    devices = [f"{n:02d}" for n in range(count)]
    found = neighbours(devices, degree, entropy=entropy)
    assert sorted(found) == devices
    for device, others in found.items():
        assert len(set(others)) == len(others) == min(degree, count - 1)
        assert device not in others
        assert list(others) == sorted(others)
        assert all(device in found[other] for other in others)


def test_the_ring_depends_on_the_entropy_and_on_nothing_else() -> None:
    devices = [f"{n:02d}" for n in range(20)]
    ring = neighbours(devices, 4, entropy=b"a" * 32)
    assert ring == neighbours(reversed(devices), 4, entropy=b"a" * 32)
    assert ring != neighbours(devices, 4, entropy=b"b" * 32)
