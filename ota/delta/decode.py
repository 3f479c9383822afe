"""From the old file and a delta to the new file, piece by piece: what a device runs.

It knows bytes and no file format, holds a few pieces of 256 KiB whatever the sizes of the files
(both are meant to be mapped, not read), and writes in order. What it has written is the new file
exactly if it returns; if it raises, the caller throws away what was written.
"""

import hashlib
from collections import deque
from collections.abc import Callable, Iterator
from typing import Final

from wildflower.ota.delta import bsdiff
from wildflower.ota.delta.codec import Source
from wildflower.ota.delta.format import Body, Header, Method, Piece
from wildflower.ota.delta.rans import Decoder
from wildflower.ota.delta.segments import Kind, Segment
from wildflower.ota.delta.transforms import Codes, apply, from_planes
from wildflower.ota.errors import DeltaError

Write = Callable[[bytes], object]

HASHED: Final = 1 << 20  # bytes of the old file at a time


def decode(base: memoryview, delta: memoryview, write: Write, *, target: str, size: int) -> None:
    """Write the new file.

    Args:
        base: The old file.
        delta: The delta.
        write: Takes the new file's bytes in order.
        target: SHA-256 that the new file must have, in lower-case hex; as signed.
        size: Bytes that the new file must have; as signed.

    Raises:
        DeltaError: The delta is damaged, hostile, or for other files; what was written is not the
            new file.
    """
    header, body = Header.parse(delta)
    _check(header, base, target, size)
    seen = hashlib.sha256()
    parts = (
        bsdiff.parts(base, body, size)
        if header.method is Method.BSDIFF
        else _parts(base, body, header)
    )
    for part in parts:
        seen.update(part)
        write(part)
    if seen.digest() != header.target:
        raise DeltaError("the delta gives another file than it says")


def _check(header: Header, base: memoryview, target: str, size: int) -> None:
    """Refuse a delta for other files before anything is decoded."""
    if (header.target.hex(), header.target_size) != (target, size):
        raise DeltaError(
            f"the delta makes {header.target.hex()[:12]} of {header.target_size} bytes, wanted is "
            f"{target[:12]} of {size}",
        )
    found = hashlib.sha256()
    for begin in range(0, len(base), HASHED):
        found.update(base[begin : begin + HASHED])
    if (found.digest(), len(base)) != (header.base, header.base_size):
        raise DeltaError(
            f"the delta is from {header.base.hex()[:12]}, here is {found.hexdigest()[:12]}",
        )


def _parts(base: memoryview, data: memoryview, header: Header) -> Iterator[bytes]:
    """Yield the new file's parts."""
    body, rest = Body.parse(data, header)
    if len(rest) < body.coded:
        raise DeltaError(f"the coded stream has {len(rest)} of its {body.coded} bytes")
    source = Source(body.tables, Decoder(rest[: body.coded], body.lanes), rest[body.coded :])
    streams = _Streams(body.pieces, source)
    for segment in body.segments:
        yield from _of_segment(base, segment, streams)
    source.finish()


def _of_segment(base: memoryview, segment: Segment, streams: "_Streams") -> Iterator[bytes]:
    width, at, missing = segment.kind.width, segment.source, segment.length
    while missing:
        found = streams.take(segment.kind, missing // width)
        size = len(found) * width
        old = base[at : at + size]
        yield apply(segment.kind, old, found, segment.step)
        at, missing = at + size, missing - size


class _Streams:
    """The elements of each kind that have been decoded and not been used."""

    def __init__(self, pieces: tuple[Piece, ...], source: Source) -> None:
        self._pieces, self._source = deque(pieces), source
        self._left: dict[Kind, Codes] = {}

    def take(self, kind: Kind, wanted: int) -> Codes:
        """Return the next elements of a kind: as many as are wanted, or as the piece has left."""
        left = self._left.get(kind)
        if left is None or not left.size:
            piece = self._pieces.popleft()
            planes = [self._source.plane(coding, piece.count) for coding in piece.codings]
            left = from_planes(kind, planes)
        self._left[kind] = left[wanted:]
        return left[:wanted]
