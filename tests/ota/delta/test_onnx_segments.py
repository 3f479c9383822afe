import numpy as np
import onnx
import pytest
from hypothesis import given
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper

from wildflower.ota.delta import onnx_segments
from wildflower.ota.delta.segments import Kind
from wildflower.ota.errors import FormatError

RNG = np.random.default_rng(0)
WEIGHTS = RNG.normal(size=(4, 8)).astype(np.float32)


def model(*tensors: onnx.TensorProto, nodes: tuple[onnx.NodeProto, ...] = ()) -> bytes:
    graph = helper.make_graph(nodes, "graph", [], [], initializer=tensors)
    return helper.make_model(graph).SerializeToString()


@pytest.mark.parametrize(
    ("values", "kind"),
    [
        (WEIGHTS, Kind.FLOAT32),
        (WEIGHTS.astype(np.float16), Kind.FLOAT16),
        (RNG.integers(-100, 100, 40).astype(np.int32), Kind.INT32),
        (RNG.integers(-100, 100, 40).astype(np.int8), Kind.BYTES),
        (RNG.integers(0, 200, 40).astype(np.uint8), Kind.BYTES),
        (RNG.integers(0, 200, 40), Kind.BYTES),
        (RNG.normal(size=9), Kind.BYTES),
    ],
    ids=lambda value: str(getattr(value, "dtype", value)),
)
def test_a_tensor_is_found_where_its_bytes_are(values: np.ndarray, kind: Kind) -> None:
    data = model(numpy_helper.from_array(np.ones(9), "first"), numpy_helper.from_array(values, "w"))
    first, region = onnx_segments.regions(data)
    assert (region.name, region.kind) == ("w", kind)
    assert data[region.offset : region.end] == values.tobytes()
    assert first.end < region.offset


def test_a_tensor_in_float_data_is_found() -> None:
    data = model(helper.make_tensor("s", TensorProto.FLOAT, [32], WEIGHTS.ravel()))
    (region,) = onnx_segments.regions(data)
    assert data[region.offset : region.end] == WEIGHTS.tobytes()
    assert region.kind is Kind.FLOAT32


def test_integers_of_varying_length_are_no_region() -> None:
    assert (
        onnx_segments.regions(model(helper.make_tensor("z", TensorProto.INT8, [4], [1, 2, 3, 4])))
        == ()
    )


def test_constants_and_the_tensors_of_branches_have_names_of_their_own() -> None:
    inner = helper.make_graph([], "inner", [], [], [numpy_helper.from_array(WEIGHTS, "w")])
    nodes = (
        helper.make_node("Constant", [], ["c"], value=numpy_helper.from_array(WEIGHTS, "w")),
        helper.make_node("If", ["p"], [], then_branch=inner, else_branch=inner),
    )
    found = onnx_segments.regions(model(numpy_helper.from_array(WEIGHTS, "w"), nodes=nodes))
    assert len(found) == 4
    assert len({one.name for one in found}) == 4


def test_graphs_too_deep_in_each_other_are_refused() -> None:
    graph = helper.make_graph([], "leaf", [], [])
    for _ in range(onnx_segments.MAX_DEPTH + 2):
        graph = helper.make_graph(
            [helper.make_node("If", ["p"], [], then_branch=graph)], "g", [], []
        )
    with pytest.raises(FormatError, match="deep"):
        onnx_segments.regions(helper.make_model(graph).SerializeToString())


def test_half_an_element_is_refused() -> None:
    broken = onnx.TensorProto(name="w", data_type=TensorProto.FLOAT, raw_data=b"12345")
    with pytest.raises(FormatError, match="'w': 5 bytes"):
        onnx_segments.regions(model(broken))


@pytest.mark.parametrize(
    "data", [b"", b"ORTM", b"\x3a\xff\x01", b"\x0b", b"\x08" * 3, b"\xff" * 20]
)
def test_what_is_no_onnx_file_is_refused(data: bytes) -> None:
    with pytest.raises(FormatError, match="not an ONNX file"):
        onnx_segments.regions(data)


def test_fields_nobody_asked_for_are_passed_over() -> None:
    data = model(numpy_helper.from_array(WEIGHTS, "w"))
    before = onnx_segments.regions(data)
    strange = b"\xf9\x07" + bytes(8) + b"\xfd\x07" + bytes(4)  # field 127, of 8 and of 4 bytes
    assert onnx_segments.regions(data + strange) == before


@given(st.binary(max_size=200))
def test_any_bytes_are_read_or_refused(data: bytes) -> None:
    try:
        found = onnx_segments.regions(data)
    except FormatError:
        return
    assert all(0 <= one.offset <= one.end <= len(data) for one in found)


@given(st.integers(0, 10_000), st.integers(0, 255))
def test_a_damaged_file_is_read_or_refused(at: int, byte: int) -> None:
    data = bytearray(model(numpy_helper.from_array(WEIGHTS, "w"), numpy_helper.from_array(WEIGHTS)))
    data[at % len(data)] = byte
    try:
        found = onnx_segments.regions(bytes(data))
    except FormatError:
        return
    assert all(0 <= one.offset <= one.end <= len(data) for one in found)
