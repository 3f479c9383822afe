"""fp32 releases that are the one before and coded steps."""

import hashlib

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from onnx import helper, numpy_helper

from wildflower.ota.delta import fp32, onnx_segments
from wildflower.ota.delta.decode import decode
from wildflower.ota.delta.encode import diff
from wildflower.ota.delta.fp32 import coded
from wildflower.ota.delta.segments import Kind, Region
from wildflower.ota.errors import DeltaError


def model(weights: np.ndarray, bias: np.ndarray) -> bytes:
    tensors = [numpy_helper.from_array(weights, "w"), numpy_helper.from_array(bias, "b")]
    tensors.append(numpy_helper.from_array(np.arange(9), "shape"))
    graph = helper.make_graph([], "graph", [], [], initializer=tensors)
    return helper.make_model(graph).SerializeToString()


def weights(seed: int) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=(300, 40)).astype(np.float32)


def update(seed: int, size: float = 1e-3) -> np.ndarray:
    return np.random.default_rng(seed).normal(0, size, (300, 40)).astype(np.float32)


def released(previous: bytes, master: bytes, share: float = fp32.SHARE) -> bytes:
    found = onnx_segments.regions(previous), onnx_segments.regions(master)
    return fp32.coded_release(previous, master, *found, share=share)


def ready(data: bytes) -> bytes:
    return fp32.ready(data, onnx_segments.regions(data))


def steps(old: bytes, new: bytes) -> dict[str, float]:
    return fp32.steps_between(old, new, onnx_segments.regions(old), onnx_segments.regions(new))


def delta(old: bytes, new: bytes) -> bytes:
    """Return the delta, decoded and compared."""
    found = diff(old, new, onnx_segments.regions(old), onnx_segments.regions(new))
    made = bytearray()
    digest = hashlib.sha256(new).hexdigest()
    decode(memoryview(old), memoryview(found), made.extend, target=digest, size=len(new))
    assert made == new
    return found


