"""Colin Percival's bsdiff 4, the fallback for files whose format nobody here knows.

The patch is made by the package `bsdiff4`; it is applied here, because its own `patch` unpacks
whatever a patch says, all of it at once. The form: three bz2 streams behind a header that tells
their lengths; control triples say how many bytes to add to old ones, how many to take as they are,
and how far to move in the old file.
"""

import bz2
import struct
from collections.abc import Iterator
from typing import Final

import numpy as np

from wildflower.ota.errors import DeltaError

_HEADER: Final = struct.Struct("<8sqqq")
_TRIPLE: Final = struct.Struct("<QQQ")
_SIGN: Final = 1 << 63
SPARE: Final = 64  # triples, for files of a few bytes
_PART: Final = 1 << 18  # bytes that are made at a time


def patch(base: bytes, target: bytes) -> bytes:
    """Return the patch; needs the memory of about seventeen old files."""
    import bsdiff4

    return bytes(bsdiff4.diff(base, target))


def parts(base: memoryview, data: memoryview, size: int) -> Iterator[bytes]:
    """Yield the parts of the new file.

    Args:
        base: The old file.
        data: The patch.
        size: Bytes of the new file.

    Raises:
        DeltaError: The patch is damaged, or makes a file of another size.
    """
    if len(data) < _HEADER.size:
        raise DeltaError("the patch ends too early")
    magic, control_size, added_size, announced = _HEADER.unpack_from(data)
    if magic != b"BSDIFF40" or min(control_size, added_size) < 0 or announced != size:
        raise DeltaError(f"not a patch for a file of {size} bytes")
    streams = data[_HEADER.size :]
    control = _Stream(streams[:control_size])
    added = _Stream(streams[control_size : control_size + added_size])
    literal = _Stream(streams[control_size + added_size :])
    made = at = 0
    for _ in range(
        2 * size + SPARE
    ):  # some triples only move, but a patch of those alone is a bomb
        if made == size:
            return
        add, take, move = map(_signed, _TRIPLE.unpack(control.read(_TRIPLE.size)))
        if min(add, take) < 0 or add + take > size - made:
            raise DeltaError("the patch makes more than the new file")
        if at < 0 or at + add > len(base):
            raise DeltaError("the patch reads outside of the old file")
        for begin, count in _portions(add):
            old = np.frombuffer(base[at + begin : at + begin + count], np.uint8)
            yield (old + np.frombuffer(added.read(count), np.uint8)).tobytes()
        for _, count in _portions(take):
            yield literal.read(count)
        made, at = made + add + take, at + add + move
    raise DeltaError("the patch makes less than the new file")


class _Stream:
    """Reads a bz2 stream in exact portions."""

    def __init__(self, data: memoryview) -> None:
        self._data, self._engine = data, bz2.BZ2Decompressor()

    def read(self, count: int) -> bytes:
        """Return exactly so many bytes."""
        found = bytearray()
        try:
            while len(found) < count:
                given = self._data[:_PART] if self._engine.needs_input else self._data[:0]
                if self._engine.eof or (not given and self._engine.needs_input):
                    raise DeltaError("the patch ends too early")
                found += self._engine.decompress(bytes(given), count - len(found))
                self._data = self._data[len(given) :]
        except (OSError, ValueError) as error:
            raise DeltaError(f"the patch is damaged: {error}") from error
        return bytes(found)


def _portions(total: int) -> Iterator[tuple[int, int]]:
    for begin in range(0, total, _PART):
        yield begin, min(_PART, total - begin)


def _signed(value: int) -> int:
    """Return a number that is stored as sign and magnitude."""
    return _SIGN - value if value & _SIGN else value
