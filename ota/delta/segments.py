"""What a delta is made of: stretches of the new file, each like a stretch of the old one.

A *region* is a tensor's bytes in one file; only the server can find those, because it knows the
file formats. A *segment* is a stretch of the new file with what it is compared to, and that is all
a device needs to know. Segments cover the new file without gap or overlap:

    sum(segment.length for segment in align(base, target, ...)) == len(target)

What lies between two regions (the graph, names, lengths) is compared too where it is as long as
its counterpart; between rounds of one model it nearly always is, and equal besides.
"""

import itertools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from enum import IntEnum, unique
from typing import Final

import numpy as np

MIN_REGION: Final = 16  # bytes; a smaller one costs more to name than its type saves


@unique
class Kind(IntEnum):
    """What elements a segment consists of, and so how they are compared."""

    LITERAL = 0
    """Bytes that are compared to nothing."""
    BYTES = 1
    """8-bit integers, and whatever has no better kind: difference modulo 256."""
    FLOAT16 = 2
    """Half precision, IEEE or bfloat16: difference of order-preserving integers."""
    FLOAT32 = 3
    """Single precision: difference of order-preserving integers."""
    INT32 = 4
    """Difference modulo 2**32."""
    STEP = 5
    """Single precision, new = old + code * step, the codes 16-bit integers."""

    @property
    def width(self) -> int:
        """Bytes of one element in the file."""
        return _WIDTHS[self]

    @property
    def planes(self) -> int:
        """Bytes that code one element."""
        return 2 if self is Kind.STEP else _WIDTHS[self]


_WIDTHS: Final[Mapping[Kind, int]] = {
    Kind.LITERAL: 1,
    Kind.BYTES: 1,
    Kind.FLOAT16: 2,
    Kind.FLOAT32: 4,
    Kind.INT32: 4,
    Kind.STEP: 4,
}


@dataclass(frozen=True, slots=True)
class Region:
    """One tensor's bytes in one file.

    Attributes:
        name: The tensor's name, the same in the next round's file.
        offset: Where its bytes begin.
        length: How many there are.
        kind: What they are.
    """

    name: str
    offset: int
    length: int
    kind: Kind

    @property
    def end(self) -> int:
        """Where its bytes end."""
        return self.offset + self.length


@dataclass(frozen=True, slots=True)
class Segment:
    """A stretch of the new file; where it begins follows from those before it.

    Attributes:
        kind: How it is compared.
        source: Where its counterpart begins in the old file; 0 for literals.
        length: Bytes, a multiple of the kind's width.
        step: For `Kind.STEP`, what a code of 1 adds, finite and above 0; else 0.
    """

    kind: Kind
    source: int
    length: int
    step: float = 0.0


def align(
    base: memoryview,
    target: memoryview,
    base_regions: Sequence[Region],
    target_regions: Sequence[Region],
    steps: Mapping[str, float] | None = None,
) -> tuple[Segment, ...]:
    """Return segments that cover the new file.

    Args:
        base: The old file.
        target: The new file.
        base_regions: Its tensors, in any order.
        target_regions: The new file's tensors, in any order.
        steps: By name, the steps of fp32 tensors that were released as old + codes * step.
    """
    pairs = list(_pairs(base_regions, target_regions))
    segments: list[Segment] = []
    old_at = new_at = 0
    for old, new in pairs:
        between = base[old_at : old.offset] if old.offset >= old_at else base[:0]
        segments += _between(between, target[new_at : new.offset], old_at)
        step = (steps or {}).get(new.name, 0.0) if new.kind is Kind.FLOAT32 else 0.0
        kind = Kind.STEP if step else new.kind
        segments.append(Segment(kind, old.offset, new.length, step))
        old_at, new_at = old.end, new.end
    segments += _between(base[old_at:], target[new_at:], old_at)
    return tuple(_joined(segments))


def _pairs(base: Sequence[Region], target: Sequence[Region]) -> Iterator[tuple[Region, Region]]:
    """Yield each tensor of both files that kept its type and size, in the new file's order."""
    known = {one.name: one for one in base}
    end = 0
    for new in sorted(target, key=lambda one: one.offset):
        old = known.get(new.name)
        is_same = old is not None and (old.kind, old.length) == (new.kind, new.length)
        if old is not None and is_same and new.offset >= end and new.length >= MIN_REGION:
            yield old, new
            end = new.end


def _between(old: memoryview, new: memoryview, source: int) -> Iterator[Segment]:
    """Yield segments for what is no tensor: its equal ends are compared, its middle may not be."""
    if len(old) == len(new):
        yield Segment(Kind.BYTES, source, len(new))
        return
    shorter = min(len(old), len(new))
    head = _equal(old[:shorter], new[:shorter])
    tail = _equal(old[::-1][: shorter - head], new[::-1][: shorter - head])
    yield Segment(Kind.BYTES, source, head)
    yield Segment(Kind.LITERAL, 0, len(new) - head - tail)
    yield Segment(Kind.BYTES, source + len(old) - tail, tail)


def _equal(left: memoryview, right: memoryview) -> int:
    """Return how many bytes are equal from the beginning of two views as long as each other."""
    differs = np.asarray(left) != np.asarray(right)
    return int(differs.argmax()) if differs.any() else len(left)


def _joined(segments: Sequence[Segment]) -> Iterator[Segment]:
    """Yield the segments without empty ones, those that go on from each other made one."""
    kept: Segment | None = None
    for one in itertools.chain(segments, [None]):
        if one is not None and one.length == 0:
            continue
        if kept is not None and one is not None and _goes_on(kept, one):
            kept = replace(kept, length=kept.length + one.length)
            continue
        if kept is not None:
            yield kept
        kept = one


def _goes_on(left: Segment, right: Segment) -> bool:
    if left.kind is not right.kind or left.kind is Kind.STEP:  # a tensor has a step of its own
        return False
    return left.kind is Kind.LITERAL or left.source + left.length == right.source
