"""Finds the tensors of an ONNX file. The server's side; a device needs to know no file format.

It walks the file's own bytes, because the exact places of tensors are wanted and a protobuf
library hides them. A tensor's elements lie in `raw_data`, or packed in `float_data` (where ONNX
Runtime's quantiser puts scales); other forms, such as integers of varying length, are no regions
and count as what lies between.

Source: onnx.proto of ONNX 1.20: ModelProto.graph = 7; GraphProto.node = 1, initializer = 5;
NodeProto.attribute = 5; AttributeProto.name = 1, t = 5, g = 6, graphs = 11;
TensorProto.data_type = 2, float_data = 4, name = 8, raw_data = 9.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Final

from wildflower.ota.delta.segments import Kind, Region
from wildflower.ota.errors import FormatError

MAX_DEPTH: Final = 16  # graphs in branches in graphs

KINDS: Final[Mapping[int, Kind]] = {
    1: Kind.FLOAT32,
    6: Kind.INT32,
    10: Kind.FLOAT16,
    16: Kind.FLOAT16,  # bfloat16
}
"""By TensorProto.DataType; everything else is bytes."""


@dataclass(frozen=True, slots=True)
class _Field:
    number: int
    value: int
    begin: int
    end: int


def regions(data: bytes) -> tuple[Region, ...]:
    """Return the tensors of an ONNX file, in the order of the file.

    Args:
        data: The file, its tensors inside of it.

    Raises:
        FormatError: Not an ONNX file.
    """
    found: list[Region] = []
    for field in _fields(data, 0, len(data)):
        if field.number == 7:
            found += _graph(data, field, "", 0)
    if not found and data[:1] != b"\x08":
        raise FormatError("not an ONNX file: no graph with tensors in it")
    return tuple(sorted(found, key=lambda one: one.offset))


def _graph(data: bytes, graph: _Field, path: str, depth: int) -> Iterator[Region]:
    if depth > MAX_DEPTH:
        raise FormatError(f"graphs inside of graphs, more than {MAX_DEPTH} deep")
    for index, field in enumerate(_fields(data, graph.begin, graph.end)):
        if field.number == 5:
            yield from _tensor(data, field, path)
        elif field.number == 1:
            yield from _node(data, field, f"{path}{index}/", depth)


def _node(data: bytes, node: _Field, path: str, depth: int) -> Iterator[Region]:
    """Yield the tensors in a node's attributes: constants, and the graphs of branches."""
    attributes = (field for field in _fields(data, node.begin, node.end) if field.number == 5)
    for number, attribute in enumerate(attributes):
        for index, field in enumerate(_fields(data, attribute.begin, attribute.end)):
            if field.number == 5:
                yield from _tensor(data, field, path)
            elif field.number in (6, 11):
                yield from _graph(data, field, f"{path}{number}.{index}/", depth + 1)


def _tensor(data: bytes, tensor: _Field, path: str) -> Iterator[Region]:
    name, kind, place = "", 0, None
    for field in _fields(data, tensor.begin, tensor.end):
        if field.number == 2:
            kind = field.value
        elif field.number == 8:
            name = data[field.begin : field.end].decode(errors="replace")
        elif field.number in (4, 9) and field.end > field.begin:
            place = field
    if place is None:
        return
    what = Kind.FLOAT32 if place.number == 4 else KINDS.get(kind, Kind.BYTES)
    length = place.end - place.begin
    if length % what.width:
        raise FormatError(f"tensor {name!r}: {length} bytes are not whole elements")
    yield Region(path + name, place.begin, length, what)


def _fields(data: bytes, begin: int, end: int) -> Iterator[_Field]:
    """Yield the fields of a protobuf message."""
    at = begin
    while at < end:
        key, at = _number(data, at, end)
        value, start = 0, at
        match key & 7:
            case 0:
                value, at = _number(data, at, end)
            case 1:
                at += 8
            case 2:
                length, start = _number(data, at, end)
                at = start + length
            case 5:
                at += 4
            case other:
                raise FormatError(f"not an ONNX file: wire type {other} at byte {at}")
        if at > end:
            raise FormatError(f"not an ONNX file: a field ends at byte {at} of {end}")
        yield _Field(key >> 3, value, start, at)


def _number(data: bytes, at: int, end: int) -> tuple[int, int]:
    value = shift = 0
    while at < end and shift < 70:
        byte = data[at]
        value |= (byte & 127) << shift
        at, shift = at + 1, shift + 7
        if byte < 128:
            return value, at
    raise FormatError(f"not an ONNX file: no number at byte {at}")
