"""Fixed-point residues: exact sums, bounds, and what does not fit."""

import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from wildflower.strategies.arrays import Update
from wildflower.strategies.errors import CapacityError, ProtocolError, UpdateRefusedError
from wildflower.strategies.fixed_point import (
    CLIPPED,
    MAX_CLIENTS,
    MAX_SIZE,
    STEP,
    Encoding,
    Residues,
)

ENCODING = Encoding(4, 1.0, 100.0, 8, (("loss", 0.5), ("hits", 1.0)))


def make_encoding(**changes: Any) -> Encoding:
    given = {"size": 4, "clip": 1.0, "max_weight": 100.0, "clients": 8, "statistics": ()}
    return Encoding(**{**given, **changes})


def make_cohort(clients: int, size: int, clip: float) -> list[Update]:
    rng = np.random.default_rng(size)
    return [
        Update(
            (rng.normal(0, clip / 2, size)).astype(np.float32),
            float(rng.integers(1, 101)),
            {"loss": float(rng.normal(0, 100)), "hits": float(rng.integers(0, 100)), "other": 1.0},
        )
        for _ in range(clients)
    ]


def encode_all(encoding: Encoding, cohort: list[Update]) -> Residues:
    return np.stack([encoding.encode(u, bytes([i])) for i, u in enumerate(cohort)])


def signed(residues: Residues) -> np.ndarray[Any, np.dtype[np.int64]]:
    return residues.view(f"i{residues.itemsize}").astype(np.int64)


@given(
    st.integers(1, 12),
    st.sampled_from([0, 1, 7, STEP - 1, STEP, STEP + 3]),
    st.sampled_from([1e-3, 1.0, 37.5]),
    st.sampled_from([16, 32]),
)
@settings(max_examples=40, deadline=None)
def test_the_sum_is_exact_and_within_a_quantum_a_client(
    clients: int, size: int, clip: float, bits: int
) -> None:
    encoding = Encoding.for_cohort(
        size=size, clip=clip, max_weight=100.0, clients=12, statistics=("loss", "hits"), bits=bits
    )
    cohort = make_cohort(clients, size, clip)
    rows = encode_all(encoding, cohort)
    total = encoding.decode(rows.sum(axis=0, dtype=encoding.dtype), clients)
    plain = signed(rows).sum(axis=0)
    assert np.array_equal(total.vector, plain[:size] * encoding.quantum)
    true = sum(
        (u.weight * np.clip(u.vector.astype(np.float64), -clip, clip) for u in cohort),
        start=np.zeros(size),
    )
    slack = 1 + 1e-9
    assert np.all(np.abs(total.vector - true) <= clients * encoding.quantum * slack)
    assert total.weight == sum(u.weight for u in cohort)
    assert total.clients == clients
    assert total.statistics[CLIPPED] == sum(
        int((abs(u.vector.astype(np.float64)) > clip).sum()) for u in cohort
    )
    quanta = dict(encoding.statistics)
    for name in ("loss", "hits"):
        error = total.statistics[name] - sum(u.statistics[name] for u in cohort)
        assert abs(error) <= clients * quanta[name]
    assert total.statistics["hits"] == sum(u.statistics["hits"] for u in cohort)
    assert "other" not in total.statistics


def test_numbers_by_hand() -> None:
    encoding = Encoding(2, 2.0, 4.0, 1, (("loss", 0.25),))
    update = Update(np.array([1.0, -9.0], np.float32), 4.0, {"loss": -1.5})
    residues = encoding.encode(update, bytes([0])).view(np.int32).tolist()
    # levels = 2**31 - 2: half of the bound is half of them, and -9 is clipped to all of them;
    # one client of weight up to 4 leaves 2**29 quanta to a unit, less the rounding to fit: 2**28.
    assert residues == [2**30 - 1, -(2**31 - 2), 4 * 2**28, 1, -6]
    total = encoding.decode(np.array(residues, np.int32).view(np.uint32), 1)
    assert total.vector.tolist() == [4.0, -8.0]
    assert (total.weight, total.statistics) == (4.0, {"loss": -1.5, CLIPPED: 1.0})


