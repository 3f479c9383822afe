"""From two files to a delta: the server's side.

Elements of one kind form one stream through all segments, cut into pieces; every plane of a piece
gets the codec that writes it shortest. Tables of the coded planes are chosen together, at the end.
"""

import hashlib
from collections import defaultdict, deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Final

import numpy as np

from wildflower.ota.delta import bsdiff
from wildflower.ota.delta.codec import Codec, Coding, pack, sparse
from wildflower.ota.delta.decode import decode
from wildflower.ota.delta.format import (
    MAX_SEGMENTS,
    MAX_TABLES,
    PIECE,
    Body,
    Header,
    Method,
    Piece,
    demands,
)
from wildflower.ota.delta.fp32 import steps_between
from wildflower.ota.delta.rans import MAX_LANES, Symbols, Table, encode
from wildflower.ota.delta.segments import Kind, Region, Segment, align
from wildflower.ota.delta.tables import cluster, counts_of, entropy
from wildflower.ota.delta.transforms import Codes, apply, codes, to_planes
from wildflower.ota.errors import DeltaError

MIN_PIECE: Final = 1 << 11  # elements; naming a piece costs what fewer of them do
SHARE: Final = 64.0  # bits that a block is charged for its table, which others use too
NOISE: Final = 7.95  # bits in eight from which a plane is not worth a table
MIN_PACKED: Final = 64  # bytes below which bz2 and lzma are longer than what they pack
SAMPLE: Final = 1 << 14  # bytes
SLACK: Final = 1.25  # a sample is packed worse than the whole
LANE_BYTES: Final = 64  # coded bytes per lane, of whose four of state about two are lost
LANE_SYMBOLS: Final = 2048  # symbols per lane at most: each is a step of the decoder


@dataclass(frozen=True, slots=True)
class _Plane:
    """One plane of a piece: how it is written, and what is written.

    Attributes:
        coding: The way, without the numbers of its tables.
        blocks: What goes into the coded stream, one for each table.
        chunk: What goes among the chunks.
    """

    coding: Coding
    blocks: tuple[Symbols, ...] = ()
    chunk: bytes = b""


def diff(
    base: bytes,
    target: bytes,
    base_regions: Sequence[Region] = (),
    target_regions: Sequence[Region] = (),
) -> bytes:
    """Return the shortest delta there is, decoded once to be sure of it.

    Args:
        base: The old file.
        target: The new file.
        base_regions: The old file's tensors; none if its format is not known.
        target_regions: The new file's tensors.

    Raises:
        DeltaError: It does not give the new file; a fault of this package.
    """
    old, new = memoryview(base), memoryview(target)
    steps = steps_between(base, target, base_regions, target_regions)
    segments = align(old, new, base_regions, target_regions, steps)
    found = [from_segments(old, new, segments)] if len(segments) <= MAX_SEGMENTS else []
    if not target_regions or not found:
        found.append(_header(Method.BSDIFF, old, new).to_bytes() + bsdiff.patch(base, target))
    shortest = min(found, key=len)
    made = bytearray()
    digest = hashlib.sha256(target).hexdigest()
    decode(old, memoryview(shortest), made.extend, target=digest, size=len(target))
    if made != target:
        raise DeltaError("the delta does not give the new file")
    return shortest


def from_segments(base: memoryview, target: memoryview, segments: Sequence[Segment]) -> bytes:
    """Return the delta of some segments, which cover the new file."""
    checked = tuple(_checked(base, target, segments))
    ready = {kind: deque(_pieces(kind, stream)) for kind, stream in _streams(base, target, checked)}
    ordered: list[tuple[_Plane, ...]] = []
    counts: list[int] = []
    asked = demands(checked)
    kind = next(asked, (None, 0))[0]
    while kind is not None:
        count, planes = ready[kind].popleft()
        ordered.append(planes)
        counts.append(count)
        try:
            kind, _ = asked.send(count)
        except StopIteration:
            break
    return _written(_header(Method.SEGMENTS, base, target), checked, counts, ordered)


def _written(
    header: Header,
    segments: tuple[Segment, ...],
    counts: Sequence[int],
    ordered: Sequence[tuple[_Plane, ...]],
) -> bytes:
    blocks = [block for planes in ordered for plane in planes for block in plane.blocks]
    tables, table_of = cluster([counts_of(block) for block in blocks], MAX_TABLES)
    numbers = iter(table_of)
    pieces = tuple(
        Piece(count, tuple(_numbered(plane, numbers) for plane in planes))
        for count, planes in zip(counts, ordered, strict=True)
    )
    coded_blocks = [(block, tables[number]) for block, number in zip(blocks, table_of, strict=True)]
    lanes = _lanes(coded_blocks)
    coded = encode(coded_blocks, lanes)
    chunks = b"".join(plane.chunk for planes in ordered for plane in planes)
    body = Body(lanes, tuple(tables), segments, pieces, len(coded))
    return header.to_bytes() + body.to_bytes() + coded + chunks