def value(data: bytes) -> np.ndarray:
    (region,) = (one for one in onnx_segments.regions(data) if one.name == "w")
    return np.frombuffer(data, "<f4", region.length // 4, region.offset).reshape(300, 40)


BIAS = np.zeros(3, np.float32)  # smaller than a region: it goes out as it is
BEFORE, AFTER = model(weights(0), BIAS), model(weights(0) + update(1), BIAS + 1)


def test_a_device_makes_the_release_bit_for_bit_from_a_tenth_of_its_bytes() -> None:
    data = released(BEFORE, AFTER)
    assert len(delta(BEFORE, data)) < 0.105 * len(data)


def test_tensors_are_within_half_a_step_of_the_master() -> None:
    data = released(BEFORE, AFTER)
    found = steps(BEFORE, data)
    assert found == {"w": 2.0**-10}
    assert np.abs(value(data) - value(AFTER)).max() <= 0.51 * found["w"]
    assert data[-60:] == AFTER[-60:]


def test_rounding_is_made_good_by_the_next_releases() -> None:
    last, master = BEFORE, weights(0)
    for seed in range(2, 8):
        master = master + update(seed)
        before, last = last, released(last, model(master, BIAS))
        assert np.abs(value(last) - master).max() <= 0.51 * steps(before, last)["w"]


def test_deltas_from_the_last_three_releases_are_whole_steps_too() -> None:
    line, master = [ready(BEFORE)], weights(0)
    for seed in range(2, 6):
        master = master + update(seed, 1e-3 * 1.5**seed)
        line.append(released(line[-1], model(master, BIAS)))
    for back in (2, 3, 4):
        found = steps(line[-back], line[-1])
        assert found.keys() == {"w"}
        assert len(delta(line[-back], line[-1])) < 0.2 * len(line[-1])


def test_sums_are_exact_only_from_a_release_made_ready() -> None:
    own = np.array([1e-5, 1.1e-5, 1.2e-5, 1.0, 1.1, 1.2], np.float32) / 3
    there = [Region("w", 0, own.nbytes, Kind.FLOAT32)]
    step, back = np.float32(2.0**-10), np.array([-1, -1, -1, 1, 1, 1], np.float32)
    for first in (own, np.frombuffer(fp32.ready(own.tobytes(), there), np.float32)):
        third = ((first + step) + back * step).tobytes()
        is_ready = first is not own
        assert (fp32.steps_between(first.tobytes(), third, there, there) != {}) is is_ready


def test_a_release_made_ready_is_as_good_as_its_own() -> None:
    made = value(ready(BEFORE))
    assert np.abs(made - weights(0)).max() <= 2.0**-22 * np.abs(weights(0)).max()
    assert ready(ready(BEFORE)) == ready(BEFORE)
    assert ready(BEFORE) != BEFORE


def test_no_step_is_finer_than_the_grid() -> None:
    base = ready(BEFORE)
    data = released(base, model(value(base) + update(1, 1e-9), BIAS))
    assert value(data).tobytes() == value(base).tobytes()


@pytest.mark.parametrize("odd", [np.zeros(9), np.full(9, np.inf), np.full(9, 1e-40)])
def test_a_tensor_without_a_grid_stays_as_it_is(odd: np.ndarray) -> None:
    data = odd.astype("<f4").tobytes()
    regions = [Region("w", 0, 36, Kind.FLOAT32)]
    assert fp32.ready(data, regions) == data
    assert fp32.steps_between(data, data, regions, regions) == {}


def test_a_tensor_too_small_to_name_stays_as_it_is() -> None:
    data = np.array([1 / 3], np.float32).tobytes()
    assert fp32.ready(data, [Region("w", 0, 4, Kind.FLOAT32)]) == data


@given(st.integers(0, 10_000), st.floats(0.1, 3.0), st.floats(1e-7, 1e3))
def test_the_step_between_two_releases_is_found(seed: int, share: float, size: float) -> None:
    rng = np.random.default_rng(seed)
    before = rng.normal(size=50).astype(np.float32)
    after = before + (size * rng.normal(size=50)).astype(np.float32)
    found = coded(before, after, share)
    if found is None or np.array_equal(found[0], before):
        return
    regions = [Region("w", 0, 200, Kind.FLOAT32)]
    (told,) = fp32.steps_between(before.tobytes(), found[0].tobytes(), regions, regions).values()
    codes = np.rint((found[0].astype(np.float64) - before) / told)
    assert np.array_equal(before + codes.astype(np.float32) * np.float32(told), found[0])
    assert told >= found[1]


def test_a_jump_beyond_the_largest_code_is_caught_up_in_time() -> None:
    value, wanted = np.zeros(9, np.float32), np.linspace(1, 2, 9).astype(np.float32)
    errors = []
    for _ in range(3):
        found = coded(value, wanted, share=2e-5)
        assert found is not None
        value = found[0]
        errors.append(float(np.abs(value - wanted).max()))
    assert 2 > errors[0] > errors[1] > errors[2]


@pytest.mark.parametrize(
    "after",
    [BEFORE, model(weights(0)[:, :20], BIAS), model(weights(0).astype(np.float16), BIAS)],
    ids=["nothing changed", "another shape", "another type"],
)
def test_where_steps_are_of_no_use_the_release_is_refused(after: bytes) -> None:
    with pytest.raises(DeltaError, match="share no tensor"):
        released(BEFORE, after)


@pytest.mark.parametrize("bad", [np.nan, np.inf, 3e38])
def test_a_tensor_that_is_not_finite_is_not_coded(bad: float) -> None:
    before, after = np.zeros(9, np.float32), np.full(9, bad, np.float32)
    found = coded(before, after, 0.5)
    assert found is None


def test_a_difference_that_is_no_number_has_no_step() -> None:
    before, after = np.zeros(9, np.float32).tobytes(), np.full(9, np.nan, np.float32).tobytes()
    regions = [Region("w", 0, 36, Kind.FLOAT32)]
    assert fp32.steps_between(before, after, regions, regions) == {}