def test_rounding_has_no_bias() -> None:
    encoding = make_encoding(size=200_000, clients=1_000_0)
    value = np.float32(0.3 * encoding.clip / encoding.levels)  # 0.3 of a quantum
    update = Update(np.full(200_000, value), 100.0, {})
    levels = encoding.encode(update, bytes([1]))[:200_000].view(np.int32)
    assert set(levels.tolist()) == {0, 1}
    assert abs(levels.mean() - 0.3) < 6 * math.sqrt(0.21 / 200_000)


@pytest.mark.parametrize("bits", [16, 32])
def test_the_extremes_of_a_full_cohort_do_not_wrap(bits: int) -> None:
    for clients in (1, 3, 8, 1000):
        encoding = Encoding.for_cohort(
            size=2, clip=0.1, max_weight=7.0, clients=clients, statistics=("loss",), bits=bits
        )
        update = Update(np.array([1e30, -1e30], np.float32), 1e9, {"loss": 16 * 7.0})
        row = encoding.encode(update, bytes([0]))
        assert np.all(np.abs(signed(row)) * clients < 2 ** (bits - 1))
        total = encoding.decode(row * encoding.dtype.type(clients), clients)
        assert total.vector == pytest.approx([0.7 * clients, -0.7 * clients], rel=1e-6)
        assert len(row) == 2 + 3 * encoding.digits
        assert total.weight == 7.0 * clients
        assert total.statistics == {"loss": 112.0 * clients, CLIPPED: 2.0 * clients}


def test_sixteen_bits_are_half_as_much_and_count_as_exactly() -> None:
    wide, narrow = make_encoding(clients=100), make_encoding(clients=100, bits=16)
    assert (narrow.levels, wide.levels) == (326, 21_474_835)
    assert (narrow.digit, narrow.digits, wide.digits) == (8, 4, 1)
    assert narrow.weight_quantum == wide.weight_quantum
    assert make_encoding(size=10**6, clients=100, bits=16).length * 2 / 10**6 < 2.001


def test_a_cohort_that_leaves_too_few_levels_is_refused() -> None:
    assert make_encoding(clients=4095, bits=16).levels == 7
    with pytest.raises(CapacityError, match="4096 clients leave 6 levels") as caught:
        make_encoding(clients=4096, bits=16)
    assert "32-bit" in caught.value.hint


def test_a_session_that_only_evaluates_has_weight_zero() -> None:
    update = Update(np.zeros(4, np.float32), 0.0, {"loss": 3.0, "hits": 2.0})
    total = ENCODING.decode(ENCODING.encode(update, bytes([0])), 1)
    assert not total.vector.any()
    assert (total.weight, total.statistics["loss"]) == (0.0, 3.0)


def test_an_enormous_model_counts_its_clipped_elements_coarsely_and_never_to_zero() -> None:
    encoding = make_encoding(size=MAX_SIZE, clients=MAX_CLIENTS)
    assert encoding.clipped_quantum == 2048
    assert MAX_SIZE / encoding.clipped_quantum <= encoding.levels
    assert ENCODING.clipped_quantum == 1


@pytest.mark.parametrize(
    ("statistics", "reason"),
    [
        ({"loss": 1.0}, "lacks the statistic 'hits'"),
        ({"loss": 1e12, "hits": 1.0}, "may add at most"),
        ({"loss": -1e12, "hits": 1.0}, "may add at most"),
    ],
)
def test_statistics_that_do_not_fit_are_named(statistics: dict[str, float], reason: str) -> None:
    with pytest.raises(CapacityError, match=reason):
        ENCODING.encode(Update(np.ones(4, np.float32), 1.0, statistics), bytes([0]))


def test_nothing_that_is_no_number_is_ever_encoded() -> None:
    update = Update(np.full(4, np.nan, np.float32), 1.0, {"loss": 1.0, "hits": 1.0})
    with pytest.raises(UpdateRefusedError, match="4 of 4"):
        ENCODING.encode(update, bytes([0]))


