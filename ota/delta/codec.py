"""How one plane of codes is written: whichever of six ways is the shortest.

| codec | for |
|---|---|
| ZERO | nothing differs |
| RAW | noise, such as the low bytes of fp32 |
| DENSE | most elements differ: each byte through rANS |
| SPARSE | few differ: gaps between them through rANS, then what they became |
| BZ2, LZMA | patterns and text, which a table of single bytes does not see |

Sparse is dense with the zeros taken out: as short for independent changes, and decoded in the
time of the changes, not of the elements. A gap of `ESCAPE` says that so many elements are equal
and that there is no change after them.
"""

import bz2
import lzma
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import IntEnum, unique
from typing import Any, Final

import numpy as np

from wildflower.ota.delta.rans import Decoder, Symbols, Table
from wildflower.ota.errors import DeltaError

ESCAPE: Final = 255
LEVEL: Final = 3  # of bz2: blocks of 300 kB hold a whole piece, a decoder needs 1.5 MiB
FILTERS: Final[Sequence[Mapping[str, Any]]] = (
    {"id": lzma.FILTER_LZMA2, "preset": 6, "lc": 0, "lp": 0, "pb": 0, "dict_size": 1 << 18},
)
"""Of lzma, named here and not in the delta: no delta can ask for a larger dictionary."""


@unique
class Codec(IntEnum):
    """The ways."""

    ZERO = 0
    RAW = 1
    DENSE = 2
    SPARSE = 3
    BZ2 = 4
    LZMA = 5

    @property
    def tables(self) -> int:
        """How many tables it uses."""
        return _TABLES.get(self, 0)

    @property
    def is_sized(self) -> bool:
        """Whether its size must be told."""
        return self in _SIZED


_TABLES: Final = {Codec.DENSE: 1, Codec.SPARSE: 2}
_SIZED: Final = frozenset({Codec.SPARSE, Codec.BZ2, Codec.LZMA})


@dataclass(frozen=True, slots=True)
class Coding:
    """How one plane of a piece is written.

    Attributes:
        codec: The way.
        size: Bytes of the chunk for BZ2 and LZMA, number of gaps for SPARSE, else 0.
        tables: Numbers of the tables used: of DENSE, or of the gaps and the changes of SPARSE.
    """

    codec: Codec
    size: int = 0
    tables: tuple[int, ...] = ()


class Source:
    """Takes planes out of a delta: coded symbols from one place, chunks from another."""

    def __init__(self, tables: Sequence[Table], coded: Decoder, chunks: memoryview) -> None:
        self._tables, self._coded, self._chunks = tables, coded, chunks
        self._at = 0

    def plane(self, coding: Coding, count: int) -> Symbols:
        """Return the next plane, shape (count,).

        Raises:
            DeltaError: What is there is not a plane of that size.
        """
        match coding.codec:
            case Codec.ZERO:
                return np.zeros(count, np.uint8)
            case Codec.RAW:
                return np.frombuffer(self._chunk(count), np.uint8)
            case Codec.DENSE:
                return self._coded.take(count, self._table(coding, 0))
            case Codec.SPARSE:
                return self._sparse(coding, count)
            case _:
                data = unpack(coding.codec, self._chunk(coding.size), count)
                return np.frombuffer(data, np.uint8)

    def finish(self) -> None:
        """Check that nothing is left.

        Raises:
            DeltaError: Something is.
        """
        self._coded.finish()
        if self._at != len(self._chunks):
            raise DeltaError(f"{len(self._chunks) - self._at} bytes of the delta are left over")

    def _sparse(self, coding: Coding, count: int) -> Symbols:
        if coding.size > count:
            raise DeltaError(f"{coding.size} gaps between {count} elements")
        gaps = self._coded.take(coding.size, self._table(coding, 0)).astype(np.int64)
        is_change = gaps != ESCAPE
        ends = np.cumsum(gaps + is_change)
        changed = ends[is_change] - 1
        if changed.size and changed[-1] >= count:
            raise DeltaError("a change lies outside of its piece")
        found = np.zeros(count, np.uint8)
        found[changed] = self._coded.take(changed.size, self._table(coding, 1))
        return found

    def _table(self, coding: Coding, index: int) -> Table:
        number = coding.tables[index]
        if number >= len(self._tables):
            raise DeltaError(f"table {number} of {len(self._tables)}")
        return self._tables[number]

    def _chunk(self, size: int) -> memoryview:
        chunk = self._chunks[self._at : self._at + size]
        if len(chunk) < size:
            raise DeltaError(f"{size} bytes are announced, {len(chunk)} are left")
        self._at += size
        return chunk


def sparse(plane: Symbols) -> tuple[Symbols, Symbols]:
    """Return the gaps and the changes of a plane."""
    (changed,) = plane.nonzero()
    gaps = np.diff(changed, prepend=-1) - 1
    escapes = gaps // ESCAPE
    every = np.full(len(changed) + int(escapes.sum()), ESCAPE, np.uint8)
    every[np.cumsum(escapes + 1) - 1] = gaps % ESCAPE
    return every, plane[changed]


def pack(codec: Codec, data: bytes) -> bytes:
    """Return the chunk of BZ2 or LZMA."""
    if codec is Codec.BZ2:
        return bz2.compress(data, LEVEL)
    return lzma.compress(data, lzma.FORMAT_RAW, filters=list(FILTERS))


def unpack(codec: Codec, chunk: memoryview, size: int) -> bytes:
    """Return what `pack` was given; never more than one byte too many is unpacked.

    Raises:
        DeltaError: Damaged, not all of it used, or not `size` bytes.
    """
    engine = (
        bz2.BZ2Decompressor()
        if codec is Codec.BZ2
        else lzma.LZMADecompressor(lzma.FORMAT_RAW, filters=list(FILTERS))
    )
    try:
        data = engine.decompress(bytes(chunk), size + 1)
    except (OSError, lzma.LZMAError, EOFError, ValueError) as error:
        raise DeltaError(f"a chunk of the delta is damaged: {error}") from error
    if len(data) != size or engine.unused_data:
        raise DeltaError(f"a chunk of the delta does not hold the {size} bytes it should")
    return data
