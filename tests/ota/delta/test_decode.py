"""What a device does with a delta, good or bad; `test_encode.py` holds the laws of both halves."""

import hashlib
import subprocess
import sys
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from wildflower.ota.delta import bsdiff
from wildflower.ota.delta.decode import decode
from wildflower.ota.delta.encode import diff
from wildflower.ota.delta.format import Body, Header, Method
from wildflower.ota.delta.segments import Kind, Region
from wildflower.ota.errors import DeltaError

RNG = np.random.default_rng(0)
FLOATS = RNG.normal(size=3000).astype(np.float32)
BYTES = RNG.integers(0, 256, 9000).astype(np.uint8)
OLD = FLOATS.tobytes() + b"between" + BYTES.tobytes()
NEW = (
    (FLOATS * np.float32(1.001)).tobytes()
    + b"in the middle"
    + (BYTES + (RNG.random(9000) < 0.05)).astype(np.uint8).tobytes()
)


def regions(size: int) -> list[Region]:
    floats = Region("f", 0, FLOATS.nbytes, Kind.FLOAT32)
    return [floats, Region("b", size - BYTES.nbytes, BYTES.nbytes, Kind.BYTES)]


DELTA = diff(OLD, NEW, regions(len(OLD)), regions(len(NEW)))
PATCH = Header.parse(memoryview(DELTA))[0]
PATCHED = Header(
    Method.BSDIFF, PATCH.base, PATCH.target, PATCH.base_size, PATCH.target_size
).to_bytes() + bsdiff.patch(OLD, NEW)


GOLDEN = Path(__file__).parents[2] / "goldens" / "delta.hex"


def apply(
    delta: bytes, old: bytes = OLD, *, target: str | None = None, size: int = len(NEW)
) -> bytes:
    made = bytearray()
    digest = target or hashlib.sha256(NEW).hexdigest()
    decode(memoryview(old), memoryview(delta), made.extend, target=digest, size=size)
    return bytes(made)


@pytest.mark.parametrize("delta", [DELTA, PATCHED], ids=["segments", "bsdiff"])
def test_the_new_file_is_written(delta: bytes) -> None:
    assert apply(delta) == NEW


@pytest.mark.parametrize("delta", [DELTA, PATCHED], ids=["segments", "bsdiff"])
@pytest.mark.parametrize("old", [b"", OLD[:-1], OLD[:-1] + b"?", NEW])
def test_another_base_is_refused_before_anything_is_written(delta: bytes, old: bytes) -> None:
    made: list[bytes] = []
    with pytest.raises(DeltaError, match="the delta is from") as caught:
        decode(
            memoryview(old), memoryview(delta), made.append,
            target=hashlib.sha256(NEW).hexdigest(), size=len(NEW),
        )  # fmt: skip
    assert made == []
    assert "whole" in caught.value.hint


def test_a_delta_for_another_release_is_refused() -> None:
    with pytest.raises(DeltaError, match="wanted is abababababab of"):
        apply(DELTA, target="ab" * 32)


def test_a_delta_for_a_file_of_another_size_is_refused_by_its_header() -> None:
    with pytest.raises(DeltaError, match="wanted is"):
        apply(DELTA, size=len(NEW) - 1)


def test_a_delta_that_gives_another_file_than_it_says_is_refused() -> None:
    header, rest = Header.parse(memoryview(DELTA))
    lying = Header(header.method, header.base, bytes(32), header.base_size, header.target_size)
    with pytest.raises(DeltaError, match="another file than it says"):
        apply(lying.to_bytes() + bytes(rest), target="00" * 32)


def test_a_coded_stream_longer_than_the_delta_is_refused() -> None:
    header, rest = Header.parse(memoryview(DELTA))
    body, data = Body.parse(rest, header)
    longer = Body(body.lanes, body.tables, body.segments, body.pieces, body.coded + len(data))
    with pytest.raises(DeltaError, match="the coded stream has"):
        apply(header.to_bytes() + longer.to_bytes() + bytes(data))


@pytest.mark.parametrize("delta", [DELTA, PATCHED], ids=["segments", "bsdiff"])
@settings(deadline=None)
@given(data=st.data())
def test_a_damaged_delta_gives_the_new_file_or_is_refused(
    delta: bytes, data: st.DataObject
) -> None:
    damaged = bytearray(delta)
    damaged[data.draw(st.integers(0, len(delta) - 1))] ^= data.draw(st.integers(1, 255))
    try:
        found = apply(bytes(damaged))
    except DeltaError:
        return
    assert found == NEW


@pytest.mark.parametrize("delta", [DELTA, PATCHED], ids=["segments", "bsdiff"])
@settings(deadline=None)
@given(st.integers(0, 10_000))
def test_a_delta_cut_short_is_refused(delta: bytes, length: int) -> None:
    with pytest.raises(DeltaError):
        apply(delta[: length % len(delta)])


@pytest.mark.parametrize("rate", [0.02, 0.9])
def test_memory_does_not_grow_with_the_files(rate: float) -> None:
    peaks = []
    for size in (500_000, 2_000_000):
        old = np.random.default_rng(1).integers(0, 256, size).astype(np.uint8)
        new = old + (np.random.default_rng(2).random(size) < rate).astype(np.uint8)
        there = [Region("w", 0, size, Kind.BYTES)]
        base = memoryview(old.tobytes())
        delta = memoryview(diff(old.tobytes(), new.tobytes(), there, there))
        digest = hashlib.sha256(new.tobytes()).hexdigest()
        tracemalloc.start()
        try:
            decode(base, delta, lambda _: None, target=digest, size=size)
            peaks.append(tracemalloc.get_traced_memory()[1])
        finally:
            tracemalloc.stop()
    assert peaks[1] < 1.1 * peaks[0]
    assert peaks[1] < 4 * 1024 * 1024


def test_a_device_needs_nothing_but_numpy_to_decode() -> None:
    code = (
        "import sys; import wildflower.ota.delta.decode; "
        "print(sorted({one.partition('.')[0] for one in sys.modules} "
        "& {'onnx', 'onnxruntime', 'torch', 'flwr', 'bsdiff4', 'cryptography', 'tuf'}))"
    )
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "[]"


def test_deltas_that_were_made_once_are_decoded_for_ever(update_goldens: bool) -> None:
    floats = (np.arange(4096) % 61).astype(np.float32)
    counts = (np.arange(4096) ** 2 % 7 - 3).astype(np.float32)
    old = np.arange(8192, dtype=np.uint8).tobytes() + floats.tobytes()
    changes = (np.arange(8192) % 97 == 0).astype(np.uint8)
    new = (
        (np.arange(8192, dtype=np.uint8) + changes).tobytes()
        + b"in between " * 9
        + (floats + counts * np.float32(0.25)).tobytes()
    )
    if update_goldens:
        before = [Region("b", 0, 8192, Kind.BYTES), Region("f", 8192, 16384, Kind.FLOAT32)]
        after = [before[0], Region("f", 8192 + 99, 16384, Kind.FLOAT32)]
        GOLDEN.write_text(diff(old, new, before, after).hex() + "\n")
    delta = bytes.fromhex(GOLDEN.read_text())
    digest = hashlib.sha256(new).hexdigest()
    assert apply(delta, old, target=digest, size=len(new)) == new