@pytest.mark.parametrize(
    "changes",
    [
        {"size": -1},
        {"size": MAX_SIZE + 1},
        {"clients": 0},
        {"bits": 8},
        {"clients": MAX_CLIENTS + 1},
        {"clip": 0.0},
        {"clip": math.nan},
        {"clip": math.inf},
        {"max_weight": -1.0},
        {"statistics": (("a", 0.0),)},
        {"statistics": (("a", 1.0), ("a", 1.0))},
        {"statistics": ((CLIPPED, 1.0),)},
        {"statistics": (("", 1.0),)},
        {"statistics": (("a=b", 1.0),)},
        {"statistics": (("a;b", 1.0),)},
        {"statistics": tuple((str(n), 1.0) for n in range(65))},
    ],
    ids=str,
)
def test_an_impossible_encoding_is_not_made(changes: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=r"allowed|within|distinct|characters"):
        make_encoding(**changes)


def test_capacity_is_checked_before_anything_is_encoded() -> None:
    with pytest.raises(CapacityError, match=r"1000 clients of weight up to 3e\+06"):
        make_encoding(clients=1000, max_weight=3e6)


@pytest.mark.parametrize(
    ("total", "clients"),
    [
        (np.zeros(7, np.uint32), 1),
        (np.zeros(8, np.int32), 1),
        (np.zeros(8, np.uint32), 0),
        (np.zeros(8, np.uint32), 9),
        (np.array([0, 0, 0, 0, 2**31, 0, 0, 0], np.uint32), 8),  # a negative weight
        (np.array([0, 0, 0, 0, 2**30, 0, 0, 0], np.uint32), 1),  # more than one client's
    ],
    ids=str,
)
def test_what_is_no_sum_of_updates_is_refused(total: Any, clients: int) -> None:
    with pytest.raises(ProtocolError, match=r"expected|is no sum"):
        ENCODING.decode(total, clients)


@given(
    st.integers(0, MAX_SIZE),
    st.floats(1e-6, 1e6),
    st.floats(1e-3, 1e5),
    st.integers(1, MAX_CLIENTS),
    st.lists(
        st.text(st.characters(exclude_characters="=;"), min_size=1, max_size=64).filter(
            lambda name: name != CLIPPED
        ),
        max_size=4,
        unique=True,
    ),
)
@settings(max_examples=40)
def test_an_encoding_comes_back_from_its_fields(
    size: int, clip: float, max_weight: float, clients: int, names: list[str]
) -> None:
    encoding = Encoding.for_cohort(
        size=size, clip=clip, max_weight=max_weight, clients=clients, statistics=names
    )
    assert Encoding.from_fields(encoding.to_fields()) == encoding
    assert encoding.length == size + 2 + len(names)


FIELDS = ENCODING.to_fields()


@pytest.mark.parametrize(
    "fields",
    [
        {},
        {**FIELDS, "more": 1},
        {name: value for name, value in FIELDS.items() if name != "clip"},
        {**FIELDS, "size": True},
        {**FIELDS, "size": 4.0},
        {**FIELDS, "clip": 1},
        {**FIELDS, "clip": math.nan},
        {**FIELDS, "statistics": ["loss"]},
        {**FIELDS, "statistics": "loss"},
        {**FIELDS, "statistics": "loss=1=2"},
        {**FIELDS, "statistics": "loss=one"},
        {**FIELDS, "statistics": "loss=nan"},
        {**FIELDS, "clients": 0},
        {**FIELDS, "encoding": "skellam"},
        {**FIELDS, "bits": 24},
    ],
    ids=str,
)
def test_fields_that_are_no_encoding_are_refused(fields: dict[str, object]) -> None:
    with pytest.raises(ProtocolError, match="not an encoding"):
        Encoding.from_fields(fields)


def test_a_refused_encoding_says_that_it_is_the_capacity() -> None:
    with pytest.raises(CapacityError):
        Encoding.from_fields({**FIELDS, "max_weight": 1e12})
