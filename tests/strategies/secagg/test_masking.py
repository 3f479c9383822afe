"""Masks: the keystream is what the standard says, they cancel, and they hide."""

import numpy as np
import pytest
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from wildflower.strategies.keystream import CHUNK
from wildflower.strategies.secagg.masking import add_masks

KEY = bytes(range(32))
STEP = CHUNK // 4
SIZES = [0, 1, 3, STEP - 1, STEP, STEP + 1, 2 * STEP + 1, 4 * STEP + 5]


@pytest.mark.parametrize("width", [2, 4])
@pytest.mark.parametrize("size", SIZES)
def test_a_mask_is_the_keystream_of_counter_mode(size: int, width: int) -> None:
    counter = Cipher(algorithms.AES(KEY), modes.CTR(bytes(12) + b"\0\0\0\2")).encryptor()
    expected = np.frombuffer(counter.update(bytes(width * size)), f"<u{width}")
    residues = np.zeros(size, f"u{width}")
    add_masks(residues, [KEY], [])
    assert np.array_equal(residues, expected)


def test_the_zero_key_gives_the_known_keystream() -> None:
    # NIST GCM test case 14: key 0, IV 0, one zero block -> cea7403d4d606b6e074ec5d3baf39d18
    residues = np.zeros(4, np.uint32)
    add_masks(residues, [bytes(32)], [])
    assert residues.astype("<u4").tobytes().hex() == "cea7403d4d606b6e074ec5d3baf39d18"


@given(st.sampled_from(SIZES), st.lists(st.binary(min_size=32, max_size=32), max_size=4))
@settings(max_examples=15, deadline=None)
def test_what_was_added_can_be_taken_off(size: int, keys: list[bytes]) -> None:
    plain = np.random.default_rng(size).integers(0, 2**32, size, dtype=np.uint32)
    residues = plain.copy()
    add_masks(residues, keys, [KEY])
    add_masks(residues, [KEY], keys)
    assert np.array_equal(residues, plain)


@pytest.mark.parametrize("value", [0, 0xFFFFFFFF])
def test_a_masked_extreme_looks_uniform(value: int) -> None:
    residues = np.full(1 << 18, value, np.uint32)
    add_masks(residues, [KEY], [bytes(32)])
    counts = np.bincount(residues.view(np.uint8), minlength=256)
    assert stats.chisquare(counts).pvalue > 1e-9
    assert stats.kstest(residues[:50_000] / 2**32, "uniform").pvalue > 1e-9


def test_a_key_has_32_bytes() -> None:
    with pytest.raises(ValueError, match="found 16"):
        add_masks(np.zeros(1, np.uint32), [bytes(16)], [])
