"""The bytes of a delta. Nothing in them is trusted: what counts is the digest of the result.

    "WFDELTA1" | method | digest of base | digest of target | sizes | body

    SEGMENTS body: lanes | tables | segments | pieces | coded length | coded stream | chunks
    BSDIFF body:   a patch in the form of Colin Percival's bsdiff 4

Numbers are LEB128 in their shortest form, so a header has one byte form:

    parse(data) == (header, rest)  implies  header.to_bytes() + rest == data

Every count is bounded before anything of that size is made, and the sizes of both files come from
the caller, who has them signed: a bomb is refused by its header.
"""

import math
import struct
from collections import Counter
from collections.abc import Generator, Iterator, Sequence
from dataclasses import dataclass
from enum import IntEnum, unique
from typing import Final, Self, TypeVar

from wildflower.ota.delta.codec import Codec, Coding
from wildflower.ota.delta.rans import MAX_LANES, MAX_WEIGHT, SYMBOLS, Table
from wildflower.ota.delta.segments import Kind, Segment
from wildflower.ota.errors import DeltaError

MAGIC: Final = b"WFDELTA1"
MAX_SIZE: Final = 1 << 40  # bytes of a file; a number beyond it is nonsense
MAX_SEGMENTS: Final = 1 << 16  # a model of a thousand tensors has about four thousand
MAX_PIECES: Final = 1 << 17
MAX_TABLES: Final = 32
PIECE: Final = 1 << 17  # bytes of the new file in one piece: what a decoder holds at a time

_VARINT_BYTES: Final = 6  # 42 bits, above MAX_SIZE
_FLOAT: Final = struct.Struct("<f")

Member = TypeVar("Member", bound=IntEnum)


@unique
class Method(IntEnum):
    """What the body is."""

    SEGMENTS = 0
    BSDIFF = 1


@dataclass(frozen=True, slots=True)
class Header:
    """What every delta says first.

    Attributes:
        method: What its body is.
        base: SHA-256 of the old file, 32 bytes.
        target: SHA-256 of the new file, 32 bytes.
        base_size: Bytes of the old file.
        target_size: Bytes of the new file.
    """

    method: Method
    base: bytes
    target: bytes
    base_size: int
    target_size: int

    def to_bytes(self) -> bytes:
        """Return the canonical bytes."""
        sizes = varint(self.base_size) + varint(self.target_size)
        return MAGIC + bytes([self.method]) + self.base + self.target + sizes

    @classmethod
    def parse(cls, data: memoryview) -> tuple[Self, memoryview]:
        """Return the header and what follows it.

        Raises:
            DeltaError: Not a delta of ours.
        """
        reader = Reader(data)
        if bytes(reader.bytes(len(MAGIC))) != MAGIC:
            raise DeltaError("not a delta, or one of a later form")
        method = reader.member(Method)
        base, target = bytes(reader.bytes(32)), bytes(reader.bytes(32))
        header = cls(method, base, target, reader.number(MAX_SIZE), reader.number(MAX_SIZE))
        return header, reader.rest()


@dataclass(frozen=True, slots=True)
class Piece:
    """Elements of one kind that are decoded together.

    Attributes:
        count: How many elements; they may belong to several segments.
        codings: How each of the kind's planes is written.
    """

    count: int
    codings: tuple[Coding, ...]


@dataclass(frozen=True, slots=True)
class Body:
    """What precedes the data of a delta of segments.

    Attributes:
        lanes: Of the coded stream, a power of two.
        tables: Of the coded stream.
        segments: What the new file consists of.
        pieces: In the order in which decoding the segments needs them: a piece is needed when a
            segment begins or goes on and its kind has no elements left.
        coded: Bytes of the coded stream; what follows it are the chunks.
    """

    lanes: int
    tables: tuple[Table, ...]
    segments: tuple[Segment, ...]
    pieces: tuple[Piece, ...]
    coded: int

    def to_bytes(self) -> bytes:
        """Return the canonical bytes."""
        out = bytearray(varint(self.lanes.bit_length() - 1))
        out += varint(len(self.tables))
        for table in self.tables:
            out += varint(len(table.runs))
            for length, weight in table.runs:
                out += varint(length) + varint(weight)
        out += varint(len(self.segments)) + _segment_bytes(self.segments)
        for piece in self.pieces:
            out += varint(piece.count - 1)
            for coding in piece.codings:
                out.append(coding.codec)
                out += varint(coding.size) if coding.codec.is_sized else b""
                out += bytes(coding.tables)
        return bytes(out + varint(self.coded))

    @classmethod
    def parse(cls, data: memoryview, header: Header) -> tuple[Self, memoryview]:
        """Return what precedes the data, and the data.

        Raises:
            DeltaError: Damaged, beyond the limits, or not a description of such files.
        """
        reader = Reader(data)
        lanes = 1 << reader.number(MAX_LANES.bit_length() - 1)
        tables = tuple(_table(reader) for _ in range(reader.number(MAX_TABLES)))
        segments = _segments(reader, header)
        pieces = _pieces(reader, segments)
        coded = reader.number(MAX_SIZE)
        return cls(lanes, tables, segments, pieces, coded), reader.rest()


