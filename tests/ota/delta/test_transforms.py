import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from wildflower.ota.delta.segments import Kind
from wildflower.ota.delta.transforms import apply, codes, from_planes, ordered, to_planes, unordered

COMPARED = [Kind.LITERAL, Kind.BYTES, Kind.FLOAT16, Kind.FLOAT32, Kind.INT32]


@pytest.mark.parametrize("kind", COMPARED)
@given(st.binary(min_size=0, max_size=160), st.randoms(use_true_random=False))
def test_any_new_bytes_come_back(kind: Kind, old: bytes, random: object) -> None:
    old = old[: len(old) // 4 * 4]
    new = bytes(random.randrange(256) for _ in old)  # type: ignore[attr-defined]
    found = codes(kind, memoryview(old), memoryview(new))
    assert np.array_equal(from_planes(kind, [*to_planes(found)]), found)
    assert apply(kind, memoryview(old), found) == new


@pytest.mark.parametrize("kind", [Kind.FLOAT32, Kind.FLOAT16])
def test_a_float_and_its_neighbour_differ_by_little(kind: Kind) -> None:
    dtype = "<f4" if kind is Kind.FLOAT32 else "<f2"
    old = np.array([1.0, -1.0, 0.0, 2.0, 60000.0], dtype)
    new = np.nextafter(old, np.array(np.inf, dtype))
    assert codes(kind, memoryview(old.tobytes()), memoryview(new.tobytes())).max() <= 4


def test_ordered_bits_are_in_the_order_of_their_floats() -> None:
    values = np.array([-np.inf, -2.0, -1e-40, -0.0, 0.0, 1e-40, 3.0, np.inf], np.float32)
    bits = ordered(values.view(np.uint32))
    assert np.array_equal(np.argsort(bits, kind="stable"), np.arange(len(values)))
    assert np.array_equal(unordered(bits), values.view(np.uint32))


@given(st.integers(0, 2**32 - 1), st.floats(1e-6, 1.0))
def test_whole_steps_come_back_bit_for_bit(seed: int, step: float) -> None:
    rng = np.random.default_rng(seed)
    old = rng.normal(size=64).astype(np.float32)
    counts = rng.integers(-127, 128, 64).astype(np.float32)
    step = float(np.float32(step))
    new = old + counts * np.float32(step)
    found = codes(Kind.STEP, memoryview(old.tobytes()), memoryview(new.tobytes()), step)
    assert apply(Kind.STEP, memoryview(old.tobytes()), found, step) == new.tobytes()


def test_what_is_no_whole_step_does_not_come_back() -> None:
    old, new = np.zeros(4, np.float32), np.array([0.4, np.nan, np.inf, 1e30], np.float32)
    found = codes(Kind.STEP, memoryview(old.tobytes()), memoryview(new.tobytes()), 1.0)
    assert apply(Kind.STEP, memoryview(old.tobytes()), found, 1.0) == (
        np.array([0.0, 0.0, 32767.0, 32767.0], np.float32).tobytes()
    )
