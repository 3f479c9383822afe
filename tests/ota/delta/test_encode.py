import hashlib

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from wildflower.ota.delta import encode
from wildflower.ota.delta.codec import Codec
from wildflower.ota.delta.decode import decode
from wildflower.ota.delta.encode import diff, from_segments
from wildflower.ota.delta.format import PIECE, Body, Header, Method
from wildflower.ota.delta.segments import Kind, Region, Segment
from wildflower.ota.errors import DeltaError

RNG = np.random.default_rng(0)


def parsed(delta: bytes) -> tuple[Header, Body]:
    header, rest = Header.parse(memoryview(delta))
    return header, Body.parse(rest, header)[0]


def codecs(delta: bytes) -> list[Codec]:
    return [coding.codec for piece in parsed(delta)[1].pieces for coding in piece.codings]


def whole(data: np.ndarray, kind: Kind) -> list[Region]:
    return [Region("w", 0, data.nbytes, kind)]


def of_arrays(old: np.ndarray, new: np.ndarray, kind: Kind) -> bytes:
    return diff(old.tobytes(), new.tobytes(), whole(old, kind), whole(new, kind))


@settings(deadline=None, max_examples=60)
@given(st.data())
def test_any_file_comes_back_from_any_segments(data: st.DataObject) -> None:
    old = data.draw(st.binary(max_size=200))
    kinds = st.sampled_from([Kind.LITERAL, Kind.BYTES, Kind.FLOAT16, Kind.FLOAT32, Kind.INT32])
    segments = []
    for kind in data.draw(st.lists(kinds, max_size=6)):
        count = data.draw(st.integers(0, len(old) // kind.width))
        source = data.draw(st.integers(0, len(old) - count * kind.width))
        segments.append(Segment(kind, source, count * kind.width))
    size = sum(one.length for one in segments)
    new = data.draw(st.binary(min_size=size, max_size=size))
    delta = from_segments(memoryview(old), memoryview(new), segments)
    made = bytearray()
    digest = hashlib.sha256(new).hexdigest()
    decode(memoryview(old), memoryview(delta), made.extend, target=digest, size=size)
    assert made == new


def test_two_files_of_an_unknown_format_differ_by_the_shorter_of_both_methods() -> None:
    old = RNG.bytes(20_000)
    moved = diff(old, old[9000:] + old[:9000])
    assert parsed_method(moved) is Method.BSDIFF
    assert len(moved) < 400
    changed = diff(old, old[:9000] + b"x" + old[9001:])
    assert parsed_method(changed) is Method.SEGMENTS


def parsed_method(delta: bytes) -> Method:
    return Header.parse(memoryview(delta))[0].method


@pytest.mark.parametrize(
    ("rate", "codec"), [(0.0, Codec.ZERO), (0.01, Codec.SPARSE), (0.9, Codec.DENSE)]
)
def test_the_rate_of_changes_decides_the_codec(rate: float, codec: Codec) -> None:
    old = RNG.integers(0, 256, 50_000).astype(np.uint8)
    change = (RNG.random(50_000) < rate) * RNG.choice([1, 255, 2], 50_000)
    assert codecs(of_arrays(old, (old + change).astype(np.uint8), Kind.BYTES)) == [codec]


def test_noise_is_left_as_it_is_and_structure_is_not() -> None:
    old = RNG.normal(size=20_000).astype(np.float32)
    new = old * np.float32(1.01)
    assert codecs(of_arrays(old, new, Kind.FLOAT32)) == [
        Codec.RAW, Codec.RAW, Codec.DENSE, Codec.ZERO,
    ]  # fmt: skip


def test_patterns_are_packed() -> None:
    old = np.zeros(50_000, np.uint8)
    new = np.tile(np.arange(100, dtype=np.uint8), 500)
    assert codecs(of_arrays(old, new, Kind.BYTES))[0] in (Codec.LZMA, Codec.BZ2)


def test_a_sparse_delta_is_near_the_entropy_of_its_changes() -> None:
    old = RNG.integers(0, 256, 1_000_000).astype(np.uint8)
    change = (RNG.random(1_000_000) < 0.004) * RNG.choice([1, 255], 1_000_000)
    delta = of_arrays(old, (old + change).astype(np.uint8), Kind.BYTES)
    rate = (change != 0).mean()
    bits = -rate * np.log2(rate / 2) - (1 - rate) * np.log2(1 - rate)
    assert len(delta) < 1.08 * 1_000_000 * bits / 8


def test_tensors_larger_than_a_piece_are_cut() -> None:
    old = np.zeros(2 * PIECE + 5, np.uint8)
    _, body = parsed(of_arrays(old, old + np.uint8(1), Kind.BYTES))
    assert [piece.count for piece in body.pieces] == [PIECE, PIECE, 5]


def test_small_tensors_share_a_piece() -> None:
    old = RNG.normal(size=400).astype(np.float32)
    there = [Region(f"s{at}", 160 * at, 80, Kind.FLOAT32) for at in range(10)]
    delta = diff(old.tobytes(), (old * np.float32(1.1)).tobytes(), there, there)
    _, body = parsed(delta)
    assert [piece.count for piece in body.pieces if len(piece.codings) == 4] == [200]


def test_whole_steps_are_coded_as_steps_and_others_as_floats() -> None:
    old = RNG.normal(size=4000).astype(np.float32)
    step = np.float32(2.0**-10)
    exact = old + RNG.integers(-3, 4, 4000).astype(np.float32) * step
    both = np.concatenate([exact, old + np.float32(0.00033)])
    there = [
        Region("exact", 0, 16_000, Kind.FLOAT32),
        Region("other", 16_000, 16_000, Kind.FLOAT32),
    ]
    delta = diff(np.concatenate([old, old]).tobytes(), both.tobytes(), there, there)
    _, body = parsed(delta)
    assert [(one.kind, one.step) for one in body.segments] == [
        (Kind.STEP, float(step)),
        (Kind.FLOAT32, 0.0),
    ]


def test_steps_that_do_not_give_the_new_bytes_are_compared_as_floats() -> None:
    old, new = (RNG.normal(size=40).astype(np.float32).tobytes() for _ in range(2))
    delta = from_segments(memoryview(old), memoryview(new), [Segment(Kind.STEP, 0, 160, 0.5)])
    _, body = parsed(delta)
    assert [(one.kind, one.step) for one in body.segments] == [(Kind.FLOAT32, 0.0)]


def test_an_empty_file_is_a_delta_too() -> None:
    assert parsed_method(diff(b"old", b"")) is Method.SEGMENTS


def test_too_many_segments_fall_back_to_a_patch(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(encode, "MAX_SEGMENTS", 0)
    old = np.arange(100, dtype=np.uint8)
    assert parsed_method(of_arrays(old, old + np.uint8(1), Kind.BYTES)) is Method.BSDIFF


def test_a_delta_that_does_not_decode_is_never_returned(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(encode, "decode", lambda *_, **__: None)
    with pytest.raises(DeltaError, match="does not give"):
        diff(b"old", b"new")
