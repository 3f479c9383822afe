"""Finds the tensors of an ExecuTorch file. The server's side; a device needs to know no format.

    [FlatBuffer with an extended header, "eh00"][segment][segment] ...

Constants lie in a segment, at offsets that the FlatBuffer lists, or, in files from before September
2024, inside of the FlatBuffer. What a backend made of its part of the network is bytes to everyone
else, so each such blob is one region of bytes. Tensors in files of their own (`.ptd`) are none.

Source: schema/program.fbs and extended_header.h of ExecuTorch 1.0: Program.execution_plan = 1,
constant_buffer = 2, backend_delegate_data = 3, segments = 4, constant_segment = 5,
mutable_data_segments = 6; ExecutionPlan.values = 2; EValue.val = 0 (type), 1; Tensor.scalar_type
= 0, sizes = 2, data_buffer_idx = 5, allocation_info = 6, extra_tensor_info = 9;
ExtraTensorInfo.mutable_data_segments_idx = 0, fully_qualified_name = 1, location = 2; DataSegment
.offset = 0, size = 1; SubsegmentOffsets.segment_index = 0, offsets = 1; Buffer.storage = 0;
BackendDelegateInlineData.data = 0.
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Final, TypeVar

from wildflower.ota.delta.flatbuffer import Buffer
from wildflower.ota.delta.segments import Kind, Region
from wildflower.ota.errors import FormatError

Item = TypeVar("Item")

IDENTIFIER: Final = b"ET12"
MAGIC: Final = int.from_bytes(b"eh00", "little")
HEADER: Final = 8  # where the extended header begins
BASE: Final = 24  # where it says where segments begin; before it: magic, length, program's size
TENSOR: Final = 5  # of the union KernelTypes
EXTERNAL: Final = 1  # of TensorDataLocation
MAX_DIMENSIONS: Final = 16  # the runtime's own limit

KINDS: Final[Mapping[int, Kind]] = {
    3: Kind.INT32,
    5: Kind.FLOAT16,
    6: Kind.FLOAT32,
    14: Kind.INT32,
    15: Kind.FLOAT16,  # bfloat16
}
"""By ScalarType; everything else is bytes."""

WIDTHS: Final[Mapping[int, int]] = {2: 2, 4: 8, 7: 8}
"""Bytes of one element where its kind does not say: short, long, double."""


def regions(data: bytes) -> tuple[Region, ...]:
    """Return the tensors and blobs of an ExecuTorch file, in the order of the file.

    Raises:
        FormatError: Not an ExecuTorch file.
    """
    if data[4:8] != IDENTIFIER:
        raise FormatError("not an ExecuTorch file")
    program = _Program(data)
    by_place = {one.offset: one for one in program.blobs()}
    by_place |= {one.offset: one for one in program.tensors()}  # a constant may be shared
    return tuple(by_place[place] for place in sorted(by_place))


class _Program:
    """The root table, and where the bytes lie that its parts speak of."""

    def __init__(self, data: bytes) -> None:
        self._buffer, self._end = Buffer(data), len(data)
        self._root = root = self._buffer.follow(0)
        self._inline = self._tables(root, 2)
        self._changing = self._tables(root, 6)
        has_segment = self._buffer.field(root, 5) is not None
        self._constant = self._buffer.child(root, 5) if has_segment else 0
        self._segments = [self._segment(one) for one in self._tables(root, 4)]

    def tensors(self) -> Iterator[Region]:
        """Yield the tensors that have bytes in this file."""
        for number, plan in enumerate(self._tables(self._root, 1)):
            for index, value in enumerate(self._tables(plan, 2)):
                if self._buffer.small(value, 0, "<B") == TENSOR:
                    yield from self._tensor(self._buffer.child(value, 1), f"{number}/{index}")

    def blobs(self) -> Iterator[Region]:
        """Yield what backends wrote: inline, and the segments that hold no constants."""
        for number, held in enumerate(self._tables(self._root, 3)):
            begin, end = self._buffer.bytes(held, 0)
            yield Region(f"inline/{number}", begin, end - begin, Kind.BYTES)
        lists = [*self._changing, *([self._constant] if self._constant else [])]
        taken = {self._buffer.small(one, 0, "<I") for one in lists}
        for number, (begin, size) in enumerate(self._segments):
            if number not in taken:
                yield self._region(f"segment/{number}", begin, size, Kind.BYTES)

    def _segment(self, table: int) -> tuple[int, int]:
        """Return where a segment begins, and how long it is."""
        if self._buffer.u32(HEADER) != MAGIC:
            raise FormatError("the ExecuTorch file has segments and no extended header")
        base = self._buffer.number(BASE, "<Q")
        return base + self._buffer.small(table, 0, "<Q"), self._buffer.small(table, 1, "<Q")

    def _tensor(self, tensor: int, name: str) -> Iterator[Region]:
        """Yield the tensor's region; nothing where it has no bytes here."""
        index = self._buffer.small(tensor, 5, "<I")
        which, is_external = 0, False
        if self._buffer.field(tensor, 9) is not None:
            extra = self._buffer.child(tensor, 9)
            which = self._buffer.small(extra, 0, "<Q")
            is_external = self._buffer.small(extra, 2, "<b") == EXTERNAL
            if self._buffer.field(extra, 1) is not None:
                name = self._buffer.text(extra, 1)
        if not index or is_external:
            return
        is_changing = self._buffer.field(tensor, 6) is not None  # but has a value to begin with
        offsets = _item(self._changing, which) if is_changing else self._constant
        begin, room = self._place(offsets, index)
        scalar = self._buffer.small(tensor, 0, "<b")
        kind = KINDS.get(scalar, Kind.BYTES)
        length = self._elements(tensor) * WIDTHS.get(scalar, kind.width)
        if length > room:
            raise FormatError(f"tensor {name!r} of {length} bytes has {room} in the file")
        yield self._region(name, begin, length, kind)

    def _place(self, offsets: int, index: int) -> tuple[int, int]:
        """Return where the bytes of a constant begin, and how many follow at most."""
        buffer = self._buffer
        if not offsets:
            begin, end = buffer.bytes(_item(self._inline, index), 0)
            return begin, end - begin
        start, size = _item(self._segments, buffer.small(offsets, 0, "<I"))
        listed = buffer.child(offsets, 1)
        if index >= buffer.u32(listed):
            raise FormatError(f"the ExecuTorch file has no constant {index}")
        offset = buffer.number(listed + 4 + 8 * index, "<Q")
        return start + offset, size - offset

    def _region(self, name: str, begin: int, length: int, kind: Kind) -> Region:
        if begin + length > self._end:
            raise FormatError(f"the file ends before byte {begin + length}")
        return Region(name, begin, length, kind)

    def _elements(self, tensor: int) -> int:
        """Return how many elements a tensor has; one without a shape is a single number."""
        if self._buffer.field(tensor, 2) is None:
            return 1
        listed = self._buffer.child(tensor, 2)
        count = self._buffer.u32(listed)
        if count > MAX_DIMENSIONS:
            raise FormatError(f"a tensor has {count} dimensions, more than {MAX_DIMENSIONS}")
        return math.prod(self._buffer.u32(listed + 4 + 4 * at) for at in range(count))

    def _tables(self, table: int, number: int) -> list[int]:
        """Return where the tables of a vector lie; none where it is not there."""
        is_there = self._buffer.field(table, number) is not None
        return [*self._buffer.vector(table, number)] if is_there else []


def _item(found: Sequence[Item], index: int) -> Item:
    if index >= len(found):
        raise FormatError(f"the ExecuTorch file speaks of item {index} of {len(found)}")
    return found[index]
