"""Models as values: flat and back, to a file and back, and whatever else claims to be one."""

import contextlib
import hashlib
import json
import math
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as npst

from wildflower.strategies.arrays import (
    DTYPES,
    MAX_ARRAYS,
    Entry,
    GlobalModel,
    Layout,
    Parameters,
    Update,
    from_safetensors,
    to_safetensors,
)
from wildflower.strategies.errors import LayoutError

SHAPES = npst.array_shapes(min_dims=0, max_dims=3, min_side=0, max_side=4)


def arrays(dtype: str) -> st.SearchStrategy[npt.NDArray[Any]]:
    """Return arrays whose numbers float32 holds."""
    if dtype.startswith("float"):
        elements: st.SearchStrategy[Any] = st.floats(width=16, allow_nan=False)
    else:
        elements = st.booleans() if dtype == "bool" else st.integers(0, 127)
    return npst.arrays(np.dtype(dtype), SHAPES, elements=elements)


MODELS = st.dictionaries(
    st.text(max_size=10), st.sampled_from(sorted(DTYPES)).flatmap(arrays), max_size=4
)


def same(left: Parameters, right: Parameters) -> bool:
    return set(left) == set(right) and all(
        left[name].dtype == right[name].dtype
        and left[name].shape == right[name].shape
        and np.array_equal(left[name], right[name])
        for name in left
    )


@given(MODELS)
@settings(max_examples=60)
def test_a_model_comes_back_from_its_vector(parameters: Parameters) -> None:
    layout = Layout.of(parameters)
    vector = layout.pack(parameters)
    assert vector.dtype == np.float32
    assert vector.shape == (layout.size,)
    assert same(layout.unpack(vector), parameters)
    assert list(layout.unpack(vector)) == sorted(parameters)


@given(MODELS)
@settings(max_examples=60)
def test_a_model_comes_back_from_its_file(parameters: Parameters) -> None:
    assert same(from_safetensors(to_safetensors(parameters)), parameters)


@given(MODELS)
@settings(max_examples=30)
def test_a_layout_comes_back_from_plain_lists(parameters: Parameters) -> None:
    layout = Layout.of(parameters)
    assert Layout.from_list(json.loads(json.dumps(layout.to_list()))) == layout


def test_the_order_of_the_vector_is_that_of_the_names() -> None:
    parameters = {"b": np.array([[3.0], [4.0]]), "a": np.array([1, 2], np.int64)}
    layout = Layout.of(parameters)
    assert layout.entries == (Entry("a", (2,), "int64"), Entry("b", (2, 1), "float64"))
    assert layout.pack(parameters).tolist() == [1, 2, 3, 4]


def test_averaged_integers_are_rounded() -> None:
    layout = Layout((Entry("steps", (3,), "int64"),))
    assert layout.unpack(np.array([1.4, 1.6, -0.6]))["steps"].tolist() == [1, 2, -1]


def test_a_counter_without_axes_stays_an_array() -> None:
    layout = Layout.of({"batches": np.array(3, np.int64)})  # as batch normalisation keeps one
    found = layout.unpack(np.array([3.4], np.float32))["batches"]
    assert isinstance(found, np.ndarray)
    assert found.shape == ()
    assert (str(found.dtype), int(found)) == ("int64", 3)


def test_equal_models_have_equal_files_and_names() -> None:
    grid = np.arange(6, dtype=np.float32).reshape(2, 3)
    left: Parameters = {"a": grid.T.copy(), "b": np.zeros((), np.int64)}
    right: Parameters = {
        "b": np.zeros((), np.int64),
        "a": grid.T,
    }  # other order, other memory layout
    assert to_safetensors(left) == to_safetensors(right)
    assert GlobalModel.of(left).digest == hashlib.sha256(to_safetensors(right)).hexdigest()


def test_one_changed_weight_is_another_model() -> None:
    left, right = np.zeros(4, np.float32), np.array([0, 0, 0, 1e-30], np.float32)
    assert GlobalModel.of({"a": left}).digest != GlobalModel.of({"a": right}).digest


def test_models_and_updates_do_not_print_their_numbers() -> None:
    model = GlobalModel.of({"secret-layer": np.full(3, 7.5)})
    assert "secret-layer" not in repr(model)
    assert "7.5" not in repr(Update(np.full(3, 7.5, np.float32), 1.0, {}))


