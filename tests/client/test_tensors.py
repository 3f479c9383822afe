"""Arrays from other programs: what is taken, and that nothing else is."""

import io
import json
import pickle

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from wildflower.client.errors import RequestError
from wildflower.client.tensors import MAX_ROWS, Question, from_json, from_npy, read_object, to_npy

SHAPES = hnp.array_shapes(max_dims=4, max_side=4)
NUMBERS = st.floats(-(2.0**100), 2.0**100, width=32)


def header(shape: object, kind: str = "<f4", version: bytes = b"\x01\x00", body: int = 0) -> bytes:
    """Return `.npy` bytes with a header that says anything."""
    text = repr({"descr": kind, "fortran_order": False, "shape": shape}).encode() + b"\n"
    return b"\x93NUMPY" + version + len(text).to_bytes(2, "little") + text + bytes(body)


@given(hnp.arrays(np.float32, SHAPES, elements=NUMBERS))
def test_what_a_program_sends_arrives(array: np.ndarray) -> None:
    for sent in (array, np.asfortranarray(array)):
        assert np.array_equal(from_npy(to_npy(sent)).inputs, array)
    found = from_json(json.dumps({"inputs": array.tolist()}).encode())
    assert np.array_equal(found.inputs, array)
    assert found.inputs.dtype == np.float32
    assert found.labels is None


@pytest.mark.parametrize("kind", ["<f8", ">f4", "<i8", "|u1", "|b1", "<f2"])
def test_numbers_of_any_kind_become_float32(kind: str) -> None:
    found = from_npy(to_npy(np.ones((2, 3), kind)))
    assert found.inputs.dtype == np.float32
    assert found.inputs.tolist() == [[1, 1, 1]] * 2


def test_numpy_s_own_files_are_read() -> None:
    buffer = io.BytesIO()
    np.save(buffer, np.eye(3))
    assert np.array_equal(from_npy(buffer.getvalue()).inputs, np.eye(3))


@pytest.mark.parametrize(
    ("data", "told"),
    [
        (b"", "not an array"),
        (b"\x93NUMPY\x03\x00", "not an array"),
        (header((2, 2), body=15), "found 15 bytes of numbers, the header says 16"),
        (header((2, 2), body=17), "found 17 bytes"),
        (header((10**9, 10**9)), "at most 65536 inputs"),
        (header((2, 10**18)), "found 0 bytes of numbers"),
        (header((0, 4)), "none empty"),
        (header((2, -1)), "none empty"),
        (header(()), "1 to 8 dimensions"),
        (header((1,) * 9, body=4), "1 to 8 dimensions"),
        (header((1,), "<c8", body=8), "expected numbers, found complex64"),
        (header((1,), "|O", body=8), "expected numbers, found object"),
        (header((1,), "<U1", body=4), "expected numbers"),
        (header((1,), "|V0"), "expected numbers"),
        (header("x"), "not an array"),
        (header((MAX_ROWS + 1,), body=4 * (MAX_ROWS + 1)), "at most 65536 inputs"),
        (to_npy(np.array([np.inf])), "not finite"),
        (to_npy(np.array([1e300])), "not finite"),
        (pickle.dumps(np.ones(3)), "not an array"),
    ],
)
def test_what_is_no_array_is_refused_with_a_sentence(data: bytes, told: str) -> None:
    with pytest.raises(RequestError, match=told):
        from_npy(data)


@pytest.mark.parametrize(
    ("document", "told"),
    [
        ([], "expected an object, found list"),
        ({}, "found no inputs"),
        ({"input": [1]}, "unknown key 'input'"),
        ({"inputs": [[1], [1, 2]]}, "not rows of one shape"),
        ({"inputs": "abc"}, "expected numbers"),
        ({"inputs": [None]}, "expected numbers"),
        ({"inputs": [[10**400]]}, "expected numbers|not rows"),
        ({"inputs": []}, "none empty"),
        ({"inputs": 1}, "1 to 8 dimensions"),
        ({"inputs": [[1]], "labels": [1, 2]}, "2 labels for 1 inputs"),
        ({"inputs": [[1]], "labels": [1.5]}, "whole numbers"),
        ({"inputs": [[1]], "labels": [True]}, "whole numbers"),
        ({"inputs": [[1]], "labels": 1}, "whole numbers"),
    ],
)
def test_a_document_that_is_no_question_is_refused(document: object, told: str) -> None:
    with pytest.raises(RequestError, match=told):
        from_json(json.dumps(document).encode())


def test_labels_come_with_the_inputs() -> None:
    found = from_json(b'{"inputs": [[1], [2]], "labels": [-1, 3]}')
    assert found.labels == [-1, 3]


JSONS = st.recursive(
    st.none() | st.booleans() | st.floats() | st.text(max_size=5) | st.integers(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=5), inner),
    max_leaves=20,
)


@given(
    st.one_of(
        st.binary(max_size=200),
        st.binary(max_size=100).map(lambda end: b"\x93NUMPY\x01\x00" + end),
        st.binary(max_size=100).map(lambda end: header((1, 2))[:-3] + end),
        JSONS.map(lambda found: json.dumps({"inputs": found}).encode()),
        JSONS.map(lambda found: json.dumps(found).encode()),
        st.just(b"[" * 100_000),
        st.just(b'{"inputs":' + b"[" * 50_000),
    )
)
def test_whatever_comes_is_a_question_or_refused(data: bytes) -> None:
    for read in (from_npy, from_json):
        try:
            found = read(data)
        except RequestError:
            continue
        assert isinstance(found, Question)
        assert found.inputs.dtype == np.float32
        assert np.isfinite(found.inputs).all()
        assert found.inputs.size > 0


def test_only_known_keys_are_read() -> None:
    assert read_object(b'{"a": 1}', allowed=("a", "b")) == {"a": 1}