class Reader:
    """Takes bounded numbers out of bytes."""

    def __init__(self, data: memoryview) -> None:
        self._data, self._at = data, 0

    def bytes(self, count: int) -> memoryview:
        """Return the next bytes.

        Raises:
            DeltaError: There are not so many.
        """
        found = self._data[self._at : self._at + count]
        if len(found) < count:
            raise DeltaError("the delta ends too early")
        self._at += count
        return found

    def number(self, limit: int) -> int:
        """Return the next number, in [0, limit].

        Raises:
            DeltaError: Too large, or not in its shortest form.
        """
        value = self._byte()
        if value > 127:  # most are not, and a delta has some thousands
            value = self._longer(value & 127)
        if value > limit:
            raise DeltaError(f"the delta says {value}, at most {limit} is allowed")
        return value

    def signed(self, limit: int) -> int:
        """Return the next number, in [-limit, limit].

        Raises:
            DeltaError: Too large.
        """
        value = self.number(2 * limit)
        return (value >> 1) ^ -(value & 1)

    def member(self, of: type[Member]) -> Member:
        """Return the next member of an enum.

        Raises:
            DeltaError: It has none of that number.
        """
        byte = self._byte()
        try:
            return of(byte)
        except ValueError:
            raise DeltaError(f"the delta names {of.__name__.lower()} {byte}") from None

    def rest(self) -> memoryview:
        """Return what has not been read."""
        return self._data[self._at :]

    def _byte(self) -> int:
        try:
            byte = self._data[self._at]
        except IndexError:
            raise DeltaError("the delta ends too early") from None
        self._at += 1
        return byte

    def _longer(self, value: int) -> int:
        """Return the number that begins with these seven bits."""
        for index in range(1, _VARINT_BYTES):
            byte = self._byte()
            value |= (byte & 127) << (7 * index)
            if byte == 0:
                raise DeltaError("a number of the delta is not in its shortest form")
            if byte < 128:
                return value
        raise DeltaError("a number of the delta is too long")


def varint(value: int) -> bytes:
    """Return a number in [0, 2**42) as LEB128.

    Example:
        >>> varint(300).hex()
        'ac02'
    """
    out = bytearray()
    while value > 127:
        out.append(value & 127 | 128)
        value >>= 7
    return bytes([*out, value])


def demands(segments: Sequence[Segment]) -> Generator[tuple[Kind, int], int, None]:
    """Yield what the next piece must be: its kind, and how many elements of it are still needed.

    To be sent the number of elements of that piece, in [1, needed]. Who writes, who parses and who
    decodes a delta walk through its pieces in this one order.
    """
    needed = Counter[Kind]()
    for segment in segments:
        needed[segment.kind] += segment.length // segment.kind.width
    left = Counter[Kind]()
    for segment in segments:
        kind, missing = segment.kind, segment.length // segment.kind.width
        while missing > left[kind]:
            missing -= left[kind]
            left[kind] = yield kind, needed[kind]
            needed[kind] -= left[kind]
        left[kind] -= missing


def _table(reader: Reader) -> Table:
    runs = tuple(
        (reader.number(SYMBOLS), reader.number(MAX_WEIGHT)) for _ in range(reader.number(SYMBOLS))
    )
    table = Table(runs)
    table.check()
    return table


def _segment_bytes(segments: Sequence[Segment]) -> bytes:
    out = bytearray()
    expected = 0
    for one in segments:
        out.append(one.kind)
        out += varint(one.length // one.kind.width)
        if one.kind is Kind.LITERAL:
            continue
        moved = one.source - expected
        out += varint(2 * moved if moved >= 0 else -2 * moved - 1)
        out += _FLOAT.pack(one.step) if one.kind is Kind.STEP else b""
        expected = one.source + one.length
    return bytes(out)


def _segments(reader: Reader, header: Header) -> tuple[Segment, ...]:
    """Read segments that cover the new file and lie in the old one."""
    segments = []
    left, expected = header.target_size, 0
    for _ in range(reader.number(MAX_SEGMENTS)):
        kind = reader.member(Kind)
        length = reader.number(left // kind.width) * kind.width
        source, step = 0, 0.0
        if kind is not Kind.LITERAL:
            source = expected + reader.signed(header.base_size)
            step = _step(reader) if kind is Kind.STEP else 0.0
            expected = source + length
            if source < 0 or expected > header.base_size:
                raise DeltaError("a segment lies outside of the old file")
        left -= length
        segments.append(Segment(kind, source, length, step))
    if left:
        raise DeltaError(f"the segments of the delta leave {left} bytes of the new file open")
    return tuple(segments)


def _step(reader: Reader) -> float:
    (step,) = _FLOAT.unpack(reader.bytes(_FLOAT.size))
    if not (math.isfinite(step) and step > 0):
        raise DeltaError(f"a step of {step} is none")
    return float(step)


def _pieces(reader: Reader, segments: Sequence[Segment]) -> tuple[Piece, ...]:
    pieces: list[Piece] = []
    asked = demands(segments)
    try:
        kind, needed = next(asked)
        while len(pieces) < MAX_PIECES:
            count = 1 + reader.number(min(needed, PIECE // kind.width) - 1)
            pieces.append(Piece(count, tuple(_codings(reader, kind, count))))
            kind, needed = asked.send(count)
    except StopIteration:
        return tuple(pieces)
    raise DeltaError(f"more than {MAX_PIECES} pieces")


def _codings(reader: Reader, kind: Kind, count: int) -> Iterator[Coding]:
    for _ in range(kind.planes):
        codec = reader.member(Codec)
        limit = count if codec is Codec.SPARSE else 2 * PIECE
        size = reader.number(limit) if codec.is_sized else 0
        yield Coding(codec, size, tuple(reader.bytes(codec.tables)))
