"""The attack on Flower's masks has teeth: it lifts theirs, and finds nothing under ours."""

import base64

import numpy as np
import pytest
from flwr.common.secure_aggregation.secaggplus_utils import pseudo_rand_gen
from hypothesis import given
from hypothesis import strategies as st

from wildflower.strategies.attacks.flower_masks import (
    first_outputs,
    flower_mask,
    folded,
    search_seeds,
)
from wildflower.strategies.secagg import keys
from wildflower.strategies.secagg.masking import add_masks

MODULUS = 2**32
LARGEST = 2**22  # Flower's quantisation range
SPACE = range(2**16)
SIZE = 50


def update() -> np.ndarray[tuple[int], np.dtype[np.int64]]:
    return np.random.default_rng(1).integers(0, LARGEST, SIZE)


def narrow_key(seed: int) -> bytes:
    """Return a key as Flower's, 44 bytes, of which only 16 bits are left when it is folded."""
    rest = np.random.default_rng(seed).bytes(40)
    last = folded(rest) ^ seed
    return rest + last.to_bytes(4, "little")


@given(st.lists(st.integers(0, 2**32 - 1), min_size=1, max_size=5), st.integers(1, 226))
def test_first_outputs_are_those_of_the_twister(seeds: list[int], count: int) -> None:
    found = first_outputs(np.array(seeds, np.uint32), count)
    for seed, row in zip(seeds, found, strict=True):
        expected = np.random.RandomState(seed).randint(0, 2**32, count, dtype=np.uint32)
        assert np.array_equal(row, expected)


@given(st.binary(max_size=64).filter(lambda key: len(key) % 4 == 0), st.integers(4, 32))
def test_our_restatement_of_flowers_mask_is_flowers(key: bytes, bits: int) -> None:
    [expected] = pseudo_rand_gen(key, 2**bits, [(20,)])
    assert np.array_equal(flower_mask(key, 2**bits, 20), expected)


@given(st.binary(min_size=32, max_size=32))
def test_28_bits_are_left_of_a_key_that_is_base64(secret: bytes) -> None:
    assert folded(base64.urlsafe_b64encode(secret)) & 0x80808080 == 0


@pytest.mark.parametrize("sign", [1, -1])
@pytest.mark.parametrize("seed", [0, 1, 31_337, 65_535])
def test_flowers_masks_are_lifted_from_a_space_of_16_bits(seed: int, sign: int) -> None:
    key, plain = narrow_key(seed), update()
    [mask] = pseudo_rand_gen(key, MODULUS, [(SIZE,)])
    masked = (plain + sign * mask) % MODULUS
    found = search_seeds(masked, modulus=MODULUS, largest=LARGEST, seeds=SPACE, sign=sign)
    assert found == seed
    lifted = (masked - sign * np.random.RandomState(found).randint(0, MODULUS - 1, SIZE)) % MODULUS
    assert np.array_equal(lifted, plain)


def test_a_seed_outside_of_the_space_is_not_found() -> None:
    masked = (update() + flower_mask(narrow_key(70_000), MODULUS, SIZE)) % MODULUS
    assert search_seeds(masked, modulus=MODULUS, largest=LARGEST, seeds=SPACE) is None
    found = search_seeds(masked, modulus=MODULUS, largest=LARGEST, seeds=range(2**16, 2**17))
    assert found == 70_000


@pytest.mark.parametrize("sign", [1, -1])
def test_the_same_search_finds_nothing_under_a_mask_of_ours(sign: int) -> None:
    # the easiest case for the server: one pair of devices, all other masks known and taken off
    one, two = (bytes([number]) * 32 for number in (3, 4))
    key = keys.pair_mask_keys(one, bytes(32))(keys.public_key(two))
    masked = update().astype(np.uint32)
    add_masks(masked, [key] if sign > 0 else [], [] if sign > 0 else [key])
    found = search_seeds(
        masked.astype(np.int64), modulus=MODULUS, largest=LARGEST, seeds=SPACE, sign=sign
    )
    assert found is None
    add_masks(masked, [] if sign > 0 else [key], [key] if sign > 0 else [])
    assert np.array_equal(masked, update())


@pytest.mark.parametrize("modulus", [0, 1, 3, 2**32 - 1, 2**33])
def test_a_modulus_that_is_no_power_of_two_is_refused(modulus: int) -> None:
    with pytest.raises(ValueError, match="powers of two"):
        search_seeds(update(), modulus=modulus, largest=1, seeds=SPACE)


def test_a_key_that_cannot_be_folded_is_refused() -> None:
    with pytest.raises(ValueError, match="multiple of 4"):
        folded(b"abc")
