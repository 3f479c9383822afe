"""Tensors of TFLite files: of one that TensorFlow's converter wrote, and of some built by hand.

The former is `sine_float.tflite` of the package tflite-micro 0.dev20261023182759, Apache-2.0.
"""

import hashlib
from pathlib import Path

import flatbuffers  # type: ignore[import-untyped]  # ships no type information
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.flatbuffer_writer import table, vector

from wildflower.ota.delta import tflite_segments
from wildflower.ota.delta.decode import decode
from wildflower.ota.delta.encode import diff
from wildflower.ota.delta.segments import Kind
from wildflower.ota.delta.tensors import regions_of
from wildflower.ota.errors import FormatError

Tensor = tuple[str, int, int]
"""Name, type and buffer."""


def file(buffers: list[bytes | None], tensors: list[Tensor]) -> bytes:
    builder = flatbuffers.Builder()
    held = [
        table(builder, data=(0, builder.CreateByteVector(one)))
        if one is not None
        else table(builder)
        for one in buffers
    ]
    listed = vector(builder, held)
    told = []
    for name, kind, index in tensors:
        text = builder.CreateString(name)
        told.append(
            table(
                builder,
                type=(1, lambda slot, kind=kind: builder.PrependInt8Slot(slot, kind, 0)),
                buffer=(2, lambda slot, at=index: builder.PrependUint32Slot(slot, at, 0)),
                name=(3, text),
            )
        )
    graph = table(builder, tensors=(0, vector(builder, told)))
    graphs = vector(builder, [graph])
    model = table(builder, subgraphs=(2, graphs), buffers=(4, listed))
    builder.Finish(model, b"TFL3")
    return bytes(builder.Output())


SINE = (Path(__file__).parents[2] / "goldens" / "sine.tflite").read_bytes()


def test_the_tensors_of_a_real_file_are_found_where_their_bytes_are() -> None:
    found = tflite_segments.regions(SINE)
    assert [(one.name, one.length // 4) for one in found] == [
        ("0/sequential/dense_2/MatMul", 16),
        ("0/sequential/dense_1/MatMul", 16 * 16),
        ("0/sequential/dense/MatMul", 16),
        ("0/sequential/dense/BiasAdd/ReadVariableOp", 16),
        ("0/sequential/dense_2/BiasAdd/ReadVariableOp", 1),
        ("0/sequential/dense_1/BiasAdd/ReadVariableOp", 16),
    ]
    assert {one.kind for one in found} == {Kind.FLOAT32}
    x = np.full(1, np.pi / 2, np.float32)
    last, middle, first, shift, end, between = (
        np.frombuffer(SINE, "<f4", one.length // 4, one.offset) for one in found
    )
    hidden = np.maximum(first * x + shift, 0)
    hidden = np.maximum(middle.reshape(16, 16) @ hidden + between, 0)
    assert float(last @ hidden + end[0]) == pytest.approx(1, abs=0.1)


def test_two_rounds_of_a_real_file_make_a_delta_of_floats() -> None:
    data, rng = bytearray(SINE), np.random.default_rng(0)
    for one in tflite_segments.regions(SINE):
        values = np.frombuffer(SINE, "<f4", one.length // 4, one.offset)
        update = (1e-3 * rng.normal(size=values.shape)).astype(np.float32)
        data[one.offset : one.end] = (values + update).tobytes()
    after, made = bytes(data), bytearray()
    delta = diff(SINE, after, regions_of(SINE), regions_of(after))
    digest = hashlib.sha256(after).hexdigest()
    decode(memoryview(SINE), memoryview(delta), made.extend, target=digest, size=len(after))
    assert made == after
    assert len(delta) < len(diff(SINE, after)) < 0.4 * len(after)


FLOATS = np.random.default_rng(0).normal(size=20).astype(np.float32).tobytes()
FILE = file(
    [None, FLOATS, bytes(range(80)), FLOATS[:40]],
    [("input", 0, 0), ("w", 0, 1), ("q", 9, 2), ("tied", 9, 2), ("h", 1, 3), ("b", 2, 3)],
)


def test_tensors_are_found_where_their_bytes_are() -> None:
    found = {one.name: one for one in tflite_segments.regions(FILE)}
    assert {name: one.kind for name, one in found.items()} == {
        "0/w": Kind.FLOAT32,
        "0/tied": Kind.BYTES,
        "0/b": Kind.INT32,
    }
    assert FILE[found["0/w"].offset : found["0/w"].end] == FLOATS
    assert FILE[found["0/tied"].offset : found["0/tied"].end] == bytes(range(80))


@pytest.mark.parametrize(
    ("data", "what"),
    [
        (b"", "not a TFLite file"),
        (file([None], [("w", 0, 1)]), "no buffer 1"),
        (file([b"12345"], [("w", 0, 0)]), "5 bytes"),
        (b"\xff\xff\xff\x7fTFL3", "ends before"),
        (FILE.replace(b"tied", b"ti\xff\xff"), "not UTF-8"),
    ],
)
def test_what_is_no_tflite_file_is_refused(data: bytes, what: str) -> None:
    with pytest.raises(FormatError, match=what):
        tflite_segments.regions(data)


@given(st.integers(0, 10_000), st.binary(min_size=1, max_size=8))
def test_a_damaged_file_is_read_or_refused(at: int, damage: bytes) -> None:
    at %= len(FILE) - len(damage)
    data = FILE[:at] + damage + FILE[at + len(damage) :]
    try:
        found = tflite_segments.regions(data)
    except FormatError:
        return
    assert all(0 <= one.offset <= one.end <= len(data) for one in found)


def test_a_file_finds_its_own_reader() -> None:
    assert regions_of(FILE) == tflite_segments.regions(FILE)
    assert regions_of(b"some other file") == ()
    assert regions_of(b"\xff\xff\xff\x7fTFL3") == ()
