import pytest
from hypothesis import given
from hypothesis import strategies as st

from wildflower.ota.delta import format as delta_format
from wildflower.ota.delta.codec import Codec, Coding
from wildflower.ota.delta.format import (
    MAX_SEGMENTS,
    MAX_SIZE,
    PIECE,
    Body,
    Header,
    Method,
    Piece,
    Reader,
    demands,
    varint,
)
from wildflower.ota.delta.rans import Table
from wildflower.ota.delta.segments import Kind, Segment
from wildflower.ota.errors import DeltaError

HEADER = Header(Method.SEGMENTS, b"b" * 32, b"t" * 32, 100, 60)
ZERO = Coding(Codec.ZERO)
SEGMENTS = (
    Segment(Kind.BYTES, 10, 12),
    Segment(Kind.LITERAL, 0, 8),
    Segment(Kind.STEP, 50, 16, 0.25),
    Segment(Kind.FLOAT32, 0, 24),
)
PIECES = (
    Piece(12, (Coding(Codec.SPARSE, 3, (1, 0)),)),
    Piece(8, (Coding(Codec.LZMA, 77),)),
    Piece(4, (Coding(Codec.DENSE, 0, (1,)), ZERO)),
    Piece(2, (ZERO, ZERO, Coding(Codec.RAW), ZERO)),
    Piece(4, (ZERO, ZERO, ZERO, ZERO)),
)
BODY = Body(64, (Table(((3, 9), (1, 70_000))), Table(((256, 1),))), SEGMENTS, PIECES, 1234)


def parse(data: bytes, header: Header = HEADER) -> tuple[Body, memoryview]:
    return Body.parse(memoryview(data), header)


def test_a_header_comes_back() -> None:
    found, rest = Header.parse(memoryview(HEADER.to_bytes() + b"rest"))
    assert (found, bytes(rest)) == (HEADER, b"rest")


def test_a_body_comes_back() -> None:
    found, rest = parse(BODY.to_bytes() + b"rest")
    assert (found, bytes(rest)) == (BODY, b"rest")


@pytest.mark.parametrize(
    ("data", "what"),
    [
        (b"", "ends too early"),
        (b"WFDELTA2" + bytes(80), "not a delta"),
        (HEADER.to_bytes()[:-1], "ends too early"),
        (b"WFDELTA1\x07" + bytes(80), "names method 7"),
    ],
)
def test_what_is_no_header_is_refused(data: bytes, what: str) -> None:
    with pytest.raises(DeltaError, match=what):
        Header.parse(memoryview(data))


def body(segments: bytes, pieces: bytes = b"") -> bytes:
    """A body of one lane and no tables."""
    return b"\0\0" + segments + pieces


LITERAL = b"\1\0" + varint(60)  # one segment, of 60 bytes
BAD: dict[str, tuple[bytes, str]] = {
    "too many lanes": (b"\x0e", "14, at most 13"),
    "too many tables": (b"\0\x21", "33, at most 32"),
    "a table of nothing": (b"\0\1\0", "table"),
    "too many segments": (body(varint(MAX_SEGMENTS + 1)), "at most 65536"),
    "no such kind": (body(b"\1\x09"), "names kind 9"),
    "a segment too long": (body(b"\1\0" + varint(61)), "61, at most 60"),
    "a hole": (body(b"\1\0" + varint(59)), "leave 1 bytes"),
    "before the old file": (body(b"\1\1" + varint(60) + b"\1"), "outside of the old file"),
    "behind the old file": (body(b"\1\1" + varint(60) + varint(82)), "outside of the old file"),
    "far outside": (body(b"\1\1" + varint(60) + varint(202)), "at most 200"),
    "no step": (body(b"\1\5" + varint(15) + b"\0" + bytes(4)), "step of 0.0"),
    "an infinite step": (body(b"\1\5" + varint(15) + b"\0\0\0\x80\x7f"), "step of inf"),
    "no step at all": (body(b"\1\5" + varint(15) + b"\0\0"), "ends too early"),
    "a piece too large": (body(LITERAL, varint(60)), "60, at most 59"),
    "no such codec": (body(LITERAL, varint(59) + b"\x06"), "names codec 6"),
    "more gaps than elements": (body(LITERAL, varint(59) + b"\3\x3d"), "61, at most 60"),
    "a chunk too large": (body(LITERAL, varint(59) + b"\4" + varint(2 * PIECE + 1)), "at most"),
    "a stream too long": (body(LITERAL, varint(59) + b"\0" + varint(MAX_SIZE + 1)), "at most"),
    "a long zero": (body(LITERAL, b"\xbb\x80\x00"), "shortest form"),
    "an endless number": (body(b"\xff" * 9), "too long"),
}


@pytest.mark.parametrize("name", BAD)
def test_what_is_no_body_is_refused(name: str) -> None:
    data, what = BAD[name]
    with pytest.raises(DeltaError, match=what):
        parse(data)


def test_too_many_pieces_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(delta_format, "MAX_PIECES", 4)
    pieces = b"\0\0" * 60  # of one element each, nothing but zeros
    with pytest.raises(DeltaError, match="more than 4 pieces"):
        parse(body(LITERAL, pieces))


@given(st.binary(max_size=120))
def test_any_bytes_are_a_body_or_refused(data: bytes) -> None:
    try:
        found, rest = parse(data)
    except DeltaError:
        return
    assert found.to_bytes() + bytes(rest) == data


@given(st.integers(0, 200), st.integers(1, 255))
def test_a_damaged_body_is_read_as_it_stands_or_refused(at: int, flip: int) -> None:
    data = bytearray(BODY.to_bytes())
    data[at % len(data)] ^= flip
    try:
        found, rest = parse(bytes(data))
    except DeltaError:
        return
    assert found.to_bytes() + bytes(rest) == bytes(data)


@given(st.integers(0, MAX_SIZE))
def test_a_number_comes_back(value: int) -> None:
    assert Reader(memoryview(varint(value))).number(MAX_SIZE) == value


def test_pieces_are_demanded_when_their_kind_has_no_elements_left() -> None:
    asked = demands(
        (Segment(Kind.BYTES, 0, 5), Segment(Kind.INT32, 0, 8), Segment(Kind.BYTES, 9, 5))
    )
    assert next(asked) == (Kind.BYTES, 10)
    assert asked.send(7) == (Kind.INT32, 2)
    assert asked.send(2) == (Kind.BYTES, 3)
    with pytest.raises(StopIteration):
        asked.send(3)
