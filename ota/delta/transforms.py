"""How elements are compared, and how the comparison is undone: exact inverses of each other.

    apply(kind, old, codes(kind, old, new, step), step) == new      bit for bit, NaNs included

Codes are unsigned and small where old and new are alike: differences are taken modulo the width,
floats first become integers in their own order, and the sign moves to the lowest bit (zigzag).
"""

from collections.abc import Sequence
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from wildflower.ota.delta.segments import Kind

Codes = npt.NDArray[np.unsignedinteger[Any]]

_TYPES: Final[dict[Kind, str]] = {
    Kind.LITERAL: "<u1",
    Kind.BYTES: "<u1",
    Kind.FLOAT16: "<u2",
    Kind.FLOAT32: "<u4",
    Kind.INT32: "<u4",
    Kind.STEP: "<u2",
}
"""Of the codes."""

_FLOATS: Final = (Kind.FLOAT16, Kind.FLOAT32)


def codes(kind: Kind, old: memoryview, new: memoryview, step: float = 0.0) -> Codes:
    """Return what turns `old` into `new`, one unsigned integer for each element.

    Args:
        kind: How to compare.
        old: Bytes of the old file, as many as of the new; not looked at for literals.
        new: Bytes of the new file.
        step: For `Kind.STEP`: every element of `new` is the old one and a whole number of steps in
            [-32768, 32767], rounded to float32 twice; the caller checks with `apply`.
    """
    if kind is Kind.LITERAL:
        return np.frombuffer(new, "u1")
    if kind is Kind.STEP:
        with np.errstate(all="ignore"):  # infinities and NaNs do not pass the caller's check
            moved = np.frombuffer(new, "<f4").astype(np.float64) - np.frombuffer(old, "<f4")
            counts = np.nan_to_num(np.rint(moved / step)).clip(-32768, 32767)
        return zigzag(counts.astype(np.int16).view(np.uint16))
    before, after = _bits(kind, old), _bits(kind, new)
    return zigzag(after - before)


def apply(kind: Kind, old: memoryview, found: Codes, step: float = 0.0) -> bytes:
    """Return the new bytes."""
    if kind is Kind.LITERAL:
        return found.tobytes()
    if kind is Kind.STEP:
        counts = unzigzag(found).view(np.int16).astype(np.float32)
        with np.errstate(all="ignore"):  # a signed weight may be infinite; it is not ours to judge
            # Two roundings, never one: a fused multiply-add would give other bits elsewhere.
            moved = counts * np.float32(step)
            after: npt.NDArray[np.float32] = np.frombuffer(old, "<f4") + moved
        return after.astype("<f4", copy=False).tobytes()
    integers = unzigzag(found)
    integers += _bits(kind, old)
    return (unordered(integers) if kind in _FLOATS else integers).tobytes()


def to_planes(found: Codes) -> npt.NDArray[np.uint8]:
    """Return the bytes of codes, lowest first, shape (width, n): noise apart from structure."""
    width = found.dtype.itemsize
    return np.ascontiguousarray(found.view(np.uint8).reshape(-1, width).T)


def from_planes(kind: Kind, planes: Sequence[npt.NDArray[np.uint8]]) -> Codes:
    """Return the codes whose bytes are `planes`, lowest first, shape (n,) each."""
    joined: Codes = planes[-1].astype(_TYPES[kind], copy=False)
    for plane in planes[
        -2::-1
    ]:  # shifts of whole vectors; a transposition takes five times as long
        joined <<= 8
        joined |= plane
    return joined


def zigzag(differences: Codes) -> Codes:
    """Return 0, 1, 2, 3, 4 ... for 0, -1, 1, -2, 2 ... (modulo the width).

    Example:
        >>> zigzag(np.array([0, 255, 1, 254], np.uint8)).tolist()
        [0, 1, 2, 3]
    """
    top = 8 * differences.dtype.itemsize - 1
    coded: Codes = (differences << 1) ^ np.negative(differences >> top)
    return coded


def unzigzag(found: Codes) -> Codes:
    """Return what `zigzag` was given."""
    differences: Codes = np.bitwise_and(found, 1, dtype=found.dtype)
    np.negative(differences, out=differences)
    differences ^= found >> 1
    return differences


def ordered(bits: Codes) -> Codes:
    """Return integers that are in the order of the floats whose bits are given."""
    top = 8 * bits.dtype.itemsize - 1
    flipped = _spread(bits)
    flipped |= bits.dtype.type(1) << top
    flipped ^= bits
    return flipped


def unordered(integers: Codes) -> Codes:
    """Return what `ordered` was given."""
    top = 8 * integers.dtype.itemsize - 1
    flipped = _spread(integers)
    np.invert(flipped, out=flipped)
    flipped |= integers.dtype.type(1) << top
    flipped ^= integers
    return flipped


def _spread(bits: Codes) -> Codes:
    """Return all ones where the highest bit is set, else zero."""
    signed: npt.NDArray[Any] = bits.view(f"<i{bits.dtype.itemsize}")
    spread: Codes = (signed >> (8 * bits.dtype.itemsize - 1)).view(bits.dtype)
    return spread


def _bits(kind: Kind, data: memoryview) -> Codes:
    bits: Codes = np.frombuffer(data, _TYPES[kind])
    return ordered(bits) if kind in _FLOATS else bits
