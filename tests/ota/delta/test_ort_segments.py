import hashlib

import numpy as np
import onnx
import pytest
from hypothesis import given
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper

from wildflower.ota.build.convert import to_ort
from wildflower.ota.delta import ort_segments
from wildflower.ota.delta.decode import decode
from wildflower.ota.delta.encode import diff
from wildflower.ota.delta.flatbuffer import Buffer
from wildflower.ota.delta.segments import Kind
from wildflower.ota.delta.tensors import regions_of
from wildflower.ota.errors import FormatError

WEIGHTS = np.random.default_rng(0).normal(size=(64, 32)).astype(np.float32)


def file(weights: np.ndarray) -> bytes:
    node = helper.make_node("MatMul", ["x", "w"], ["y"])
    ends = [
        helper.make_tensor_value_info(name, TensorProto.FLOAT, [1, width])
        for name, width in (("x", 64), ("y", 32))
    ]
    graph = helper.make_graph(
        [node], "g", ends[:1], ends[1:], [numpy_helper.from_array(weights, "w")]
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    return to_ort(model.SerializeToString())


FILE = file(WEIGHTS)


def test_a_tensor_of_a_real_file_is_found_where_its_bytes_are() -> None:
    (region,) = ort_segments.regions(FILE)
    assert (region.name, region.kind) == ("w", Kind.FLOAT32)
    assert FILE[region.offset : region.end] == WEIGHTS.tobytes()


def test_two_rounds_of_a_file_make_a_delta_of_floats() -> None:
    after = file(WEIGHTS * np.float32(1.001))
    delta = diff(FILE, after, regions_of(FILE), regions_of(after))
    made = bytearray()
    digest = hashlib.sha256(after).hexdigest()
    decode(memoryview(FILE), memoryview(delta), made.extend, target=digest, size=len(after))
    assert made == after
    assert len(delta) < 0.7 * len(after)


@pytest.mark.parametrize("data", [b"", b"ORTM", onnx.ModelProto(ir_version=8).SerializeToString()])
def test_what_is_no_ort_file_is_refused(data: bytes) -> None:
    with pytest.raises(FormatError, match="not an ORT file"):
        ort_segments.regions(data)


def changed(at: int, value: bytes) -> bytes:
    return FILE[:at] + value + FILE[at + len(value) :]


def test_a_tensor_without_bytes_of_its_own_is_passed_over() -> None:
    buffer = Buffer(FILE)
    (tensor,) = buffer.vector(buffer.child(buffer.child(buffer.follow(0), 1), 7), 0)
    assert ort_segments.regions(changed(buffer.vtable(tensor) + 4 + 2 * 4, bytes(2))) == ()


def test_half_an_element_is_refused() -> None:
    (region,) = ort_segments.regions(FILE)
    shorter = (region.length - 1).to_bytes(4, "little")
    with pytest.raises(FormatError, match="no whole elements"):
        ort_segments.regions(changed(region.offset - 4, shorter))


@given(st.integers(0, 10_000), st.binary(min_size=1, max_size=8))
def test_a_damaged_file_is_read_or_refused(at: int, damage: bytes) -> None:
    at %= len(FILE) - len(damage)
    data = FILE[:at] + damage + FILE[at + len(damage) :]
    try:
        found = ort_segments.regions(data)
    except FormatError:
        return
    assert all(0 <= one.offset <= one.end <= len(data) for one in found)


@given(st.integers(8, 5000))
def test_a_file_cut_short_is_read_or_refused(length: int) -> None:
    data = FILE[: length % len(FILE)]
    try:
        found = ort_segments.regions(data)
    except FormatError:
        return
    assert all(one.end <= len(data) for one in found)