LAYOUT = Layout.of({"a": np.zeros((2, 2)), "b": np.zeros(3)})


@pytest.mark.parametrize(
    "parameters",
    [
        {},
        {"a": np.zeros((2, 2))},
        {"a": np.zeros((2, 2)), "b": np.zeros(4)},
        {"a": np.zeros(4), "b": np.zeros(3)},
        {"a": np.zeros((2, 2)), "b": np.zeros(3), "c": np.zeros(1)},
    ],
    ids=["none", "one missing", "longer", "another shape", "one more"],
)
def test_arrays_of_another_model_are_refused(parameters: Parameters) -> None:
    with pytest.raises(LayoutError, match="arrays differ from the model's"):
        LAYOUT.pack(parameters)


@pytest.mark.parametrize("shape", [(6,), (8,), (7, 1), ()])
def test_a_vector_of_another_size_is_refused(shape: tuple[int, ...]) -> None:
    with pytest.raises(LayoutError, match="expected a vector of 7 elements"):
        LAYOUT.unpack(np.zeros(shape))


def test_arrays_that_cannot_be_averaged_are_refused() -> None:
    with pytest.raises(LayoutError, match=r"cannot be averaged: \['complex64', 'str32'\]") as error:
        Layout.of({"a": np.zeros(1, np.complex64), "b": np.array(["x"])})
    assert "float32" in error.value.hint


def test_a_model_of_too_many_arrays_is_refused() -> None:
    nothing = np.zeros(0)
    with pytest.raises(LayoutError, match="10001 arrays"):
        Layout.of({str(number): nothing for number in range(MAX_ARRAYS + 1)})
    with pytest.raises(LayoutError, match="10001 entries"):
        Layout.from_list([[f"{number:05d}", [], "int8"] for number in range(MAX_ARRAYS + 1)])


@pytest.mark.parametrize(
    "rows",
    [
        None,
        7,
        "abc",
        [7],
        [["a", [1]]],
        [["a", [1], "float32", 4]],
        [["a", 3, "float32"]],
        [["a", [-1], "float32"]],
        [["a", [1.0], "float32"]],
        [["a", [math.inf], "float32"]],
        [["a", ["1"], "float32"]],
        [["a", [True], "float32"]],
        [["a", [1], "complex64"]],
        [["a", [1], ["float32"]]],
        [[1, [1], "float32"]],
        [["b", [1], "float32"], ["a", [1], "float32"]],
        [["a", [1], "float32"], ["a", [1], "float32"]],
    ],
    ids=repr,
)
def test_what_is_no_layout_is_refused(rows: Any) -> None:
    with pytest.raises(LayoutError, match="not a layout"):
        Layout.from_list(rows)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=3), inner),
    max_leaves=12,
)


@given(JSON)
@settings(max_examples=150)
def test_arbitrary_json_is_a_layout_or_refused(rows: Any) -> None:
    try:
        layout = Layout.from_list(rows)
    except LayoutError:
        return
    assert Layout.from_list(layout.to_list()) == layout


FILE = to_safetensors({"a": np.arange(4, dtype=np.float32), "b": np.zeros((), np.int64)})


@given(st.integers(0, len(FILE) - 1), st.integers(0, 255))
@settings(max_examples=200)
def test_a_damaged_file_is_refused_or_another_model(place: int, byte: int) -> None:
    data = FILE[:place] + bytes([byte]) + FILE[place + 1 :]
    try:
        parameters = from_safetensors(data)
    except LayoutError:
        return
    assert all(isinstance(array, np.ndarray) for array in parameters.values())


@given(st.binary(max_size=80))
@settings(max_examples=100)
def test_arbitrary_bytes_are_no_model(data: bytes) -> None:
    with contextlib.suppress(LayoutError):
        assert from_safetensors(data) == {}  # the shortest file has a header of "{}"


def test_every_truncation_is_refused() -> None:
    for length in range(len(FILE)):
        with pytest.raises(LayoutError, match="not a safetensors model"):
            from_safetensors(FILE[:length])


def test_numbers_that_numpy_lacks_are_refused() -> None:
    header = json.dumps({"a": {"dtype": "BF16", "shape": [1], "data_offsets": [0, 2]}}).encode()
    with pytest.raises(LayoutError, match="not a safetensors model"):
        from_safetensors(len(header).to_bytes(8, "little") + header + bytes(2))
