"""Secure sums are the plain ones bit for bit, for every cohort, length, width and loss."""

from collections import Counter

import numpy as np
import pytest
from tests.secagg_cases import BITS, CASES, RING, Case, Outcome, outcome_of
from tests.secagg_fakes import Play, fleet, make_params

from wildflower.strategies.arrays import Update
from wildflower.strategies.errors import CapacityError, SessionAbortedError, UpdateRefusedError
from wildflower.strategies.fixed_point import Encoding
from wildflower.strategies.keystream import CHUNK
from wildflower.strategies.secagg.graph import plan_graph
from wildflower.strategies.secagg.server import Session


def is_exact(clients: int, bits: int, size: int = 5) -> bool:
    play = Play(make_params(clients, bits=bits, size=size))
    total = play.run()
    everyone = play.session.survivors == tuple(sorted(play.devices))
    return everyone and np.array_equal(total, play.plain_sum())


@pytest.mark.parametrize("bits", BITS)
@pytest.mark.parametrize("clients", [3, 4, 10, 11, 27])
def test_the_sum_of_a_cohort_is_exact(clients: int, bits: int) -> None:
    assert is_exact(clients, bits)


@pytest.mark.slow
@pytest.mark.parametrize("bits", BITS)
@pytest.mark.parametrize("clients", range(3, 51))
def test_the_sum_of_every_cohort_up_to_fifty_is_exact(clients: int, bits: int) -> None:
    assert is_exact(clients, bits)


def test_the_sum_of_two_is_refused_everywhere() -> None:
    with pytest.raises(SessionAbortedError, match="at least 3 clients, found 2"):
        plan_graph(2)
    with pytest.raises(ValueError, match="at least 3 are needed"):
        make_params(3, bits=32, degree=1)
    two = [device.device_id for device in fleet(2)[1]]
    with pytest.raises(ValueError, match="2 clients"):
        Session(make_params(3), two, ca=fleet()[0].certificate)


def sizes(bits: int) -> list[int]:
    step = 8 * CHUNK // bits
    return [0, 1, 7, step - 1, step, step + 1, 2 * step + 3]


@pytest.mark.parametrize(("bits", "size"), [(bits, size) for bits in BITS for size in sizes(bits)])
def test_the_sum_is_exact_at_the_edges_of_a_chunk(bits: int, size: int) -> None:
    tail = make_params(3, bits=bits, size=0).encoding.length
    assert is_exact(3, bits, size=size)
    if size >= tail:  # with the weight and the statistics behind it, it ends at the edge itself
        assert is_exact(3, bits, size=size - tail)


@pytest.mark.parametrize("bits", BITS)
def test_weights_are_applied_before_the_sum(bits: int) -> None:
    play = Play(make_params(3, bits=bits, size=1))
    weights = [1.0, 30.0, 100.0]
    for number, (device, weight) in enumerate(zip(play.devices, weights, strict=True)):
        update = Update(np.array([(-0.5) ** number], np.float32), weight, {"loss": 0.25})
        play.updates[device] = play.params.encoding.encode(update, bytes(32))
    encoding = play.params.encoding
    assert isinstance(encoding, Encoding)
    total = encoding.decode(play.run(), 3)
    assert total.weight == 131.0
    assert total.statistics["loss"] == 0.75
    assert total.vector[0] == pytest.approx(1.0 - 15.0 + 25.0, abs=3 * encoding.quantum)


@pytest.mark.parametrize("bits", BITS)
def test_an_update_of_zeros_is_as_good_as_any(bits: int) -> None:
    play = Play(make_params(3, bits=bits, size=100))
    for device in play.devices:
        update = Update(np.zeros(100, np.float32), 1.0, {"loss": 0.0})
        play.updates[device] = play.params.encoding.encode(update, bytes(32))
    total = play.params.encoding.decode(play.run(), 3)
    assert not total.vector.any()
    assert total.weight == 3.0


@pytest.mark.parametrize("bits", BITS)
@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf], ids=str)
def test_what_is_no_number_never_reaches_a_mask(value: float, bits: int) -> None:
    encoding = make_params(3, bits=bits, size=2).encoding
    for update in (
        Update(np.array([0.0, value], np.float32), 1.0, {"loss": 0.0}),
        Update(np.zeros(2, np.float32), value, {"loss": 0.0}),
        Update(np.zeros(2, np.float32), 1.0, {"loss": value}),
    ):
        with pytest.raises(UpdateRefusedError):
            encoding.encode(update, bytes(32))


def test_a_cohort_whose_sums_would_overflow_is_refused_before_it_starts() -> None:
    with pytest.raises(CapacityError, match="16-bit residues"):
        make_params(5000, bits=16)
    assert make_params(5000, bits=32).clients == 5000


@pytest.mark.parametrize("case", CASES, ids=str)
def test_whoever_is_lost_the_sum_is_exact_or_there_is_none(case: Case) -> None:
    outcome = outcome_of(case)
    assert outcome is not Outcome.WRONG
    if case.cohort.is_complete:
        enough = case.left >= case.cohort.threshold
        assert outcome is (Outcome.EXACT if enough else Outcome.ABORTED)
    elif sum(case.lost) <= RING.degree + 1 - RING.threshold:  # however they lie on the ring
        assert outcome is Outcome.EXACT


def test_the_table_of_losses_is_no_walk_in_the_park() -> None:
    assert len(set(CASES)) == len(CASES) >= 64
    expected = Counter(
        case.left >= case.cohort.threshold for case in CASES if case.cohort.is_complete
    )
    assert min(expected[True], expected[False]) >= 10