def _lanes(blocks: Sequence[tuple[Symbols, Table]]) -> int:
    """Return how many lanes a stream can afford, a power of two."""
    size = sum(float(table.bits[block].sum()) for block, table in blocks) / 8
    wanted = max(size / LANE_BYTES, sum(len(block) for block, _ in blocks) / LANE_SYMBOLS, 1.0)
    return min(MAX_LANES, 1 << int(wanted).bit_length() - 1)


def _numbered(plane: _Plane, numbers: Iterator[int]) -> Coding:
    return replace(plane.coding, tables=tuple(next(numbers) for _ in plane.blocks))


def _header(method: Method, base: memoryview, target: memoryview) -> Header:
    before, after = (hashlib.sha256(one).digest() for one in (base, target))
    return Header(method, before, after, len(base), len(target))


def _checked(
    base: memoryview, target: memoryview, segments: Sequence[Segment]
) -> Iterator[Segment]:
    """Yield the segments; where steps do not give the new bytes exactly, compare as floats."""
    at = 0
    for one in segments:
        old = base[one.source : one.source + one.length]
        new = target[at : at + one.length]
        at += one.length
        is_exact = one.kind is not Kind.STEP or new == apply(
            one.kind, old, codes(one.kind, old, new, one.step), one.step
        )
        yield one if is_exact else replace(one, kind=Kind.FLOAT32, step=0.0)


def _streams(
    base: memoryview, target: memoryview, segments: Sequence[Segment]
) -> Iterator[tuple[Kind, list[Codes]]]:
    """Yield each kind that occurs, and the codes of its segments."""
    found: defaultdict[Kind, list[Codes]] = defaultdict(list)
    at = 0
    for one in segments:
        old = base[one.source : one.source + one.length]
        new = target[at : at + one.length]
        found[one.kind].append(codes(one.kind, old, new, one.step))
        at += one.length
    yield from found.items()


def _pieces(kind: Kind, stream: Sequence[Codes]) -> Iterator[tuple[int, tuple[_Plane, ...]]]:
    """Yield the pieces of one kind's stream: how many elements, and their planes."""
    for one in _cut(stream, PIECE // kind.width):
        yield len(one), tuple(_best(plane) for plane in to_planes(one))


def _cut(stream: Sequence[Codes], most: int) -> Iterator[Codes]:
    """Yield the elements in pieces that end, where they may, with a tensor that is not tiny."""
    small: list[Codes] = []
    for one in stream:
        small.append(one)
        if sum(map(len, small)) < MIN_PIECE:
            continue
        joined = np.concatenate(small)
        small = []
        for begin in range(0, len(joined), most):
            yield joined[begin : begin + most]
    if small:
        yield np.concatenate(small)


def _best(plane: Symbols) -> _Plane:
    """Return the shortest way of writing a plane."""
    if not plane.any():
        return _Plane(Coding(Codec.ZERO))
    ways = [(8.0 * len(plane), _Plane(Coding(Codec.RAW), chunk=plane.tobytes()))]
    if float(entropy(counts_of(plane))) > NOISE * len(plane):
        return ways[0][1]
    gaps, changes = sparse(plane)
    ways.append((_bits(gaps, changes), _Plane(Coding(Codec.SPARSE, len(gaps)), (gaps, changes))))
    ways.append((_bits(plane), _Plane(Coding(Codec.DENSE), (plane,))))
    for codec in (Codec.BZ2, Codec.LZMA):
        if _is_promising(codec, plane):
            chunk = pack(codec, plane.tobytes())
            ways.append((8.0 * len(chunk), _Plane(Coding(codec, len(chunk)), chunk=chunk)))
    return min(ways, key=lambda way: way[0])[1]


def _is_promising(codec: Codec, plane: Symbols) -> bool:
    """Whether packing could pay, judged by a sample: on dense changes it takes all the time."""
    sample = plane[:SAMPLE]
    if len(sample) < MIN_PACKED:
        return False
    least = min(_bits(*sparse(sample)), _bits(sample))
    return 8 * len(pack(codec, sample.tobytes())) < SLACK * least


def _bits(*blocks: Symbols) -> float:
    """Return what blocks cost in the coded stream: themselves, tables, and lanes for the steps."""
    symbols = sum(map(len, blocks))
    least = sum(float(entropy(counts_of(block))) for block in blocks)
    return least + SHARE * len(blocks) + 32 * symbols / LANE_SYMBOLS
