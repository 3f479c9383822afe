"""Two residues to a slot: sums are exact up to 127 addends, nonsense is recognised."""

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from wildflower.strategies.errors import CapacityError, ProtocolError
from wildflower.strategies.he.packing import (
    LANE,
    MAX_ADDENDS,
    MAX_LENGTH,
    PER_CHUNK,
    PLAIN_MODULUS,
    SLOTS,
    chunks_of,
    pack,
    require_headroom,
    unpack,
)

LENGTHS = [0, 1, 2, SLOTS, SLOTS + 1, PER_CHUNK - 1, PER_CHUNK, PER_CHUNK + 1, 2 * PER_CHUNK + 7]


def test_the_modulus_is_a_prime_that_gives_every_coefficient_a_slot() -> None:
    odd = np.arange(3, int(PLAIN_MODULUS**0.5) + 1, 2, dtype=np.int64)
    assert PLAIN_MODULUS % 2
    assert (PLAIN_MODULUS % odd).all()
    assert PLAIN_MODULUS % (2 * SLOTS) == 1


@pytest.mark.parametrize("length", LENGTHS)
def test_the_extremes_of_127_devices_add_up_exactly(length: int) -> None:
    one = np.full(length, 0xFFFF, np.uint16)
    total = pack(one) * MAX_ADDENDS
    assert total.shape == (chunks_of(length), SLOTS)
    assert (total >= 0).all()
    assert (total < PLAIN_MODULUS // 2).all()
    assert unpack(total, length, MAX_ADDENDS).tolist() == [(0xFFFF * MAX_ADDENDS) % 2**16] * length


@settings(max_examples=50, deadline=None)
@given(st.integers(0, 2 * PER_CHUNK), st.integers(1, MAX_ADDENDS), st.integers(0, 2**32 - 1))
def test_sums_of_packed_residues_are_sums_of_residues(length: int, addends: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    rows = rng.integers(0, 2**16, (addends, length), dtype=np.uint16)
    total = sum((pack(row) for row in rows), np.zeros((chunks_of(length), SLOTS), np.int64))
    found = unpack(total, length, addends)
    assert found.dtype == np.uint16
    assert np.array_equal(found, rows.sum(axis=0, dtype=np.uint16))


def test_the_128th_addend_is_refused() -> None:
    require_headroom(MAX_ADDENDS)
    with pytest.raises(CapacityError, match="room for 127 devices, found 128"):
        require_headroom(128)
    with pytest.raises(CapacityError, match="found 128"):
        unpack(pack(np.zeros(1, np.uint16)), 1, 128)


@pytest.mark.parametrize(
    "slot",
    [
        -1,
        3 * 0xFFFF + 1,
        (3 * 0xFFFF + 1) << LANE,
        2**47,
    ],
)
def test_slots_that_three_devices_cannot_reach_are_refused(slot: int) -> None:
    slots = pack(np.zeros(PER_CHUNK, np.uint16))
    slots[0, 5] = slot
    with pytest.raises(ProtocolError, match="no sum of 3 updates"):
        unpack(slots, PER_CHUNK, 3)


def test_what_three_devices_can_reach_is_taken() -> None:
    slots = pack(np.zeros(PER_CHUNK, np.uint16))
    slots[0, 5] = (3 * 0xFFFF << LANE) + 3 * 0xFFFF
    assert unpack(slots, PER_CHUNK, 3)[[5, SLOTS + 5]].tolist() == [0xFFFD, 0xFFFD]


@pytest.mark.parametrize("at", [(0, 1), (0, SLOTS - 1)])
def test_slots_beyond_the_residues_must_be_empty(at: tuple[int, int]) -> None:
    slots = pack(np.zeros(1, np.uint16))
    slots[at] = 1
    with pytest.raises(ProtocolError, match="no sum"):
        unpack(slots, 1, 3)


@pytest.mark.parametrize("slots", [np.zeros((2, SLOTS), np.int64), np.zeros((1, SLOTS), np.int32)])
def test_slots_of_another_shape_are_refused(slots: Any) -> None:
    with pytest.raises(ProtocolError, match="expected 1 x 4096 slots"):
        unpack(slots, 1, 3)


@pytest.mark.parametrize("residues", [np.zeros(3, np.uint32), np.zeros((1, 3), np.uint16)])
def test_only_vectors_of_16_bit_residues_are_packed(residues: Any) -> None:
    with pytest.raises(ValueError, match="expected 16-bit residues"):
        pack(residues)


@pytest.mark.parametrize("length", [-1, MAX_LENGTH + 1])
def test_lengths_out_of_range_are_refused(length: int) -> None:
    with pytest.raises(ValueError, match="allowed are 0 to"):
        chunks_of(length)
