"""CKKS: only for who says what is wrong with it, and approximate."""

import numpy as np
import pytest

from wildflower.strategies.he.ckks import (
    I_UNDERSTAND,
    SLOTS,
    ApproximateWarning,
    CkksKeys,
    make_keys,
)


def made(*, symmetric: bool = True) -> CkksKeys:
    with pytest.warns(ApproximateWarning, match="IND-CPA-D"):
        return make_keys(i_understand=I_UNDERSTAND, symmetric=symmetric)


@pytest.mark.parametrize("said", ["", "yes", I_UNDERSTAND.upper()])
def test_without_the_sentence_there_are_no_keys(said: str) -> None:
    with pytest.raises(ValueError, match=r"gives the secret key away .* To use it all the same"):
        make_keys(i_understand=said)


@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize("size", [0, 1, SLOTS, SLOTS + 1])
def test_sums_are_about_right(size: int, symmetric: bool) -> None:
    keys = made(symmetric=symmetric)
    rng = np.random.default_rng(size)
    rows = [rng.normal(0, 1, size).astype(np.float32) for _ in range(3)]
    total = keys.decrypt(keys.add(*map(keys.encrypt, rows)), size)
    assert total == pytest.approx(np.sum(rows, axis=0, dtype=np.float64), abs=2**-20)


def test_a_sum_of_another_size_is_refused() -> None:
    keys = made()
    with pytest.raises(ValueError, match="hold 3 elements, expected 4"):
        keys.decrypt(keys.encrypt(np.zeros(3, np.float32)), 4)


def test_decrypting_twice_shows_the_error_that_gives_the_key_away() -> None:
    keys = made()
    vector = np.ones(SLOTS, np.float32)
    one, two = (keys.decrypt(keys.encrypt(vector), SLOTS) for _ in range(2))
    assert not np.array_equal(one, vector)
    assert not np.array_equal(one, two)
