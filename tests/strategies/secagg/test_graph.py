"""Who is whose neighbour, and how dense the ring must be."""

from fractions import Fraction
from math import comb

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import hypergeom

from wildflower.strategies.errors import SessionAbortedError
from wildflower.strategies.secagg.graph import Adversary, Graph, neighbours, plan_graph

CURIOUS, MALICIOUS = Adversary.CURIOUS, Adversary.SEMI_MALICIOUS
# Degree and threshold of Bell's bounds for (corrupt, dropout); a semi-malicious server costs one
# more holder than in the paper, because a client holds a share of its own seed.
TABLE = [
    (20, 0.1, 0.1, CURIOUS, Graph(6, 3)),
    (20, 0.2, 0.1, CURIOUS, Graph(8, 5)),
    (20, 0.33, 0.1, CURIOUS, Graph(10, 7)),
    (20, 0.2, 0.1, MALICIOUS, Graph(10, 8)),
    (50, 0.05, 0.05, CURIOUS, Graph(6, 3)),
    (50, 0.1, 0.1, CURIOUS, Graph(12, 6)),
    (50, 0.33, 0.1, CURIOUS, Graph(22, 17)),
    (50, 0.33, 0.1, MALICIOUS, Graph(28, 23)),
    (100, 0.1, 0.1, CURIOUS, Graph(22, 11)),
    (100, 0.1, 0.1, MALICIOUS, Graph(32, 22)),
    (100, 0.33, 0.33, CURIOUS, Graph(68, 34)),
    (1000, 0.1, 0.1, CURIOUS, Graph(48, 27)),
    (1000, 0.2, 0.1, CURIOUS, Graph(68, 44)),
]


@pytest.mark.parametrize(("clients", "corrupt", "dropout", "adversary", "graph"), TABLE)
def test_degrees_and_thresholds_are_those_of_the_bounds(
    clients: int, corrupt: float, dropout: float, adversary: Adversary, graph: Graph
) -> None:
    found = plan_graph(clients, corrupt=corrupt, dropout=dropout, adversary=adversary)
    assert found == graph


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
    found = plan_graph(clients, corrupt=corrupt, dropout=dropout)
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
    graph = plan_graph(clients, corrupt=corrupt, dropout=dropout, adversary=adversary)
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
    found = plan_graph(10, corrupt=0.2, adversary=MALICIOUS)
    assert found == Graph(9, 7)


def test_many_corrupt_clients_raise_the_threshold_of_small_cohorts() -> None:
    assert plan_graph(10, corrupt=0.6, dropout=0.1) == Graph(9, 7)


def test_where_no_ring_is_dense_enough_everyone_is_a_neighbour() -> None:
    found = plan_graph(50, corrupt=0.33, dropout=0.33, adversary=MALICIOUS)
    assert found == Graph(49, 34)


@pytest.mark.parametrize("clients", [0, 1, 2])
def test_fewer_than_three_clients_are_refused(clients: int) -> None:
    with pytest.raises(SessionAbortedError, match=f"at least 3 clients, found {clients}"):
        plan_graph(clients)


def test_a_cohort_that_cannot_hold_its_promises_is_refused() -> None:
    with pytest.raises(SessionAbortedError, match="of 6 clients 3 may be corrupt and 3 may drop"):
        plan_graph(6, corrupt=0.5, dropout=0.5)


@pytest.mark.parametrize(("corrupt", "dropout"), [(-0.1, 0), (1, 0), (0, 1), (0, -1)])
def test_shares_lie_between_zero_and_one(corrupt: float, dropout: float) -> None:
    with pytest.raises(ValueError, match="shares lie"):
        plan_graph(20, corrupt=corrupt, dropout=dropout)


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
