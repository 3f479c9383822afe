import hashlib

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from onnx import helper, numpy_helper

from wildflower.ota.delta import onnx_segments
from wildflower.ota.delta.decode import decode
from wildflower.ota.delta.encode import diff
from wildflower.ota.delta.fp32 import coded, coded_release
from wildflower.ota.errors import DeltaError


def model(weights: np.ndarray, bias: np.ndarray) -> bytes:
    tensors = [numpy_helper.from_array(weights, "w"), numpy_helper.from_array(bias, "b")]
    tensors.append(numpy_helper.from_array(np.arange(9), "shape"))
    graph = helper.make_graph([], "graph", [], [], initializer=tensors)
    return helper.make_model(graph).SerializeToString()


def weights(seed: int) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=(300, 40)).astype(np.float32)


def update(seed: int) -> np.ndarray:
    return np.random.default_rng(seed).normal(0, 1e-3, (300, 40)).astype(np.float32)


def released(previous: bytes, master: bytes) -> tuple[bytes, dict[str, float]]:
    found = coded_release(
        previous, master, onnx_segments.regions(previous), onnx_segments.regions(master)
    )
    return found.data, found.steps


def value(data: bytes) -> np.ndarray:
    (region,) = (one for one in onnx_segments.regions(data) if one.name == "w")
    return np.frombuffer(data, "<f4", region.length // 4, region.offset).reshape(300, 40)


BIAS = np.zeros(3, np.float32)  # smaller than a region: it goes out as it is
BEFORE, AFTER = model(weights(0), BIAS), model(weights(0) + update(1), BIAS + 1)


def test_a_device_makes_the_release_bit_for_bit_from_a_tenth_of_its_bytes() -> None:
    data, steps = released(BEFORE, AFTER)
    delta = diff(BEFORE, data, onnx_segments.regions(BEFORE), onnx_segments.regions(data), steps)
    made = bytearray()
    digest = hashlib.sha256(data).hexdigest()
    decode(memoryview(BEFORE), memoryview(delta), made.extend, target=digest, size=len(data))
    assert made == data
    assert len(delta) < 0.105 * len(data)


def test_tensors_are_within_half_a_step_of_the_master() -> None:
    data, steps = released(BEFORE, AFTER)
    assert set(steps) == {"w"}
    assert np.abs(value(data) - value(AFTER)).max() <= 0.51 * steps["w"]
    assert data[-60:] == AFTER[-60:]


def test_rounding_is_made_good_by_the_next_releases() -> None:
    last, master = BEFORE, weights(0)
    for seed in range(2, 8):
        master = master + update(seed)
        last, steps = released(last, model(master, BIAS))
        assert np.abs(value(last) - master).max() <= 0.51 * steps["w"]


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


@given(st.integers(0, 10_000), st.floats(0.1, 3.0), st.floats(1e-7, 1e3))
def test_codes_are_whole_steps(seed: int, share: float, size: float) -> None:
    rng = np.random.default_rng(seed)
    before = rng.normal(size=50).astype(np.float32)
    after = before + (size * rng.normal(size=50)).astype(np.float32)
    found = coded(before, after, share)
    if found is None:
        return
    values, step = found
    counts = np.rint((values.astype(np.float64) - before) / step).astype(np.float32)
    assert np.array_equal(before + counts * np.float32(step), values)
